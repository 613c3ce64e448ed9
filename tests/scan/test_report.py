"""The command's outputs: tables, JSON with a fixed schema, HTML that a browser draws, comparison, exit codes."""

from __future__ import annotations

import inspect
import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pageone.scan import SCHEMA, ScanReport, scan
from pageone.scan.html import render
from pageone.scan.text import human

PAGE = 4096
Command = Callable[..., "subprocess.CompletedProcess[str]"]


def image(path: Path, numbers: list[int]) -> Path:
    pages = np.zeros((len(numbers), PAGE), np.uint8)
    pages.view(np.uint64)[:, 100] = numbers
    path.write_bytes(pages.tobytes())
    return path


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    a = image(tmp_path / "a<b>&c.img", [*range(1, 300), 0, 0, 0, *range(1, 200), *[7] * 50])
    return [a, image(tmp_path / "second.img", [*range(100, 400), 0])]


def test_json_has_the_documented_fields(images: list[Path], pageone: Command) -> None:
    done = pageone("scan", *map(str, images), "--json", "--watch", "0.01")
    assert done.returncode == 0, done.stderr
    value = json.loads(done.stdout)
    assert value["schema"] == SCHEMA == "pageone.scan/1"
    counts = ["pages", "zero_pages", "distinct_pages", "duplicate_pages", "unstable_pages"]
    for name in [*counts, "saveable_bytes", "already_shared_bytes"]:
        assert isinstance(value[name], int), name
    assert value["pages"] == 299 + 3 + 199 + 50 + 301
    assert value["zero_pages"] == 4
    assert value["distinct_pages"] == 399
    assert value["seconds"] > 0
    assert value["bytes_per_second"] > 0
    assert [target["name"] for target in value["targets"]] == [str(path) for path in images]
    documented = inspect.getdoc(ScanReport) or ""
    for name in [*value, *value["pageone"], *value["ksm"], *value["targets"][0], *value["watch"]]:
        assert f"``{name}``" in documented, f"ScanReport does not tell what {name} is"


def test_the_tables_show_the_figures(images: list[Path], pageone: Command) -> None:
    done = pageone("scan", *map(str, images), env={"COLUMNS": "120", "PATH": "/usr/bin:/bin"})
    assert done.returncode == 0, done.stderr
    report = scan(files=images)
    assert re.search(rf"distinct contents\s+{report.distinct_pages}\s", done.stdout)
    assert human(report.saveable_bytes) in done.stdout
    assert "a<b>&c.img" in done.stdout
    assert done.stderr == ""


def test_a_comparison_tells_what_changed(images: list[Path], tmp_path: Path, pageone: Command) -> None:
    old = tmp_path / "old.json"
    old.write_text(pageone("scan", str(images[1]), "--json").stdout)
    image(images[1], [1] * 10)
    done = pageone("scan", str(images[1]), "--compare", str(old))
    assert re.search(r"zero bytes\s+4.0 KiB\s+0 B\s+-4.0 KiB", done.stdout), done.stdout
    assert re.search(r"duplicate bytes\s+0 B\s+36.0 KiB\s+\+36.0 KiB", done.stdout)


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (["{good}", "{missing}"], 1, "No such file"),
        (["{missing}"], 2, "No such file"),
        ([], 2, "nothing to scan"),
        (["--match", "("], 2, "not a regular expression"),
        (["--user", "no-such-user-here"], 2, "no such user"),
        (["--descendants"], 2, "--descendants"),
        (["0"], 2, "a PID is a number"),
        (["99999999999"], 2, "a PID is a number"),
        (["4194305"], 2, "no such process"),
        (["{good}", "--page-size", "17"], 2, "page size 17"),
        (["{good}", "--threads", "0"], 2, "threads 0"),
        (["{good}", "--compare", "{good}"], 2, "not a scan report"),
        (["{good}", "--compare", "{missing}"], 2, "No such file"),
        (["{good}", "--html", "/nowhere/at/all.html"], 2, "existing folder"),
        (["{good}", "--threads", "many"], 2, "--threads"),
    ],
)
def test_bad_input_is_one_line_and_an_exit_code(
    images: list[Path], tmp_path: Path, pageone: Command, args: list[str], code: int, says: str
) -> None:
    names = {"good": str(images[1]), "missing": str(tmp_path / "missing")}
    done = pageone("scan", *(arg.format(**names) for arg in args))
    assert done.returncode == code, done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    if code == 1:
        assert "distinct contents" in done.stdout, "the rest is scanned"


@pytest.mark.needs("program:chromium")
def test_the_html_report_is_drawn_by_a_browser_without_a_network(
    images: list[Path], tmp_path: Path, pageone: Command
) -> None:
    path = tmp_path / "report.html"
    done = pageone("scan", *map(str, images), "--html", str(path), "--watch", "0.01")
    assert done.returncode == 0, done.stderr
    browser = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=20000"]
    browser += [f"--user-data-dir={tmp_path / 'profile'}", "--host-resolver-rules=MAP * ~NOTFOUND"]
    drawn = subprocess.run([*browser, "--dump-dom", path.as_uri()], capture_output=True, text=True, timeout=100)
    dom = drawn.stdout[drawn.stdout.index("<body") :]
    for plot in ("composition", "regions", "pairs", "runs", "volatility"):
        part = dom[dom.index(f'id="{plot}"') :]
        part = part[: part.index("<h2") if "<h2" in part else None]
        assert 'class="main-svg"' in part, f"{plot} is not drawn"
        mark = "<image" if plot == "pairs" else 'class="point"'
        assert mark in part or "heatmaplayer" in part, f"{plot} has no marks"
    assert "could be freed" in dom
    shot = tmp_path / "report.png"
    size = "--window-size=1200,2400"
    subprocess.run([*browser, size, f"--screenshot={shot}", path.as_uri()], capture_output=True, timeout=100)
    assert shot.stat().st_size > 40_000, "an empty page is smaller"


def test_html_escapes_names_and_asks_nothing_of_the_network(images: list[Path]) -> None:
    pytest.importorskip("plotly", reason="plotly (extra 'report') is not installed")
    text = render(scan(files=images))
    assert "a&lt;b&gt;&amp;c.img" in text
    body = text[text.index("<body") :]
    assert "a<b>&c.img" not in re.sub(r"<script.*?</script>", "", body, flags=re.S)
    assert not re.search(r"<(script|link|img)[^>]+(src|href)=", text[: text.index("<script")] + body)


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1023, "1023 B"), (4096, "4.0 KiB"), (-(5 << 20), "-5.0 MiB"), (3 << 40, "3.0 TiB")]
)
def test_bytes_are_written_with_binary_units(count: int, text: str) -> None:
    assert human(count) == text

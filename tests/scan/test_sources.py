"""Files of every kind: sparse, qcow2, core dumps, truncated, and what is no file at all: a clear line, no hang."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from pageone.errors import UsageError
from pageone.scan import scan, sources

if TYPE_CHECKING:
    from conftest import Spawner

PAGE = 4096


def pages(*numbers: int) -> bytes:
    out = np.zeros((len(numbers), PAGE), np.uint8)
    out.view(np.uint64)[:, 7] = numbers
    return out.tobytes()


def test_holes_of_a_sparse_file_are_skipped_however_large_it_is(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(100 << 30)
        for at, numbers in ((0, (1, 2)), (50 << 30, (2, 3)), ((100 << 30) - PAGE, (1,))):
            file.seek(at)
            file.write(pages(*numbers))
    report = scan(files=[path])
    data = report.pages
    assert data <= 64, "the file system gives data in its blocks"
    assert report.distinct_pages == 3
    assert report.duplicate_pages == 2
    assert report.targets[0]["hole_pages"] == (100 << 30) // PAGE - data
    assert report.seconds < 5


def test_a_file_of_holes_and_an_empty_file_have_no_pages(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    with (tmp_path / "holes").open("wb") as file:
        file.truncate(1 << 30)
    report = scan(files=[tmp_path / "empty", tmp_path / "holes"])
    assert report.pages == 0
    assert report.saveable_bytes == 0
    assert report.problems == []


def test_bytes_behind_the_last_whole_page_are_told(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(pages(1, 1) + b"x" * 100)
    report = scan(files=[path])
    assert (report.pages, report.targets[0]["tail_bytes"]) == (2, 100)


@pytest.mark.needs("program:qemu-img")
@pytest.mark.parametrize("how", ["plain", "compressed", "backing"])
def test_a_qcow2_image_counts_as_its_guest_sees_it(tmp_path: Path, how: str) -> None:
    rng = np.random.default_rng(3)
    numbers = rng.integers(1, 40, 512)
    raw = tmp_path / "image.raw"
    raw.write_bytes(pages(*numbers.tolist()))
    with raw.open("r+b") as file:
        file.truncate(64 << 20)
    image = tmp_path / "image.qcow2"
    options = ["-c"] if how == "compressed" else []
    subprocess.run(["qemu-img", "convert", *options, "-O", "qcow2", raw, image], check=True)
    if how == "backing":
        top = tmp_path / "top.qcow2"
        create = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", image, "-F", "qcow2", top]
        subprocess.run(create, check=True, capture_output=True)
        image = top
    expected = scan(files=[raw])
    report = scan(files=[image])
    assert report.problems == []
    assert report.distinct_pages == expected.distinct_pages
    assert report.duplicate_pages == expected.duplicate_pages
    assert report.pages + report.targets[0]["hole_pages"] == (64 << 20) // PAGE


@pytest.mark.needs("program:qemu-img")
@pytest.mark.parametrize("keep", [3, 60, 70_000, 200_000])
def test_a_truncated_qcow2_image_is_a_clear_line(tmp_path: Path, keep: int) -> None:
    raw = tmp_path / "image.raw"
    raw.write_bytes(pages(*range(1, 129)))
    image = tmp_path / "image.qcow2"
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", raw, image], check=True)
    os.truncate(image, keep)
    try:
        report = scan(files=[image])
    except UsageError as error:
        assert str(image) in str(error)  # noqa: PT017 (either outcome is right, a crash is not)
        assert "\n" not in str(error)  # noqa: PT017
    else:
        assert keep < 4 or report.problems or report.pages + report.targets[0]["hole_pages"] <= 128


def test_a_qcow2_image_without_qemu_img_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = tmp_path / "image.qcow2"
    image.write_bytes(b"QFI\xfb" + bytes(100))
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(UsageError, match="qemu-utils"):
        scan(files=[image])


# --- core dumps -----------------------------------------------------------------------------------------------

HOLDER = """
import ctypes, mmap, sys
import numpy as np
m = mmap.mmap(-1, 512 * 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
v = np.frombuffer(m, dtype=np.uint8).reshape(512, 4096)
v[:] = 0
v[:256, :8] = (np.arange(256) % 64)[:, None] + 100
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def core(tmp_path: Path, spawn: Spawner) -> Path:
    process = spawn.python(HOLDER)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    subprocess.run(["gcore", "-o", tmp_path / "core", str(process.pid)], check=True, capture_output=True)
    return tmp_path / f"core.{process.pid}"


@pytest.mark.needs("program:gcore")
def test_a_core_dump_is_read_by_its_segments(core: Path) -> None:
    report = scan(files=[core])
    assert report.problems == []
    assert report.targets[0]["kind"] == "core"
    size = core.stat().st_size // PAGE
    assert 0.9 * size < report.pages + report.targets[0]["hole_pages"] <= size
    assert report.duplicate_pages >= 192, "64 contents, four pages each"
    assert report.zero_pages + report.targets[0]["hole_pages"] >= 256
    kinds = [row["kind"] for row in report.regions]
    assert any("python" in kind for kind in kinds), "mapped files are named by the dump's notes"
    assert any(kind.startswith("anonymous") for kind in kinds)


@pytest.mark.needs("program:gcore")
def test_a_truncated_core_dump_is_scanned_as_far_as_it_goes_and_said_so(core: Path) -> None:
    whole = scan(files=[core])
    os.truncate(core, core.stat().st_size // 2)
    report = scan(files=[core])
    assert 0 < report.pages < whole.pages
    assert any("truncated" in problem for problem in report.problems)
    os.truncate(core, 100)
    with pytest.raises(UsageError, match="cut off"):
        scan(files=[core])


@pytest.mark.needs("program:gcore")
def test_a_core_dump_with_random_bytes_in_its_header_never_crashes(core: Path) -> None:
    rng = np.random.default_rng(11)
    head = core.read_bytes()[:4096]
    for _ in range(60):
        bad = bytearray(head)
        for at in rng.integers(18, 4096 if rng.random() < 0.3 else 200, 4).tolist():
            bad[at] = int(rng.integers(256))
        with core.open("r+b") as file:
            file.write(bad)
        try:
            report = scan(files=[core])
        except UsageError as error:
            assert str(core) in str(error)  # noqa: PT017 (either outcome is right, a crash is not)
        else:
            assert report.pages <= core.stat().st_size // PAGE + 1


# --- what is no file ------------------------------------------------------------------------------------------


def test_what_cannot_be_scanned_is_named_with_the_reason(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "socket"))
    closed = tmp_path / "closed"
    closed.write_bytes(b"x")
    closed.chmod(0)
    for path, reason in (
        (fifo, "is a FIFO"),
        (tmp_path / "socket", "is a socket"),
        (Path("/dev/zero"), "is a character device"),
        (Path("/dev/tty"), "is a character device"),
        (tmp_path, "is a directory"),
        (tmp_path / "missing", "No such file"),
        (Path("with\0zero"), "null"),
    ):
        with pytest.raises(UsageError, match=re.escape(reason)):
            sources.file(path)
    if os.geteuid():
        with pytest.raises(UsageError, match="Permission denied"):
            sources.file(closed)
    listener.close()


def test_the_rest_is_scanned_when_one_of_several_cannot_be(tmp_path: Path) -> None:
    good = tmp_path / "good"
    good.write_bytes(pages(1, 1))
    report = scan(files=[tmp_path, good, tmp_path / "missing"])
    assert report.duplicate_pages == 1
    assert len(report.problems) == 2


def test_a_deleted_file_that_a_descriptor_still_holds_can_be_scanned(tmp_path: Path) -> None:
    path = tmp_path / "gone"
    path.write_bytes(pages(4, 4, 4))
    with path.open("rb") as file:
        path.unlink()
        assert scan(files=[f"/proc/{os.getpid()}/fd/{file.fileno()}"]).duplicate_pages == 2


@pytest.mark.parametrize(
    "options",
    [{"page_size": 3}, {"page_size": 2**21}, {"threads": 0}, {"watch": -1.0}, {"watch": float("nan")}],
)
def test_options_out_of_range_are_refused_before_anything_is_opened(tmp_path: Path, options: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=next(iter(options)).replace("_", " ")):
        scan(files=[tmp_path / "missing"], **options)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="nothing to scan"):
        scan()


def test_the_package_can_be_called() -> None:
    import pageone

    assert callable(pageone.scan)
    assert pageone.scan(files=[sys.executable]).pages > 0

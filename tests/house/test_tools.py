"""The Makefile's helpers: what is missing is named, tests are counted."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def toolbox(tmp_path: Path) -> Path:
    """A PATH that has all that is needed, each tool a script that answers as the real one does."""
    for tool in ("uname", "sed", "awk", "sort", "head", "tail", "dirname", "bash", "env"):
        found = subprocess.run(["bash", "-c", f"command -v {tool}"], capture_output=True, text=True).stdout.strip()
        (tmp_path / tool).symlink_to(found)
    for tool, answer in {"cargo": "cargo 1.99.0", "rustc": "rustc 1.99.0 (x)", "gcc": "gcc"}.items():
        (tmp_path / tool).write_text(f"#!/bin/bash\necho '{answer}'\n")
        (tmp_path / tool).chmod(0o755)
    (tmp_path / "python3").symlink_to(sys.executable)
    return tmp_path


def check(toolbox: Path) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": str(toolbox)} | {k: v for k, v in os.environ.items() if k.startswith("LD_")}
    script = ROOT / "tools" / "check_toolchain.sh"
    return subprocess.run([toolbox / "bash", script], env=environment, capture_output=True, text=True)


def test_a_whole_toolchain_passes_in_silence(toolbox: Path) -> None:
    done = check(toolbox)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("tool", ["cargo", "rustc", "gcc", "python3"])
def test_a_missing_tool_is_named_with_how_to_get_it(toolbox: Path, tool: str) -> None:
    (toolbox / tool).unlink()
    done = check(toolbox)
    assert done.returncode != 0
    assert {"gcc": "C compiler"}.get(tool, f"{tool} was not found") in done.stderr
    assert ("rustup" if tool in ("cargo", "rustc") else "apt install") in done.stderr


def test_an_old_rust_is_named_with_the_version_wanted(toolbox: Path) -> None:
    (toolbox / "rustc").write_text("#!/bin/bash\necho 'rustc 1.63.0 (Debian)'\n")
    done = check(toolbox)
    assert done.returncode != 0
    assert "rustc is 1.63.0, older than" in done.stderr


def test_an_old_python_is_named_with_the_version_wanted(toolbox: Path) -> None:
    (toolbox / "python3").unlink()
    (toolbox / "python3").write_text('#!/bin/bash\n[[ "$2" == *exit* ]] && exit 1\necho 3.9.2\n')
    (toolbox / "python3").chmod(0o755)
    done = check(toolbox)
    assert done.returncode != 0
    assert "3.9.2, older than 3.10" in done.stderr


def test_a_python_without_ensurepip_is_named_with_the_package_that_has_it(toolbox: Path) -> None:
    (toolbox / "python3").unlink()
    (toolbox / "python3").write_text('#!/bin/bash\n[[ "$2" == *ensurepip* ]] && exit 1\nexit 0\n')
    (toolbox / "python3").chmod(0o755)
    done = check(toolbox)
    assert done.returncode != 0
    assert "apt install python3-venv" in done.stderr


def test_outcomes_of_nextest_and_of_cargo_test_are_counted() -> None:
    count = load("count_tests").count_rust
    nextest = "     Summary [   0.004s] 12 tests run: 10 passed, 2 failed, 3 skipped\n"
    cargo = "test result: ok. 5 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out\n"
    assert count(nextest + cargo) == {"passed": 15, "failed": 2, "skipped": 4}


def test_outcomes_of_pytest_are_counted_with_the_reasons_of_skips() -> None:
    xml = (
        "<testsuites><testsuite><testcase name='a'/><testcase name='b'><failure/></testcase>"
        "<testcase name='c'><skipped message='needs root'/></testcase></testsuite></testsuites>"
    )
    counts, reasons = load("count_tests").count_pytest(xml)
    assert counts == {"passed": 1, "failed": 1, "skipped": 1}
    assert reasons == {"needs root": 1}


def test_a_run_of_no_test_at_all_is_a_failure(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("")
    (tmp_path / "xml").write_text("<testsuites/>")
    assert load("count_tests").main(str(tmp_path / "log"), str(tmp_path / "xml")) == 1


def test_requirements_are_those_of_the_package_and_of_its_developers() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "requirements.py", ROOT / "pyproject.toml"],
        capture_output=True,
        text=True,
        check=True,
    )
    lines = done.stdout.splitlines()
    assert any(line.startswith("numpy") for line in lines)
    assert any(line.startswith("mypy") for line in lines)

"""The wheel: what is in it, and that it works where nothing of the checkout is.

``make test`` builds one around the native core of the checkout, so the peers of benchmarks are in that. ``make wheel``
builds the one that users get, and gives it to these tests by the variable ``PAGEONE_WHEEL``.
"""

from __future__ import annotations

import email
import email.message
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
GIVEN = os.environ.get("PAGEONE_WHEEL")
STAMPS = ROOT / ".stamps"


@pytest.fixture(scope="module")
def wheel() -> Path:
    if GIVEN:
        return Path(GIVEN).resolve()
    built, stamp = sorted((ROOT / "target" / "wheel").glob("*.whl")), STAMPS / "wheel"
    if not built or not stamp.exists() or stamp.stat().st_mtime < (STAMPS / "native").stat().st_mtime:
        pytest.skip("needs a wheel, newer than the native core: make .stamps/wheel")
    return built[-1]


def metadata(wheel: Path) -> email.message.Message:
    with zipfile.ZipFile(wheel) as files:
        name = next(name for name in files.namelist() if name.endswith(".dist-info/METADATA"))
        return email.message_from_bytes(files.read(name))


@pytest.fixture(scope="module")
def elsewhere(
    wheel: Path, tmp_path_factory: pytest.TempPathFactory, distributions: Callable[[Sequence[str]], set[str]]
) -> Path:
    """Install the wheel into a new environment, which has what the wheel asks for; return the folder of that."""
    folder = tmp_path_factory.mktemp("elsewhere")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    python = folder / "venv" / "bin" / "python"
    where = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    library = Path(subprocess.run(where, check=True, capture_output=True, text=True).stdout.strip())
    # Of other packages those that are installed here, as links: no network is needed, and it takes no time.
    lines = metadata(wheel).get_all("Requires-Dist", [])
    asked = [re.split(r"[^\w.-]", line)[0] for line in lines if "extra ==" not in line]
    for name in sorted(distributions([*asked, "pip"])):
        for top in {file.parts[0] for file in importlib.metadata.files(name) or []} - {"..", "__pycache__"}:
            (library / top).symlink_to(str(importlib.metadata.distribution(name).locate_file(top)))
    install = ["-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-index", str(wheel)]
    done = subprocess.run([python, *install], cwd=folder, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


def environment() -> dict[str, str]:
    """Return the variables of this process without those by which Python could find the checkout."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}


def run(folder: Path, program: str, *args: str) -> subprocess.CompletedProcess[str]:
    """Run a program of the new environment there."""
    argv = [folder / "venv" / "bin" / program, *args]
    return subprocess.run(argv, cwd=folder, env=environment(), capture_output=True, text=True, timeout=110)


def test_one_wheel_is_for_every_python_that_the_package_allows(wheel: Path) -> None:
    oldest = metadata(wheel)["Requires-Python"].removeprefix(">=")
    assert f"-cp{oldest.replace('.', '')}-abi3-" in wheel.name
    with zipfile.ZipFile(wheel) as files:
        assert [name for name in files.namelist() if name.endswith(".so")] == ["pageone/_native.abi3.so"]


def test_the_wheel_has_the_package_with_its_types_and_licence_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as files:
        names = {name for name in files.namelist() if not re.search(r"\.dist-info/(sboms|RECORD|WHEEL)", name)}
    there = {str(path.relative_to(ROOT / "python")) for path in (ROOT / "python").rglob("*.py*")}
    package = {name for name in there if "__pycache__" not in name} | {"pageone/py.typed", "pageone/_native.abi3.so"}
    assert {name for name in names if ".dist-info/" not in name} == package
    kept = {name.split(".dist-info/")[1] for name in names if ".dist-info/" in name}
    assert kept == {"METADATA", "entry_points.txt", "licenses/LICENSE"}


def test_the_installed_package_is_all_that_is_imported(elsewhere: Path) -> None:
    done = run(elsewhere, "python", "-c", "import pageone, pageone._native as n; print(pageone.__file__, n.__file__)")
    assert done.returncode == 0, done.stderr
    assert all(Path(found).is_relative_to(elsewhere / "venv") for found in done.stdout.split())


def test_the_installed_command_tells_the_version_of_the_wheel(wheel: Path, elsewhere: Path) -> None:
    done = run(elsewhere, "pageone", "--version")
    assert (done.returncode, done.stdout) == (0, f"pageone {metadata(wheel)['Version']}\n"), done.stderr


@pytest.mark.skipif(not GIVEN, reason="the core of a checkout has the peers of benchmarks: make wheel")
def test_the_wheel_of_users_has_no_peers_of_benchmarks(elsewhere: Path) -> None:
    done = run(elsewhere, "python", "-c", "import pageone._native as n; print(*vars(n))")
    assert done.returncode == 0, done.stderr
    assert not {"baselines", "ksm"} & set(done.stdout.split())


@pytest.mark.needs("merge")
def test_the_installed_command_merges_pages_of_real_processes(elsewhere: Path) -> None:
    done = run(elsewhere, "pageone", "demo", "--json", "--workers", "2", "--size", "8MiB")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["verified"] is True
    assert told["saved_bytes"] > 4 << 20  # how much of the 8 MiB that is, the tests of the demo ask

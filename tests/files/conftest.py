"""File systems that can share extents, on loop devices that go with the tests; and files of known blocks."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pageone.files import FilesReport, Job, scan

UNIT = 4096
#: Bytes of a file system: XFS asks for 300 MiB. The file under it is sparse.
SIZE = 640 << 20
MAKE = {"xfs": ["mkfs.xfs", "-q", "-m", "reflink=1"], "btrfs": ["mkfs.btrfs", "-q", "-m", "single"]}


def _lacking(kind: str) -> str | None:
    """Return why no file system of a kind can be made here."""
    if os.geteuid() != 0:
        return "needs root"
    if shutil.which(MAKE[kind][0]) is None:
        return f"needs the program {MAKE[kind][0]}"
    if kind not in Path("/proc/filesystems").read_text().split():
        subprocess.run(["modprobe", kind], capture_output=True, check=False)
        if kind not in Path("/proc/filesystems").read_text().split():
            return f"needs a kernel with {kind}"
    if not os.path.exists("/dev/loop-control"):
        return "needs loop devices"
    return None


@pytest.fixture(scope="session")
def make_file_system() -> Iterator[Callable[..., Path]]:
    """Make and mount a file system of a kind, with mount options; all are gone when the tests end."""
    made: list[Path] = []

    def make(kind: str, *options: str) -> Path:
        why = _lacking(kind)
        if why:
            pytest.skip(why)
        base = Path(tempfile.mkdtemp(prefix="pageone-files-", dir="/var/tmp"))
        base.chmod(0o755)
        made.append(base)
        image, top = base / "image", base / "top"
        top.mkdir()
        with image.open("wb") as file:
            file.truncate(SIZE)
        subprocess.run([*MAKE[kind], str(image)], check=True, capture_output=True)
        # `mount` takes a loop device that goes with the mount.
        mount = ["mount", "-t", kind, "-o", ",".join(["loop", *options]), str(image), str(top)]
        done = subprocess.run(mount, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"{kind} cannot be mounted here: {done.stderr.strip()}")
        top.chmod(0o777)
        return top

    try:
        yield make
    finally:
        for base in made:
            subprocess.run(["umount", str(base / "top")], capture_output=True, check=False)
            subprocess.run(["umount", "-l", str(base / "top")], capture_output=True, check=False)
            shutil.rmtree(base, ignore_errors=True)


_mounted: dict[str, Path] = {}


@pytest.fixture(params=["xfs", "btrfs"])
def sharing(request: pytest.FixtureRequest, make_file_system: Callable[..., Path]) -> Iterator[Path]:
    """An empty folder on a file system that can share: one of each kind for all tests."""
    kind = request.param
    if kind not in _mounted:
        _mounted[kind] = make_file_system(kind)
    folder = Path(tempfile.mkdtemp(dir=_mounted[kind]))
    folder.chmod(0o777)
    yield folder
    subprocess.run(["chattr", "-R", "-ia", str(folder)], capture_output=True, check=False)
    shutil.rmtree(folder)


@pytest.fixture
def scanned() -> Iterator[Callable[..., tuple[Job, FilesReport]]]:
    """Scan paths; what was opened is closed when the test ends."""
    jobs: list[Job] = []

    def run(*paths: Path, **options: object) -> tuple[Job, FilesReport]:
        job = scan([str(path) for path in paths], **options)  # type: ignore[arg-type]
        jobs.append(job)
        return job, job.report

    yield run
    for job in jobs:
        job.close()

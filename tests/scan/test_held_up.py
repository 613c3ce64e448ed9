"""A process that holds up whoever reads it: the scan names it, leaves it behind, and counts all others."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pageone.scan import scan

pytestmark = [pytest.mark.needs("gcc"), pytest.mark.timeout(100)]

SOURCE = Path(__file__).parents[1] / "live" / "programs" / "holds.c"


class Holder:
    """Starts programs that hold up whoever reads them when told to, and the others beside them."""

    def __init__(self, program: Path, folder: Path, spawn: Any) -> None:
        self.program, self.folder, self.spawn = program, folder, spawn

    def start(self, kind: str, **options: Any) -> subprocess.Popen[str]:
        one: subprocess.Popen[str] = self.spawn([self.program, kind, self.folder], **options)
        assert one.stdout
        if one.stdout.readline() != "ready\n":
            pytest.skip(f"needs FUSE: {one.stderr.read() if one.stderr else ''}")
        return one

    def strike(self, one: subprocess.Popen[str]) -> None:
        assert one.stdin
        assert one.stdout
        print("strike", file=one.stdin, flush=True)
        one.stdout.readline()


@pytest.fixture
def holder(compiled: Callable[..., Path], mount_folder: Path, spawn: Any) -> Iterator[Holder]:
    try:
        yield Holder(compiled(SOURCE), mount_folder, spawn)
    finally:
        spawn.close()  # whoever reads them goes on


@pytest.mark.parametrize(("who", "named"), [("root", True), ("user", False)], ids=["root by id", "user by name"])
def test_a_process_that_is_held_up_before_is_named_and_the_others_are_counted(
    who: str, named: bool, holder: Holder, as_user: Any, pageone: Callable[..., Any]
) -> None:
    if who == "root" and not as_user.is_other:
        pytest.skip("needs root")
    options = {} if who == "root" else as_user.identity
    held, other, twin = (holder.start(kind, **options) for kind in ("lock", "none", "none"))
    holder.strike(held)
    chosen = [str(one.pid) for one in (held, other, twin)] if named else ["--match", str(holder.folder)]
    done = (pageone if who == "root" else as_user.pageone)("scan", *chosen, "--threads", "2", "--json", timeout=60)
    assert done.returncode == 1, done.stderr
    report = json.loads(done.stdout)
    assert {other.pid, twin.pid} <= {target["pid"] for target in report["targets"]}
    assert held.pid not in {target["pid"] for target in report["targets"]}
    assert report["duplicate_pages"] >= 512
    (problem,) = (line for line in report["problems"] if str(held.pid) in line)
    assert "not scanned: it holds up whoever reads its memory" in problem
    assert problem in done.stderr


def test_a_process_that_is_held_up_meanwhile_is_left_behind_and_all_is_counted_again(holder: Holder) -> None:
    other, held, twin = (holder.start(kind) for kind in ("none", "lock", "none"))
    struck = []

    def strike(done: int, total: int) -> None:
        if not struck:
            struck.append((done, total))
            holder.strike(held)

    report = scan(pids=[other.pid, held.pid, twin.pid], watch=1.0, progress=strike)
    assert {target["pid"] for target in report.targets} == {other.pid, twin.pid}
    assert report.duplicate_pages >= 512
    assert len(report.problems) == 1, report.problems
    assert f"[{held.pid}]: not scanned" in report.problems[0]


def test_a_program_whose_scan_left_a_thread_behind_ends(holder: Holder, spawn: Any) -> None:
    other, held = holder.start("none"), holder.start("lock")
    code = (
        "import sys, pageone\n"
        "def strike(done, total):\n"
        "    if not told:\n"
        "        told.append(print('strike', flush=True)), sys.stdin.readline()\n"
        "told = []\n"
        "report = pageone.scan(pids=[int(pid) for pid in sys.argv[1:]], threads=2, watch=1.0, progress=strike)\n"
        "print(len(report.targets), report.problems)\n"
    )
    program = spawn([sys.executable, "-c", code, str(other.pid), str(held.pid)])
    assert program.stdout.readline() == "strike\n"
    holder.strike(held)
    out, err = program.communicate("\n", timeout=60)
    assert out.startswith("1 "), out + err
    assert "not scanned" in out
    assert program.returncode == 0

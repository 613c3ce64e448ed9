"""Programs in namespaces and control groups of their own, as containers have them: merged by root from outside."""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from pageone.engine import Engine

pytestmark = [pytest.mark.needs("merge", "root", "program:unshare")]

PAGES = 2048
FREEZERS = Path("/sys/fs/cgroup/freezer")
#: Longer than the guardian waits for a list of calls (``LIST_TIMEOUT`` of ``crates/pagemem/src/inject.rs``).
LIST_TIMEOUT_S = 5.0

PROGRAM = f"""
import mmap
size = {PAGES} * 4096
memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
content = bytes(range(1, 256)) * (4096 // 255 + 1)
memory[:] = b"".join((n).to_bytes(4, "little") + content[:4092] for n in range({PAGES}))
print("ready", flush=True)
for line in iter(input, "end"):
    part = size if line == "check all" else 4096 * 64
    memory[:part] = memory[:part]
    right = all(memory[4096 * n : 4096 * n + 4096] == n.to_bytes(4, "little") + content[:4092] for n in range({PAGES}))
    print("right" if right else "wrong", flush=True)
"""


def _last_descendant(pid: int) -> int:
    """Return the innermost process: ``unshare`` stays outside where it made a PID namespace."""
    deadline = time.monotonic() + 40
    while not (children := psutil.Process(pid).children(recursive=True)) and time.monotonic() < deadline:
        time.sleep(0.01)
    return int(children[-1].pid) if children else pid


def _expect_right(*programs: Any, what: str = "check") -> None:
    """Have programs write some of their pages anew and compare all; ``check all``: write all of them."""
    for program in programs:
        print(what, file=program.stdin, flush=True)
        assert program.stdout.readline() == "right\n"


def test_programs_in_namespaces_of_their_own_share_with_those_outside(spawn: Any, merge_at_least: Any) -> None:
    outside = spawn.python(PROGRAM)
    own = ["unshare", "--mount", "--pid", "--fork", "--user", "--map-root-user", "--net", "--ipc", "--uts"]
    inside = spawn([*own, sys.executable, "-u", "-c", PROGRAM])
    for program in (outside, inside):
        assert program.stdout.readline() == "ready\n", program.communicate()
    pid = _last_descendant(inside.pid)
    assert os.readlink(f"/proc/{pid}/ns/pid") != os.readlink("/proc/self/ns/pid")
    assert os.readlink(f"/proc/{pid}/ns/user") != os.readlink("/proc/self/ns/user")
    with Engine() as engine:
        targets = [engine.attach(outside.pid), engine.attach(pid)]
        merge_at_least(engine, 2 * PAGES)
        _expect_right(outside, inside)
        for target in targets:
            assert engine.detach(target)
        _expect_right(outside, inside)


def _tracer(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("TracerPid:")[1].split()[0])


def _freeze_inside_a_list(freezer: Path, pid: int, merging: threading.Thread) -> bool:
    """Freeze the group while the guardian works in process ``pid``; whether it then waits for a list of calls.

    One that is frozen on its way into a stop is waited for a moment only.
    """
    deadline = time.monotonic() + 5
    while not _tracer(pid):
        if time.monotonic() > deadline:
            return False
    freezer.write_text("FROZEN")
    merging.join(LIST_TIMEOUT_S / 2)
    if not merging.is_alive():
        freezer.write_text("THAWED")
        return False
    return True


@pytest.mark.timeout(300)
def test_a_program_that_is_frozen_in_the_middle_of_a_merge_goes_on_with_the_right_bytes(
    spawn: Any, control_group: Any, merge_at_least: Any
) -> None:
    if not FREEZERS.is_dir():
        pytest.skip("needs the freezer control group (version 1) at /sys/fs/cgroup/freezer")
    others = [spawn.python(PROGRAM) for _ in range(2)]
    for other in others:
        assert other.stdout.readline() == "ready\n"
    with control_group(FREEZERS) as group, Engine() as engine:
        programs = [spawn.python("input()\n" + PROGRAM) for _ in range(2)]
        for program in programs:
            (group / "cgroup.procs").write_text(str(program.pid))
            print("begin", file=program.stdin, flush=True)
            assert program.stdout.readline() == "ready\n"
        freezer = group / "freezer.state"
        targets = [engine.attach(program.pid) for program in programs]
        try:
            frozen, deadline = False, time.monotonic() + 120
            while not frozen and time.monotonic() < deadline:
                merging = threading.Thread(target=engine.merge_once, args=(0.1,))
                merging.start()
                frozen = _freeze_inside_a_list(freezer, programs[1].pid, merging)
                if frozen:
                    break
                merging.join()
                _expect_right(*programs, what="check all")  # so that there is as much to merge again
            assert frozen, "never met in the middle of a merge"
            # Frozen for longer than anybody waits: given up for now, and others are served.
            merging.join(3 * LIST_TIMEOUT_S)
            assert not merging.is_alive()
            assert _tracer(programs[1].pid), "detached in the middle of a syscall batch"
            for other in others:
                engine.attach(other.pid)
            merge_at_least(engine, PAGES)
            _expect_right(*others)
        finally:
            freezer.write_text("THAWED")
        _expect_right(*programs)
        engine.merge_once(0.1)
        _expect_right(*programs)
        for target in targets:
            assert engine.detach(target)
        _expect_right(*programs, *others)

"""Programs in namespaces and control groups of their own, as containers have them: merged by root from outside."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from pageone.engine import Engine

pytestmark = [pytest.mark.needs("merge", "root", "program:unshare")]

PAGES = 2048
MEMORY_GROUPS = Path("/sys/fs/cgroup/memory")

PROGRAM = f"""
import mmap
size = {PAGES} * 4096
memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
content = bytes(range(1, 256)) * (4096 // 255 + 1)
memory[:] = b"".join((n).to_bytes(4, "little") + content[:4092] for n in range({PAGES}))
print("ready", flush=True)
for line in iter(input, "end"):
    memory[:4096 * 64] = memory[:4096 * 64]
    right = all(memory[4096 * n : 4096 * n + 4096] == n.to_bytes(4, "little") + content[:4092] for n in range({PAGES}))
    print("right" if right else "wrong", flush=True)
"""


def _last_descendant(pid: int) -> int:
    """Return the innermost process: ``unshare`` stays outside where it made a PID namespace."""
    deadline = time.monotonic() + 10
    while not (children := psutil.Process(pid).children(recursive=True)) and time.monotonic() < deadline:
        time.sleep(0.01)
    return int(children[-1].pid) if children else pid


def _expect_right(*programs: Any) -> None:
    for program in programs:
        print("check", file=program.stdin, flush=True)
        assert program.stdout.readline() == "right\n"


def test_programs_in_namespaces_of_their_own_share_with_those_outside(spawn: Any) -> None:
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
        assert engine.merge_once(0.2).merged_pages >= 2 * PAGES
        _expect_right(outside, inside)
        for target in targets:
            assert engine.detach(target)
        _expect_right(outside, inside)


def test_programs_at_the_limit_of_their_memory_control_group_go_on(spawn: Any) -> None:
    if not (MEMORY_GROUPS / "memory.limit_in_bytes").exists():
        pytest.skip("needs a memory control group (version 1) at /sys/fs/cgroup/memory")
    group = MEMORY_GROUPS / f"pageone-test-{os.getpid()}"
    group.mkdir()
    programs = []
    try:
        for _ in range(2):
            program = spawn.python("input()\n" + PROGRAM)
            (group / "cgroup.procs").write_text(str(program.pid))
            print("begin", file=program.stdin, flush=True)
            assert program.stdout.readline() == "ready\n"
            programs.append(program)
        used = int((group / "memory.usage_in_bytes").read_text())
        (group / "memory.limit_in_bytes").write_text(str(used + (1 << 20)))
        with Engine() as engine:
            targets = [engine.attach(program.pid) for program in programs]
            assert engine.merge_once(0.2).merged_pages >= 2 * PAGES
            # Frames are charged to the engine's group: that much is free in this one.
            freed = used - int((group / "memory.usage_in_bytes").read_text())
            assert freed > PAGES * 4096
            _expect_right(*programs)
            for target in targets:
                assert engine.detach(target)
            _expect_right(*programs)
        assert (group / "memory.oom_control").read_text().split()[-1] == "0"
    finally:
        for program in programs:
            program.kill()
            program.wait()
        for _ in range(100):
            with contextlib.suppress(OSError):
                group.rmdir()
                break
            time.sleep(0.05)

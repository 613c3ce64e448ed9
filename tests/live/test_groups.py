"""The limit of a memory control group holds for what its processes use, merged or not."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest

from pageone.engine import Engine
from pageone.errors import TargetError
from pageone.live import groups

MIB = 1 << 20
PAGES = 4096

#: Fills memory that is another program's with the same argument, says so, and then whether it is right when asked.
PROGRAM = f"""
import mmap, sys
content = bytes(range(1, 256)) * (4096 // 255 + 1)
input()
def page(n):
    return (n + int(sys.argv[1])).to_bytes(4, "little") + content[:4092]
memory = mmap.mmap(-1, {PAGES} * 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
memory[:] = b"".join(map(page, range({PAGES})))
print("ready", flush=True)
for line in sys.stdin:
    print(all(memory[4096 * n : 4096 * (n + 1)] == page(n) for n in range({PAGES})), flush=True)
"""

#: Merges so many pages or so many times, in the group that it is put into, and says what it did.
ENGINE = """
import json, sys
from pageone.engine import Engine
from pageone.live import groups
pids = list(map(int, input().split()))
with Engine(period=0.05) as engine:
    for pid in pids:
        engine.attach(pid)
    print("attached", flush=True)
    input()
    merged = left = 0
    for _ in range(int(sys.argv[2])):
        report = engine.merge_once(0.1)
        merged += report.merged_pages
        left = report.left_pool
        if merged >= int(sys.argv[1]):
            break
    print(json.dumps({"merged": merged, "left": left, "frames": engine.stats.frames}), flush=True)
    input()
"""


def _start(spawn: Any, memory: Any, count: int, *, apart: bool = False) -> list[Any]:
    programs = []
    for k in range(count):
        program = spawn.python(PROGRAM, str(k * PAGES if apart else 0))
        (memory.group / "cgroup.procs").write_text(str(program.pid))
        print("begin", file=program.stdin, flush=True)
        assert program.stdout.readline() == "ready\n"
        programs.append(program)
    return programs


@pytest.mark.needs("merge", "root")
def test_a_program_under_a_limit_that_is_not_the_engines_is_left_alone(spawn: Any, memory: Any) -> None:
    (memory.group / memory.limit).write_text(str(100 * MIB))
    (inside,) = _start(spawn, memory, 1)
    with Engine() as engine:
        with pytest.raises(TargetError, match=rf"control group .*{memory.group.name} limits the memory .* to 100 MiB"):
            engine.attach(inside.pid)
        (memory.group / memory.limit).write_text("-1" if memory.version == 1 else "max")
        engine.detach(engine.attach(inside.pid))  # a group without a limit is no obstacle


@pytest.mark.needs("merge", "root")
def test_an_engine_under_a_limit_takes_none_from_outside_of_it(spawn: Any, memory: Any) -> None:
    outside = spawn.python(PROGRAM, "0")
    print("begin", file=outside.stdin, flush=True)
    assert outside.stdout.readline() == "ready\n"
    engine = spawn.python(ENGINE, "1", "1")
    (memory.group / memory.limit).write_text(str(300 * MIB))
    (memory.group / "cgroup.procs").write_text(str(engine.pid))
    print(outside.pid, file=engine.stdin, flush=True)
    assert engine.stdout.readline() == ""
    told = engine.stderr.read()
    assert re.search(rf"control group .*{memory.group.name} limits the memory of process .* to 300 MiB", told), told


def _within(spawn: Any, memory: Any, room: int, passes: int) -> tuple[dict[str, int], list[Any], int]:
    """Have an engine merge two programs of its group that may have ``room`` more bytes; what was used before, too."""
    engine = spawn.python(ENGINE, str(2 * PAGES), str(passes))
    (memory.group / "cgroup.procs").write_text(str(engine.pid))
    programs = _start(spawn, memory, 2)
    print(*(p.pid for p in programs), file=engine.stdin, flush=True)
    assert engine.stdout.readline() == "attached\n", engine.stderr.read()
    before = int((memory.group / memory.usage).read_text())
    (memory.group / memory.limit).write_text(str(before + room))
    print(file=engine.stdin, flush=True)
    return json.loads(engine.stdout.readline() or engine.stderr.read()), programs, before


def _right(programs: list[Any]) -> None:
    for program in programs:
        print("check", file=program.stdin, flush=True)
        assert program.stdout.readline() == "True\n"


@pytest.mark.needs("merge", "root")
@pytest.mark.timeout(90)
def test_programs_at_the_limit_of_their_group_are_merged_by_an_engine_in_it_and_pay_for_their_frames(
    spawn: Any, memory: Any
) -> None:
    # All their frames at once are more than that less what is left free (8 MiB) and what the engine itself will take.
    told, programs, before = _within(spawn, memory, 16 * MIB, 60)
    assert told["merged"] >= 2 * PAGES
    assert told["frames"] >= PAGES

    def used() -> int:
        return int((memory.group / memory.usage).read_text())

    # What they share counts once, in this group: of two times 16 MiB there is one left, not none.
    deadline = time.monotonic() + 10
    while not before - 18 * MIB < used() < before - 8 * MIB and time.monotonic() < deadline:
        time.sleep(0.1)
    assert before - 18 * MIB < used() < before - 8 * MIB, (before, used())
    _right(programs)


@pytest.mark.needs("merge", "root")
def test_pages_for_whose_frames_a_group_has_no_room_are_left_alone_and_counted(spawn: Any, memory: Any) -> None:
    told, programs, _ = _within(spawn, memory, 7 * MIB, 3)
    assert told["merged"] == told["frames"] == 0
    assert told["left"] >= 2 * PAGES
    _right(programs)


def test_groups_are_found_wherever_their_files_are_mounted(tmp_path: Path) -> None:
    proc, mounted = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    (proc / "self/mountinfo").write_text(f"31 23 0:28 /pod {mounted} rw - cgroup2 cgroup2 rw\n")
    for pid, group in ((1, "/pod/a/b"), (2, "/pod/a"), (3, "/pod/c"), (4, "/other"), (5, "/pod/../other")):
        (proc / str(pid)).mkdir()
        (proc / str(pid) / "cgroup").write_text(f"0::{group}\n")
    for group, limit in (("", "5368709120"), ("a", "max"), ("a/b", "104857600"), ("c", "max")):
        (mounted / group).mkdir(exist_ok=True)
        (mounted / group / "memory.max").write_text(limit + "\n")
        (mounted / group / "memory.current").write_text("52428800\n")
        (mounted / group / "memory.stat").write_text("anon 1\ninactive_file 1048576\n")
    here = groups.Groups(proc)
    assert [(g, n) for _, g, n in here.limits(1)] == [("/pod/a/b", 100 * MIB), ("/pod", 5120 * MIB)]
    assert groups.headroom(1, here) == 51 * MIB
    assert groups.headroom(2, here) == 5071 * MIB
    assert "/pod/a/b limits the memory of process 1 to 100 MiB" in (groups.difference(1, 2, here) or "")
    assert "/pod/a/b limits the memory of process 1 to 100 MiB" in (groups.difference(3, 1, here) or "")
    assert groups.difference(2, 3, here) is None  # the limit of the pod holds for both
    for unseen in (4, 5):
        with pytest.raises(OSError, match="cannot be seen"):
            list(here.limits(unseen))

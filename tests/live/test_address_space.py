"""A program may map and unmap what it likes: what an engine maps in it is not in its way, and no byte is lost."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from typing import Any

import pytest

from pageone.engine import Engine

pytestmark = pytest.mark.needs("merge")

MIB = 1 << 20
HOLE_PAGES = 12 * MIB // 4096

#: Unmaps the middle of its memory. On demand it maps and fills some pages of the hole, unmaps what is executable
#: and of no file (that is the injected region), or discards its first pages.
PROGRAM = f"""
PAGES = {2 * HOLE_PAGES}
def fill(pages):
    for k in pages:
        ctypes.memmove(at + SIZE * k, page(k), SIZE)
at = libc.mmap(0, PAGES * SIZE, 3, 0x22, -1, 0)  # read and write; private, of its own
hole = range(PAGES // 4, PAGES * 3 // 4)
there = [k for k in range(PAGES) if k not in hole]
fill(there)
libc.munmap(at + hole[0] * SIZE, len(hole) * SIZE)
print("ready", at + hole[0] * SIZE, at + (hole[-1] + 1) * SIZE, flush=True)
for line in sys.stdin:
    if line.startswith("map "):
        first, end = map(int, line[4:].split())
        part = hole[first:end]
        start = at + part[0] * SIZE
        assert libc.mmap(start, len(part) * SIZE, 3, 0x32, -1, 0) == start  # fixed
        fill(part)
        there += part
    if line == "unmap\\n":
        for text in open("/proc/self/maps").read().splitlines():
            if text.split()[1:] == ["r-xp", "00000000", "00:00", "0"]:
                start = int(text.split("-")[0], 16)
                libc.munmap(start, 25 * SIZE)
    if line == "discard\\n":
        libc.madvise(at, 64 * SIZE, 4)
        there = there[64:]
        assert not any(ctypes.string_at(at, 64 * SIZE))
    print(all(ctypes.string_at(at + SIZE * k, SIZE) == page(k) for k in there), flush=True)
"""


@pytest.fixture
def programs(spawn: Any) -> list[tuple[subprocess.Popen[str], int, int]]:
    """Two programs, each with the bounds of its hole."""
    started = [spawn.mapper(PROGRAM) for _ in range(2)]
    return [(program, *map(int, program.stdout.readline().split()[1:])) for program in started]


# 20 pages are less than what an engine keeps there, the whole hole is more.
@pytest.mark.parametrize("pages", [20, HOLE_PAGES])
def test_a_hole_of_a_program_stays_its_own(
    pages: int, programs: list[tuple[subprocess.Popen[str], int, int]], ask: Callable[..., str]
) -> None:
    with Engine() as engine:
        targets = [engine.attach(program.pid) for program, _, _ in programs]
        for program, start, end in programs:
            assert not _mapped(program.pid, start, end)
            assert ask(program, f"map {HOLE_PAGES - pages} {HOLE_PAGES}") == "True"
        assert engine.merge_once(0.2).merged_pages > 2 * HOLE_PAGES
        assert [ask(program, "check") for program, _, _ in programs] == ["True", "True"]
        for target in targets:
            assert engine.detach(target)
    assert [ask(program, "check") for program, _, _ in programs] == ["True", "True"]


def test_with_its_failpoint_it_is_lost(
    programs: list[tuple[subprocess.Popen[str], int, int]], ask: Callable[..., str], activate: Callable[[str], None]
) -> None:
    activate("place")
    with Engine() as engine:
        target, _ = (engine.attach(program.pid) for program, _, _ in programs)
        program, start, end = programs[0]
        # Where pages are moved aside to. Not over the injected region, which may be there or in another hole: an engine
        # that does not find it any more takes nothing away.
        lines = _mapped(program.pid, start, end)
        (aside,) = (line for line in lines if line.split()[1] == "---p")
        bounds = (int(bound, 16) for bound in aside.split()[0].split("-"))
        first, behind = ((bound - start) // 4096 for bound in bounds)
        assert ask(program, f"map {first} {behind}") == "True"
        assert engine.detach(target)
        assert ask(program, "check") != "True"


def test_a_program_that_unmaps_the_injected_region_is_guarded_on(
    programs: list[tuple[subprocess.Popen[str], int, int]], ask: Callable[..., str]
) -> None:
    with Engine() as engine:
        for program, _, _ in programs:
            engine.attach(program.pid)
        assert engine.merge_once(0.2).merged_pages > 2 * HOLE_PAGES
        program = programs[0][0]
        assert ask(program, "unmap") == "True"
        for _ in range(3):
            # Longer than the guardian takes to notice, and looks meanwhile.
            time.sleep(1)
            engine.step()
        assert ask(program, "discard") == "True"
        assert ask(programs[1][0], "check") == "True"
    assert [ask(program, "check") for program, _, _ in programs] == ["True", "True"]


def _mapped(pid: int, start: int, end: int) -> list[str]:
    """Return the mappings of a process with a byte in [start, end)."""
    with open(f"/proc/{pid}/maps") as maps:
        lines = maps.readlines()
    bounds = [[int(x, 16) for x in line.split()[0].split("-")] for line in lines]
    return [line for line, (first, last) in zip(lines, bounds, strict=True) if first < end and start < last]

"""Memory that is merged and then grows, or moves away, shows the program zeros there and nothing of anybody's."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pageone.engine import Engine

pytestmark = pytest.mark.needs("merge")

PAGES = 64

#: Maps PAGES pages with nothing behind them, and some in the middle of others; does on demand what `mremap` can do.
PROGRAM = f"""
N, MAYMOVE, DONTUNMAP = {PAGES}, 1, 4
def filled(first, pages):
    room = libc.mmap(0, 16 * pages * SIZE, 0, 0x22, -1, 0)  # no access, private, of its own
    at = room + 4 * pages * SIZE
    assert libc.mmap(at, pages * SIZE, 3, 0x32, -1, 0) == at  # read and write, fixed
    libc.munmap(room, 4 * pages * SIZE)
    libc.munmap(at + pages * SIZE, 11 * pages * SIZE)
    for k in range(pages):
        ctypes.memmove(at + SIZE * k, page(first + k), SIZE)
    return at
def right(at, first, pages, zeros):
    kept = all(ctypes.string_at(at + SIZE * k, SIZE) == page(first + k) for k in range(pages))
    return kept and not any(ctypes.string_at(at + SIZE * pages, SIZE * zeros))
alone, inside, more = filled(1, N), filled(1000, 3 * N), filled(5000, 8 * N)
print("ready", flush=True)
for line in sys.stdin:
    if line == "grow\\n":
        at = libc.mremap(alone, N * SIZE, 4 * N * SIZE, MAYMOVE, 0)
        print(at != 2**64 - 1 and right(at, 1, N, 3 * N), flush=True)
    if line == "grow where it is\\n":
        at = libc.mremap(alone, N * SIZE, 4 * N * SIZE, 0, 0)
        print(at == 2**64 - 1 or right(at, 1, N, 3 * N), flush=True)
    if line == "shrink\\n":
        print(libc.mremap(alone, N * SIZE, N // 2 * SIZE, 0, 0) == alone, flush=True)
    if line == "grow again\\n":
        at = libc.mremap(alone, N // 2 * SIZE, N * SIZE, 0, 0)
        print(at == 2**64 - 1 or right(at, 1, N // 2, N // 2), flush=True)
    if line == "grow a part\\n":
        at = libc.mremap(inside + N * SIZE, N * SIZE, 2 * N * SIZE, MAYMOVE, 0)
        print(at != 2**64 - 1 and right(at, 1000 + N, N, N) and right(inside, 1000, N, 0), flush=True)
    if line == "leave\\n":
        at = libc.mremap(more, 8 * N * SIZE, 8 * N * SIZE, MAYMOVE | DONTUNMAP, 0)
        print(at != 2**64 - 1 and right(at, 5000, 8 * N, 0) and right(more, 0, 0, 8 * N), flush=True)
    if line == "mappings\\n":
        print(*(mapping.strip() for mapping in open("/proc/self/maps")), sep=";", flush=True)
"""


@pytest.fixture
def programs(spawn: Any) -> list[subprocess.Popen[str]]:
    started = [spawn.mapper(PROGRAM) for _ in range(2)]
    for program in started:
        assert program.stdout.readline() == "ready\n"
    return started


@pytest.fixture
def merged(programs: list[subprocess.Popen[str]]) -> Iterator[tuple[subprocess.Popen[str], Engine]]:
    with Engine() as engine:
        for program in programs:
            engine.attach(program.pid)
        assert engine.merge_once(0.2).merged_pages >= 2 * 12 * PAGES
        yield programs[0], engine


@pytest.mark.parametrize("what", ["grow", "grow where it is", "grow a part", "leave"])
def test_what_is_new_is_zero(what: str, merged: tuple[subprocess.Popen[str], Engine], ask: Callable[..., str]) -> None:
    program, engine = merged
    assert ask(program, what) == "True"
    assert engine.detach(engine.targets[0])


@pytest.mark.parametrize("looked", [False, True])
def test_what_has_shrunk_does_not_grow_into_frames_again(
    looked: bool, merged: tuple[subprocess.Popen[str], Engine], ask: Callable[..., str]
) -> None:
    program, engine = merged
    assert ask(program, "shrink") == "True"
    if looked:
        engine.step()
    assert ask(program, "grow again") == "True"


@pytest.mark.parametrize("what", ["grow", "grow where it is", "shrink, grow again", "grow a part", "leave"])
def test_with_its_failpoint_it_is_not(
    what: str, activate: Callable[[str], None], request: Any, ask: Callable[..., str]
) -> None:
    activate("growth,close")
    program, engine = request.getfixturevalue("merged")
    *before, last = what.split(", ")
    for step in before:
        assert ask(program, step) == "True"
        engine.step()
    assert ask(program, last) == "False"


def test_guard_pages_go_with_their_program_detached(
    programs: list[subprocess.Popen[str]], ask: Callable[..., str]
) -> None:
    for program in programs:
        ask(program, "mappings")  # what the interpreter takes for that, it takes now
    before = [ask(program, "mappings").split(";") for program in programs]
    with Engine() as engine:
        targets = [engine.attach(program.pid) for program in programs]
        assert engine.merge_once(0.2).merged_pages >= 2 * 12 * PAGES
        for target in targets:
            assert engine.detach(target)
    after = [ask(program, "mappings").split(";") for program in programs]
    for was, now in zip(before, after, strict=True):
        assert len(now) == len(was), "\n".join(sorted(set(was) ^ set(now)))

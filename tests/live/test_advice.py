"""Memory that a program hides from its children stays hidden when it is merged, and is there again once taken back."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pageone.engine import Engine

pytestmark = pytest.mark.needs("merge")

PAGES = 256

#: Hides its memory from children, and says on demand whether a child finds all of it (True), reads other bytes (False),
#: or lacks some (None). DOFORK takes the hiding back, of all or of the second half, which alone is looked at then.
PROGRAM = f"""
N, DONTFORK, DOFORK = {PAGES}, 10, 11
at = libc.mmap(0, N * SIZE, 3, 0x22, -1, 0)
assert libc.madvise(at, N * SIZE, DONTFORK) == 0
for k in range(N):
    ctypes.memmove(at + SIZE * k, page(k + 1), SIZE)
print("ready", flush=True)
seen = range(N)
for line in sys.stdin:
    if line.startswith("take back"):
        seen = range(N // 2 if line.endswith("half\\n") else 0, N)
        assert libc.madvise(at + SIZE * seen[0], len(seen) * SIZE, DOFORK) == 0
    child = os.fork()
    if not child:
        os._exit(not all(ctypes.string_at(at + SIZE * k, SIZE) == page(k + 1) for k in seen))
    status = os.waitpid(child, 0)[1]
    print({{0: True, 256: False, signal.SIGSEGV: None}}[status & ~128], flush=True)
"""


@pytest.fixture
def programs(spawn: Any) -> list[subprocess.Popen[str]]:
    started = [spawn.mapper(PROGRAM) for _ in range(2)]
    for program in started:
        assert program.stdout.readline() == "ready\n"
    return started


@pytest.fixture
def engine(programs: list[subprocess.Popen[str]]) -> Iterator[Engine]:
    with Engine() as engine:
        for program in programs:
            engine.attach(program.pid)
        engine.step()  # the advice is looked at
        yield engine


def test_what_is_hidden_from_children_stays_hidden(
    programs: list[subprocess.Popen[str]], engine: Engine, ask: Callable[..., str]
) -> None:
    assert engine.merge_once(0.2).merged_pages >= 2 * PAGES
    assert ask(programs[0], "fork") == "None"
    assert engine.detach(engine.targets[0])
    assert ask(programs[0], "fork") == "None"


def _take_back_before_merging(
    programs: list[subprocess.Popen[str]], engine: Engine, ask: Callable[..., str]
) -> list[str]:
    found = [ask(programs[0], "take back")]
    assert engine.merge_once(0.2).merged_pages >= 2 * PAGES
    found.append(ask(programs[0], "fork"))
    assert engine.detach(engine.targets[0])
    return [*found, ask(programs[0], "fork")]


def test_what_is_hidden_no_more_is_there(
    programs: list[subprocess.Popen[str]], engine: Engine, ask: Callable[..., str]
) -> None:
    assert _take_back_before_merging(programs, engine, ask) == ["True"] * 3


def test_without_asking_again_it_is_not(
    programs: list[subprocess.Popen[str]], ask: Callable[..., str], without: Callable[[str], None], request: Any
) -> None:
    without("hidden")
    engine = request.getfixturevalue("engine")
    assert _take_back_before_merging(programs, engine, ask) == ["True", "None", "None"]


def test_what_lies_beside_hidden_memory_is_there(
    programs: list[subprocess.Popen[str]], engine: Engine, ask: Callable[..., str]
) -> None:
    assert ask(programs[0], "take back half") == "True"
    # Two new mappings: their advice is looked at when that has not been done for a while.
    deadline = time.monotonic() + 20
    while sum(target.stats.merged_pages for target in engine.targets) < 2 * PAGES:
        assert time.monotonic() < deadline
        engine.merge_once(0.2)
    assert ask(programs[0], "fork") == "True"


def test_what_is_hidden_no_more_after_it_was_merged_is_there_when_given_back(
    programs: list[subprocess.Popen[str]], engine: Engine, ask: Callable[..., str]
) -> None:
    assert engine.merge_once(0.2).merged_pages >= 2 * PAGES
    assert ask(programs[0], "take back") == "True"
    assert engine.detach(engine.targets[0])
    assert ask(programs[0], "fork") == "True"

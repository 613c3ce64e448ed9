"""The filter of what core dumps hold is changed for as long as a program is followed, and for it alone."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pageone.engine import Engine

pytestmark = pytest.mark.needs("merge")

#: Has pages that another program of its kind has, too; starts another on demand, and says its process id.
STARTER = """
at = libc.mmap(0, 64 * SIZE, 3, 0x22, -1, 0)
for k in range(64):
    ctypes.memmove(at + SIZE * k, page(k + 1), SIZE)
print("ready", flush=True)
for line in sys.stdin:
    child = os.fork()
    if not child:
        os.execv("/bin/sleep", ["sleep", "60"])
    print(child, flush=True)
"""


def filter_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/coredump_filter").read_text(), 16)


def merge(engine: Engine) -> None:
    """Merge until all is; on a busy machine a program may not stop in time."""
    deadline = time.monotonic() + 20
    while min(target.stats.merged_pages for target in engine.targets) < 64:
        assert time.monotonic() < deadline
        engine.merge_once(0.2)


@pytest.fixture
def starters(spawn: Any) -> list[Any]:
    programs = [spawn.mapper(STARTER) for _ in range(2)]
    for program in programs:
        assert program.stdout.readline() == "ready\n"
    return programs


def test_the_filter_of_a_program_that_nothing_is_merged_of_is_left_as_it_is(starters: list[Any]) -> None:
    before = filter_of(starters[0].pid)
    with Engine() as engine:
        engine.attach(starters[0].pid)
        engine.step()
        assert filter_of(starters[0].pid) == before


def test_core_dumps_hold_merged_pages_while_a_process_is_merged(starters: list[Any]) -> None:
    private_file_mappings = 1 << 2
    before = filter_of(starters[0].pid)
    assert not before & private_file_mappings
    with Engine() as engine:
        targets = [engine.attach(starter.pid) for starter in starters]
        merge(engine)
        assert filter_of(starters[0].pid) == before | private_file_mappings
        assert engine.detach(targets[0])
        assert filter_of(starters[0].pid) == before


def test_a_program_that_a_merged_one_starts_has_the_filter_that_it_would_have(
    starters: list[Any], ask: Callable[..., str]
) -> None:
    before = filter_of(starters[0].pid)
    with Engine() as engine:
        for starter in starters:
            engine.attach(starter.pid)
        merge(engine)
        assert filter_of(starters[0].pid) != before
        child = int(ask(starters[0], "start"))
        deadline = time.monotonic() + 20
        while Path(f"/proc/{child}/comm").read_text() != "sleep\n" or filter_of(child) != before:
            assert time.monotonic() < deadline, hex(filter_of(child))
            time.sleep(0.02)


def test_a_filter_that_the_program_sets_itself_meanwhile_stays(starters: list[Any]) -> None:
    with Engine() as engine:
        targets = [engine.attach(starter.pid) for starter in starters]
        merge(engine)
        Path(f"/proc/{starters[0].pid}/coredump_filter").write_text("0x7f")
        assert engine.detach(targets[0])
    assert filter_of(starters[0].pid) == 0x7F

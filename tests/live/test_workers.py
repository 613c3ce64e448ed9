"""Threads that the kernel has put into a program, to work for io_uring, are neither hired nor disturbed."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pageone.engine import Engine

pytestmark = pytest.mark.needs("merge", "gcc")

#: Kinds of rings, by where their memory is: see ``workers.c``.
KINDS = ("mapped", "unmapped", "own")


@pytest.fixture
def program(compiled: Callable[..., Path]) -> Path:
    return compiled(Path(__file__).with_name("workers.c"))


@pytest.fixture
def pair(program: Path, spawn: Any) -> list[subprocess.Popen[str]]:
    started = [spawn([program]) for _ in range(2)]
    for one in started:
        assert one.stdout.readline() == "ready\n"
    return started


def begin(kind: str, one: subprocess.Popen[str], ask: Callable[..., str]) -> None:
    """Have a read wait in a worker thread."""
    answer = ask(one, kind)
    if int(answer) < 0:
        pytest.skip(f"no io_uring of this kind: {os.strerror(-int(answer))}")


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", KINDS)
def test_a_program_with_a_worker_of_the_kernel_is_attached_and_goes_on(
    kind: str, pair: list[subprocess.Popen[str]], ask: Callable[..., str]
) -> None:
    begin(kind, pair[0], ask)
    with Engine() as engine:
        targets = [engine.attach(one.pid) for one in pair]
        engine.merge_once(0.2)
        assert ask(pair[0], "end") == "6", "its read is neither ended nor cut short"
        assert [ask(one, "check") for one in pair] == ["0", "0"]
        assert all(engine.detach(target) for target in targets)
    assert [ask(one, "check") for one in pair] == ["0", "0"]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", KINDS)
def test_what_was_merged_before_the_worker_came_is_discarded_to_zeros(
    kind: str, pair: list[subprocess.Popen[str]], ask: Callable[..., str], merge_at_least: Callable[..., None]
) -> None:
    with Engine() as engine:
        targets = [engine.attach(one.pid) for one in pair]
        merge_at_least(engine, 500)
        begin(kind, pair[0], ask)
        assert ask(pair[0], "discard") == "0"
        engine.merge_once(0.2)
        assert ask(pair[0], "end") == "6", "its read is neither ended nor cut short"
        assert ask(pair[1], "check") == "0"
        # What may be written by the worker stays as it is for as long as there is one.
        assert engine.detach(targets[1])
    assert ask(pair[0], "discard") == "0"
    assert ask(pair[1], "check") == "0"


@pytest.mark.timeout(60)
def test_what_a_worker_discards_is_zeros_when_it_says_so(
    pair: list[subprocess.Popen[str]], ask: Callable[..., str], merge_at_least: Callable[..., None]
) -> None:
    with Engine() as engine:
        targets = [engine.attach(one.pid) for one in pair]
        merge_at_least(engine, 500)
        begin("mapped", pair[1], ask)  # skips where there is no io_uring
        assert ask(pair[0], "madvise") == "0"
        assert engine.targets == targets
    assert ask(pair[0], "discard") == "0"


DRIVER = """
import json, subprocess, sys
from pageone.engine import Engine
def ask(one, what):
    print(what, file=one.stdin, flush=True)
    return int(one.stdout.readline())
told = {}
for kind in sys.argv[2:]:
    pair = [subprocess.Popen([sys.argv[1]], stdin=-1, stdout=-1, text=True) for _ in range(2)]
    for one in pair:
        one.stdout.readline()
    if ask(pair[0], kind) < 0:
        continue
    with Engine() as engine:
        targets = [engine.attach(one.pid) for one in pair]
        engine.merge_once(0.2)
        told[kind] = [ask(pair[0], "end"), *(ask(one, "check") for one in pair)]
        told[kind] += [bool(engine.detach(target)) for target in targets]
    told[kind] += [ask(one, "check") for one in pair]
    for one in pair:
        one.stdin.close()
print(json.dumps(told))
"""


@pytest.mark.timeout(120)
def test_the_same_for_an_ordinary_user_who_stays_traced(as_user: Any, program: Path) -> None:
    done = as_user.run("-c", DRIVER, str(program), *KINDS, timeout=100)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    if not told:
        pytest.skip("no io_uring")
    assert told == {kind: [6, 0, 0, True, True, 0, 0] for kind in told}

"""The engine, and where that is safe the guardian, is killed at random instants: programs go on, with the right bytes.

``PAGEONE_KILLS`` says how often (4); the soak form kills the engine 1,000 times.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pageone.engine import Engine
from pageone.errors import TargetError

KILLS = int(os.environ.get("PAGEONE_KILLS", "4"))
KILLS_SOAK = int(os.environ.get("PAGEONE_KILLS_SOAK", "1000"))
#: After so many kills the programs are new, and are made to check all their memory.
KILLS_PER_PROGRAM = 8

pytestmark = [pytest.mark.needs("merge", "gcc")]

# Loads the package once and starts an engine in a fork of itself for each line of process ids that it is told.
ENGINES = """
import os, sys, time
from pageone.engine import Engine
from pageone.errors import TargetError
for line in sys.stdin:
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        print("gone", flush=True)
        continue
    engine = Engine(period=0.05)
    for pid in line.split():
        until = time.monotonic() + 20
        while True:
            try:
                engine.attach(int(pid))
                break
            except TargetError as error:
                # A busy program may not stop often enough to be given back all that the killed engine has merged.
                if "shares memory of another engine" not in str(error) or time.monotonic() > until:
                    raise
    print(os.getpid(), engine.backend.guardian.pid, flush=True)
    engine.start()
    time.sleep(1000)
"""


def _kill_engines(start: Callable[..., Any], spawn: Any, kills: int, scenario: str, *, guardian: bool) -> None:
    seed = int(os.environ.get("PAGEONE_SEED", str(random.randrange(1 << 30))))
    print(f"seed {seed}")
    chance = random.Random(seed)
    engines = spawn([sys.executable, "-u", "-c", ENGINES], stderr=None)
    done = lost = 0
    while done < kills:
        seconds = 3600
        running = [start(scenario, seconds, n) for n in (2, 3)]
        for one in running:
            one.begin()
        # Where its guardian has been killed as well, what an engine has merged is nobody's: others let it be.
        for _ in range(min(1 if guardian else KILLS_PER_PROGRAM, kills - done)):
            print(*(one.pid for one in running), file=engines.stdin, flush=True)
            told = engines.stdout.readline().split()
            if told == ["gone"]:
                _expect_running(running)  # what a program that has ended says comes first
            engine, guard = (int(word) for word in told)
            # Within its first period, amid scanning and merging, or between periods.
            time.sleep(chance.uniform(0.0, 0.6))
            if guardian:
                os.kill(guard, signal.SIGKILL)
                time.sleep(0.01)
            os.kill(engine, signal.SIGKILL)
            assert engines.stdout.readline() == "gone\n"
            done += 1
            if guardian:
                # In the very middle of a list pages are away: another thread may meet none there, and nobody stops it.
                met_none = [one for one in running if one.process.poll() == -signal.SIGSEGV]
                running = [one for one in running if one not in met_none]
                lost += len(met_none)
            _expect_running(running)
        for one in running:
            _expect_right(one)
    engines.stdin.close()
    print(f"{done} kills, {lost} programs lost")
    assert lost <= max(1, kills // 100)


def _expect_running(running: list[Any]) -> None:
    """Assert that no thread stays held once the guardian, which goes on, has had time to resume it."""
    deadline = time.monotonic() + 20
    for one in running:
        assert one.process.poll() is None, one.process.communicate()
        while one.stopped_threads():
            assert time.monotonic() < deadline, f"threads {one.stopped_threads()} of {one.pid} are held still"
            time.sleep(0.01)


def _expect_right(one: Any) -> None:
    """Have a program check all its memory and end."""
    os.kill(one.pid, signal.SIGUSR2)
    one.finish(120)


@pytest.mark.timeout(300)
def test_programs_that_discard_go_on_with_the_right_bytes_when_the_engine_is_killed(
    start: Callable[..., Any], spawn: Any
) -> None:
    _kill_engines(start, spawn, KILLS, "dontneed", guardian=False)


@pytest.mark.timeout(300)
def test_programs_go_on_with_the_right_bytes_when_the_guardian_is_killed(start: Callable[..., Any], spawn: Any) -> None:
    # Nobody is left to zero-fill what they discard, so they discard nothing.
    _kill_engines(start, spawn, KILLS, "writers", guardian=True)


@pytest.mark.soak
@pytest.mark.parametrize("scenario", ["anything", "dontneed", "orphans"])
def test_a_thousand_kills_of_the_engine_change_no_byte(scenario: str, start: Callable[..., Any], spawn: Any) -> None:
    _kill_engines(start, spawn, KILLS_SOAK, scenario, guardian=False)


@pytest.mark.soak
def test_a_thousand_kills_of_the_guardian_change_no_byte(start: Callable[..., Any], spawn: Any) -> None:
    _kill_engines(start, spawn, KILLS_SOAK, "writers", guardian=True)


def _left_behind(start: Callable[..., Any], spawn: Any) -> tuple[list[Any], int]:
    """Return two programs that an engine has merged and that has been killed since, and its guardian."""
    engines = spawn([sys.executable, "-u", "-c", ENGINES], stderr=None)
    running = [start("writers", 3600, n) for n in (2, 3)]
    print(*(one.pid for one in running), file=engines.stdin, flush=True)
    engine, guard = (int(word) for word in engines.stdout.readline().split())
    _until(lambda: all(_pools(one.pid) for one in running))
    os.kill(engine, signal.SIGKILL)
    assert engines.stdout.readline() == "gone\n"
    return running, guard


@pytest.mark.timeout(60)
def test_a_new_engine_takes_over_what_a_killed_one_has_merged(start: Callable[..., Any], spawn: Any) -> None:
    running, guard = _left_behind(start, spawn)
    before = [_pools(one.pid) for one in running]
    with Engine(period=0.05) as new:
        for one in running:
            new.attach(one.pid)
        _until(lambda: not Path(f"/proc/{guard}").exists() or _state(guard) == "Z")
        assert new.merge_once(0.2).merged_pages > 1000
        for one, pool in zip(running, before, strict=True):
            assert len(_pools(one.pid)) == 1
            assert _pools(one.pid) != pool
            one.begin()
        for one in running:
            _expect_right(one)


@pytest.mark.timeout(60)
def test_a_new_engine_waits_until_the_guardian_of_a_killed_one_has_detached(
    start: Callable[..., Any], spawn: Any
) -> None:
    # As for an ordinary user, the process stays traced all the time; nothing is merged.
    traced = "Engine(period=1000)\n    engine.backend.follow_forks = False"
    engines = spawn([sys.executable, "-u", "-c", ENGINES.replace("Engine(period=0.05)", traced)], stderr=None)
    one = start("writers", 3600)
    print(one.pid, file=engines.stdin, flush=True)
    engine, guard = (int(word) for word in engines.stdout.readline().split())
    os.kill(guard, signal.SIGSTOP)
    try:
        os.kill(engine, signal.SIGKILL)
        assert engines.stdout.readline() == "gone\n"
        later = threading.Timer(0.3, os.kill, (guard, signal.SIGCONT))
        with Engine() as new:
            status = Path(f"/proc/{one.pid}/status").read_text()
            tracer = status.split("TracerPid:")[1].split()[0]
            assert Path(f"/proc/{guard}/task/{tracer}").exists()
            later.start()
            new.attach(one.pid)
            one.begin()
            _expect_right(one)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(guard, signal.SIGCONT)


@pytest.mark.timeout(60)
def test_a_program_whose_guardian_was_killed_too_is_let_be(start: Callable[..., Any], spawn: Any) -> None:
    engines = spawn([sys.executable, "-u", "-c", ENGINES], stderr=None)
    running = [start("writers", 3600, n) for n in (2, 3)]
    print(*(one.pid for one in running), file=engines.stdin, flush=True)
    engine, guard = (int(word) for word in engines.stdout.readline().split())
    _until(lambda: all(_pools(one.pid) for one in running))
    os.kill(guard, signal.SIGKILL)
    os.kill(engine, signal.SIGKILL)
    assert engines.stdout.readline() == "gone\n"
    with Engine() as new, pytest.raises(TargetError, match="shares memory of another engine"):
        new.attach(running[0].pid)
    for one in running:
        one.begin()
        _expect_right(one)


def _pools(pid: int) -> set[str]:
    """Return device and inode of the pools that a process maps."""
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return {" ".join(line.split()[3:5]) for line in lines if line.endswith("/memfd:pageone (deleted)")}


def _until(true: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.timeout(60)
def test_the_guardian_ends_with_the_last_program_that_it_guards(start: Callable[..., Any], spawn: Any) -> None:
    running, guard = _left_behind(start, spawn)
    for one in running:
        one.begin()
        _expect_right(one)
    deadline = time.monotonic() + 20
    while Path(f"/proc/{guard}").exists() and "Z" not in _state(guard):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _state(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().split(")")[-1].split()[0]
    return "Z"

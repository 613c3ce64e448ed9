"""Many targets that come, write, fork, discard and die: every byte right, and nothing left of them afterwards."""

from __future__ import annotations

import contextlib
import os
import random
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from pageone.engine import Engine
from pageone.errors import TargetError

pytestmark = [pytest.mark.needs("merge", "gcc")]

PERIOD = 0.05
AT_ONCE = 6
SCENARIOS = ("writers", "forks", "mappings", "dontneed", "churn", "sit", "orphans")


#: What a guardian keeps open once it was needed: the pool as targets get it, what tells of processes and of stopped
#: threads, and the memory of the process that frames were filled from last.
KEPT = dict.fromkeys(("memfd:pageone (deleted)", "pageone (deleted)", "loadavg", "stat", "anon_inode:[signalfd]"), 1)
KEPT |= {"pagemap": 1, "mem": 1}


def descriptors(pid: int) -> Counter[str]:
    """What a process has open, by name; none for a guardian of an ordinary user's, which nobody may look into."""
    names: Counter[str] = Counter()
    with contextlib.suppress(PermissionError):
        for fd in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(FileNotFoundError):
                names[os.readlink(f"/proc/{pid}/fd/{fd}").split("/")[-1]] += 1
    return names


def many(start: Callable[..., Any], count: int, seed: int) -> None:
    """Run ``count`` processes, a few at a time, under one engine; nothing may be left of them in it."""
    dice = random.Random(seed)
    with Engine(period=PERIOD) as engine:
        guardian = engine.backend.guardian.pid  # type: ignore[attr-defined]
        before = descriptors(os.getpid()), descriptors(guardian)
        engine.start()
        running: list[Any] = []
        begun = 0
        merged_once = False
        while begun < count or running:
            while begun < count and len(running) < AT_ONCE:
                one = start(dice.choice(SCENARIOS), round(dice.uniform(0.1, 0.8), 2), dice.randrange(2, 1000))
                running.append((one, time.monotonic() + dice.uniform(0.0, 0.5)))
                begun += 1
                if dice.random() < 0.9:  # some are never targets
                    try:
                        engine.attach(one.pid)
                    except TargetError:
                        assert one.process.poll() is not None, "a living process could not be attached"
            for one, when in list(running):
                if time.monotonic() > when:
                    if when:
                        one.begin()
                        running[running.index((one, when))] = (one, 0.0)
                    elif one.process.poll() is not None:
                        one.finish(30)
                        running.remove((one, when))
            merged_once |= engine.stats.frames > 0
            time.sleep(0.01)
        assert merged_once, "nothing was merged: nothing has been shown"
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            stats = engine.stats
            if not (stats.targets or stats.frames or stats.index_entries or stats.tracked):
                break
            time.sleep(PERIOD)
        assert (stats.targets, stats.frames, stats.index_entries, stats.tracked) == (0, 0, 0, 0)
        assert not any(stats.states.values())
        pool = engine.backend.pool  # type: ignore[attr-defined]
        deadline = time.monotonic() + 10
        # The accounting is first, the memory follows; the engine is in the middle of a period.
        while pool.bytes() and time.monotonic() < deadline:
            time.sleep(PERIOD)
        assert pool.bytes() == 0
        while descriptors(os.getpid()).total() > before[0].total() and time.monotonic() < deadline:
            time.sleep(0.1)
        now = descriptors(os.getpid()), descriptors(guardian)
        assert now[0].total() <= before[0].total(), now[0] - before[0]
        assert not now[1] - before[1] - Counter(KEPT), now[1] - before[1]


@pytest.mark.timeout(180)
def test_nothing_is_left_of_targets_that_came_and_died(start: Callable[..., Any]) -> None:
    many(start, 24, seed=1)


@pytest.mark.soak
def test_nothing_is_left_of_a_thousand_targets_that_came_and_died(start: Callable[..., Any]) -> None:
    many(start, 1000, seed=2)

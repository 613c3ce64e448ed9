"""A guardian that nothing holds up: descriptors that run out, a target that is hostile, a flood at its door."""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from pageone.engine import Engine
from pageone.errors import TargetError
from pageone.live.guardian import Guardian

pytestmark = pytest.mark.needs("merge", "gcc")

#: Children that live at once.
CHILDREN = int(os.environ.get("PAGEONE_CHILDREN", "300"))
#: Descriptors that a process may have.
DESCRIPTORS = int(os.environ.get("PAGEONE_DESCRIPTORS", "150"))


@pytest.fixture
def forks(compiled: Callable[..., Path]) -> Path:
    return compiled(Path(__file__).with_name("forks.c"))


#: Merges two programs, one of which has many children; without the right to raise its own hard limit.
FORKING = """
import ctypes, json, resource, subprocess, sys, time
from pageone.engine import Engine
program, children, soft, hard = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
ctypes.CDLL(None).prctl(24, 24, 0, 0, 0)  # what this process starts cannot have CAP_SYS_RESOURCE
pair = [subprocess.Popen([program], stdin=-1, stdout=-1, text=True) for _ in range(2)]
def ask(one, what):
    print(what, file=one.stdin, flush=True)
    return int(one.stdout.readline())
for one in pair:
    one.stdout.readline()
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
with Engine() as engine:
    for one in pair:
        engine.attach(one.pid)
    told = {"merged": 0}
    while told["merged"] < 120:  # a busy machine may not stop them in time
        told["merged"] += engine.merge_once(0.2).merged_pages
    begun = time.monotonic()
    told["forked"] = ask(pair[0], f"fork {children}")
    told["wrong"] = ask(pair[0], "discard") + ask(pair[0], "check") + ask(pair[1], "check")
    told["seconds"] = time.monotonic() - begun
    told["merged again"] = engine.merge_once(0.2).merged_pages
    told["wrong later"] = ask(pair[0], "check") + ask(pair[1], "check")
    told["detached"] = all(engine.detach(target) for target in engine.targets)
    told["wrong after"] = ask(pair[0], "check") + ask(pair[1], "check")
for one in pair:
    one.stdin.close()
    one.wait()
print(json.dumps(told))
"""


@pytest.mark.timeout(110)
@pytest.mark.parametrize("who", ["root", "user"])
@pytest.mark.parametrize("hard", ["low", "high"])
def test_as_many_children_as_a_program_likes_live_discard_and_read_zeros(
    who: str, hard: str, forks: Path, as_user: Any
) -> None:
    most = DESCRIPTORS if hard == "low" else 20_000
    numbers = [str(n) for n in (CHILDREN, DESCRIPTORS, most)]
    if who == "root" and os.geteuid() == 0:
        argv = [sys.executable, "-c", FORKING, str(forks), *numbers]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=100)
    else:
        done = as_user.run("-c", FORKING, str(forks), *numbers, timeout=100)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    print(told)
    assert told["merged"] >= 120
    assert told["forked"] == CHILDREN
    assert told["wrong"] == told["wrong later"] == told["wrong after"] == 0
    assert told["detached"]


#: What the hostile one does: see ``hostile.c``.
HOSTILITIES = ("region", "vfork", "threads", "forks", "stops", "discards")


@pytest.fixture
def hostile(compiled: Callable[..., Path]) -> Path:
    return compiled(Path(__file__).with_name("hostile.c"))


def discards_beside(
    kind: str, bystanders: int, measure: str, hostile: Path, spawn: Any, ask: Callable[..., str]
) -> list[list[int]]:
    """Return what each bystander measured while another target does its worst: wrong bytes, and times of discards."""
    programs = [spawn([hostile, kind]), *(spawn([hostile, "bystander"]) for _ in range(bystanders))]
    for one in programs:
        assert one.stdout.readline() == "ready\n"
    engine = Engine()
    try:
        for one in programs:
            engine.attach(one.pid)
        deadline = time.monotonic() + 60
        while sum(t.stats.merged_pages < 500 for t in engine.targets[1:]) and time.monotonic() < deadline:
            engine.merge_once(0.2)
        if ask(programs[0], "strike") == "no":
            pytest.skip("no userfaultfd for this user")
        for one in programs[1:]:
            print(measure, file=one.stdin, flush=True)
        return [[int(n) for n in one.stdout.readline().split()] for one in programs[1:]]
    finally:
        programs[0].kill()  # what it keeps waiting goes on
        engine.close()


@pytest.mark.needs("root")
@pytest.mark.timeout(80)
@pytest.mark.parametrize("kind", HOSTILITIES)
def test_discards_of_others_go_on_whatever_a_target_does(
    kind: str, hostile: Path, spawn: Any, ask: Callable[..., str]
) -> None:
    told = discards_beside(kind, 4, "measure 40 2", hostile, spawn, ask)
    print(kind, told)
    assert [wrong for wrong, *_ in told] == [0] * 4
    # A bound for a busy machine: who was held up waited for seconds, or for ever.
    assert max(longest for *_, longest in told) < 2_000_000


def served_at_once(engine: Engine) -> int:
    """Return how many threads of the guardian have real-time priority."""
    guardian = engine.backend.guardian.pid  # type: ignore[attr-defined]
    kinds = [os.sched_getscheduler(int(thread)) for thread in os.listdir(f"/proc/{guardian}/task")]
    return sum(kind == os.SCHED_RR | os.SCHED_RESET_ON_FORK for kind in kinds)


@pytest.mark.needs("root")
@pytest.mark.timeout(60)
def test_a_target_that_keeps_the_guardian_busy_is_not_served_at_once_and_others_are(
    hostile: Path, spawn: Any, ask: Callable[..., str]
) -> None:
    ask_for_it = "import os; os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))"
    if subprocess.run([sys.executable, "-c", ask_for_it], capture_output=True).returncode:
        pytest.skip("the kernel gives this user no real-time priority")
    programs = [spawn([hostile, kind]) for kind in ("forks", "bystander", "bystander")]
    assert [one.stdout.readline() for one in programs] == ["ready\n"] * 3
    with Engine() as engine:
        for one in programs:
            engine.attach(one.pid)
        engine.merge_once(0.2)
        deadline = time.monotonic() + 40
        while served_at_once(engine) != 3:  # attaching and merging are much work
            assert time.monotonic() < deadline
            time.sleep(0.01)
        ask(programs[0], "strike")
        while served_at_once(engine) != 2:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        programs[0].kill()


def waits_beside(kind: str, bystanders: int, hostile: Path, spawn: Any, ask: Callable[..., str]) -> list[int]:
    """Return how long answers of a bare echo take beside the same hostile program, which nobody looks after."""
    programs = [spawn([hostile, kind]), *(spawn([hostile, "bystander"]) for _ in range(bystanders))]
    for one in programs:
        assert one.stdout.readline() == "ready\n"
    try:
        ask(programs[0], "strike")
        for one in programs[1:]:
            print("echo 40 500", file=one.stdin, flush=True)
        told = [[int(n) for n in one.stdout.readline().split()] for one in programs[1:]]
    finally:
        for one in programs:
            one.kill()
            one.wait()
            one.stdin.close()  # the tests may have few descriptors
            one.stdout.close()
    return [took for _, *times in told for took in times]


@pytest.mark.soak
@pytest.mark.needs("root")
@pytest.mark.parametrize("kind", HOSTILITIES)
def test_of_two_hundred_targets_one_is_hostile(kind: str, hostile: Path, spawn: Any, ask: Callable[..., str]) -> None:
    floor = np.percentile(waits_beside(kind, 199, hostile, spawn, ask), [50, 99])
    print(f"{kind}: an echo beside it, nobody looked after: median {floor[0]:.0f} µs, p99 {floor[1]:.0f} µs")
    told = discards_beside(kind, 199, "measure 40 500", hostile, spawn, ask)
    each = np.median([np.percentile(times, 99) for _, *times in told])
    took = np.concatenate([times for _, *times in told])
    median, p99 = np.percentile(took, [50, 99])
    print(f"{kind}: {len(took)} discards of 199 others: median {median:.0f} µs, p99 {p99:.0f} µs, ")
    print(f"  longest {took.max()} µs, median of each one's p99 {each:.0f} µs")
    assert not sum(wrong for wrong, *_ in told)


FLOOD = """
import os, socket, sys, time
os.setgroups([])
os.setgid(54321)
os.setuid(54321)
print("floods", flush=True)
knocks, end = 0, time.monotonic() + float(sys.argv[2])
while time.monotonic() < end:
    knocking = socket.socket(socket.AF_UNIX)
    knocking.setblocking(False)
    try:
        knocking.connect("\\0" + sys.argv[1])
        knocks += 1
    except OSError:
        pass
    knocking.close()
print(knocks)
"""


def door_of(engine: Engine) -> tuple[int, int]:
    """Return device and inode of the pool, which name the guardian's door."""
    pool = engine.backend.pool  # type: ignore[attr-defined]
    return pool.device, pool.inode


@pytest.mark.needs("root")
@pytest.mark.timeout(60)
def test_a_flood_of_another_user_costs_next_to_nothing(spawn: Any) -> None:
    seconds = 3.0
    with Engine() as engine:
        device, inode = door_of(engine)
        guardian = psutil.Process(engine.backend.guardian.pid)  # type: ignore[attr-defined]
        name = f"pageone-guardian-{device}-{inode}"
        floods = [spawn.python(FLOOD, name, str(seconds)) for _ in range(2)]
        assert [flood.stdout.readline() for flood in floods] == ["floods\n"] * 2
        before = guardian.cpu_times()
        knocks = sum(int(flood.stdout.readline()) for flood in floods)
        after = guardian.cpu_times()
        used = after.user + after.system - before.user - before.system
        print(f"{knocks} connections in {seconds} s: {used:.2f} s of the guardian's CPU time")
        assert knocks > 10, "somebody listens"
        assert used < 0.1 * seconds


@pytest.mark.timeout(60)
def test_who_says_half_of_something_keeps_nobody_from_the_guardian(
    hostile: Path, spawn: Any, ask: Callable[..., str]
) -> None:
    programs = [spawn([hostile, "bystander"]) for _ in range(2)]
    for one in programs:
        assert one.stdout.readline() == "ready\n"
    engine = Engine()
    for one in programs:
        engine.attach(one.pid)
    merged = 0
    while merged < 1000:
        merged += engine.merge_once(0.2).merged_pages
    device, inode = door_of(engine)
    engine.backend.guardian.close()  # type: ignore[attr-defined]
    halves = [struct.pack("<II", 5, 0), struct.pack("<IiII", 2, programs[0].pid, 2**32 - 1, 0), b""]
    knocking = []
    for half in halves:
        knocking.append(socket.socket(socket.AF_UNIX))
        knocking[-1].connect(f"\0pageone-guardian-{device}-{inode}")
        knocking[-1].sendall(half)
    # Nothing that it looks after waits for that, and a new engine is heard.
    assert ask(programs[0], "measure 20 1").split()[0] == "0"
    other = Guardian.orphaned(device, inode)
    assert sorted(other.targets()) == sorted(one.pid for one in programs)
    other.leave()
    for one in knocking:
        one.close()


def test_who_waits_for_a_guardian_can_be_interrupted_and_takes_no_late_answer_for_the_next() -> None:
    guardian = Guardian(64, pause_s=0.001, stop_timeout_s=0.02)

    def interrupt(*_: object) -> None:
        raise InterruptedError("enough")

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        os.kill(guardian.pid, signal.SIGSTOP)
        signal.setitimer(signal.ITIMER_REAL, 0.1, 0.1)
        with pytest.raises(InterruptedError, match="enough"):
            guardian.targets()
        signal.setitimer(signal.ITIMER_REAL, 0)
        os.kill(guardian.pid, signal.SIGCONT)
        with pytest.raises(TargetError, match="cannot attach to process 999999999: it has ended"):
            guardian.attach(999_999_999, follow_forks=False)
        assert guardian.targets() == []
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        os.kill(guardian.pid, signal.SIGCONT)
        guardian.close()

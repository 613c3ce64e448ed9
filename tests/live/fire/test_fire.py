"""Programs under fire: real threads write and check at full speed while the engine merges every 0.05 s.

Each scenario of ``fire.c`` is one hazard. Two processes of it run at once under one engine, so that they share
frames. ``PAGEONE_FIRE_SECONDS`` says how long each runs (0.7; ``make soak`` has its own, longer, form).
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pageone.engine import Engine

SECONDS = float(os.environ.get("PAGEONE_FIRE_SECONDS", "0.7"))
SOAK_SECONDS = float(os.environ.get("PAGEONE_SOAK_SECONDS", "600"))
PERIOD = 0.05
MERGED = 300  #: a test in which no more pages were merged has shown nothing
AT_REST_S = 10.0

pytestmark = [pytest.mark.needs("merge", "gcc")]


@contextmanager
def merging(**options: Any) -> Iterator[Engine]:
    with Engine(period=PERIOD, **options) as engine:
        engine.start()
        yield engine


def under_fire(start: Callable[..., Any], scenario: str, seconds: float, within_s: float = 60) -> Engine:
    """Run two processes of a scenario under a merging engine to their end; return the engine, closed."""
    with merging() as engine:
        running = [start(scenario, seconds, seed) for seed in (2, 3)]
        for one in running:
            engine.attach(one.pid)
        # At rest until the first pages are shared, however busy this machine is: else nothing might be in danger.
        time.sleep(4 * PERIOD)
        deadline = time.monotonic() + AT_REST_S
        while engine.stats.pages_merged <= MERGED and time.monotonic() < deadline:
            time.sleep(PERIOD)
        for one in running:
            one.begin()
        for one in running:
            one.finish(seconds + within_s)
    return engine


#: Scenarios, and what each is to show.
MERGED_ALL_ALONG = {
    "writers": "threads that write and check",
    "signals": "storms of signals, and timers' signals with their values",
    "churn": "threads that come and go all the time",
    "leaderless": "a first thread that ends before the others",
    "calls": "interrupted sleeps and waits go on as they should",
    "forks": "children that write what they inherited",
    "orphans": "children whose parent ends at once and that discard what they inherited",
    "spawns": "vfork and posix_spawn",
    "exec": "programs that replace themselves",
    "mappings": "mappings unmapped, moved and protected",
    "dontneed": "MADV_DONTNEED",
    "free": "MADV_FREE",
    "remove": "MADV_REMOVE",
    "hugepage": "MADV_HUGEPAGE",
    "collapse": "MADV_COLLAPSE",
    "discards": "discards that other threads watch",
    "suspended": "discards while suspended and continued",
    "locks": "mlock and mlockall",
    "guards": "protection flipped over merged pages, also over discarded ones",
    "third-vm": "process_vm_writev from another process",
    "third-mem": "writes to /proc/PID/mem by another process",
    "direct": "O_DIRECT reads into merged pages",
    "userfaultfd": "a userfaultfd of its own",
    "ptrace": "a child that it traces itself, and that discards nothing",
    "limit-as": "RLIMIT_AS with little left",
    "limit-data": "RLIMIT_DATA with little left",
    "limit-files": "not one descriptor left",
    "shared": "a process that shares its memory (clone with CLONE_VM)",
    "aio": "asynchronous reads",
    "uring": "io_uring",
    "uring-fixed": "io_uring with registered buffers",
    "seccomp": "a filter of system calls, set up after it was attached",
}


@pytest.mark.timeout(120)
@pytest.mark.parametrize("scenario", MERGED_ALL_ALONG)
def test_no_byte_changes_and_nothing_hangs_under(scenario: str, start: Callable[..., Any]) -> None:
    engine = under_fire(start, scenario, SECONDS)
    assert engine.stats.pages_merged > MERGED, engine.stats


@pytest.mark.soak
@pytest.mark.parametrize("scenario", MERGED_ALL_ALONG)
def test_no_byte_changes_and_nothing_hangs_for_long_under(scenario: str, start: Callable[..., Any]) -> None:
    engine = under_fire(start, scenario, SOAK_SECONDS)
    assert engine.stats.pages_merged > MERGED, engine.stats


@pytest.mark.parametrize(("remedy", "scenario"), [("mend", "discards"), ("forks", "orphans")])
def test_the_scenario_finds_wrong_bytes_where_its_remedy_is_switched_off(
    remedy: str, scenario: str, start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    if remedy == "forks" and os.geteuid():
        pytest.skip("needs root: only there the kernel tells of forks")
    monkeypatch.setenv("PAGEONE_WITHOUT", remedy)
    with pytest.raises(AssertionError, match=r"WRONG|status|hangs"):
        under_fire(start, scenario, 3.0, within_s=12)


def test_a_suspended_process_is_merged_and_stays_suspended(start: Callable[..., Any]) -> None:
    one, other = start("sit", 1.0, 2), start("sit", 1.0, 3)
    os.kill(one.pid, signal.SIGSTOP)
    with Engine() as engine:
        for target in (one, other):
            engine.attach(target.pid)
        assert engine.merge_once(0.2).merged_pages > 3000
        stat = Path(f"/proc/{one.pid}/stat").read_text()
        assert stat[stat.rindex(")") + 2] == "T"
        os.kill(one.pid, signal.SIGCONT)
        for target in (one, other):
            target.begin()
        for target in (one, other):
            target.finish(30)


def test_core_dumps_hold_merged_pages_while_a_process_is_attached(start: Callable[..., Any]) -> None:
    private_file_mappings = 1 << 2
    one = start("sit", 1.0)
    filter_of = Path(f"/proc/{one.pid}/coredump_filter")
    before = int(filter_of.read_text(), 16)
    assert not before & private_file_mappings
    with Engine() as engine:
        target = engine.attach(one.pid)
        assert int(filter_of.read_text(), 16) == before | private_file_mappings
        engine.detach(target)
        assert int(filter_of.read_text(), 16) == before


def test_protected_pages_are_given_back_with_their_bytes_and_their_protection(spawn: Any) -> None:
    program = spawn.python(_PROTECTS)
    assert program.stdout.readline() == "ready\n"
    with Engine() as engine:
        target = engine.attach(program.pid)
        assert engine.merge_once(0.2).merged_pages >= 256
        print("protect", file=program.stdin, flush=True)
        assert program.stdout.readline() == "protected\n"
        assert engine.detach(target)
        print("check", file=program.stdin, flush=True)
        assert program.stdout.readline() == "right\n"


_PROTECTS = """
import ctypes, mmap
libc = ctypes.CDLL(None, use_errno=True)
size = 256 * 4096
memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
content = bytes(range(1, 256)) * (4096 // 255 + 1)
memory[:] = content[:4096] * 256
base = ctypes.addressof(ctypes.c_char.from_buffer(memory))
print("ready", flush=True)
input()
assert libc.mprotect(ctypes.c_void_p(base), size // 2, 0) == 0
assert libc.mprotect(ctypes.c_void_p(base + size // 2), size // 2, 1) == 0
print("protected", flush=True)
input()
kinds = [line.split()[1] for line in open("/proc/self/maps")
         if base <= int(line.split("-")[0], 16) < base + size]
assert set(kinds) == {"---p", "r--p"}, kinds
assert libc.mprotect(ctypes.c_void_p(base), size, 3) == 0
assert memory[:] == content[:4096] * 256
print("right", flush=True)
"""

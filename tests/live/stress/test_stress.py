"""Programs under stress: real threads write and check at full speed while the engine merges every 0.05 s.

Each scenario of ``stress.c`` is one hazard. Several run side by side under one engine, and share frames: so each gets
its 15 seconds in ``make test`` (``PAGEONE_STRESS_SECONDS``) and its ten minutes in ``make soak``
(``PAGEONE_SOAK_SECONDS``) without taking hours together. A failure names the scenario.
"""

from __future__ import annotations

import contextlib
import os
import re
import resource
import signal
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pageone.engine import Engine
from pageone.errors import PageOneError
from pageone.live import LiveBackend, LiveTarget

SECONDS = float(os.environ.get("PAGEONE_STRESS_SECONDS", "15"))
SOAK_SECONDS = float(os.environ.get("PAGEONE_SOAK_SECONDS", "600"))
PERIOD = 0.05
MERGED = 300  #: a scenario of which no more pages were merged has shown nothing
AT_REST_S = 30.0
LONG_S = 300
GROUPS = 4
#: With so many busy threads on few processors the last one stops late, so much is to be done in each stop.
STOPS = {"stop_timeout_s": 0.2, "pause_s": 0.005}
#: Other tests run beside these; what never waits would leave them nothing.
NICE = 10

pytestmark = [pytest.mark.needs("merge", "gcc")]


@contextmanager
def merging(**options: Any) -> Iterator[Engine]:
    with Engine(period=PERIOD, quiet_periods=1, backend=LiveBackend(**STOPS), **options) as engine:
        engine.start()
        yield engine


class Followed:
    """A program of a scenario and how many of its pages have been merged, also after it has replaced itself."""

    def __init__(self, engine: Engine, scenario: str, program: Any) -> None:
        self.engine, self.scenario, self.program = engine, scenario, program
        self._target = engine.attach(program.pid)
        self._before = 0

    @property
    def merged(self) -> int:
        return self._before + self._target.stats.merged_pages

    def follow(self) -> None:
        """Attach it again if it has replaced itself."""
        if not self._target.attached and self.program.process.poll() is None:
            with contextlib.suppress(PageOneError):  # it has ended, or is about to do the same again
                before, self._target = self.merged, self.engine.attach(self.program.pid)
                self._before = before


def under_stress(
    start: Callable[..., Any],
    scenarios: Sequence[str],
    seconds: float,
    within_s: float = 60,
    each: int = 1,
    seed: int = 2,
) -> Engine:
    """Run scenarios side by side, ``each`` programs of each, under a merging engine to their end; return it, closed.

    Raises AssertionError, naming the scenarios, for wrong bytes, hangs, and those of which too little was merged.
    """
    with merging() as engine:
        names = [name for name in scenarios for _ in range(each)]
        programs = [Followed(engine, name, start(name, seconds, n, nice=NICE)) for n, name in enumerate(names, seed)]
        # At rest until the first pages are shared, however busy this machine is: else nothing might be in danger.
        deadline = time.monotonic() + AT_REST_S
        while min(p.merged for p in programs) <= MERGED and time.monotonic() < deadline:
            time.sleep(PERIOD)
        at_rest = [p.merged for p in programs]
        for p in programs:
            p.program.begin()
        end = time.monotonic() + seconds + within_s
        while any(p.program.process.poll() is None for p in programs) and time.monotonic() < end:
            for p in programs:
                p.follow()
            time.sleep(4 * PERIOD)
        wrong = []
        for p, before in zip(programs, at_rest, strict=True):
            under = p.merged - before
            try:
                print(f"{p.scenario}: {p.program.verdict(0.1)}, {before} pages merged at rest and {under} under stress")
            except AssertionError as error:
                wrong.append(f"{p.scenario}: {error}")
            # On a busy machine much may be left for later; not so in minutes.
            if before <= MERGED or (seconds >= LONG_S and p.scenario not in ONCE and not under):
                wrong.append(f"{p.scenario}: only {before} pages merged at rest and {under} under stress")
        assert not wrong, "\n".join(wrong)
        engine.stop()
        engine.step()
        assert not any(engine.stats.states.values()), "pages of programs that have ended are still counted"
    return engine


#: Scenarios, and what each is to show.
SCENARIOS = {
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
    "anything": "whatever may be asked of memory, in any order, against what it must then hold",
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


#: Those in which the attached process itself writes nothing that could be merged again.
ONCE = {"leaderless", "limit-files", "orphans", "ptrace", "seccomp", "userfaultfd"}
#: One scenario alone, for whoever looks into it (CONTRIBUTING.md).
ALONE = os.environ.get("PAGEONE_STRESS_SCENARIO")
#: Dealt out in turn: neighbours in the list above ask for much of the same.
SIDE_BY_SIDE = [[ALONE]] if ALONE else [list(SCENARIOS)[i::GROUPS] for i in range(GROUPS)]


# One group at a time, also where tests run in parallel: each keeps all processors busy.
@pytest.mark.xdist_group("stress")
@pytest.mark.timeout(SECONDS + 150)
@pytest.mark.parametrize("scenarios", SIDE_BY_SIDE, ids=" ".join)
def test_no_byte_changes_and_nothing_hangs_under(scenarios: list[str], start: Callable[..., Any]) -> None:
    under_stress(start, scenarios, SECONDS)


@pytest.mark.soak
@pytest.mark.parametrize("scenarios", SIDE_BY_SIDE, ids=" ".join)
def test_no_byte_changes_and_nothing_hangs_for_long_under(scenarios: list[str], start: Callable[..., Any]) -> None:
    under_stress(start, scenarios, SOAK_SECONDS)


#: How often a scenario searches at most.
TURNS = 4
#: Failpoints, each with a scenario that finds wrong bytes, results or hangs with it, and for how long it may search.
FAILPOINTS = [
    ("zero-fill,close", "discards", 3),
    ("forks", "orphans", 3),
    ("seccomp", "seccomp", 3),
    ("free", "free", 3),
    ("restart", "calls", 5),
    ("growth,close", "anything", 8),
]
#: Those that take longer to be missed.
MORE_FAILPOINTS = [
    ("written,compare", "writers", 8),
    ("aside", "third-vm", 12),
    ("sharers", "shared", 12),
    ("leaderless", "leaderless", 5),
    ("protection", "guards", 8),
    ("mask", "signals", 8),
    ("outside,close", "seccomp", 3),
    ("suspended,outside,close", "suspended", 8),
    ("rings", "uring-fixed", 12),
]


@pytest.mark.timeout(TURNS * (AT_REST_S + 30))
@pytest.mark.parametrize(
    ("names", "scenario", "seconds"),
    [*FAILPOINTS, *(pytest.param(*more, marks=pytest.mark.soak) for more in MORE_FAILPOINTS)],
)
def test_the_scenario_finds_what_is_wrong_where_its_failpoint_is_active(
    names: str,
    scenario: str,
    seconds: float,
    start: Callable[..., Any],
    activate: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if names == "forks" and os.geteuid():
        pytest.skip("needs root: only there the kernel tells of forks")
    activate(names)
    if "rings" in names:
        monkeypatch.setattr(LiveTarget, "look_for_devices", lambda self: None)
    if names == "written,compare":
        merge = LiveTarget.merge

        def dawdling(self: LiveTarget, *args: Any) -> Any:
            time.sleep(0.3)  # much can be written between reading and merging
            return merge(self, *args)

        monkeypatch.setattr(LiveTarget, "merge", dawdling)
    # Again where nothing was found: on a busy machine few pages are merged, or late.
    assert any(_finds_what_is_wrong(start, scenario, seconds, 2 + 2 * turn) for turn in range(TURNS))


def _finds_what_is_wrong(start: Callable[..., Any], scenario: str, seconds: float, seed: int) -> bool:
    try:
        under_stress(start, [scenario], seconds, within_s=12, each=2, seed=seed)
    except AssertionError as error:
        print(f"seed {seed}: {error}")
        return re.search("WRONG|status|hangs", str(error)) is not None
    return False


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


def test_a_core_file_of_a_merged_program_has_its_bytes(spawn: Any, tmp_path: Path) -> None:
    pattern = Path("/proc/sys/kernel/core_pattern").read_text().strip()
    if pattern.startswith("|") or "/" in pattern:
        pytest.skip(f"core files go elsewhere here: {pattern}")
    unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    program = spawn.python(
        _DUMPED, cwd=tmp_path, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CORE, unlimited)
    )
    base = int(program.stdout.readline())
    with Engine() as engine:
        engine.attach(program.pid)
        assert engine.merge_once(0.2).merged_pages >= 256
        program.send_signal(signal.SIGABRT)
        assert program.wait(60) == -signal.SIGABRT
    (core,) = tmp_path.glob("core*")
    content = (bytes(range(1, 256)) * (4096 // 255 + 1))[:4096]
    assert _in_core(core, base, 256 * 4096) == content * 256


def _in_core(core: Path, address: int, size: int) -> bytes:
    """Return memory of a process as its core file (ELF, 64 bits, little-endian) has it; raises where parts lack."""
    found = bytearray()
    with core.open("rb") as file:
        header = file.read(64)
        (at,) = struct.unpack_from("<Q", header, 32)
        each, count = struct.unpack_from("<HH", header, 54)
        file.seek(at)
        table = file.read(each * count)
        while len(found) < size:
            here = address + len(found)
            for i in range(count):
                kind, _, offset, start, _, in_file = struct.unpack_from("<IIQQQQ", table, each * i)
                if kind == 1 and start <= here < start + in_file:
                    file.seek(offset + here - start)
                    found += file.read(min(size - len(found), start + in_file - here))
                    break
            else:
                raise AssertionError(f"{here:#x} is not in the core file")
    return bytes(found)


_DUMPED = """
import ctypes, mmap, time
size = 256 * 4096
memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
content = bytes(range(1, 256)) * (4096 // 255 + 1)
memory[:] = content[:4096] * 256
print(ctypes.addressof(ctypes.c_char.from_buffer(memory)), flush=True)
time.sleep(100)
"""


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

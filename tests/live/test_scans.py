"""What scanning a live process costs, where the kernel makes a question expensive."""

import mmap
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pageone import procfs
from pageone.engine import Engine
from pageone.engine.backend import U64
from pageone.engine.pages import address
from pageone.live import backend

pytestmark = pytest.mark.needs("merge")

#: Maps four pages more for each line it reads, apart from all others.
MAPPER = """
import mmap, sys
kept = []
for line in sys.stdin:
    kept.append(mmap.mmap(-1, 1 << 18, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
    kept[-1][:] = bytes([len(kept)]) * (1 << 18)
    print(flush=True)
"""


#: Maps the same 64 pages three times, the last as its argument says; writes their addresses.
TWINS = """
import ctypes, mmap, random, sys
pages = random.Random(1).randbytes(64 * mmap.PAGESIZE)
libc = ctypes.CDLL(None, use_errno=True)
kept = []
for _ in range(3):
    # a page in between that is no part of them keeps the kernel from joining them
    kept.append(mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ))
    kept.append(mmap.mmap(-1, len(pages), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
    kept[-1].write(pages)
addresses = [ctypes.addressof(ctypes.c_char.from_buffer(m)) for m in kept[1::2]]
last, size = ctypes.c_void_p(addresses[-1]), ctypes.c_size_t(len(pages))
MADV_WIPEONFORK = 18
{assert_done}
print(*addresses, flush=True)
for line in sys.stdin:
    print(all(m[:] == pages for m in kept[1::2]), flush=True)
"""


@pytest.mark.parametrize(
    ("call", "merged_pages"),
    [
        ("libc.madvise(last, size, MADV_WIPEONFORK)", [64, 64, 0]),
        ("libc.mlock(last, size)", [0, 0, 0]),  # who locks memory is left alone as a whole
        ("0", [64, 64, 64]),
    ],
)
def test_memory_with_flags_that_would_be_lost_is_not_merged_though_it_has_twins(
    spawn: Any, call: str, merged_pages: list[int]
) -> None:
    process = spawn.python(TWINS.replace("{assert_done}", f"assert {call} == 0"))
    addresses = [int(a) for a in process.stdout.readline().split()]
    with Engine() as engine:
        target = engine.attach(process.pid)
        for _ in range(10):
            engine.merge_once(quiet_s=0.1)
            rows = target.rows
            ranges = list(zip(address(rows.start).tolist(), address(rows.end).tolist(), strict=True))
            ends = [(a, a + 64 * mmap.PAGESIZE) for a in addresses]
            merged = [sum(max(0, min(high, e) - max(low, a)) for low, high in ranges) // mmap.PAGESIZE for a, e in ends]
            if any(merged) and merged == merged_pages:
                break  # else it may not have stopped in time
        assert merged == merged_pages
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline().strip() == "True"


#: Locks half of its pages in memory when told to; says how much is locked, and whether its bytes are right.
LOCKER = """
import ctypes, mmap, sys
N, SIZE = 64, 4096
libc = ctypes.CDLL(None)
pages = b"".join((k.to_bytes(4, "little") + bytes(range(1, 252)) * 17)[:SIZE] for k in range(N))
memory = mmap.mmap(-1, N * SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
memory[:] = pages
at = ctypes.addressof(ctypes.c_char.from_buffer(memory))
print("ready", flush=True)
for line in sys.stdin:
    if line == "lock\\n":
        assert libc.mlock(ctypes.c_void_p(at), ctypes.c_size_t(N // 2 * SIZE)) == 0
    locked = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmLck"))
    frames = sum("memfd:pageone" in line for line in open("/proc/self/maps"))
    print(locked, memory[:] == pages, frames > 0, flush=True)
"""


def test_what_is_locked_after_it_was_merged_is_given_back_locked(spawn: Any, ask: Callable[..., str]) -> None:
    processes = [spawn.python(LOCKER) for _ in range(2)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    with Engine() as engine:
        targets = [engine.attach(process.pid) for process in processes]
        assert engine.merge_once(quiet_s=0.1).merged_pages >= 128
        assert ask(processes[0], "lock") == "128 True True"
        assert engine.detach(targets[0])
        assert ask(processes[0], "tell") == "128 True False"


def test_the_flags_of_new_mappings_are_read_as_often_as_their_share_of_the_time_allows(
    spawn: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = []
    ask = procfs.mapping_flags
    monkeypatch.setattr(procfs, "mapping_flags", lambda pid: reads.append(pid) or ask(pid))
    process = spawn.python(MAPPER)

    def map_more() -> None:
        process.stdin.write("\n")
        process.stdin.flush()
        process.stdout.readline()

    with Engine(period=0.05) as engine:
        target = engine.attach(process.pid)
        engine.step()
        assert len(reads) == 1

        monkeypatch.setattr(backend, "FLAGS_SHARE", 1e-9)
        target.memory.flags_due = 0.0  # type: ignore[attr-defined]
        map_more()
        engine.step()
        assert len(reads) == 2, "a mapping is new: its flags are read"
        tracked = target.stats.tracked
        for _ in range(5):
            map_more()
            engine.step()
        assert len(reads) == 2, "the share of the time is used up"

        target.memory.flags_due = time.monotonic()  # type: ignore[attr-defined]
        engine.step()
        assert len(reads) == 3, "what was put off is made up for"
        assert target.stats.tracked >= tracked + 5 * (1 << 18) // mmap.PAGESIZE


#: Has twice the same pages in two mappings; on each line it replaces one by a new one of the same place and size, and
#: writes the same bytes to it, and a page of the other one, too.
REPLACER = """
import ctypes, mmap, sys
N, SIZE = 64, 4096
libc = ctypes.CDLL(None)
word = ctypes.c_size_t
libc.mmap.restype, libc.mmap.argtypes = word, [word, word, ctypes.c_int, ctypes.c_int, ctypes.c_int, word]
def page(k):
    return (k.to_bytes(4, "little") + bytes(range(1, 252)) * 17)[:SIZE]
def fill(at):
    for k in range(N):
        ctypes.memmove(at + k * SIZE, page(k), SIZE)
room = libc.mmap(0, 5 * N * SIZE, 0, 0x22, -1, 0)
one, other = room + N * SIZE, room + 3 * N * SIZE
for at in (one, other):
    assert libc.mmap(at, N * SIZE, 3, 0x32, -1, 0) == at
    fill(at)
print("ready", flush=True)
for line in sys.stdin:
    assert libc.mmap(one, N * SIZE, 3, 0x32, -1, 0) == one
    fill(one)
    ctypes.memmove(other, b"x", 1)
    print(all(ctypes.string_at(one + k * SIZE, SIZE) == page(k) for k in range(N)), flush=True)
"""


def test_a_mapping_replaced_at_its_place_keeps_no_scan_from_what_else_was_written(
    spawn: Any, ask: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend, "FLAGS_SHARE", 1.0)
    process = spawn.python(REPLACER)
    assert process.stdout.readline() == "ready\n"
    with Engine(period=0.05) as engine:
        target = engine.attach(process.pid)
        engine.merge_once(0.2)
        shared = target.stats.merged_pages
        assert shared >= 128
        for _ in range(3):
            assert ask(process, "") == "True"
            # The first scan passes over what is new and has it tracked, those after it find it at rest.
            for _ in range(12):
                engine.step()
                time.sleep(0.05)
        assert engine.stats.missed_scans == 0
        assert target.stats.merged_pages >= shared + 3 * 60


#: Has a page apart from others, that it has wiped in children when told to; says whether a child finds zeros.
WIPER = """
WIPEONFORK = 18
at = libc.mmap(0, 3 * SIZE, 0, 0x22, -1, 0) + SIZE  # no access
assert libc.mmap(at, SIZE, 3, 0x32, -1, 0) == at  # read and write, fixed
ctypes.memmove(at, page(1), SIZE)
print("ready", flush=True)
for line in sys.stdin:
    if line == "wipe\\n":
        assert libc.madvise(at, SIZE, WIPEONFORK) == 0
    child = os.fork()
    if not child:
        os._exit(any(ctypes.string_at(at, SIZE)))
    print(os.waitpid(child, 0)[1] == 0, flush=True)
"""


def test_a_small_mapping_may_be_wiped_in_children_a_moment_after_it_was_made(
    spawn: Any, ask: Callable[..., str]
) -> None:
    programs = [spawn.mapper(WIPER) for _ in range(2)]
    for program in programs:
        assert program.stdout.readline() == "ready\n"
    with Engine() as engine:
        for program in programs:
            engine.attach(program.pid)
        engine.step()
        for program in programs:
            assert ask(program, "wipe") == "True"
        for _ in range(3):
            engine.merge_once(0.2)
        for program in programs:
            assert ask(program, "fork") == "True"


def test_what_was_left_out_of_a_scan_is_merged_later(spawn: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    processes = [spawn.python(LOCKER) for _ in range(2)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    with Engine() as engine:
        targets = [engine.attach(process.pid) for process in processes]
        engine.step()
        with monkeypatch.context() as open_now:
            memory = targets[0].memory
            open_now.setattr(memory, "kinds", SimpleNamespace(behind=lambda pid: "a device"))
            open_now.setattr(memory, "kinds_due", 0.0)
            engine.step()
            assert targets[0].stats.left_alone == "a device"
            assert not any(targets[0].stats.states.values())
        assert engine.merge_once(quiet_s=0.1).merged_pages >= 128


def test_ranges_without_others() -> None:
    def ranges(*pairs: int) -> tuple[U64, U64]:
        return np.array(pairs[::2], np.uint64), np.array(pairs[1::2], np.uint64)

    def rest(of: tuple[U64, U64], others: tuple[U64, U64]) -> list[tuple[int, int]]:
        return list(zip(*(bounds.tolist() for bounds in backend.without(*of, *others)), strict=True))

    assert rest(ranges(), ranges()) == []
    assert rest(ranges(1, 4), ranges()) == [(1, 4)]
    assert rest(ranges(), ranges(1, 4)) == []
    assert rest(ranges(1, 4, 6, 9), ranges(1, 4, 6, 9)) == []
    assert rest(ranges(1, 9), ranges(3, 5)) == [(1, 3), (5, 9)]
    assert rest(ranges(1, 4, 6, 9), ranges(2, 7)) == [(1, 2), (7, 9)]
    assert rest(ranges(3, 5), ranges(1, 9)) == []
    assert rest(ranges(1, 3, 3, 5), ranges(7, 9)) == [(1, 5)]


SMAPS = """7f0000000000-7f0000004000 rw-p 00000000 00:00 0
Size:                 16 kB
THPeligible:           0
ProtectionKey:         {first}
VmFlags: rd wr mr mw me ac sd
7f0000005000-7f0000006000 rw-p 00000000 00:00 0          [heap]
Size:                  4 kB
THPeligible:           0
VmFlags: rd wr mr mw me lo ac
"""


def test_a_mapping_with_a_protection_key_is_told_from_others() -> None:
    plain = {"rd", "wr", "mr", "mw", "me", "ac"}
    for first, its in (("0", plain | {"sd"}), ("3", plain | {"sd", "key"})):
        found = procfs.mapping_flags_in(SMAPS.format(first=first))
        assert found == {0x7F0000000000: frozenset(its), 0x7F0000005000: frozenset(plain | {"lo"})}

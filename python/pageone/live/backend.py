"""The real backend: pages of running processes, frames in a pool.

Reads (maps, pagemap, contents) are done here, from outside, without stopping anything; whatever changes a target
is asked of the guardian. Holds no policy: which pages, when and where is decided by ``pageone.engine``.
"""

from __future__ import annotations

import contextlib
import functools
import os
import secrets
import time
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import psutil

from pageone import policy, procfs
from pageone._native import mem
from pageone.engine.arrays import coalesce, requests
from pageone.engine.backend import (
    PAGE_SIZE,
    REQUEST_PAGES,
    U8,
    U32,
    U64,
    Inherited,
    Outcome,
    PageFlag,
    PageOutcome,
    PageRanges,
    ReadCode,
    Regions,
    TargetMemory,
)
from pageone.engine.clock import cpu_s
from pageone.errors import TargetError
from pageone.live import groups, patience, preflight, process
from pageone.live.guardian import Guardian, GuardianError, is_guardian
from pageone.live.uses import Uses

# Bits of a mapping's permissions and of PAGEMAP_SCAN, as in <linux/fs.h>.
_READ, _WRITE = 1, 2
_TRACKED, _WRITTEN, _FILE, _PRESENT, _ZERO, _HUGE = 1 << 0, 1 << 1, 1 << 2, 1 << 3, 1 << 5, 1 << 6
_WP_MATCHING = 1

#: CPU time that reading the flags of new mappings may take, as a share of all time. The kernel tells them in smaps
#: only, which walks over every page of the process: with a program that maps something in every period that alone
#: would cost 80 ms a GiB and period.
FLAGS_SHARE = 0.02

#: Mappings of so many pages at most are used only when they have been there for so long, seconds. Their flags may
#: follow a moment after they are made, and a page of random numbers that is to be wiped in children must never be taken
#: for any other.
YOUNG_PAGES = 16
YOUNG_S = 0.05

#: How often what another engine has left is asked for before a process is let be.
TAKE_OVER_TRIES = 10
#: How long another engine's guardian that traces a process is waited for, seconds.
DETACH_S = 2.0

#: How often it is asked under which limits of memory a target is, seconds.
GROUP_S = 1.0
#: What is left of what a control group lets the guardian have when frames are filled, bytes: at the limit the kernel
#: ends processes.
ROOM_LEFT = 8 << 20

#: CPU time that checking what a process has open may take, as a share of all time: with ten thousand connections a
#: check takes some 40 ms. It is checked again in any case before something is merged.
KINDS_SHARE = 0.02

#: Whether it matters where memory is.
_SEVERAL_NODES = procfs.memory_nodes() > 1

T = TypeVar("T")


class LiveTarget:
    """A running process; implements ``pageone.engine.backend.TargetMemory``."""

    def __init__(self, backend: LiveBackend, pid: int) -> None:
        self.pid = pid
        self._backend = backend
        self._guardian = backend.guardian
        self._identity = procfs.identity(pid)
        self._region = self._guardian.attach(pid, follow_forks=backend.follow_forks)
        try:
            self._pagemap = os.open(f"/proc/{pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            self._guardian.detach(pid)
            raise TargetError(f"cannot read the page map of process {pid}: {error.strerror}") from error
        #: Mappings that are armed, and those found unusable: starts and ends, ascending.
        none = np.empty(0, np.uint64)
        self._armed: tuple[U64, U64] = (none, none)
        self._refused: tuple[U64, U64] = (none, none)
        #: Small mappings that were new at a scan, and when (``time.monotonic``) those that still are may be used.
        self._young: tuple[U64, U64] = (none, none)
        self._young_until = 0.0
        #: Ranges whose writes were asked for at the last scan: of these alone the kernel tells what is new.
        self._asked: tuple[U64, U64] = (none, none)
        #: Where merging has cut mappings since: a piece between such edges is armed as the whole was.
        self._cuts: list[U64] = []
        #: When (``time.monotonic``) the flags of new mappings may be read again: that is never free.
        self.flags_due = 0.0
        #: What the process has open that lets its memory be written behind the page tables; empty if there is nothing.
        self.left_alone = ""
        self.kinds = mem.Kinds()
        #: When (``time.monotonic``) that is to be looked for again; whether it was since writes were last asked for.
        self.kinds_due = 0.0
        self._kinds_asked = False
        #: Ends of merged mappings with nothing behind them that the guardian has been told of.
        self._open_ends: set[int] = set()
        #: Whether frames are mapped, as just read, for the scan that follows: reading the maps is what a scan costs.
        self._merges: bool | None = None

    def alive(self) -> bool:
        """Whether the process exists and still runs the program that was attached."""
        return procfs.identity(self.pid) == self._identity and self._has_region()

    def _read(self, work: Callable[..., T], *args: Any, **options: Any) -> T:
        """Look at it as long as that does not take for ever."""
        return patience.read(self.pid, functools.partial(work, *args, **options))

    def _has_region(self) -> bool:
        try:
            return self._read(_is_mapped, self.pid, self._region[0])
        except patience.HeldUpError:
            return True  # nothing says that it has gone
        except OSError:
            return False  # it is ending: an ordinary user may not read it any more

    def regions(self) -> Regions:
        """See ``TargetMemory.regions``. Cost: one read of the maps, and of smaps when there is a new mapping."""
        try:
            start, end, perms, offset, device, inode, name, names = self._read(mem.maps, self.pid)
        except OSError as error:
            raise TargetError(f"process {self.pid} has ended or cannot be read: {error.strerror}") from error
        if time.monotonic() >= self.kinds_due:
            self.look_for_devices()
        # The kernel may have joined a mapping of the program with the injected region below it: the rest is not ours.
        low, high = self._region
        joined = (start > low) & (start < high) & (end > high) & (inode == 0)
        start = np.where(joined, np.uint64(high), start)
        merged = self._backend.is_pool(device, inode)
        self._merges = bool(merged.any())
        if self.left_alone:
            # Writes may be under way into any page, with no thread to stop: only what is merged is accounted for.
            self._open_ends.clear()
            special = np.ones(len(start), bool)
        else:
            self._close_ends(end[:-1][merged[:-1] & (start[1:] != end[:-1])])
            special = policy.left_for_name(names or [""])[name]
        private_rw = (perms & 15) == (_READ | _WRITE)
        if self._backend.limited(self.pid) is not None:
            private_rw[:] = False  # nothing more of it is merged
        free = private_rw & (inode == 0) & ~special & ~((start < self._region[1]) & (end > self._region[0]))
        if not self.left_alone:
            free &= ~self._unusable(start, end, free)
        chosen = np.flatnonzero(free | merged)
        frame = np.where(merged[chosen], offset[chosen] // PAGE_SIZE, 0).astype(np.uint32)
        return Regions(
            start=start[chosen],
            end=end[chosen],
            merged=merged[chosen].astype(np.uint8),
            frame=frame,
            mappings=len(start),
            left_alone=self.left_alone,
        )

    def look_for_devices(self) -> None:
        """Find out what the process has open that lets its memory be written behind its page tables."""
        began = cpu_s()
        try:
            self.left_alone = self._read(self.kinds.behind, self.pid) or ""
        except patience.HeldUpError:
            self.kinds = mem.Kinds()  # that one is still in use
            raise
        except OSError as error:
            self.left_alone = f"descriptors that cannot be told ({error.strerror})"
        self.kinds_due = time.monotonic() + (cpu_s() - began) / KINDS_SHARE
        self._kinds_asked = True

    def _close_ends(self, ends: U64) -> None:
        """Have merged memory that nothing follows kept from growing: what is new would be further frames."""
        new = np.array([end for end in ends.tolist() if end not in self._open_ends], np.uint64)
        self._open_ends = set(ends.tolist())  # the heap's stays open
        if len(new):
            codes = np.full(len(new), PageOutcome.TIMEOUT, np.uint8)
            with contextlib.suppress(OSError):  # it is ending, or its program is being replaced
                codes = self._guardian.close_ends(self.pid, new - np.uint64(PAGE_SIZE)).code
            self._open_ends -= set(new[codes == PageOutcome.TIMEOUT].tolist())

    def _unusable(self, start: U64, end: U64, free: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """Arm the free mappings that are not armed yet; mark those that cannot be used, or not yet."""
        unusable = np.zeros(len(start), bool)
        cuts = np.concatenate(self._cuts) if self._cuts else np.empty(0, np.uint64)
        self._cuts = []
        at = np.flatnonzero(free)
        refused = _pieces(self._refused, cuts[:0], start[at], end[at])
        armed = _pieces(self._armed, cuts, start[at], end[at]) & ~refused
        new = at[~armed & ~refused]
        unusable[at[refused]] = True
        # What a program is to say of a new mapping it says right after making it, not in the same instant.
        small = young = new[end[new] - start[new] <= YOUNG_PAGES * PAGE_SIZE]
        if time.monotonic() > self._young_until:
            young = small[~_pieces(self._young, cuts[:0], start[small], end[small])]
            self._young, self._young_until = (start[small], end[small]), time.monotonic() + YOUNG_S
        unusable[young] = True  # not for good: they are new at the next scan, too
        new = np.setdiff1d(new, young, assume_unique=True)
        if len(new) and time.monotonic() < self.flags_due:
            unusable[new] = True  # the same
        elif len(new):
            began = cpu_s()
            flags = self._mapping_flags()
            self.flags_due = time.monotonic() + (cpu_s() - began) / FLAGS_SHARE
            its = policy.flags_at(flags, start[new])
            left_alone, advice = policy.left_for_flags(its), policy.advice(its)
            told = self._read(procfs.policies, self.pid) if _SEVERAL_NODES else None
            if told is not None:
                left_alone |= policy.placed_apart(*told, start[new])
            unusable[new[left_alone]] = True
            usable, advice = new[~left_alone], advice[~left_alone]
            if len(usable):
                result = self._guardian.arm(self.pid, start[usable], end[usable] | advice)
                unusable[usable[result != 0]] = True
            refused = unusable[at] & ~np.isin(at, young)
        bad = unusable[at]
        self._armed = start[at[~bad]], end[at[~bad]]
        self._refused = start[at[refused]], end[at[refused]]
        return unusable

    def _mapping_flags(self) -> dict[int, frozenset[str]]:
        try:
            return self._read(procfs.mapping_flags, self.pid)
        except OSError as error:
            raise TargetError(f"process {self.pid} has ended or cannot be read: {error.strerror}") from error

    def _scan(self, start: U64, end: U64, mask: int) -> tuple[U64, U64, U64]:
        """Return ranges with all categories of ``mask``, of no zero pages, and their categories; writes show anew."""
        try:
            # Mappings that have been replaced at the same place are not tracked any more. They are passed over now and
            # armed at the next scan. (That such a mapping ends the scan with an error may be asked for, too: what was
            # found, and protected again, before it would be lost.)
            scan = functools.partial(self._read, mem.pagemap_scan, self._pagemap, start, end)
            self._disarm(*scan(inverted=_TRACKED, mask=_TRACKED)[:2])
            # Not asked: _FILE. It makes the kernel look up every page's descriptor: 11 ms a GiB instead of 1.
            return scan(flags=_WP_MATCHING, inverted=_ZERO, mask=mask | _ZERO, returned=_HUGE)
        except OSError as error:
            raise TargetError(f"process {self.pid}: its page map cannot be read: {error.strerror}") from error

    def _disarm(self, start: U64, end: U64) -> None:
        """Take mappings that overlap ascending ranges for new ones at the next scan."""
        starts, ends = self._armed
        if len(start):
            # The first range that ends behind the mapping's start is the only one that can begin it.
            at = np.searchsorted(end, starts, side="right")
            behind = np.append(start, np.uint64(2**64 - 1))[at]
            self._armed = starts[behind >= ends], ends[behind >= ends]

    def written(self, start: U64, end: U64) -> PageRanges:
        """See ``TargetMemory.written``. Cost: a walk of the page tables of the ranges."""
        asked, self._asked = self._asked, (start[:0], end[:0])
        self._kinds_asked = False
        # What was left out for a while (mappings whose flags could not be read at once; all, while there were rings)
        # is not known any more.
        unknown = without(start, end, *asked)
        known = without(start, end, *unknown) if len(unknown[0]) else (start, end)
        found = [self._scan(*known, _WRITTEN | _PRESENT)]
        if len(unknown[0]):
            found.append(self._scan(*unknown, _PRESENT))
        self._asked = start, end
        s, e, categories = (np.concatenate(column) for column in zip(*found, strict=True))
        order = np.argsort(s)
        huge = np.where(categories & np.uint64(_HUGE), np.uint8(PageFlag.HUGE), np.uint8(0))
        ranges = PageRanges(s[order], e[order], huge.astype(np.uint8)[order])
        # Pages of the pool that were read since the last scan, and not written, are new in the page table too.
        return self._without_file(ranges) if self._merges_now() and len(ranges.start) else ranges

    def _without_file(self, ranges: PageRanges) -> PageRanges:
        """Leave out of ranges the pages that are a file's. Cost: in proportion to the ranges."""
        try:
            s, e, categories = self._read(
                mem.pagemap_scan,
                self._pagemap,
                ranges.start,
                ranges.end,
                flags=0,
                inverted=_FILE,
                mask=_FILE | _PRESENT,
                returned=_HUGE,
            )
        except OSError as error:
            raise TargetError(f"process {self.pid}: its page map cannot be read: {error.strerror}") from error
        huge = np.where(categories & np.uint64(_HUGE), np.uint8(PageFlag.HUGE), np.uint8(0))
        return PageRanges(s, e, huge.astype(np.uint8))

    def _merges_now(self) -> bool:
        """Whether any frame is mapped."""
        known, self._merges = self._merges, None
        if known is not None:
            return known
        try:
            _, _, _, _, device, inode, _, _ = self._read(mem.maps, self.pid)
        except OSError as error:
            raise TargetError(f"process {self.pid} has ended or cannot be read: {error.strerror}") from error
        return bool(self._backend.is_pool(device, inode).any())

    def read_keys(self, addr: U64) -> tuple[U64, U8]:
        """See ``TargetMemory.read_keys``. Cost: about 0.5 µs of CPU a page."""
        try:
            return self._read(mem.read_own_keys, self.pid, addr, self._backend.key)
        except OSError as error:
            raise TargetError(f"process {self.pid} has ended or cannot be read: {error.strerror}") from error

    def holds(self, addr: U64) -> U8:
        """See ``TargetMemory.holds``. Cost: 10-20 ns a page in runs, half a microsecond for one alone."""
        try:
            return self._read(mem.pagemap_holds, self._pagemap, addr)
        except OSError as error:
            raise TargetError(f"process {self.pid}: its page map cannot be read: {error.strerror}") from error

    def _request(self, kind: str, addr: U64, pages: U32, *more: U32, **options: bool) -> Outcome:
        """Ask the guardian to do something with runs."""
        self._merges = None
        self._cuts += [addr, addr + pages.astype(np.uint64) * np.uint64(PAGE_SIZE)]
        try:
            done: Outcome = getattr(self._guardian, kind)(self.pid, addr, pages, *more, **options)
        except OSError as error:
            raise TargetError(f"process {self.pid}: {kind} failed: {error.strerror}") from error
        return done

    def _refuse(self, pages: U32) -> Outcome | None:
        """Refuse to merge pages where a device may write them; None where none may.

        What was pinned before writes were last asked for was registered by then, so it is found when it is looked for
        after that, once. What is pinned later counts as written, and the guardian refuses it.
        """
        if not self._kinds_asked:
            self.look_for_devices()
        if not self.left_alone:
            return None
        return Outcome(np.full(int(pages.sum()), PageOutcome.REFUSED, np.uint8), np.empty(0), 0.0)

    def merge(self, addr: U64, pages: U32, frame: U32) -> Outcome:
        """See ``TargetMemory.merge``."""
        return self._refuse(pages) or self._request("merge", addr, pages, frame)

    def drop_zero(self, addr: U64, pages: U32) -> Outcome:
        """See ``TargetMemory.drop_zero``."""
        return self._refuse(pages) or self._request("drop_zero", addr, pages)

    def unmerge(self, addr: U64, pages: U32, apart: bool = False) -> Outcome:
        """See ``TargetMemory.unmerge``."""
        return self._request("unmerge", addr, pages, apart=apart)

    def detach(self) -> None:
        """See ``TargetMemory.detach``."""
        self._guardian.detach(self.pid)
        self.release()

    def release(self) -> None:
        """See ``TargetMemory.release``."""
        pagemap, self._pagemap = self._pagemap, -1
        if pagemap >= 0:
            patience.spare(self.pid, os.close, pagemap)
        if self._backend.targets.get(self.pid) is self:
            del self._backend.targets[self.pid]


class LiveBackend:
    """One pool of frames and the guardian that serves it; implements ``pageone.engine.backend.Backend``.

    ``pause_s`` is what a stop of a target aims not to exceed, ``stop_timeout_s`` how long a target may take to stop
    before it is left alone; ``pool_bytes`` is the most that all frames together may hold (default: all memory).
    """

    def __init__(self, *, pause_s: float = 0.0015, stop_timeout_s: float = 0.02, pool_bytes: int | None = None) -> None:
        size = pool_bytes or psutil.virtual_memory().total
        self.frames_max = min(size // PAGE_SIZE, 2**32 - 1)
        self.key = mem.Key(secrets.token_bytes(64))
        self.follow_forks = procfs.capable(procfs.CAP_SYS_PTRACE)
        self.guardian = Guardian(self.frames_max, pause_s=pause_s, stop_timeout_s=stop_timeout_s)
        self.pool = self.guardian.pool
        self.targets: dict[int, LiveTarget] = {}
        #: PIDs that have named this process with PR_SET_PTRACER, or descend from such.
        self.declared: set[int] = set()
        #: Until when (``time.monotonic``) it is known of a target which limit of its memory forbids to merge it.
        self._limited: dict[int, tuple[float, str | None]] = {}
        self._uses = Uses(self.is_pool, self.guardian.pid)

    def attach(self, pid: int) -> TargetMemory:
        """See ``Backend.attach``."""
        self.take_over(pid)
        self._check(pid)
        if pid in self.targets:
            if self.targets[pid].alive():
                raise TargetError(f"process {pid} is attached already")
            self.release(pid)
        target = LiveTarget(self, pid)
        self.targets[pid] = target
        self._uses.remember(pid)
        return target

    def _check(self, pid: int) -> None:
        """Raise the reason why a process can be no target, if there is one."""
        ours, pool = (os.getpid(), self.guardian.pid), (self.pool.device, self.pool.inode)
        patience = time.monotonic() + DETACH_S
        while True:
            try:
                preflight.check(pid, ours=ours, declared=pid in self.declared, pool=pool, charged=self.guardian.pid)
            except preflight.TracedError as error:
                # The guardian of an engine that was just killed detaches, in a moment, from what has nothing merged; or
                # it has just done so, and ended.
                detaches = is_guardian(error.tracer) or procfs.identity(error.tracer) is None
                if not detaches or time.monotonic() > patience:
                    raise
                time.sleep(0.01)
            else:
                return

    def take_over(self, pid: int) -> None:
        """Have what an engine that was killed has merged of a process given back, by the guardian that it left behind.

        Then this engine can merge it anew. Nothing happens where there is nothing of that kind, or the other engine
        lives, or the memory for it is not there: then ``preflight`` says why not. Cost: a read of the maps; for memory
        that is given back, a copy of each page.
        """
        for device, inode in set(self._foreign(pid)):
            with contextlib.suppress(OSError, GuardianError, TargetError):
                other = Guardian.orphaned(device, inode)
                try:
                    for _ in range(TAKE_OVER_TRIES):
                        # The program goes on meanwhile: what it has cut or did not stop for is asked for again.
                        ranges = self._foreign(pid).get((device, inode))
                        if ranges is None:
                            other.detach(pid)
                            break
                        for addr, pages in ranges:
                            other.unmerge(pid, addr, pages)
                finally:
                    other.leave()

    def _foreign(self, pid: int) -> dict[tuple[int, int], list[tuple[U64, U32]]]:
        """Return what a process maps of other engines' pools: by device and inode, requests of ``(address, pages)``."""
        try:
            thread = process.memory_thread(pid)
            start, end, _, _, device, inode, name, names = patience.read(pid, mem.maps, thread)
        except (OSError, patience.HeldUpError):  # the latter is refused right after this
            return {}
        frames = np.array([n == preflight.POOL_NAME for n in names] or [False])[name] & ~self.is_pool(device, inode)
        found: dict[tuple[int, int], list[tuple[U64, U32]]] = {}
        for file in {(int(d), int(i)) for d, i in zip(device[frames], inode[frames], strict=True)}:
            its = frames & (device == np.uint64(file[0])) & (inode == np.uint64(file[1]))
            pages = ((end[its] - start[its]) // np.uint64(PAGE_SIZE)).astype(np.int64)
            found[file] = [(a, n) for a, n, _ in requests(start[its], pages, None, REQUEST_PAGES, PAGE_SIZE)]
        return found

    def limited(self, pid: int) -> str | None:
        """Return which limit of memory holds for a target or for the engine only, since the one or other was moved.

        Asked of the system once in ``GROUP_S`` seconds.
        """
        until, limit = self._limited.get(pid, (0.0, None))
        if time.monotonic() >= until:
            limit = groups.difference(pid, self.guardian.pid)
            self._limited[pid] = time.monotonic() + GROUP_S, limit
        return limit

    def release(self, pid: int) -> None:
        """Forget a process that has ended or runs another program now; nothing happens if there is none."""
        self.declared.discard(pid)
        self._limited.pop(pid, None)
        target = self.targets.get(pid)
        if target is not None:
            target.release()

    def fill(self, frame: U32, target: TargetMemory, addr: U64) -> tuple[U8, float]:
        """See ``Backend.fill``; where a control group limits the guardian's memory, only as many as surely fit."""
        room = groups.headroom(self.guardian.pid)
        fit = len(frame) if room is None else max(0, (room - ROOM_LEFT) // PAGE_SIZE)
        if fit >= len(frame):
            return self.pool.fill(target.pid, addr, frame)
        codes = np.full(len(frame), ReadCode.NO_ROOM, np.uint8)
        codes[:fit], cpu_s = self.pool.fill(target.pid, addr[:fit], frame[:fit])
        return codes, cpu_s

    def punch(self, frame: U32) -> None:
        """See ``Backend.punch``."""
        ordered = np.sort(frame)
        edges = np.flatnonzero(np.diff(ordered) != 1) + 1
        first = np.concatenate(([0], edges))[: len(ordered)]
        count = np.diff(np.concatenate((first, [len(ordered)])))
        self.pool.free(ordered[first].astype(np.uint64), count.astype(np.uint64))

    def mapped_frames(self) -> tuple[U32, U32, bool]:
        """See ``Backend.mapped_frames``; how it comes to be complete: ``uses``."""
        return self._uses.scan()

    def inherited(self) -> list[Inherited]:
        """See ``Backend.inherited``. Cost: a read of the maps of each child that is guarded and not attached."""
        found = []
        for pid in self.guardian.targets():
            if pid in self.targets:
                continue
            # It has ended; or it holds up whoever reads: then its copies are its own, at the price of memory.
            with contextlib.suppress(OSError, patience.HeldUpError):
                thread = process.memory_thread(pid)
                start, end, _, offset, device, inode, _, _ = patience.read(pid, mem.maps, thread)
                ours = self.is_pool(device, inode)
                frame = (offset[ours] // PAGE_SIZE).astype(np.uint32)
                found.append(Inherited(start[ours], end[ours], frame))
        return found

    def is_pool(self, device: U64, inode: U64) -> npt.NDArray[np.bool_]:
        """Tell which files, given as ``maps`` tells them, are the pool: an inode alone means nothing."""
        found: npt.NDArray[np.bool_] = (inode == self.pool.inode) & (device == self.pool.device)
        return found

    def cpu_s(self) -> float:
        """CPU-seconds of the guardian so far."""
        return self.guardian.cpu_s()

    def close(self) -> None:
        """See ``Backend.close``: the guardian stays as long as merged targets live."""
        for target in list(self.targets.values()):
            target.release()
        self.guardian.close()


def _is_mapped(pid: int, address: int) -> bool:
    """Whether a process maps a page, whatever is there: to read it could take for ever."""
    pagemap = os.open(f"/proc/{pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    try:
        start = np.array([address], np.uint64)
        return len(mem.pagemap_scan(pagemap, start, start + np.uint64(PAGE_SIZE), returned=_PRESENT)[0]) > 0
    finally:
        os.close(pagemap)


def without(start: U64, end: U64, other_start: U64, other_end: U64) -> tuple[U64, U64]:
    """Return what of ranges is in none of the others; both ascending and disjoint. Cost: a sort of their bounds."""
    points = np.unique(np.concatenate((start, end, other_start, other_end)))
    low, high = points[:-1], points[1:]

    def within(starts: U64, ends: U64) -> npt.NDArray[np.bool_]:
        at = np.searchsorted(starts, low, "right")
        return low < np.concatenate((low[:1] * 0, ends))[at]

    keep = within(start, end) & ~within(other_start, other_end)
    return coalesce(low[keep], high[keep])


def _pieces(known: tuple[U64, U64], cuts: U64, start: U64, end: U64) -> npt.NDArray[np.bool_]:
    """Which ranges are one of the known ones, or a piece of one whose new edges are all among ``cuts``."""
    starts, ends = known
    if not len(starts):
        return np.zeros(len(start), bool)
    at = np.maximum(np.searchsorted(starts, start, "right"), 1) - 1
    inside: npt.NDArray[np.bool_] = (starts[at] <= start) & (end <= ends[at])
    inside &= (starts[at] == start) | np.isin(start, cuts)
    inside &= (ends[at] == end) | np.isin(end, cuts)
    return inside


__all__ = ["LiveBackend", "LiveTarget"]

"""A backend of numpy arrays with the semantics of the real one: processes whose pages are single numbers.

A page's content is one ``uint64`` (0 is the zero page), so a thousand processes cost nothing. Everything that the real
backend must guarantee is checked here by assertion: a frame is never filled or punched while somebody maps it, no page
is merged without being equal, and what a process reads is always what it wrote.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from pageone.engine.backend import Hold, Inherited, Outcome, PageFlag, PageOutcome, PageRanges, ReadCode, Regions
from pageone.errors import TargetError

PAGE = 4096
NONE = np.uint32(0xFFFFFFFF)
BASE = 0x10000  # page number at which every process's arena begins

U8 = npt.NDArray[np.uint8]
U32 = npt.NDArray[np.uint32]
U64 = npt.NDArray[np.uint64]
Hook = Callable[[str, "FakeProcess"], None]


def spread(addr: U64, pages: U32) -> npt.NDArray[np.int64]:
    """Arena indices of the pages of runs."""
    first = (addr // PAGE).astype(np.int64) - BASE
    return np.concatenate([np.arange(f, f + int(n)) for f, n in zip(first, pages, strict=True)] or [np.arange(0)])


#: What a process has of each page.
OF_PAGES = ("mapped", "own", "resident", "written", "frame", "private", "huge", "memory", "without", "expected")


class FakeProcess:
    """A process with an arena of ``pages`` pages, of which ranges may be mapped."""

    def __init__(self, backend: FakeBackend, pid: int, pages: int) -> None:
        self.backend, self.pid, self.n = backend, pid, pages
        self.living = True
        self.mapped = np.zeros(pages, bool)
        self.own = np.zeros(pages, np.uint64)  # content of the page's own memory
        self.resident = np.zeros(pages, bool)
        self.written = np.zeros(pages, bool)
        self.frame = np.full(pages, NONE)  # frame mapped there
        self.private = np.zeros(pages, bool)  # in a mapping of the pool, but written since
        self.huge = np.zeros(pages, bool)
        self.pinned = np.zeros(pages, bool)
        self.memory = np.full(pages, -1, np.int64)  # which piece of the machine's memory a page of its own is in
        self.without = np.full(pages, -1, np.int64)  # which one it would be in if there were no engine
        self.expected = np.zeros(pages, np.uint64)  # what the process itself believes

    # -------------------------------------------------- what the program does

    def mmap(self, start: int, pages: int) -> None:
        at = slice(start, start + pages)
        assert not self.mapped[at].any()
        self.mapped[at] = True
        self._blank(at)

    def munmap(self, start: int, pages: int) -> None:
        at = slice(start, start + pages)
        self._blank(at)
        self.mapped[at] = False

    def dontneed(self, start: int, pages: int) -> None:
        self._blank(slice(start, start + pages))

    def _blank(self, at: slice) -> None:
        self.own[at], self.expected[at] = 0, 0
        self.resident[at] = self.written[at] = self.private[at] = self.huge[at] = False
        self.frame[at] = NONE
        self.memory[at] = self.without[at] = -1

    def mremap(self, start: int, to: int, pages: int) -> None:
        """Move memory over other memory, with all that it shows and shares."""
        old, new = slice(start, start + pages), slice(to, to + pages)
        for name in OF_PAGES:
            getattr(self, name)[new] = getattr(self, name)[old]
        self.munmap(start, pages)

    def write(self, pages: npt.ArrayLike, values: npt.ArrayLike) -> None:
        index = np.atleast_1d(np.asarray(pages))
        keep = self.mapped[index]
        index = index[keep]
        values = np.broadcast_to(np.asarray(values, np.uint64), keep.shape)[keep]
        self.own[index] = values
        self.expected[index] = values
        self.resident[index] = self.written[index] = True
        self.private[index] = self.frame[index] != NONE
        self.memory[index] = self.backend.allocate(len(index))
        self.without[index] = self.backend.allocate(len(index))

    def fork(self, pid: int) -> FakeProcess:
        child = FakeProcess(self.backend, pid, self.n)
        for name in OF_PAGES:
            getattr(child, name)[:] = getattr(self, name)
        self.backend.processes[pid] = child
        return child

    def exit(self) -> None:
        self.living = False
        self.backend.processes.pop(self.pid, None)

    @property
    def reads(self) -> U64:
        """What the process reads at each page now."""
        shares = (self.frame != NONE) & ~self.private
        return np.where(shares, self.backend.pool[np.where(shares, self.frame, 0)], self.own)

    def check(self) -> None:
        wrong = np.flatnonzero(self.reads != self.expected)
        assert not len(wrong), f"process {self.pid}: page {wrong[0]} reads other than what was written"

    def vmas(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """First page and end of each mapping."""
        if not self.mapped.any():
            return np.empty(0, np.int64), np.empty(0, np.int64)
        index = np.flatnonzero(self.mapped)
        frame = self.frame[index].astype(np.int64)
        pool = frame != NONE
        joined = (np.diff(index) == 1) & (pool[1:] == pool[:-1]) & (~pool[1:] | (np.diff(frame) == 1))
        first = np.concatenate(([0], np.flatnonzero(~joined) + 1))
        last = np.concatenate((first[1:], [len(index)])) - 1
        return index[first], index[last] + 1


class FakeMemory:
    """``TargetMemory`` of a fake process."""

    def __init__(self, backend: FakeBackend, process: FakeProcess) -> None:
        self.backend, self.process, self.pid = backend, process, process.pid
        self.asked = np.zeros(process.n, bool)
        self.detached = False

    def _enter(self, name: str) -> FakeProcess:
        assert not self.detached
        self.backend.calls[name] = self.backend.calls.get(name, 0) + 1
        self.backend.hook(name, self.process)
        if not self.process.living:
            raise TargetError(f"process {self.pid}: gone")
        return self.process

    def alive(self) -> bool:
        return self.process.living

    def regions(self) -> Regions:
        p = self._enter("regions")
        first, end = p.vmas()
        frame = p.frame[first]
        merged = frame != NONE
        return Regions(
            start=((first + BASE) * PAGE).astype(np.uint64),
            end=((end + BASE) * PAGE).astype(np.uint64),
            merged=merged.astype(np.uint8),
            frame=np.where(merged, frame, 0).astype(np.uint32),
            mappings=len(first),
        )

    def _ranges(self, which: npt.NDArray[np.bool_]) -> PageRanges:
        p = self.process
        index = np.flatnonzero(which)
        flags = (p.huge[index] * PageFlag.HUGE).astype(np.uint8)
        breaks = np.flatnonzero((np.diff(index) != 1) | (np.diff(flags.astype(int)) != 0)) + 1
        first = np.concatenate(([0], breaks)) if len(index) else np.empty(0, np.int64)
        last = np.concatenate((breaks, [len(index)])) if len(index) else np.empty(0, np.int64)
        return PageRanges(
            start=((index[first.astype(int)] + BASE) * PAGE).astype(np.uint64),
            end=((index[last.astype(int) - 1] + BASE + 1) * PAGE).astype(np.uint64),
            flags=flags[first.astype(int)],
        )

    def written(self, start: U64, end: U64) -> PageRanges:
        p = self._enter("written")
        index = spread(start, ((end - start) // PAGE).astype(np.uint32))
        asked = np.zeros(p.n, bool)
        asked[index] = True
        which = asked & p.mapped & p.resident & (p.written | ~self.asked) & ((p.frame == NONE) | p.private)
        result = self._ranges(which)
        p.written[asked] = False
        self.asked[asked & p.resident] = True
        return result

    def read_keys(self, addr: U64) -> tuple[U64, U8]:
        p = self._enter("read_keys")
        index = (addr // PAGE).astype(np.int64) - BASE
        self.backend.pages_read += len(index)
        content = p.reads[index]
        codes = np.where(content == 0, ReadCode.ZERO, ReadCode.OK).astype(np.uint8)
        holds = self._holds(index)
        codes[holds == Hold.NONE] = ReadCode.GONE
        codes[holds == Hold.SHARED] = ReadCode.SHARED
        return self.backend.key(content), codes

    def holds(self, addr: U64) -> U8:
        self._enter("holds")
        return self._holds((addr // PAGE).astype(np.int64) - BASE)

    def _holds(self, index: npt.NDArray[np.int64]) -> U8:
        p = self.process
        shared = self.backend.users()[p.memory[index]] > 1
        holds = np.where(shared, Hold.SHARED, Hold.OWN).astype(np.uint8)
        holds[p.memory[index] < 0] = Hold.NONE
        holds[(p.frame[index] != NONE) & ~p.private[index]] = Hold.FILE
        return holds

    def _codes(self, index: npt.NDArray[np.int64]) -> U8:
        p = self.process
        codes = np.zeros(len(index), np.uint8)
        codes[self._holds(index) == Hold.SHARED] = PageOutcome.SHARED
        codes[p.written[index]] = PageOutcome.WRITTEN
        codes[p.pinned[index]] = PageOutcome.REFUSED
        codes[~p.mapped[index]] = PageOutcome.GONE
        if self.backend.timeout:
            codes[:] = PageOutcome.TIMEOUT
        return codes

    def _outcome(self, codes: U8) -> Outcome:
        return Outcome(codes, np.array([0.001]), 0.0)

    def merge(self, addr: U64, pages: U32, frame: U32) -> Outcome:
        p = self._enter("merge")
        index = spread(addr, pages)
        frames = np.concatenate([np.arange(f, f + n, dtype=np.uint32) for f, n in zip(frame, pages, strict=True)])
        assert len(np.unique(index)) == len(index)
        assert self.backend.filled[frames].all(), "a page is sent to a frame that holds nothing"
        codes = self._codes(index)
        differs = (codes == PageOutcome.DONE) & (p.reads[index] != self.backend.pool[frames])
        codes[differs] = PageOutcome.DIFFERS
        done = codes == PageOutcome.DONE
        p.frame[index[done]] = frames[done]
        p.private[index[done]] = False
        p.memory[index[done]] = -1
        p.huge[index] = False
        return self._outcome(codes)

    def drop_zero(self, addr: U64, pages: U32) -> Outcome:
        p = self._enter("drop_zero")
        index = spread(addr, pages)
        codes = self._codes(index)
        codes[(codes == PageOutcome.DONE) & (self._holds(index) == Hold.NONE)] = PageOutcome.GONE
        codes[(codes == PageOutcome.DONE) & (p.reads[index] != 0)] = PageOutcome.DIFFERS
        done = index[codes == PageOutcome.DONE]
        p.own[done] = 0
        p.frame[done] = NONE
        p.memory[done] = -1
        p.resident[done] = p.private[done] = False
        p.huge[index] = False
        return self._outcome(codes)

    def unmerge(self, addr: U64, pages: U32, apart: bool = False) -> Outcome:
        p = self._enter("unmerge")
        index = spread(addr, pages)
        codes = np.zeros(len(index), np.uint8)
        codes[p.pinned[index]] = PageOutcome.REFUSED
        if self.backend.timeout:
            codes[:] = PageOutcome.TIMEOUT
        done = index[codes == PageOutcome.DONE]
        p.own[done] = p.reads[done]
        p.frame[done] = NONE
        p.private[done] = False
        p.resident[done] = p.written[done] = True
        p.memory[done] = self.backend.allocate(len(done))
        return self._outcome(codes)

    def detach(self) -> None:
        self.detached = True
        self.release()

    def release(self) -> None:
        self.released = True
        self.backend.attached.discard(self.pid)


class FakeBackend:
    """A pool of numbers, and all fake processes. ``hook`` is called at the start of every call of the engine."""

    def __init__(self, frames_max: int = 1 << 16, collide: int = 0) -> None:
        self.frames_max = frames_max
        self.collide = collide  # keys are taken modulo this, to force collisions
        self.pool = np.zeros(frames_max, np.uint64)
        self.filled = np.zeros(frames_max, bool)
        self.processes: dict[int, FakeProcess] = {}
        self.hook: Hook = lambda name, process: None
        self.calls: dict[str, int] = {}
        self.pages_read = 0
        self.timeout = False
        self.complete = True
        #: Frames that a control group lets it fill at once.
        self.room = frames_max
        self.closed = False
        self._next_pid = 100
        self._next_memory = 0
        self.attached: set[int] = set()

    def spawn(self, pages: int = 4096, mapped: tuple[int, int] | None = (0, 1024)) -> FakeProcess:
        process = FakeProcess(self, self.new_pid(), pages)
        self.processes[process.pid] = process
        if mapped is not None:
            process.mmap(*mapped)
        return process

    def new_pid(self) -> int:
        self._next_pid += 1
        return self._next_pid

    def key(self, content: U64) -> U64:
        if self.collide:
            content = content % np.uint64(self.collide) + np.uint64(1)
        return content * np.uint64(0x9E3779B97F4A7C15)

    def attach(self, pid: int) -> FakeMemory:
        if pid not in self.processes:
            raise TargetError(f"process {pid}: no such process")
        self.attached.add(pid)
        return FakeMemory(self, self.processes[pid])

    def allocate(self, pages: int) -> npt.NDArray[np.int64]:
        """Return pieces of memory that nobody has."""
        self._next_memory += pages
        return np.arange(self._next_memory - pages, self._next_memory)

    def users(self) -> npt.NDArray[np.int64]:
        """How many processes have each piece of memory; those that have none (-1) are nobody's."""
        everyone = [p.memory[p.memory >= 0] for p in self.processes.values()]
        return np.bincount(np.concatenate([np.empty(0, np.int64), *everyone]), minlength=self._next_memory + 1)

    def memory_pages(self) -> int:
        """Pages of memory in use: those of processes, and frames."""
        return int(np.count_nonzero(self.users())) + int(self.filled.sum())

    def memory_without(self) -> int:
        """Pages of memory that would be in use without an engine: a write copies what is shared since a fork."""
        everyone = [p.without[p.without >= 0] for p in self.processes.values()]
        return len(np.unique(np.concatenate([np.empty(0, np.int64), *everyone])))

    def unread(self) -> int:
        """Frames that hold something nobody reads: all that map them have written since."""
        read = np.zeros(self.frames_max, bool)
        for p in self.processes.values():
            read[p.frame[(p.frame != NONE) & ~p.private]] = True
        return int(np.count_nonzero(self.filled & ~read))

    def inherited(self) -> list[Inherited]:
        found = []
        for p in self.processes.values():
            if p.pid not in self.attached:
                first, end = p.vmas()
                pool = p.frame[first] != NONE
                start, stop = ((x[pool] + BASE).astype(np.uint64) * np.uint64(PAGE) for x in (first, end))
                found.append(Inherited(start, stop, p.frame[first][pool]))
        return found

    def holders(self, frames: U32) -> npt.NDArray[np.int64]:
        """How many pages of all processes map each frame."""
        count = np.zeros(self.frames_max, np.int64)
        for p in self.processes.values():
            mapped = p.frame[p.frame != NONE]
            np.add.at(count, mapped, 1)
        return count[frames]

    def fill(self, frame: U32, target: FakeMemory, addr: U64) -> tuple[U8, float]:
        self.hook("fill", target.process)
        if not target.process.living:
            raise TargetError("gone")
        assert not self.filled[frame].any(), "a frame is filled that was not free"
        assert not self.holders(frame).any(), "a frame is filled that somebody maps"
        index = (addr // PAGE).astype(np.int64) - BASE
        codes = np.where(target.process.mapped[index], ReadCode.OK, ReadCode.GONE).astype(np.uint8)
        codes[self.room :] = ReadCode.NO_ROOM
        self.pool[frame[: self.room]] = target.process.reads[index[: self.room]]
        self.filled[frame[: self.room]] = True
        return codes, 0.0

    def punch(self, frame: U32) -> None:
        assert not self.holders(frame).any(), "a frame is freed that somebody maps"
        self.pool[frame] = 0
        self.filled[frame] = False

    def mapped_frames(self) -> tuple[U32, U32, bool]:
        self.calls["mapped_frames"] = self.calls.get("mapped_frames", 0) + 1
        first, pages = [], []
        for p in self.processes.values():
            start, end = p.vmas()
            pool = p.frame[start] != NONE
            first.append(p.frame[start][pool])
            pages.append((end - start)[pool].astype(np.uint32))
        none = np.empty(0, np.uint32)
        return np.concatenate([none, *first]), np.concatenate([none, *pages]), self.complete

    def close(self) -> None:
        self.closed = True

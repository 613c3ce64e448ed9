"""What is known of the frames: who maps them, and when one may be freed.

For: the engine. May call ``arrays`` and the backend's ``mapped_frames`` and ``punch``. A frame is *mapped* by every
page of a target's mapping of the pool, written since or not, and *live* for those pages that still read it. It is freed
when no mapping of the pool covers it in two complete scans of all of them, a period apart: a mapping may exist in a
child that nobody attached, and a map count proves nothing.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pageone.engine.arrays import Extents, Reserve, distinct
from pageone.engine.backend import Backend

U32 = npt.NDArray[np.uint32]
U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

__all__ = ["NO_FRAME", "Frames", "covered"]

NO_FRAME = 0xFFFFFFFF
#: Scans are put off up to this many periods while somebody unknown holds on to a frame that no target maps.
SCANS_APART_MAX = 32


def covered(frames: U32, first: U32, pages: U32) -> Bools:
    """Tell for each frame whether any of the mappings ``first``, ``pages`` (frames) covers it."""
    if not len(first):
        return np.zeros(len(frames), np.bool_)
    order = np.argsort(first, kind="stable")
    start = first[order].astype(np.int64)
    reach = np.maximum.accumulate(start + pages[order].astype(np.int64))
    at = np.searchsorted(start, frames.astype(np.int64), side="right") - 1
    return (at >= 0) & (reach[at] > frames)


class Frames:
    """Reference counts of the frames of one pool, and their way back to it."""

    BYTES = 8  #: kept of a frame

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._mapped = Reserve(capacity, np.uint32)
        self._live = Reserve(capacity, np.uint32)
        #: Pages of targets' mappings that cover each frame.
        self.mapped: U32 = self._mapped.data
        #: Those of them that read it still.
        self.live: U32 = self._live.data
        self._free = Extents(capacity)
        self._idle: list[I64] = []  # fell to no mapping: to be scanned for
        self._leaving: I64 = np.empty(0, np.int64)  # seen unmapped once, and no content's any more
        self._wait = 0
        self._apart = 1
        self.used = 0
        self._outside: I64 = np.empty(0, np.int64)  # found to be mapped by processes that are no targets
        self.freed = 0
        self.scans = 0
        #: Scans in which a process may have been missed: they prove nothing.
        self.incomplete = 0

    def take(self, n: int) -> U32:
        """Take ``n`` free frames, consecutive if possible; fewer when the pool is full."""
        got = self._free.take(n)
        self.used += len(got)
        return got.astype(np.uint32)

    def put_back(self, frames: U32) -> None:
        """Give back frames of the last ``take`` that were never filled: nobody maps them, and they hold no memory."""
        self._free.give(frames.astype(np.int64))
        self.used -= len(frames)

    def map(self, frames: U32) -> None:
        """Record one more mapping page for each frame (repeats count)."""
        np.add.at(self.mapped, frames, np.uint32(1))

    def unmap(self, frames: U32) -> None:
        """Record one mapping page less for each frame (repeats count)."""
        np.subtract.at(self.mapped, frames, np.uint32(1))
        self.watch(frames)

    def watch(self, frames: U32) -> None:
        """Have frames scanned for when nobody maps them (any more)."""
        idle = frames[self.mapped[frames] == 0]
        if len(idle):
            self._idle.append(distinct(idle).astype(np.int64))

    @property
    def waiting(self) -> int:
        """Frames that nobody is known to map, on their way out."""
        return sum(len(part) for part in self._idle) + len(self._leaving)

    @property
    def outside(self) -> int:
        """Frames that only processes which are no targets map, as of the last scan: without them these had a page."""
        return int(np.count_nonzero(self.mapped[self._outside] == 0))

    def reclaim(self, backend: Backend) -> tuple[U32, int]:
        """Scan once, if there is anything to find; return ``(frames out of use since now, frames freed)``.

        The caller must drop the former from the contents, so that nobody maps them again.
        """
        none = np.empty(0, np.uint32)
        if not self._idle and not len(self._leaving):
            return none, 0
        self._wait -= 1
        if self._wait > 0:
            return none, 0
        idle = distinct(np.concatenate([np.empty(0, np.int64), *self._idle]))
        idle = idle[self.mapped[idle] == 0]
        if len(self._leaving):
            idle = idle[~np.isin(idle, self._leaving)]
        elif not len(idle):
            self._idle = []  # all are mapped (again)
            return none, 0
        self.scans += 1
        first, pages, complete = backend.mapped_frames()
        held = covered(idle.astype(np.uint32), first, pages)
        still = covered(self._leaving.astype(np.uint32), first, pages)
        self._outside = np.concatenate((idle[held], self._leaving[still]))
        if not complete:
            self.incomplete += 1
            self._idle = [idle] if len(idle) else []
            self._put_off()
            return none, 0
        free = self._leaving[~still]
        out = idle[~held]
        if len(free):
            backend.punch(free.astype(np.uint32))
            self.mapped[free] = 0
            self.live[free] = 0
            self._free.give(free)
            self.used -= len(free)
            self.freed += len(free)
        self._leaving = np.concatenate((self._leaving[still], out))
        self._idle = [idle[held]] if held.any() else []
        if len(free) or len(out):
            self._apart, self._wait = 1, 0
        else:
            self._put_off()
        return out.astype(np.uint32), len(free)

    def _put_off(self) -> None:
        self._wait = self._apart
        self._apart = min(SCANS_APART_MAX, self._apart * 2)

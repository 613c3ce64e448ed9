"""One attached process, as the engine sees it: its memory, its mappings of the pool, and what was done to it.

For: the engine's steps; users see :class:`Target` as a handle with ``pid``, ``attached``, ``stats``, ``left_pages``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from pageone.engine.arrays import expand
from pageone.engine.backend import Regions, TargetMemory
from pageone.engine.frames import NO_FRAME
from pageone.engine.metrics import Pauses, TargetStats
from pageone.engine.pages import page_id

U32 = npt.NDArray[np.uint32]
U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

__all__ = ["FORKED_APART_MIN", "Rows", "Target"]

#: Pages that are shared since a fork are checked again after so many periods.
FORKED_APART_MIN = 8


class Rows:
    """Mappings of the pool in one target, ascending: page ids ``start`` to ``end`` map frames from ``frame`` on."""

    def __init__(self, start: U64, end: U64, frame: U32) -> None:
        self.start, self.end, self.frame = start, end, frame

    @classmethod
    def of(cls, number: int, regions: Regions) -> Rows:
        """Return the rows of a target's regions."""
        merged = regions.merged.astype(np.bool_)
        return cls(page_id(number, regions.start[merged]), page_id(number, regions.end[merged]), regions.frame[merged])

    @classmethod
    def none(cls) -> Rows:
        """Return no rows."""
        return cls(np.empty(0, np.uint64), np.empty(0, np.uint64), np.empty(0, np.uint32))

    def __len__(self) -> int:
        return len(self.start)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Rows)
            and np.array_equal(self.start, other.start)
            and np.array_equal(self.end, other.end)
            and np.array_equal(self.frame, other.frame)
        )

    __hash__ = None  # type: ignore[assignment]

    @property
    def pages(self) -> int:
        """Pages mapped."""
        return int((self.end - self.start).sum())

    def frames_of(self, page_ids: U64) -> U32:
        """Return the frame that is mapped at each page id, ``NO_FRAME`` where none is."""
        result = np.full(len(page_ids), NO_FRAME, np.uint32)
        if len(self.start) and len(page_ids):
            at = np.searchsorted(self.start, page_ids, side="right") - 1
            inside = (at >= 0) & (page_ids < self.end[at])
            at = at[inside]
            result[inside] = self.frame[at] + (page_ids[inside] - self.start[at]).astype(np.uint32)
        return result

    def without(self, other: Rows) -> Rows:
        """Return the rows that ``other`` has not exactly so."""
        if not len(other.start) or not len(self.start):
            return self
        at = np.minimum(np.searchsorted(other.start, self.start), len(other.start) - 1)
        same = (other.start[at] == self.start) & (other.end[at] == self.end) & (other.frame[at] == self.frame)
        return Rows(self.start[~same], self.end[~same], self.frame[~same])

    def expand(self) -> tuple[U64, U32]:
        """Return ``(page_ids, frames)`` of every page mapped."""
        if not len(self.start):
            return self.start, self.frame
        count = (self.end - self.start).astype(np.int64)
        return expand(self.start, count), expand(self.frame, count)


class Trouble:
    """Scans of a target that failed in a row: what the last said, and when it is scanned again."""

    EAGER = 3  #: so many in a row are repeated in the next period: mappings may have been changing
    APART_MAX = 32  #: then they come at growing distance, up to so many periods

    def __init__(self) -> None:
        self.text = ""
        self.again = 0  #: not scanned before this period
        self._times = 0

    def failed(self, error: Exception, period: int) -> None:
        """Record a scan that failed."""
        self.text = str(error) or type(error).__name__
        self.again = period + min(self.APART_MAX, 1 << max(0, self._times - self.EAGER))
        self._times += 1

    def over(self) -> None:
        """Record one that did not."""
        self.text, self._times = "", 0


class Target:
    """A process that is attached to an engine.

    For users: ``pid``, ``attached``, ``stats`` and ``left_pages``. The other attributes belong to the steps of a
    period; they are changed in the engine's thread only.
    """

    def __init__(self, number: int, memory: TargetMemory, stats: Callable[[Target], TargetStats]) -> None:
        self.pid = memory.pid
        self.attached = True
        #: Pages left merged when it was detached: each is one for a whole family of processes, as before a fork.
        self.left_pages = 0
        self.number = number  #: in the page ids of its pages
        self.memory = memory
        self.rows = Rows.none()  #: what it maps of the pool
        #: What was merged since those were read and had a row before: page ids and their frames.
        self.merged_anew: list[tuple[U64, U32]] = []
        self.mappings = 0  #: all mappings of the process
        self.regions = 0  #: of them, those that are tracked
        self.left_alone = ""  #: why nothing of it is merged now; empty if it is
        self.trouble = Trouble()
        self.held_for_budget = 0  #: pages held for lack of mappings
        self.left_then = 0  #: mappings left when that was last so
        self.merged = 0  #: pages merged so far
        self.inherited = False  #: whether it has ever been found to map frames since a fork
        self.forked_next = 0  #: the period in which pages shared since a fork are checked again
        self.forked_apart = FORKED_APART_MIN
        self.wasted = 0  #: pages written after merging
        self.wasted_since = 0  #: of them, since it was last asked to unmerge what nobody reads
        self.unread_period = 0  #: the period of that
        self.refused: Counter[str] = Counter()
        self.pauses = Pauses()
        self._make_stats = stats

    @property
    def stats(self) -> TargetStats:
        """What is known of this target now. Cost: a pass over its status bytes."""
        return self._make_stats(self)

    def __repr__(self) -> str:
        return f"Target(pid={self.pid}{'' if self.attached else ', detached'})"

"""The pages that are tracked: where each one's status byte is, and how many are in each state.

For: the engine. May call ``arrays`` and ``status``. A page is named by its *page id*, a ``uint64``: the target's
number in bits 35–54 and the page number (address / 4096) in bits 0–34; so the page ids of one target are in the order
of its addresses, and those of all targets can be kept in one array. A page id resolves to a *status index*, where the
page's bytes are in the columns ``status`` and ``due``. Two bytes a page is all there is here, and only where a page has
been seen.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pageone.engine.arrays import Extents, Reserve, expand
from pageone.engine.backend import PAGE_SIZE
from pageone.engine.status import STATES, Event, State, transition

U8 = npt.NDArray[np.uint8]
U32 = npt.NDArray[np.uint32]
U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

__all__ = ["PAGE_ID_BITS", "VPN_BITS", "PageTable", "address", "page_id", "target_of"]

PAGE_SHIFT = 12
VPN_BITS = 35  #: page numbers of a 47-bit user address space
PAGE_ID_BITS = 55  #: 20 bits for the target's number on top
_VPN_MASK = np.uint64((1 << VPN_BITS) - 1)
#: Status bytes that can be addressed: 64 TiB of tracked memory. Virtual: only what has been seen costs memory.
INDICES = 1 << 34


def page_id(target: int, addr: U64) -> U64:
    """Return the page id of each byte address of a target."""
    return (addr >> np.uint64(PAGE_SHIFT)) | np.uint64(target << VPN_BITS)


def address(page_ids: U64) -> U64:
    """Return the byte address of each page id in its target."""
    return (page_ids & _VPN_MASK) << np.uint64(PAGE_SHIFT)


def target_of(page_ids: U64) -> I64:
    """Return the number of the target of each page id."""
    return (page_ids >> np.uint64(VPN_BITS)).astype(np.int64)


def histogram(status: U8) -> I64:
    """Count each byte value, ``(256,)``, without the eightfold copy that ``bincount`` makes of a long column."""
    seen = np.zeros(256, np.int64)
    for i in range(0, len(status), 1 << 20):
        seen += np.bincount(status[i : i + (1 << 20)], minlength=256)
    return seen


@dataclass
class _Spans:
    """The ranges tracked of one target, ascending and apart: ids ``start``..``end``, status indices from ``base``."""

    start: U64
    end: U64
    base: I64

    def locate(self, page_ids: U64) -> tuple[I64, I64]:
        """Return the last range that begins at or before each page id, or -1, and the status index as far on in it."""
        i = np.searchsorted(self.start, page_ids, side="right") - 1
        return i, self.base[i] + (page_ids - self.start[i]).astype(np.int64)


def _no_spans() -> _Spans:
    return _Spans(np.empty(0, np.uint64), np.empty(0, np.uint64), np.empty(0, np.int64))


class PageTable:
    """Status of all tracked pages of all targets, and the count of pages in each state."""

    def __init__(self, indices: int = INDICES) -> None:
        self._status = Reserve(indices, np.uint8)
        self._due = Reserve(indices, np.uint8)
        #: Status byte of each page, by status index.
        self.status: U8 = self._status.data
        #: Period (mod 256) at which a volatile page is due; once at rest, that in which it came to rest.
        self.due: U8 = self._due.data
        self._free = Extents(indices)
        self._spans: dict[int, _Spans] = {}
        self._all = _no_spans()
        self._stale = False
        #: Pages in each :class:`State`, always adding up to ``tracked``.
        self.counts: I64 = np.zeros(STATES, np.int64)

    @property
    def tracked(self) -> int:
        """Pages tracked: all of the address ranges of all targets, resident or not."""
        return int(sum((s.end - s.start).sum() for s in self._spans.values()))

    def update(self, target: int, start: U64, end: U64) -> None:
        """Set the ranges (byte addresses, ascending, coalesced) tracked of a target; what stays keeps its status.

        Cost: nothing for ranges that stay as they are; a copy of two bytes a page for those that grow or shrink.
        """
        old = self._spans.get(target) or _no_spans()
        first, last = page_id(target, start), page_id(target, end)
        if np.array_equal(first, old.start) and np.array_equal(last, old.end):
            return
        base = np.full(len(first), -1, np.int64)
        kept = np.zeros(len(old.start), np.bool_)
        if len(old.start):
            at = np.minimum(np.searchsorted(old.start, first), len(old.start) - 1)
            same = (old.start[at] == first) & (old.end[at] == last)
            base[same] = old.base[at[same]]
            kept[at[same]] = True
        gone = np.flatnonzero(~kept)
        for i in np.flatnonzero(base < 0):
            pages = int(last[i] - first[i])
            index = self._free.take_run(pages)
            if index is None:
                raise MemoryError("pageone: more than 64 TiB of address space to track")
            base[i] = index
            self.counts[State.ABSENT] += pages
            for j in gone[(old.start[gone] < last[i]) & (old.end[gone] > first[i])]:
                low, high = max(first[i], old.start[j]), min(last[i], old.end[j])
                src = int(old.base[j]) + int(low - old.start[j])
                dst = index + int(low - first[i])
                n = int(high - low)
                self.status[dst : dst + n] = self.status[src : src + n]
                self.due[dst : dst + n] = self.due[src : src + n]
                self._recount(dst, n, +1)
                self.counts[State.ABSENT] -= n
        for j in gone:
            n = int(old.end[j] - old.start[j])
            self._recount(int(old.base[j]), n, -1)
            self._status.clear(int(old.base[j]), int(old.base[j]) + n)
            self._due.clear(int(old.base[j]), int(old.base[j]) + n)
            self._free.give_run(int(old.base[j]), n)
        if len(first):
            self._spans[target] = _Spans(first, last, base)
        else:
            self._spans.pop(target, None)
        self._stale = True

    def _recount(self, index: int, n: int, sign: int) -> None:
        change = np.zeros(16, np.int64)
        np.add.at(change, np.arange(256) & 15, histogram(self.status[index : index + n]))
        self.counts += sign * change[:STATES]

    def indices(self, page_ids: U64) -> I64:
        """Return the status index of each page id, -1 where it is not tracked.

        Cost: 1 ns a page where all are in one range, else 10–40, least in order.
        """
        self.settle()
        spans = self._all
        if not len(spans.start):
            return np.full(len(page_ids), -1, np.int64)
        if len(page_ids):
            ends = np.array([page_ids.min(), page_ids.max()])
            i, index = spans.locate(ends)
            if i[0] == i[1] >= 0 and ends[1] < spans.end[i[0]]:
                near: I64 = (page_ids - ends[0]).astype(np.int64)
                near += index[0]
                return near
        i, index = spans.locate(page_ids)
        index[(i < 0) | (page_ids >= spans.end[i])] = -1
        return index

    def settle(self) -> None:
        """Make :meth:`indices` ready for use from several threads."""
        if self._stale:
            order = sorted(self._spans)
            parts = [self._spans[t] for t in order] or [_no_spans()]
            self._all = _Spans(
                np.concatenate([p.start for p in parts]),
                np.concatenate([p.end for p in parts]),
                np.concatenate([p.base for p in parts]),
            )
            self._stale = False

    def indices_of_ranges(self, start: U64, count: I64) -> tuple[U64, I64]:
        """Return ``(page_ids, indices)`` of all pages of ranges, without those that are not tracked (any more).

        Cost: about 10 ns a page where every range is inside one span, as :meth:`indices` where mappings have changed.
        """
        self.settle()
        spans = self._all
        if not len(spans.start) or not len(start):
            return np.empty(0, np.uint64), np.empty(0, np.int64)
        i, first = spans.locate(start)
        if ((i >= 0) & (start + count.astype(np.uint64) <= spans.end[i])).all():
            return expand(start, count), expand(first, count)
        # Since a range was noted, memory in it may have been unmapped, and its indices may be those of other pages.
        page_ids = expand(start, count)
        indices = self.indices(page_ids)
        tracked = indices >= 0
        return page_ids[tracked], indices[tracked]

    def apply(self, indices: I64, event: Event) -> U8:
        """Apply an event to pages (no status index twice), keep the counts, and return their new status bytes."""
        after, change = transition(self.status, indices, event)
        self.counts += change
        return after

    def counts_of(self, target: int) -> I64:
        """Return the pages of one target in each state. Cost: a pass over its status bytes."""
        spans = self._spans.get(target) or _no_spans()
        result = np.zeros(16, np.int64)
        for base, n in zip(spans.base, (spans.end - spans.start).astype(np.int64), strict=True):
            np.add.at(result, np.arange(256) & 15, histogram(self.status[base : base + n]))
        return result[:STATES]

    def spans_of(self, target: int) -> tuple[U64, U64]:
        """Return the byte addresses ``(start, end)`` of the ranges tracked of a target."""
        spans = self._spans.get(target) or _no_spans()
        return address(spans.start), address(spans.start) + (spans.end - spans.start) * np.uint64(PAGE_SIZE)

    def in_state(self, target: int, *states: State) -> U64:
        """Return the page ids of a target's pages in any of the given states. Cost: a pass over its status bytes."""
        spans = self._spans.get(target) or _no_spans()
        wanted = np.zeros(256, np.bool_)
        for s in states:
            wanted[np.arange(256) & 15 == s] = True
        found = []
        for start, base, n in zip(spans.start, spans.base, (spans.end - spans.start).astype(np.int64), strict=True):
            hit = np.flatnonzero(wanted[self.status[base : base + n]])
            found.append(start + hit.astype(np.uint64))
        return np.concatenate(found) if found else np.empty(0, np.uint64)

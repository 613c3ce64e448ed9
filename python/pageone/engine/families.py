"""Pages that processes share since a fork: what merging them would not free, and what giving them back would cost.

For: the engine. May call ``arrays``, ``pages``, ``frames``, ``target`` and the contract with the backend. Three rules:

*A page is merged only where that frees it.* One that other processes map too is in memory once already. It is
``FORKED``, and checked again from time to time: those others may go, or get copies of their own.

*A family counts once.* A child forked from a merged target maps the same frames at the same addresses. Without them it
would share its parent's page, so it saves nothing: its pages are ``INHERITED``, those of the process that merged them
``SHARED``. When that one writes the page, or goes, one of the others takes its place.

*Nothing is given back that would be more than before.* Of a frame that relatives map each would need a copy, where
without us they would share one. It stays with all of them until they end, and is guarded; so does a page that
was written after it was merged and is shared since a later fork.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pageone.engine.arrays import Reserve
from pageone.engine.backend import PAGE_SIZE, Hold, Inherited
from pageone.engine.frames import Frames
from pageone.engine.pages import PageTable, address, page_id, target_of
from pageone.engine.status import Event, State, state
from pageone.engine.target import FORKED_APART_MIN, Rows, Target

U8 = npt.NDArray[np.uint8]
U32 = npt.NDArray[np.uint32]
U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

__all__ = ["Families"]

#: Each vain scan of pages that are shared since a fork doubles the time to the next, up to so many periods.
FORKED_APART_MAX = 32


class Families:
    """What is known of pages shared since a fork, of one engine."""

    def __init__(self, pages: PageTable, frames: Frames, targets: dict[int, Target]) -> None:
        self._pages, self._frames, self._targets = pages, frames, targets
        self._inherited = Reserve(frames.capacity, np.uint32)
        #: Pages of targets that read each frame and are ``INHERITED``.
        self.inherited: U32 = self._inherited.data

    # ------------------------------------------------------------------ frames

    def inherit(self, target: Target, page_ids: U64, frames: U32) -> None:
        """Record pages that were found to map frames: those that nobody merged there are inherited.

        Cost: some 20 ns a page; for inherited ones as much again for each target, until their relative is found.
        """
        indices = self._pages.indices(page_ids)
        new = indices >= 0
        new[new] = state(self._pages.status[indices[new]]) == State.ABSENT
        if not new.any():
            return
        target.inherited = True
        page_ids, frames, indices = page_ids[new], frames[new], indices[new]
        self._pages.apply(indices, Event.INHERITED)
        np.add.at(self.inherited, frames, np.uint32(1))
        headless = ~self._in_state(address(page_ids), frames, State.SHARED)
        self._promote(page_ids[headless], frames[headless])

    def forget(self, frames: U32) -> None:
        """Record one inherited page less for each frame."""
        np.subtract.at(self.inherited, frames, np.uint32(1))

    def succeed(self, page_ids: U64, frames: U32) -> None:
        """Have relatives take the place of pages that read their frames no longer; these are in another state already.

        Cost: next to nothing where no relative reads one of the frames.
        """
        some = self.inherited[frames] > 0
        if not some.any():
            return
        addr, frames = address(page_ids[some]), frames[some]
        headless = ~self._in_state(addr, frames, State.SHARED)
        addr, frames = addr[headless], frames[headless]
        for target in list(self._targets.values()):
            if not len(addr):
                return
            if target.inherited:
                relative = self._reads(target, addr, frames, State.INHERITED)
                self._promote(page_id(target.number, addr[relative]), frames[relative])
                addr, frames = addr[~relative], frames[~relative]

    def _promote(self, page_ids: U64, frames: U32) -> None:
        if len(page_ids):
            self._pages.apply(self._pages.indices(page_ids), Event.SHARED)
            self.forget(frames)
            np.add.at(self._frames.live, frames, np.uint32(1))

    def _in_state(self, addr: U64, frames: U32, wanted: State) -> Bools:
        """Tell which frames some target has at the same address, in a page of that state."""
        found = np.zeros(len(addr), np.bool_)
        for target in self._targets.values():
            left = np.flatnonzero(~found)
            if not len(left):
                break
            found[left] = self._reads(target, addr[left], frames[left], wanted)
        return found

    def _reads(self, target: Target, addr: U64, frames: U32, wanted: State) -> Bools:
        """Tell which frames a target has at these addresses, in pages of that state."""
        page_ids = page_id(target.number, addr)
        same: Bools = target.rows.frames_of(page_ids) == frames
        if same.any():
            indices = self._pages.indices(page_ids[same])
            same[same] = (indices >= 0) & (state(self._pages.status[indices]) == wanted)
        return same

    # ------------------------------------------------------------------ what is saved

    def saved_pages(self, target: Target) -> float:
        """Return the pages that a target saves: a share of each frame that it reads. Cost: 40 ns a merged page."""
        counts = self._pages.counts_of(target.number)
        if not counts[State.SHARED]:
            return float(counts[State.ZERO])
        page_ids, frames = target.rows.expand()
        indices = self._pages.indices(page_ids)
        mine = indices >= 0
        mine[mine] = state(self._pages.status[indices[mine]]) == State.SHARED
        # Should the count be wrong, a frame that nobody reads by it saves nothing.
        readers = np.maximum(self._frames.live[frames[mine]], 1)
        return float(counts[State.ZERO]) + float((1.0 - 1.0 / readers).sum())

    # ------------------------------------------------------------------ pages shared since a fork

    def alone_again(self, target: Target, period: int, *, now: bool) -> U64:
        """Return the page ids of forked pages that are the target's alone by now; ``now``: check in any case.

        Cost: 20-40 ns a forked page, at first every eighth period; less often the longer nothing changes.
        """
        if not now and period < target.forked_next:
            return np.empty(0, np.uint64)
        page_ids = self._pages.in_state(target.number, State.FORKED)
        if len(page_ids):
            page_ids = page_ids[target.memory.holds(address(page_ids)) == Hold.OWN]
        apart = FORKED_APART_MIN if len(page_ids) else min(FORKED_APART_MAX, 2 * target.forked_apart)
        target.forked_apart, target.forked_next = apart, period + apart
        return page_ids

    def shared_now(self, page_ids: U64) -> Bools:
        """Tell which pages, of any targets, other processes map too. Those of a target that has gone are not."""
        owner = target_of(page_ids)
        shared = np.zeros(len(page_ids), np.bool_)
        for number in np.unique(owner).tolist():
            target = self._targets.get(number)
            if target is not None:
                mine = owner == number
                shared[mine] = target.memory.holds(address(page_ids[mine])) == Hold.SHARED
        return shared

    # ------------------------------------------------------------------ giving back

    def to_leave(self, target: Target, page_ids: U64, frames: U32, outside: list[Inherited]) -> Bools:
        """Tell which pages of a target's rows are better left as they are than given memory of their own.

        ``outside``: what processes that are not attached map of the pool.
        """
        addr = address(page_ids)
        hold = target.memory.holds(addr)
        leave: Bools = hold == Hold.SHARED
        rest = np.flatnonzero((hold != Hold.SHARED) & (hold != Hold.OWN))
        pages = addr[rest] // np.uint64(PAGE_SIZE)
        related = np.zeros(len(rest), np.bool_)
        for other in outside:
            rows = Rows(other.start // np.uint64(PAGE_SIZE), other.end // np.uint64(PAGE_SIZE), other.frame)
            related |= rows.frames_of(pages) == frames[rest]
        indices = self._pages.indices(page_ids[rest])
        merged_here = (indices >= 0) & (state(self._pages.status[indices]) == State.SHARED)
        for other_target in self._targets.values():
            if other_target is target or not (target.inherited or other_target.inherited):
                continue
            its = page_id(other_target.number, addr[rest])
            same = other_target.rows.frames_of(its) == frames[rest]
            indices = self._pages.indices(its[same])
            merged_there = (indices >= 0) & (state(self._pages.status[indices]) == State.SHARED)
            # Each merged its own: two pages that were there before.
            same[same] = ~(merged_there & merged_here[same])
            related |= same
        leave[rest] = related
        return leave

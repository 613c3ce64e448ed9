"""What is worth doing with pages that have an equal page: which frame each gets, and which are left alone.

For: the engine. May call ``plan`` (the arithmetic), ``pages``, ``frames``, ``contents`` and ``index``; asks nothing of
a target but to copy a page into a frame.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pageone.engine import plan
from pageone.engine.arrays import distinct, grouped
from pageone.engine.backend import Backend, ReadCode
from pageone.engine.contents import Contents
from pageone.engine.frames import NO_FRAME, Frames
from pageone.engine.index import place_of
from pageone.engine.metrics import Tally
from pageone.engine.pages import PageTable, address, target_of
from pageone.engine.status import HUGE_BIT, Event, State, state
from pageone.engine.target import Target
from pageone.errors import TargetError

U8 = npt.NDArray[np.uint8]
U32 = npt.NDArray[np.uint32]
U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

__all__ = ["Decider", "Limits", "Members", "Planned", "Twins"]

NEW_FRAME = np.uint64(1 << 32)  #: planned frames that are not allocated yet count from here


@dataclass(frozen=True)
class Limits:
    """What is asked for; see :class:`~pageone.engine.Engine`."""

    max_sharing: int
    repeat_share: float
    huge_share: float
    min_run: int
    mappings: int  #: most mappings that a target may have

    def mappings_left(self, target: Target) -> int:
        """Return how many mappings may still be added to a target."""
        return max(0, self.mappings - target._mappings)


@dataclass
class Members:
    """Pages that have an equal page: one element a page; ``frames`` from ``NEW_FRAME`` on are planned ones."""

    places: U64
    keys: U64
    frames: U64

    def take(self, which: I64 | Bools) -> Members:
        """Return some of them."""
        return Members(self.places[which], self.keys[which], self.frames[which])


@dataclass
class Twins:
    """Pages that have an equal page without a frame: one element a page; ``location``: where that is."""

    places: U64
    keys: U64
    location: U64


@dataclass
class Planned:
    """What is to be done: pages to give back to the zero page, and pages to map to frames, both in order.

    Frames that are not allocated yet are numbers from ``NEW_FRAME`` on; :meth:`Decider.fill` makes them real ones.
    """

    zero: U64
    members: Members

    def waves(self, frames: int) -> Iterator[Members]:
        """Yield the members in parts of at most ``frames`` new frames; those with an old one come first.

        A part is filled and mapped before the next: the frames are made of memory that the part before has just freed.
        So merging needs little memory, and the pages are near: allocating pages that nobody had for long cost up to 10
        instead of 3 microseconds each on the virtual machine where this was measured.
        """
        members = self.members
        fresh = members.frames >= NEW_FRAME
        wave = np.zeros(len(members.places), np.int64)
        wave[fresh] = np.searchsorted(distinct(members.frames[fresh]), members.frames[fresh]) // frames
        order = np.argsort(wave, kind="stable")
        ends = np.cumsum(np.bincount(wave, minlength=1))  # one wave at least: zero pages are dropped with the first
        for low, high in zip(np.concatenate(([0], ends[:-1])), ends, strict=True):
            yield members.take(order[low:high])


class Decider:
    """Decides for one engine, on its books.

    ``mark`` applies an event to pages; ``enqueue`` puts held pages of a target into the queue again.
    """

    def __init__(
        self,
        limits: Limits,
        backend: Backend,
        books: tuple[PageTable, Frames, Contents],
        targets: dict[int, Target],
        mark: Callable[[U64, Event], None],
        enqueue: Callable[[Target, U64], None],
    ) -> None:
        self._limits, self._backend = limits, backend
        self._pages, self._frames, self._contents = books
        self._targets = targets
        self._mark, self._enqueue = mark, enqueue

    def members(self, fresh: Twins, joins: Members, tally: Tally) -> Members:
        """Bring pages with an equal page together with it and give each a frame, if only a planned one.

        ``joins``: pages whose content has a frame, with that.
        """
        reps = place_of(fresh.location)
        heads = distinct(reps)
        group = np.searchsorted(heads, reps)
        head_keys = np.empty(len(heads), np.uint64)
        head_keys[group] = fresh.keys
        pages = np.bincount(group, minlength=len(heads)) + 1
        tally.duplicate += len(joins.places) + len(fresh.places) + len(heads)

        # contents without a frame: frames in the order in which their first pages lie in memory
        wanted = plan.frames_wanted(pages, self._limits.max_sharing, self._limits.repeat_share)
        base = NEW_FRAME + (np.cumsum(wanted) - wanted).astype(np.uint64)
        new = Members(
            np.concatenate((heads, fresh.places)),
            np.concatenate((head_keys, fresh.keys)),
            np.concatenate((base, base[group])),
        )
        self._spread_new(new, np.concatenate((np.arange(len(heads)), group)), wanted)

        # contents that have a frame: that one, unless it has all the sharers it may have
        self._spread_old(joins, int(NEW_FRAME) + int(wanted.sum()))
        members = Members(
            np.concatenate((new.places, joins.places)),
            np.concatenate((new.keys, joins.keys)),
            np.concatenate((new.frames, joins.frames)),
        )
        return members.take(np.argsort(members.places, kind="stable"))

    def _spread_new(self, members: Members, group: I64, wanted: I64) -> None:
        """Spread contents that get several frames over them. A statement a content, of 64 pages at the least."""
        many = np.flatnonzero(wanted > 1)
        if not len(many):
            return
        order = np.lexsort((members.places, group))
        first = np.searchsorted(group[order], many)
        last = np.searchsorted(group[order], many, side="right")
        for g, low, high in zip(many, first, last, strict=True):
            mine = order[low:high]
            turn = plan.spread(np.zeros(int(wanted[g]), np.int64), len(mine))
            members.frames[mine] += turn.astype(np.uint64)

    def _spread_old(self, members: Members, next_new: int) -> None:
        """Spread pages over the frames that their content has, least used first, and new ones where all are full."""
        if not len(members.places):
            return
        frames = self._frames
        content, index, inverse, count = grouped(members.keys)
        first, behind = self._contents.rows(content)
        primary = members.frames[index].astype(np.int64)
        crowded = (frames.mapped[primary] + count > self._limits.max_sharing) | (behind - first > 1)
        if not crowded.any():
            return
        order = np.lexsort((members.places, inverse))
        last = np.cumsum(count)
        for c in np.flatnonzero(crowded):
            mine = order[last[c] - count[c] : last[c]]
            have = self._contents.frames[first[c] : behind[c]]
            load = frames.mapped[have].astype(np.int64)
            sharers = np.array([int(load.sum()) + len(mine)])
            more = max(
                0, int(plan.frames_wanted(sharers, self._limits.max_sharing, self._limits.repeat_share)[0]) - len(have)
            )
            choice = np.concatenate((have.astype(np.uint64), np.arange(next_new, next_new + more, dtype=np.uint64)))
            next_new += more
            turn = plan.spread(np.concatenate((load, np.zeros(more, np.int64))), len(mine))
            members.frames[mine] = choice[turn]

    def plan(self, zero: U64, members: Members, tally: Tally) -> Planned:
        """Decide what is done: huge pages, mappings. Pages not chosen are held."""
        zero, members = self._spare_huge(np.sort(zero), members, tally)
        members = self._afford(members, tally)
        return Planned(zero, members)

    def _hold(self, members: Members, keep: Bools) -> Members:
        """Hold the pages not kept; then let go the contents without a frame of which one page is left."""
        if keep.all():
            return members
        self._mark(members.places[~keep], Event.HELD)
        members = members.take(keep)
        fresh = members.frames >= NEW_FRAME
        if not fresh.any():
            return members
        _, _, inverse, count = grouped(members.keys[fresh])
        lone = np.zeros(len(fresh), np.bool_)
        lone[np.flatnonzero(fresh)[count[inverse] < 2]] = True
        # a content that has a frame already may have one page on a new one
        lone &= self._contents.find(members.keys) == NO_FRAME
        if lone.any():
            self._mark(members.places[lone], Event.HELD)
            members = members.take(~lone)
        return members

    def _spare_huge(self, zero: U64, members: Members, tally: Tally) -> tuple[U64, Members]:
        """Leave huge pages whole of which too little can be given back."""
        places = np.concatenate((zero, members.places))
        status = self._pages.status[self._pages.slots(places)]
        huge = (status & HUGE_BIT).astype(np.bool_)
        if not huge.any():
            return zero, members
        shift = np.uint64(9)
        block, _, inverse, count = grouped(places[huge] >> shift)
        span = (block[:, None] << shift) + np.arange(plan.PAGES_PER_HUGE, dtype=np.uint64)[None, :]
        slots = self._pages.slots(span.ravel())
        around = np.where(slots >= 0, state(self._pages.status[slots]), 0).reshape(span.shape)
        held = around == State.HELD
        worth = plan.worth_splitting(count + held.sum(axis=1), self._limits.huge_share)
        tally.huge_split += int(worth.sum())
        again = span[held & worth[:, None]]
        spared = np.zeros(len(places), np.bool_)
        spared[np.flatnonzero(huge)[~worth[inverse]]] = True
        tally.left_huge += int(spared.sum())
        if len(again):
            # held in a period before: now that the huge page is split they go through the queue again
            for number in distinct(target_of(again)):
                self._enqueue(self._targets[int(number)], again[target_of(again) == number])
        opened = span[worth].ravel()
        slots = self._pages.slots(opened)
        slots = slots[slots >= 0]
        self._pages.status[slots] &= np.uint8(HUGE_BIT - 1)
        self._mark(zero[spared[: len(zero)]], Event.HELD)
        return zero[~spared[: len(zero)]], self._hold(members, ~spared[len(zero) :])

    def _afford(self, members: Members, tally: Tally) -> Members:
        """Keep to each target's budget of mappings, longest runs first."""
        first, pages = plan.merge_runs(members.places, members.frames)
        if not len(first):
            return members
        owner = target_of(members.places[first])
        chosen = pages >= self._limits.min_run
        tally.left_short += int(pages[~chosen].sum())
        for number in distinct(owner):
            target = self._targets[int(number)]
            mine = np.flatnonzero((owner == number) & chosen)
            left = self._limits.mappings_left(target)
            if len(mine) * plan.MAPPINGS_PER_RUN > left:
                chosen[mine] = plan.afford(pages[mine], left)
                without = int(pages[mine][~chosen[mine]].sum())
                tally.left_for_budget += without
                target._held_for_budget += without
                target._left_then = left
        if chosen.all():
            return members
        return self._hold(members, np.repeat(chosen, pages))

    def fill(self, members: Members, tally: Tally) -> tuple[Members, U32]:
        """Allocate the planned frames and copy a page of their content into each; return these frames, too."""
        fresh = members.frames >= NEW_FRAME
        if not fresh.any():
            return members, np.empty(0, np.uint32)
        wanted, source, inverse, _ = grouped(members.frames[fresh])
        got = self._frames.take(len(wanted))
        real = np.full(len(wanted), NO_FRAME, np.uint32)
        real[: len(got)] = got
        tally.frames += len(got)
        source = np.flatnonzero(fresh)[source][: len(got)]
        owner = target_of(members.places[source])
        codes = np.full(len(got), ReadCode.GONE, np.uint8)
        for number in distinct(owner):
            mine = owner == number
            memory = self._targets[int(number)]._memory
            try:
                codes[mine], cpu_s = self._backend.fill(got[mine], memory, address(members.places[source[mine]]))
                tally.outside_cpu_s += cpu_s
            except TargetError:
                if memory.alive():
                    raise
        bad = codes == ReadCode.GONE
        self._frames.watch(got[bad])
        members.frames[fresh] = real[inverse].astype(np.uint64)
        unread = np.zeros(len(members.places), np.bool_)
        unread[np.flatnonzero(fresh)[np.concatenate((bad, np.zeros(len(wanted) - len(got), np.bool_)))[inverse]]] = True
        if unread.any():
            self._mark(members.places[unread], Event.RETRY)
            members = members.take(~unread)
        full = members.frames == NO_FRAME
        if full.any():
            tally.left_pool += int(full.sum())
            self._mark(members.places[full], Event.HELD)
            members = members.take(~full)
        return members, got

"""The third step: which equal pages share which frame, and what is worth doing? Twins in, runs out.

For: the engine. May call ``accounting`` and the arithmetic of ``pageone.policy``; asks nothing of a target or backend.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pageone.engine.accounting import Accounting
from pageone.engine.arrays import distinct, grouped, runs
from pageone.engine.find import Members, Twins
from pageone.engine.frames import NO_FRAME
from pageone.engine.index import page_id_of
from pageone.engine.metrics import Tally
from pageone.engine.pages import target_of
from pageone.engine.status import HUGE_BIT, Event, State, state
from pageone.policy import MAPPINGS_PER_RUN, PAGES_PER_HUGE, afford, frames_wanted, spread, worth_splitting

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

__all__ = ["NEW_FRAME", "Planned", "plan"]

NEW_FRAME = np.uint64(1 << 32)  #: planned frames that are not allocated yet count from here


@dataclass
class Planned:
    """What is to be done: pages to give back to the zero page, and pages to map to frames, both in order.

    Frames that are not allocated yet are numbers from ``NEW_FRAME`` on; ``merge`` makes them real ones.
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
        wave = np.zeros(len(members.page_ids), np.int64)
        wave[fresh] = np.searchsorted(distinct(members.frames[fresh]), members.frames[fresh]) // frames
        order = np.argsort(wave, kind="stable")
        ends = np.cumsum(np.bincount(wave, minlength=1))  # one wave at least: zero pages are dropped with the first
        for low, high in zip(np.concatenate(([0], ends[:-1])), ends, strict=True):
            yield members.take(order[low:high])


def plan(accounting: Accounting, zero: U64, twins: Twins, joins: Members, tally: Tally) -> Planned:
    """Give pages with an equal page frames and decide what is done of it: huge pages, mappings. Others are held.

    ``joins``: pages whose content has a frame, with that.
    """
    members = _assign(accounting, twins, joins, tally)
    zero, members = _spare_huge(accounting, np.sort(zero), members, tally)
    return Planned(zero, _afford(accounting, members, tally))


def _assign(accounting: Accounting, fresh: Twins, joins: Members, tally: Tally) -> Members:
    """Bring pages with an equal page together with it and give each a frame, if only a planned one.

    ``joins``: pages whose content has a frame, with that.
    """
    reps = page_id_of(fresh.version)
    heads = distinct(reps)
    group = np.searchsorted(heads, reps)
    head_keys = np.empty(len(heads), np.uint64)
    head_keys[group] = fresh.keys
    pages = np.bincount(group, minlength=len(heads)) + 1
    tally.duplicate_pages += len(joins.page_ids) + len(fresh.page_ids) + len(heads)

    # contents without a frame: frames in the order in which their first pages lie in memory
    wanted = frames_wanted(pages, accounting.limits)
    base = NEW_FRAME + (np.cumsum(wanted) - wanted).astype(np.uint64)
    new = Members(
        np.concatenate((heads, fresh.page_ids)),
        np.concatenate((head_keys, fresh.keys)),
        np.concatenate((base, base[group])),
    )
    _spread_new(new, np.concatenate((np.arange(len(heads)), group)), wanted)

    # contents that have a frame: that one, unless it has all the sharers it may have
    _spread_old(accounting, joins, int(NEW_FRAME) + int(wanted.sum()))
    members = Members(
        np.concatenate((new.page_ids, joins.page_ids)),
        np.concatenate((new.keys, joins.keys)),
        np.concatenate((new.frames, joins.frames)),
    )
    return members.take(np.argsort(members.page_ids, kind="stable"))


def _spread_new(members: Members, group: I64, wanted: I64) -> None:
    """Spread contents that get several frames over them. A statement a content, of 64 pages at the least."""
    many = np.flatnonzero(wanted > 1)
    if not len(many):
        return
    order = np.lexsort((members.page_ids, group))
    first = np.searchsorted(group[order], many)
    last = np.searchsorted(group[order], many, side="right")
    for g, low, high in zip(many, first, last, strict=True):
        mine = order[low:high]
        turn = spread(np.zeros(int(wanted[g]), np.int64), len(mine))
        members.frames[mine] += turn.astype(np.uint64)


def _spread_old(accounting: Accounting, members: Members, next_new: int) -> None:
    """Spread pages over the frames that their content has, least used first, and new ones where all are full."""
    if not len(members.page_ids):
        return
    frames = accounting.frames
    content, index, inverse, count = grouped(members.keys)
    first, behind = accounting.contents.rows(content)
    primary = members.frames[index].astype(np.int64)
    crowded = (frames.mapped[primary] + count > accounting.limits.max_sharing) | (behind - first > 1)
    if not crowded.any():
        return
    order = np.lexsort((members.page_ids, inverse))
    last = np.cumsum(count)
    for c in np.flatnonzero(crowded):
        mine = order[last[c] - count[c] : last[c]]
        have = accounting.contents.frames[first[c] : behind[c]]
        load = frames.mapped[have].astype(np.int64)
        sharers = np.array([int(load.sum()) + len(mine)])
        more = max(0, int(frames_wanted(sharers, accounting.limits)[0]) - len(have))
        choice = np.concatenate((have.astype(np.uint64), np.arange(next_new, next_new + more, dtype=np.uint64)))
        next_new += more
        turn = spread(np.concatenate((load, np.zeros(more, np.int64))), len(mine))
        members.frames[mine] = choice[turn]


def _hold(accounting: Accounting, members: Members, keep: Bools) -> Members:
    """Hold the pages not kept; then drop the contents without a frame of which one page is left."""
    if keep.all():
        return members
    accounting.apply(members.page_ids[~keep], Event.HELD)
    members = members.take(keep)
    fresh = members.frames >= NEW_FRAME
    if not fresh.any():
        return members
    _, _, inverse, count = grouped(members.keys[fresh])
    lone = np.zeros(len(fresh), np.bool_)
    lone[np.flatnonzero(fresh)[count[inverse] < 2]] = True
    # a content that has a frame already may have one page on a new one
    lone &= accounting.contents.find(members.keys) == NO_FRAME
    if lone.any():
        accounting.apply(members.page_ids[lone], Event.HELD)
        members = members.take(~lone)
    return members


def _spare_huge(accounting: Accounting, zero: U64, members: Members, tally: Tally) -> tuple[U64, Members]:
    """Leave huge pages whole of which too little can be given back."""
    page_ids = np.concatenate((zero, members.page_ids))
    status = accounting.pages.status[accounting.pages.indices(page_ids)]
    huge = (status & HUGE_BIT).astype(np.bool_)
    if not huge.any():
        return zero, members
    shift = np.uint64(9)
    block, _, inverse, count = grouped(page_ids[huge] >> shift)
    span = (block[:, None] << shift) + np.arange(PAGES_PER_HUGE, dtype=np.uint64)[None, :]
    indices = accounting.pages.indices(span.ravel())
    around = np.where(indices >= 0, state(accounting.pages.status[indices]), 0).reshape(span.shape)
    held = around == State.HELD
    worth = worth_splitting(count + held.sum(axis=1), accounting.limits)
    tally.huge_split += int(worth.sum())
    again = span[held & worth[:, None]]
    spared = np.zeros(len(page_ids), np.bool_)
    spared[np.flatnonzero(huge)[~worth[inverse]]] = True
    tally.left_huge += int(spared.sum())
    if len(again):
        # held in a period before: now that the huge page is split they go through the queue again
        for number in distinct(target_of(again)):
            accounting.enqueue(again[target_of(again) == number])
    opened = span[worth].ravel()
    indices = accounting.pages.indices(opened)
    indices = indices[indices >= 0]
    accounting.pages.status[indices] &= np.uint8(HUGE_BIT - 1)
    accounting.apply(zero[spared[: len(zero)]], Event.HELD)
    return zero[~spared[: len(zero)]], _hold(accounting, members, ~spared[len(zero) :])


def _afford(accounting: Accounting, members: Members, tally: Tally) -> Members:
    """Keep to each target's budget of mappings, longest runs first."""
    first, pages = runs(members.page_ids, members.frames)  # a page id holds its target: no run crosses one
    if not len(first):
        return members
    owner = target_of(members.page_ids[first])
    chosen = pages >= accounting.limits.min_run
    tally.left_short += int(pages[~chosen].sum())
    for number in distinct(owner):
        target = accounting.targets[int(number)]
        mine = np.flatnonzero((owner == number) & chosen)
        left = accounting.limits.mappings_left(target.mappings)
        if len(mine) * MAPPINGS_PER_RUN > left:
            chosen[mine] = afford(pages[mine], left)
            without = int(pages[mine][~chosen[mine]].sum())
            tally.left_for_budget += without
            target.held_for_budget += without
            target.left_then = left
    if chosen.all():
        return members
    return _hold(accounting, members, np.repeat(chosen, pages))

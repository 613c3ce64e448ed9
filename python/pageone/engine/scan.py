"""The first step of a period: what has been written since the last scan? Ranges in, status of pages out.

For: the engine. May call ``accounting`` and ask targets for their regions and written ranges; reads no content.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pageone.engine.accounting import Accounting
from pageone.engine.arrays import coalesce, requests
from pageone.engine.backend import PAGE_SIZE, PageFlag
from pageone.engine.metrics import Tally
from pageone.engine.pages import page_id
from pageone.engine.status import HUGE_BIT, Event, State, state
from pageone.engine.target import Rows, Target
from pageone.errors import TargetError

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

__all__ = ["queue_forked", "queue_resting", "refresh", "scan"]

HELD_SLACK = 64  #: mappings that must have become free before pages held for lack of them are tried again


def scan(accounting: Accounting, target: Target, tally: Tally) -> list[U64]:
    """Bring the status of a target's pages up to date; return the page ids written since the last scan, in parts.

    A scan that fails is that target's trouble alone: it is noted, and repeated at growing distance. Cost: a read of
    the maps, a walk of the page tables, and in proportion to what was written.
    """
    if accounting.period < target.trouble.again:
        return []
    missed = tally.missed_scans
    try:
        written = _scan(accounting, target, tally)
    except (TargetError, OSError, MemoryError) as error:
        tally.missed_scans += 1
        target.trouble.failed(error, accounting.period)
        return []
    if tally.missed_scans == missed:
        target.trouble.over()
    return written


def _scan(accounting: Accounting, target: Target, tally: Tally) -> list[U64]:
    if not refresh(accounting, target, tally):
        return []
    tally.regions += target.regions
    start, end = accounting.pages.spans_of(target.number)
    try:
        written = target.memory.written(start, end)
    except TargetError:
        # Gone; or its mappings change under us, and the next scan will tell. Nothing is lost by that: a merge
        # compares the bytes, whatever is thought of them here.
        if target.memory.alive():
            raise
        accounting.forget(target)
        tally.missed_scans += 1
        return []
    count = ((written.end - written.start) // np.uint64(PAGE_SIZE)).astype(np.int64)
    first = page_id(target.number, written.start)
    huge = (written.flags & PageFlag.HUGE).astype(np.bool_)
    return [
        _note_written(
            accounting, target, *accounting.pages.indices_of_ranges(start, pages.astype(np.int64)), first, huge, tally
        )
        for start, pages, _ in requests(first, count, None, accounting.batch_pages)
    ]


def _note_written(
    accounting: Accounting, target: Target, page_ids: U64, indices: I64, first: U64, huge: Bools, tally: Tally
) -> U64:
    """Record pages found written. ``first``, ``huge``: where each range written begins, and whether it is huge."""
    if not len(page_ids):
        return page_ids
    tally.written_pages += len(page_ids)
    pages = accounting.pages
    before = pages.status[indices]
    was = state(before)
    accounting.index.stale_hint += int(np.count_nonzero(was == State.UNIQUE))
    after = pages.apply(indices, Event.WRITTEN)
    if len(target.rows):
        read = (was == State.SHARED) | (was == State.INHERITED)
        if read.any():
            shared = was[read] == State.SHARED
            accounting.release(page_ids[read], target.rows.frames_of(page_ids[read]), shared)
            wasted = int(shared.sum())
            tally.wasted_merges += wasted
            target.wasted += wasted
            target.wasted_since += wasted
    if huge.any() or (before & HUGE_BIT).any():
        ranges = np.searchsorted(first, page_ids, side="right") - 1
        bits = np.where(huge[ranges], HUGE_BIT, 0).astype(np.uint8)
        pages.status[indices] = after = (after & np.uint8(HUGE_BIT - 1)) | bits
    accounting.schedule(page_ids, indices, after)
    return page_ids


def refresh(accounting: Accounting, target: Target, tally: Tally | None = None) -> bool:
    """Read a target's mappings anew and bring spans and rows up to date; False when that was not possible.

    Then it has gone, or ``tally`` counts a scan that was missed; without ``tally`` it is raised.
    """
    memory = target.memory
    try:
        regions = memory.regions() if memory.alive() else None
    except (TargetError, OSError, MemoryError) as error:
        if not isinstance(error, TargetError) or memory.alive():
            if tally is None:
                raise
            tally.missed_scans += 1
            target.trouble.failed(error, accounting.period)
            return False
        regions = None
    if regions is None:
        accounting.forget(target)
        return False
    target.mappings = regions.mappings
    target.regions = len(regions.start)
    target.left_alone = regions.left_alone
    page_ids, frames = accounting.set_rows(target, Rows.of(target.number, regions))
    accounting.pages.update(target.number, *coalesce(regions.start, regions.end))
    if len(page_ids):
        accounting.families.inherit(target, page_ids, frames)
    if target.held_for_budget and accounting.limits.mappings_left(target.mappings) > target.left_then + HELD_SLACK:
        target.held_for_budget = 0
        accounting.enqueue(accounting.pages.in_state(target.number, State.HELD))
    return True


def queue_forked(accounting: Accounting, *, now: bool) -> None:
    """Queue pages that were shared since a fork and are their target's alone by now."""
    if not accounting.pages.counts[State.FORKED]:
        return
    for target in list(accounting.targets.values()):
        try:
            page_ids = accounting.families.alone_again(target, accounting.period, now=now)
        except TargetError:
            continue  # it has ended, which the next scan will find
        accounting.enqueue(page_ids)


def queue_resting(accounting: Accounting, target: Target, written: list[U64]) -> None:
    """Queue a target's volatile pages but for those just ``written``, whatever their back-off."""
    resting = accounting.pages.in_state(target.number, State.VOLATILE)
    just = np.concatenate([np.empty(0, np.uint64), *written])
    accounting.enqueue(resting[~np.isin(resting, just, assume_unique=True)])

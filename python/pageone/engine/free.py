"""The last step: runs whose frames nobody reads are unmerged, frames that nobody maps freed; and memory given back.

For: the engine. May call ``accounting``; asks targets to unmerge and the backend who maps which frame.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from pageone.engine.accounting import Accounting
from pageone.engine.arrays import requests, runs
from pageone.engine.backend import PAGE_SIZE, REQUEST_PAGES, Backend, Outcome, PageOutcome
from pageone.engine.merge import ask
from pageone.engine.metrics import Tally
from pageone.engine.pages import address
from pageone.engine.scan import refresh
from pageone.engine.target import Target
from pageone.errors import TargetError

U64 = npt.NDArray[np.uint64]

__all__ = ["free", "give_back"]

UNREAD_SHARE = 8  #: unmerge what nobody reads any more once one in so many of a target's merged pages was written
UNREAD_PERIODS = 16  #: or when so many periods have passed since a merged page was written
UNREAD_RUN = 8  #: but no shorter run than this, unless it is a whole mapping: it would cost two mappings
DETACH_TRIES = 20  #: a target that does not stop in time is asked again so often
SWEEP_SHARE = 4  #: sweep the index when one in so many of its entries may be stale
SWEEP_MIN = 4096  #: but not for less


def free(accounting: Accounting, backend: Backend, tally: Tally) -> None:
    """Unmerge what nobody reads, free the frames seen unmapped twice, and sweep the index if it is stale."""
    _unmerge_unread(accounting, tally)
    out, _ = accounting.frames.reclaim(backend)
    if len(out):
        accounting.contents.drop(out)
    index = accounting.index
    many = index.stale_hint * SWEEP_SHARE > max(len(index), SWEEP_MIN)
    if len(index) and (many or not accounting.targets):
        index.sweep(accounting.pages)


def _unmerge_unread(accounting: Accounting, tally: Tally) -> None:
    """Unmerge runs whose frames nobody reads any more: every sharer has written and has a copy of its own."""
    targets = list(accounting.targets.values())
    if not any(
        t.wasted_since * UNREAD_SHARE >= t.rows.pages or accounting.period - t.unread_period >= UNREAD_PERIODS
        for t in targets
        if t.wasted_since
    ):
        return
    for target in targets:
        target.wasted_since, target.unread_period = 0, accounting.period
        if not target.wasted or not len(target.rows):
            continue
        rows = target.rows
        page_ids, frames = rows.expand()
        page_ids = page_ids[(accounting.frames.live[frames] == 0) & (accounting.families.inherited[frames] == 0)]
        try:
            page_ids = page_ids[~accounting.families.shared_now(page_ids)]
        except TargetError:
            continue  # it has ended, which the next scan will find
        first, pages = runs(page_ids)
        start = page_ids[first]
        whole = np.isin(start, rows.start) & np.isin(start + pages.astype(np.uint64), rows.end)
        worth = whole | (pages >= UNREAD_RUN)
        for s, n, _ in requests(start[worth], pages[worth], None, REQUEST_PAGES):
            outcomes: list[Outcome] = []
            codes = ask(outcomes, functools.partial(target.memory.unmerge, apart=True), s, n)
            tally.unmerged_unread += int((codes == PageOutcome.DONE).sum())
            for outcome in outcomes:
                accounting.add_pauses(target, outcome.pauses_s)
                tally.pauses.append(outcome.pauses_s)
                tally.cpu_s["free"] += outcome.cpu_s
        if worth.any():
            refresh(accounting, target, tally)


def give_back(
    accounting: Accounting,
    backend: Backend,
    target: Target,
    available_bytes: Callable[[], int],
    tell: Callable[[int, int], None],
    stop: Callable[[], bool],
) -> bool:
    """Unmerge a target and forget it; whether that was finished. See :meth:`pageone.engine.Engine.detach`."""
    if not refresh(accounting, target):
        return True
    page_ids = _to_give_back(accounting, backend, target)
    needed, available = len(page_ids) * PAGE_SIZE, available_bytes()
    if needed > available:
        raise TargetError(
            f"process {target.pid}: unmerging needs {needed >> 20} MiB, available are {available >> 20} MiB; "
            "free some memory, or let the process end merged"
        )
    total, done = len(page_ids), 0
    failed: Counter[str] = Counter()
    for _ in range(DETACH_TRIES):
        failed.clear()
        first, pages = runs(page_ids)
        for start, count, _ in requests(page_ids[first], pages, None, REQUEST_PAGES):
            if stop():
                refresh(accounting, target)
                return False
            outcome = target.memory.unmerge(address(start), count)
            accounting.add_pauses(target, outcome.pauses_s)
            codes = np.bincount(outcome.code, minlength=len(PageOutcome))
            failed.update({PageOutcome(i).name: int(n) for i, n in enumerate(codes) if n and i != PageOutcome.DONE})
            done += int(codes[PageOutcome.DONE])
            tell(min(done, total), total)
        if not failed[PageOutcome.TIMEOUT.name] or not refresh(accounting, target) or not len(target.rows):
            break
        page_ids = _to_give_back(accounting, backend, target)
    if not refresh(accounting, target):
        return True
    left = len(_to_give_back(accounting, backend, target)) if len(target.rows) else 0
    if left:
        raise TargetError(
            f"process {target.pid}: {left} merged pages could not be given their own memory "
            f"({', '.join(f'{n} {code}' for code, n in failed.items()) or 'mapped again'}); try again"
        )
    target.left_pages = target.rows.pages
    target.memory.detach()
    accounting.forget(target)
    return True


def _to_give_back(accounting: Accounting, backend: Backend, target: Target) -> U64:
    """Return the page ids of a target's merged pages but for those that would be more memory than before."""
    page_ids, frames = target.rows.expand()
    if not len(page_ids):
        return page_ids
    return page_ids[~accounting.families.to_leave(target, page_ids, frames, backend.inherited())]

"""The fourth step: frames are filled, runs mapped, zero pages dropped. Runs in, a code a page out, and into the status.

For: the engine. May call ``accounting`` and ``queue``; asks the backend to fill frames, and targets, in workers, to map
them. Wave after wave, so that each is made of memory that the last has freed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pageone.engine.accounting import Accounting
from pageone.engine.arrays import distinct, grouped, requests, runs
from pageone.engine.backend import REQUEST_PAGES, Backend, Outcome, PageOutcome, ReadCode
from pageone.engine.clock import cpu_s
from pageone.engine.find import Members
from pageone.engine.frames import NO_FRAME
from pageone.engine.metrics import Tally
from pageone.engine.pages import address, target_of
from pageone.engine.plan import NEW_FRAME, Planned
from pageone.engine.queue import Workers
from pageone.engine.scan import refresh
from pageone.engine.status import Event
from pageone.engine.target import Target
from pageone.errors import TargetError

U8 = npt.NDArray[np.uint8]
U32 = npt.NDArray[np.uint32]
U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]

__all__ = ["ask", "merge"]

WAVE_FRAMES = 8192  #: new frames filled, and mapped, at a time: 32 MiB


@dataclass
class _Done:
    """What became of the requests to one target: a code a page, in the order asked."""

    target: Target
    zero_codes: U8
    codes: U8
    outcomes: list[Outcome]
    cpu_s: float
    outside_cpu_s: float


def merge(
    accounting: Accounting,
    backend: Backend,
    workers: Workers,
    planned: Planned,
    tally: Tally,
    tell: Callable[[int, int], None],
) -> None:
    """Have it done, and record what came of it. ``tell`` is told the pages done and those there are."""
    total = len(planned.zero) + len(planned.members.page_ids)
    if not total:
        return
    before = {target: target.mappings for target in accounting.targets.values()}
    zero, done = planned.zero, 0
    for members in planned.waves(WAVE_FRAMES):
        with tally.phase("plan", workers.budget.pay):
            filled, fresh = _fill(accounting, backend, members, tally)
        size = len(zero) + len(members.page_ids)
        results = _map(accounting, workers, zero, filled, functools.partial(_tell_part, tell, done, size, total))
        with tally.phase("plan", workers.budget.pay):
            _book(accounting, results, zero, filled, fresh, tally)
        done += size
        zero = zero[:0]
    with tally.phase("plan", workers.budget.pay):
        accounting.contents.settle()
        for target, mappings in before.items():
            if target.attached and refresh(accounting, target, tally):
                # what the kernel says: it joins neighbouring mappings of one file, and splits those around a run
                tally.mappings_added += max(0, target.mappings - mappings)


def _tell_part(tell: Callable[[int, int], None], done: int, size: int, total: int, part: float) -> None:
    tell(done + int(part * size), total)


def _fill(accounting: Accounting, backend: Backend, members: Members, tally: Tally) -> tuple[Members, U32]:
    """Allocate the planned frames and copy a page of their content into each; return these frames, too."""
    fresh = members.frames >= NEW_FRAME
    if not fresh.any():
        return members, np.empty(0, np.uint32)
    wanted, source, inverse, _ = grouped(members.frames[fresh])
    got = accounting.frames.take(len(wanted))
    real = np.full(len(wanted), NO_FRAME, np.uint32)
    real[: len(got)] = got
    source = np.flatnonzero(fresh)[source][: len(got)]
    owner = target_of(members.page_ids[source])
    codes = np.full(len(got), ReadCode.GONE, np.uint8)
    for number in distinct(owner):
        mine = owner == number
        memory = accounting.targets[int(number)].memory
        try:
            codes[mine], cpu_s = backend.fill(got[mine], memory, address(members.page_ids[source[mine]]))
            tally.outside_cpu_s += cpu_s
        except TargetError:
            if memory.alive():
                raise
    tight = codes == ReadCode.NO_ROOM
    bad = tight | (codes == ReadCode.GONE)
    tally.frames += len(got) - int(bad.sum())
    accounting.frames.put_back(got[tight])
    accounting.frames.watch(got[bad & ~tight])
    members.frames[fresh] = real[inverse].astype(np.uint64)
    beyond = np.zeros(len(wanted) - len(got), np.bool_)
    tally.left_pool += int(np.concatenate((tight, beyond))[inverse].sum())
    unread = np.zeros(len(members.page_ids), np.bool_)
    unread[np.flatnonzero(fresh)[np.concatenate((bad, beyond))[inverse]]] = True
    if unread.any():
        accounting.apply(members.page_ids[unread], Event.RETRY)
        members = members.take(~unread)
    full = members.frames == NO_FRAME
    if full.any():
        tally.left_pool += int(full.sum())
        accounting.apply(members.page_ids[full], Event.HELD)
        members = members.take(~full)
    return members, got


def _map(
    accounting: Accounting, workers: Workers, zero: U64, members: Members, tell: Callable[[float], None]
) -> list[_Done]:
    """Have the workers drop zero pages and map frames; ``tell`` is told the share of it that is done."""
    first, pages = runs(members.page_ids, members.frames)
    start, frame = members.page_ids[first], members.frames[first].astype(np.uint32)
    zfirst, zpages = runs(zero)
    zstart = zero[zfirst]
    owner, zowner = target_of(start), target_of(zstart)
    jobs: list[Callable[[], _Done]] = []
    for number in distinct(np.concatenate((owner, zowner))):
        mine, zmine = owner == number, zowner == number
        drops, maps = (zstart[zmine], zpages[zmine]), (start[mine], pages[mine], frame[mine])
        jobs.append(functools.partial(_carry_out, accounting.targets[int(number)], drops, maps))
    waiting = workers.take_all()
    workers.push(jobs)
    try:
        results: list[_Done] = workers.drain(None, lambda done: tell(done / max(1, len(jobs))))
        return results
    finally:
        workers.push(waiting)


def _carry_out(target: Target, drops: tuple[U64, I64], maps: tuple[U64, I64, U32]) -> _Done:
    """Make the requests to one target, one after the other. In a worker."""
    began = cpu_s()
    outcomes: list[Outcome] = []
    none = np.empty(0, np.uint8)
    zero_codes = [ask(outcomes, target.memory.drop_zero, s, n) for s, n, _ in requests(*drops, None, REQUEST_PAGES)]
    codes = [ask(outcomes, target.memory.merge, s, n, f) for s, n, f in requests(*maps, REQUEST_PAGES)]
    return _Done(
        target,
        np.concatenate([none, *zero_codes]),
        np.concatenate([none, *codes]),
        outcomes,
        cpu_s() - began,
        sum(o.cpu_s for o in outcomes),
    )


def ask(outcomes: list[Outcome], request: Callable[..., Outcome], *arrays: npt.NDArray[Any]) -> U8:
    """Make a request (page ids, pages, …); the pages of a target that has gone meanwhile are gone."""
    start, pages = arrays[:2]
    try:
        outcome = request(address(start), *arrays[1:])
    except TargetError:
        return np.full(int(pages.sum()), PageOutcome.GONE, np.uint8)
    except (OSError, MemoryError):  # not the target's: it is asked again
        return np.full(int(pages.sum()), PageOutcome.TIMEOUT, np.uint8)
    outcomes.append(outcome)
    return outcome.code


def _book(accounting: Accounting, results: list[_Done], zero: U64, members: Members, fresh: U32, tally: Tally) -> None:
    """Record what became of each page that was asked for."""
    zcodes = np.full(len(zero), PageOutcome.TIMEOUT, np.uint8)
    codes = np.full(len(members.page_ids), PageOutcome.TIMEOUT, np.uint8)
    for done in results:
        tally.cpu_s["merge"] += done.cpu_s + done.outside_cpu_s
        for outcome in done.outcomes:
            accounting.add_pauses(done.target, outcome.pauses_s)
            tally.pauses.append(outcome.pauses_s)
        zcodes[target_of(zero) == done.target.number] = done.zero_codes
        codes[target_of(members.page_ids) == done.target.number] = done.codes
    dropped = zero[zcodes == PageOutcome.DONE]
    tally.dropped_pages += len(dropped)
    accounting.apply(dropped, Event.ZERO)
    _book_merged(accounting, members.take(codes == PageOutcome.DONE), fresh, tally)
    _record_left(accounting, zero, zcodes, tally)
    _record_left(accounting, members.page_ids, codes, tally)
    accounting.frames.watch(distinct(members.frames).astype(np.uint32))


def _book_merged(accounting: Accounting, members: Members, fresh: U32, tally: Tally) -> None:
    """Record pages that map their frame now: status, sharers, and the content of frames just filled."""
    frames = members.frames.astype(np.uint32)
    accounting.apply(members.page_ids, Event.SHARED)
    np.add.at(accounting.frames.live, frames, np.uint32(1))
    tally.merged_pages += len(frames)
    owner = target_of(members.page_ids)
    for number in distinct(owner):
        target, mine = accounting.targets[int(number)], owner == number
        target.merged += int(mine.sum())
        if len(target.rows):
            mine[mine] = target.rows.frames_of(members.page_ids[mine]) != NO_FRAME
            target.merged_anew.append((members.page_ids[mine], frames[mine]))
    # A page that maps it, compared and unwritten since it was read, is what proves the content of a frame.
    proved, index, _, _ = grouped(frames)
    new = np.isin(proved, fresh)
    keys = members.keys[index[new]]
    accounting.contents.add(keys, proved[new])
    accounting.index.stale_hint += len(distinct(keys))


def _record_left(accounting: Accounting, page_ids: U64, codes: U8, tally: Tally) -> None:
    """Record the pages that were left alone, by reason."""
    left = codes != PageOutcome.DONE
    if not left.any():
        return
    page_ids, codes = page_ids[left], codes[left]
    owner = target_of(page_ids)
    for number in distinct(owner):
        target = accounting.targets.get(int(number))
        count = np.bincount(codes[owner == number], minlength=len(PageOutcome))
        refused = {PageOutcome(i).name: int(n) for i, n in enumerate(count) if n}
        tally.refused.update(refused)
        if target is not None:
            target.refused.update(refused)
    accounting.apply(page_ids[codes == PageOutcome.GONE], Event.LOST)
    accounting.apply(page_ids[codes == PageOutcome.REFUSED], Event.REFUSED)
    tally.forked_pages += int((codes == PageOutcome.SHARED).sum())
    accounting.apply(page_ids[codes == PageOutcome.SHARED], Event.FORKED)
    again = (codes == PageOutcome.DIFFERS) | (codes == PageOutcome.WRITTEN) | (codes == PageOutcome.TIMEOUT)
    accounting.apply(page_ids[again], Event.RETRY)

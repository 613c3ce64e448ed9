"""The engine: follows targets over time, merges what has come to rest, lets go what is written, gives everything back.

For: users and the command line. May call the other modules of this package and a backend
(:mod:`pageone.engine.backend`); touches no process itself. A period, in order::

    look   what was written since the last look?      ranges  -> status of pages
    find   pages at rest: read their keys             batches -> keys -> contents      (workers)
    plan   which equal pages share which frame?       contents -> runs
    merge  map the runs, drop the zero pages          runs -> codes -> status          (workers)
    free   frames that nobody maps, entries gone stale

Every step is numpy on whole batches; no statement runs per page. One thread owns status and books; workers only read
and merge, between two looks, so that a queued page's status changes only when the engine looks.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from pageone.engine import plan
from pageone.engine.arrays import distinct, grouped, in_order, marked, repeated, runs
from pageone.engine.backend import PAGE_SIZE, Backend, Outcome, PageCode, PageFlag, ReadCode
from pageone.engine.contents import Contents
from pageone.engine.decide import Decider, Limits, Members, Planned, Twins
from pageone.engine.families import Families
from pageone.engine.frames import NO_FRAME, Frames
from pageone.engine.index import NOWHERE, Index, page_location, place_of
from pageone.engine.metrics import MergeReport, Pauses, Stats, Tally, TargetStats
from pageone.engine.pages import PageTable, address, coalesce, place, target_of
from pageone.engine.queue import CpuBudget, Workers, be_modest, cpu_share
from pageone.engine.status import HUGE_BIT, Event, State, level, state
from pageone.engine.target import Rows, Target
from pageone.errors import PageOneError, TargetError, UsageError

U8 = npt.NDArray[np.uint8]
U32 = npt.NDArray[np.uint32]
U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]
F64 = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

Progress = Callable[[str, int, int], None]
"""Called with a phase (``"find"``, ``"merge"``), the pages done and the pages there are."""

__all__ = ["Engine", "Progress", "Target"]

BATCH_PAGES = 8192  #: pages of one job, 32 MiB: some milliseconds of reading; also those booked at a time
WAVE_FRAMES = 8192  #: new frames filled, and mapped, at a time: 32 MiB
REQUEST_PAGES = 16384  #: pages of one request to merge; the backend splits it further to keep its stops short
DETACH_TRIES = 20  #: a target that does not stop in time is asked again so often
LET_GO_SHARE = 8  #: let go frames that nobody reads any more once one in so many of a target's merged pages was written
LET_GO_PERIODS = 16  #: or when so many periods have passed since a merged page was written
LET_GO_RUN = 8  #: but no shorter run than this, unless it is a whole mapping: it would cost two mappings
MAPPING_BYTES = 256  #: what one mapping costs the kernel (vm_area_struct and its tree), for the books
TARGET_NUMBERS = 1 << 20
LOOKS_SHARE = 0.25  #: most of a CPU budget that looks take: they come less often than asked for where it needs that
LOOKS_APART_MAX_S = 60.0  #: but not less often than this
HELD_SLACK = 64  #: mappings that must have become free before pages held for lack of them are tried again
SWEEP_SHARE = 4  #: sweep the index when one in so many of its entries may be stale
SWEEP_MIN = 4096  #: but not for less


@dataclass
class _Found:
    """What a batch was found to be.

    One element a page read; ``keys`` and ``frames`` one for each that is readable and not zero, ``ids`` and ``is_new``
    one for each of these whose content has no frame.
    """

    target: Target
    places: U64
    changed: U64  #: pages of the batch that were written while queued
    codes: U8
    keys: U64
    frames: U32  #: a frame of the same content, or ``NO_FRAME``
    ids: U32
    is_new: Bools
    cpu_s: float
    outside_cpu_s: float = 0.0

    def take(self, which: Bools) -> _Found:
        """Return what was found of some of the pages."""
        readable = which[self.codes == ReadCode.OK]
        lone = readable[self.frames == NO_FRAME]
        pages = (self.places[which], self.changed, self.codes[which], self.keys[readable], self.frames[readable])
        return _Found(self.target, *pages, self.ids[lone], self.is_new[lone], self.cpu_s, self.outside_cpu_s)


@dataclass
class _Done:
    """What became of the requests to one target: a code a page, in the order asked."""

    target: Target
    zero_codes: U8
    codes: U8
    outcomes: list[Outcome]
    cpu_s: float
    outside_cpu_s: float


class Engine:
    """Keeps equal pages of its targets in shared frames.

    Args:
        period: seconds between two looks (20; 0.05 works).
        quiet_periods: looks in a row at which a page must be found unwritten before it is read.
        workers: threads that read and merge.
        domain: name of the set of targets that may share. None: all targets must belong to one user.
        max_sharing: pages that may share one frame; None lifts the cap.
        cpu: share of one CPU that the engine may use on average, such as ``"20%"`` or ``0.2``; None for no limit.
        map_share: share of ``vm.max_map_count`` up to which a target's mappings may grow.
        huge_share: split a transparent huge page only when more than this share of it can be given back.
        min_run: leave alone equal pages in runs shorter than this; each run costs a target up to two mappings.
        repeat_share: frames given to a content repeated very often, as a share of its pages.
        nice, idle: run the engine's own threads at this niceness, or only when the CPU has nothing else to do.
        backend: where processes and frames come from; None for the running system.
        owner: tells a PID's user, for the domain check; None for the owner of ``/proc/PID``.

    Raises :class:`UsageError` for a value out of its range, before anything is touched.

    """

    def __init__(
        self,
        period: float = 20.0,
        quiet_periods: int = 2,
        workers: int = 1,
        domain: str | None = None,
        max_sharing: int | None = 256,
        cpu: float | str | None = None,
        map_share: float = 0.5,
        huge_share: float = 0.5,
        repeat_share: float = 1 / 128,
        min_run: int = 1,
        nice: int | None = None,
        idle: bool = False,
        backend: Backend | None = None,
        owner: Callable[[int], int] | None = None,
        max_map_count: int | None = None,
        batch_pages: int = BATCH_PAGES,
    ) -> None:
        if not period > 0:
            raise UsageError(f"period: {period}: must be more than 0 seconds")
        if not 1 <= quiet_periods <= 100:
            raise UsageError(f"quiet periods: {quiet_periods}: must be between 1 and 100")
        if max_sharing is not None and max_sharing < 2:
            raise UsageError(f"max sharing: {max_sharing}: at least 2 pages share a frame")
        for name, share in (
            ("map share", map_share),
            ("huge share", huge_share),
            ("repeat share", repeat_share),
        ):
            if not 0 <= share <= 1:
                raise UsageError(f"{name}: {share}: must be between 0 and 1")
        budget = CpuBudget(cpu_share(cpu))
        self.period = period
        self.quiet_periods = quiet_periods
        self.domain = domain
        self._limits = Limits(
            max_sharing or 1 << 31,
            repeat_share,
            huge_share,
            min_run,
            int(map_share * (max_map_count or _max_map_count())),
        )
        self._batch_pages = batch_pages
        self._nice, self._idle = nice, idle
        self._workers = Workers(workers, budget, nice, idle)
        if backend is None:
            # late and by name: the logic needs no Linux, and only here does it reach up for what lies above it
            backend = cast(Backend, importlib.import_module("pageone.live").LiveBackend())
            owner = owner or _owner
        self._backend = backend
        self._owner = owner
        self._user: int | None = None
        self._lock = threading.RLock()
        self._pages = PageTable()
        self._index = Index()
        self._contents = Contents()
        self._frames = Frames(backend.frames_max)
        self._targets: dict[int, Target] = {}
        self._families = Families(self._pages, self._frames, self._targets)
        books = (self._pages, self._frames, self._contents)
        self._decider = Decider(self._limits, backend, books, self._targets, self._apply, self._enqueue)
        self._next_number = 1
        self._period = 0
        self._look_cpu_s = 0.0  #: what looks have cost lately
        self._due: dict[int, list[tuple[U64, I64]]] = {}
        self._totals = Tally()
        self._pauses = Pauses()
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._error: BaseException | None = None
        self._trouble = ""
        self._closed = False

    # ------------------------------------------------------------------ targets

    def attach(self, pid: int) -> Target:
        """Attach a process; it is followed from the next period on.

        Raises :class:`TargetError` or :class:`UnsupportedError` from the backend, and :class:`TargetError` when it is
        attached already or belongs to another user than the targets there are and no domain has been named.
        """
        with self._lock:
            self._check_open()
            if any(t.pid == pid for t in self._targets.values()):
                raise TargetError(f"process {pid}: attached already")
            user = None
            if self.domain is None and self._owner is not None:
                user = self._owner(pid)
                if self._user is not None and self._targets and user != self._user:
                    raise TargetError(
                        f"process {pid}: belongs to user {user}, the other targets to {self._user}: "
                        "memory is shared within one user only; name a domain to group them on purpose"
                    )
            memory = self._backend.attach(pid)
            self._user = user
            while self._next_number in self._targets:
                self._next_number = self._next_number % (TARGET_NUMBERS - 1) + 1
            target = Target(self._next_number, memory, self._target_stats)
            self._next_number = self._next_number % (TARGET_NUMBERS - 1) + 1
            self._targets[target._number] = target
            return target

    def hurry_when(self, urgent: Callable[[], bool]) -> None:
        """Have the CPU budget wait while ``urgent()`` is True: somebody waits for the engine. Asked every 0.1 s."""
        self._workers.urgent = urgent

    @property
    def targets(self) -> list[Target]:
        """The targets attached now."""
        return list(self._targets.values())

    def detach(
        self,
        target: Target,
        progress: Progress | None = None,
        stop: Callable[[], bool] | None = None,
        available_bytes: Callable[[], int] | None = None,
    ) -> bool:
        """Give the merged pages of a target memory of their own again and let it go; return whether that was finished.

        Pages of which relatives, forked since, map the same frame are left merged, and guarded until these processes
        end: each would need a copy, where without us they would share one (``target.left_pages`` says how many).

        ``stop`` is asked before each request of some thousand pages: when it says True the target stays attached with
        what is not done yet still merged, and False is returned; calling again goes on. ``available_bytes`` tells the
        memory to be had, by default that of the system. Raises :class:`TargetError` before anything is done when it
        does not suffice, and when pages could not be given their own memory.
        """
        with self._lock:
            if not target.attached or self._targets.get(target._number) is not target:
                raise TargetError(f"process {target.pid}: not attached to this engine")
            if not self._refresh(target):
                return True
            places = self._to_give_back(target)
            needed = len(places) * PAGE_SIZE
            available = (available_bytes or _available_bytes)()
            if needed > available:
                raise TargetError(
                    f"process {target.pid}: unmerging needs {needed >> 20} MiB, available are {available >> 20} MiB; "
                    "free some memory, or let the process end merged"
                )
            total, done = len(places), 0
            failed: Counter[str] = Counter()
            for _ in range(DETACH_TRIES):
                failed.clear()
                first, run_pages = runs(places)
                for start, pages, _ in plan.requests(places[first], run_pages, None, REQUEST_PAGES):
                    if stop is not None and stop():
                        self._refresh(target)
                        return False
                    outcome = target._memory.unmerge(address(start), pages)
                    self._book(target, outcome)
                    codes = np.bincount(outcome.code, minlength=len(PageCode))
                    failed.update({PageCode(i).name: int(n) for i, n in enumerate(codes) if n and i != PageCode.DONE})
                    done += int(codes[PageCode.DONE])
                    if progress is not None:
                        progress("unmerge", min(done, total), total)
                if not failed[PageCode.TIMEOUT.name] or not self._refresh(target) or not len(target._rows):
                    break
                places = self._to_give_back(target)
            if self._refresh(target):
                left = len(self._to_give_back(target)) if len(target._rows) else 0
                if left:
                    raise TargetError(
                        f"process {target.pid}: {left} merged pages could not be given their own memory "
                        f"({', '.join(f'{n} {code}' for code, n in failed.items()) or 'mapped again'}); try again"
                    )
                target._left = target._rows.pages
                target._memory.detach()
                self._forget(target)
            return True

    def _to_give_back(self, target: Target) -> U64:
        """Return the places of a target's merged pages but for those that would be more memory than before."""
        places, frames = target._rows.expand()
        if not len(places):
            return places
        return places[~self._families.to_leave(target, places, frames, self._backend.inherited())]

    # ------------------------------------------------------------------ periods

    def step(self, progress: Progress | None = None, until: float | None = None) -> MergeReport:
        """Do one period at once, without waiting for it, and say what it did.

        ``until`` (``time.monotonic``): begin no more batches after that; they stay queued. With a CPU budget the
        workers sleep as it asks. Cost: in proportion to what was written and what has come to rest.
        """
        with self._lock:
            began = time.monotonic()
            self._check_open()
            tally = Tally()
            saved = self._saved_bytes()
            self._period += 1
            with self._phase(tally, "look"):
                for target in self.targets:
                    self._look(target, tally)
                self._queue_due()
                self._queue_forked(now=False)
            self._look_cpu_s = (self._look_cpu_s + tally.cpu_s["look"]) / 2
            if until is not None and until > began:
                # A look that has taken all of a period, on a busy machine, must not starve the work: as long again.
                now = time.monotonic()
                until = max(until, now + max(self.period / 4, now - began))
            self._work(tally, progress, until)
            return self._report(tally, saved)

    def merge_once(self, quiet_s: float = 1.0, progress: Progress | None = None) -> MergeReport:
        """Make one pass over all targets: merge what stays unwritten for ``quiet_s`` seconds, and say what it did.

        Periods, back-off and what is queued from before do not matter for it.
        """
        with self._lock:
            self._check_open()
            tally = Tally()
            saved = self._saved_bytes()
            self._period += 1
            with self._phase(tally, "look"):
                for target in self.targets:
                    self._look(target, tally)
            first = tally.written
            time.sleep(quiet_s)
            self._period += 1
            with self._phase(tally, "look"):
                for target in self.targets:
                    written = np.concatenate([np.empty(0, np.uint64), *self._look(target, tally)])
                    resting = self._pages.in_state(target._number, State.VOLATILE)
                    resting = resting[~np.isin(resting, written, assume_unique=True)]
                    self._enqueue(target, resting)
                self._queue_forked(now=True)
            tally.written -= first
            self._work(tally, progress, None)
            return self._report(tally, saved)

    def run(self, stop: Callable[[], bool] | None = None) -> None:
        """Do a period every ``period`` seconds, in this thread, until ``stop`` says True or all targets have gone."""
        self._follow(stop or (lambda: False), idle=False)

    def _follow(self, stop: Callable[[], bool], *, idle: bool) -> None:
        """Do periods until ``stop`` or :meth:`stop`; if not ``idle``, also until all targets have gone."""
        ahead = time.monotonic()
        while not stop() and not self._stop.is_set():
            # Late, it goes on from now: a period whose end has passed would leave no time for the work.
            ahead = max(ahead, time.monotonic()) + self._apart_s()
            try:
                self.step(until=ahead)
                self._trouble = ""
            except (OSError, MemoryError) as error:  # the system lacks something for a moment
                self._trouble = str(error) or type(error).__name__
            if not idle and not self._targets:
                return
            self._stop.wait(max(0.0, ahead - time.monotonic()))

    def _apart_s(self) -> float:
        """Return the time between two looks: the period, or more where they would take too much of the CPU budget."""
        share = self._workers.budget.share
        if share is None or self._workers.urgent():
            return self.period
        return max(self.period, min(LOOKS_APART_MAX_S, self._look_cpu_s / (share * LOOKS_SHARE)))

    def start(self) -> None:
        """Do :meth:`run` in a thread of its own, also while there are no targets; :meth:`stop` ends it."""
        if self._thread is not None:
            return
        self._stop.clear()

        def loop() -> None:
            be_modest(self._nice, self._idle)
            try:
                self._follow(lambda: False, idle=True)
            except BaseException as error:
                self._error = error

        self._thread = threading.Thread(target=loop, name="pageone-engine", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread of :meth:`start` after its current batch; raises what ended it, if anything did."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def close(self) -> None:
        """Stop and release the pool. Targets still attached go on with what they have mapped."""
        if self._closed:
            return
        try:
            self.stop()
        finally:
            with self._lock:
                self._closed = True
                self._workers.close()
                self._backend.close()

    def __enter__(self) -> Engine:
        """Return the engine itself; :meth:`close` is called at the end."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the engine."""
        self.close()

    # ------------------------------------------------------------------ look

    def _look(self, target: Target, tally: Tally) -> list[U64]:
        """Bring the status of a target's pages up to date; return the places written since the last look, in parts.

        A look that fails is that target's trouble alone: it is noted, and repeated at growing distance.
        """
        if self._period < target._trouble.again:
            return []
        missed = tally.missed
        try:
            written = self._look_at(target, tally)
        except (TargetError, OSError, MemoryError) as error:
            tally.missed += 1
            target._trouble.failed(error, self._period)
            return []
        if tally.missed == missed:
            target._trouble.over()
        return written

    def _look_at(self, target: Target, tally: Tally) -> list[U64]:
        if not self._refresh(target, tally):
            return []
        tally.regions += target._regions
        start, end = self._pages.spans_of(target._number)
        try:
            written = target._memory.written(start, end)
        except TargetError:
            # Gone; or its mappings change under us, and the next look will tell. Nothing is lost by that: a merge
            # compares the bytes, whatever is thought of them here.
            if target._memory.alive():
                raise
            self._forget(target)
            tally.missed += 1
            return []
        count = ((written.end - written.start) // np.uint64(PAGE_SIZE)).astype(np.int64)
        first = place(target._number, written.start)
        huge = (written.flags & PageFlag.HUGE).astype(np.bool_)
        # A batch at a time: what is made on the way stays in the cache.
        return [
            self._note_written(target, *self._pages.slots_of_ranges(start, pages.astype(np.int64)), first, huge, tally)
            for start, pages, _ in plan.requests(first, count, None, self._batch_pages)
        ]

    def _note_written(self, target: Target, places: U64, slots: I64, first: U64, huge: Bools, tally: Tally) -> U64:
        """Book pages found written. ``first``, ``huge``: where each range written begins, and whether it is huge."""
        if not len(places):
            return places
        tally.written += len(places)
        before = self._pages.status[slots]
        was = state(before)
        self._index.stale_hint += int(np.count_nonzero(was == State.UNIQUE))
        after = self._pages.apply(slots, Event.WRITTEN)
        if len(target._rows):
            read = (was == State.SHARED) | (was == State.INHERITED)
            if read.any():
                shared = was[read] == State.SHARED
                self._release(places[read], target._rows.frames_of(places[read]), shared)
                wasted = int(shared.sum())
                tally.wasted += wasted
                target._wasted += wasted
                target._wasted_since += wasted
        if huge.any() or (before & HUGE_BIT).any():
            ranges = np.searchsorted(first, places, side="right") - 1
            bits = np.where(huge[ranges], HUGE_BIT, 0).astype(np.uint8)
            self._pages.status[slots] = after = (after & np.uint8(HUGE_BIT - 1)) | bits
        self._schedule(places, slots, after)
        return places

    def _release(self, places: U64, frames: U32, shared: Bools) -> None:
        """Book one reader less for each frame. ``shared``: whether the page was ``SHARED``, else it was inherited."""
        places, frames, shared = marked(frames != NO_FRAME, places, frames, shared)
        self._families.forget(frames[~shared])
        np.subtract.at(self._frames.live, frames[shared], np.uint32(1))
        self._families.succeed(places[shared], frames[shared])

    def _refresh(self, target: Target, tally: Tally | None = None) -> bool:
        """Read a target's mappings anew and bring spans and books up to date; False when that was not possible.

        Then it has gone, or ``tally`` counts a look that was missed; without ``tally`` it is raised.
        """
        memory = target._memory
        try:
            regions = memory.regions() if memory.alive() else None
        except (TargetError, OSError, MemoryError) as error:
            if not isinstance(error, TargetError) or memory.alive():
                if tally is None:
                    raise
                tally.missed += 1
                target._trouble.failed(error, self._period)
                return False
            regions = None
        if regions is None:
            self._forget(target)
            return False
        target._mappings = regions.mappings
        target._regions = len(regions.start)
        target._left_alone = regions.left_alone
        places, frames = self._set_rows(target, Rows.of(target._number, regions))
        self._pages.update(target._number, *coalesce(regions.start, regions.end))
        if len(places):
            self._families.inherit(target, places, frames)
        if target._held_for_budget and self._limits.mappings_left(target) > target._left_then + HELD_SLACK:
            target._held_for_budget = 0
            self._enqueue(target, self._pages.in_state(target._number, State.HELD))
        return True

    def _set_rows(self, target: Target, rows: Rows) -> tuple[U64, U32]:
        """Replace what a target maps of the pool, in the books and in the status of pages that map it no longer.

        Returns places and frames of the rows that are new.
        """
        old = target._rows
        if rows == old:
            return rows.start[:0], rows.frame[:0]
        gone, gone_frames = old.without(rows).expand()
        new_places, new_frames = rows.without(old).expand()
        target._rows = rows
        self._frames.map(new_frames)
        self._frames.unmap(gone_frames)
        lost = rows.frames_of(gone) == NO_FRAME
        if not lost.any():
            return new_places, new_frames
        places, frames = gone[lost], gone_frames[lost]
        slots = self._pages.slots(places)
        was = np.where(slots >= 0, state(self._pages.status[slots]), State.ABSENT)
        shared = was == State.SHARED
        read = shared | (was == State.INHERITED)
        self._pages.apply(slots[read], Event.LOST)
        self._release(places[read], frames[read], shared[read])
        return new_places, new_frames

    def _forget(self, target: Target) -> None:
        """Drop a target that is gone or detached from books and status; its entries in the index go stale."""
        self._set_rows(target, Rows.none())
        self._index.stale_hint += int(self._pages.counts_of(target._number)[State.UNIQUE])
        none = np.empty(0, np.uint64)
        self._pages.update(target._number, none, none)
        self._targets.pop(target._number, None)
        target.attached = False
        target._memory.release()
        if not self._targets:
            self._index.stale_hint = max(self._index.stale_hint, len(self._index))

    def _schedule(self, places: U64, slots: I64, status: U8) -> None:
        """Have volatile pages come due after their quiet periods and their back-off. ``places`` ascending."""
        places, slots, status = marked(state(status) == State.VOLATILE, places, slots, status)
        if not len(places):
            return
        wait = level(status)
        self._pages.due[slots] = (np.uint8((self._period + self.quiet_periods) & 255) + wait).astype(np.uint8)
        for extra in np.flatnonzero(np.bincount(wait)):
            (mine,) = marked(wait == extra, places)
            first, count = runs(mine)
            when = self._period + self.quiet_periods + int(extra)
            self._due.setdefault(when, []).append((mine[first], count))

    def _queue_due(self) -> None:
        """Queue the volatile pages whose wait is over."""
        found: dict[int, list[U64]] = {}
        for when in [w for w in self._due if w <= self._period]:
            for start, count in self._due.pop(when):
                places, slots = self._pages.slots_of_ranges(start, count)
                status = self._pages.status[slots]
                ready = (state(status) == State.VOLATILE) & (self._pages.due[slots] == when & 255)
                if ready.any():
                    ready_places, slots = marked(ready, places, slots)
                    self._pages.apply(slots, Event.DUE)
                    found.setdefault(int(target_of(ready_places[:1])[0]), []).append(ready_places)
        for number, parts in found.items():
            target = self._targets.get(number)
            if target is not None:
                self._push(target, in_order(np.concatenate(parts)))

    def _queue_forked(self, *, now: bool) -> None:
        """Queue pages that were shared since a fork and are their target's alone by now."""
        if not self._pages.counts[State.FORKED]:
            return
        for target in self.targets:
            try:
                places = self._families.alone_again(target, self._period, now=now)
            except TargetError:
                continue  # it has ended, which the next look will find
            self._enqueue(target, places)

    def _enqueue(self, target: Target, places: U64) -> None:
        """Queue volatile or held pages of a target now. ``places`` ascending."""
        if len(places):
            self._pages.apply(self._pages.slots(places), Event.DUE)
            self._push(target, places)

    def _push(self, target: Target, places: U64) -> None:
        size = self._batch_pages
        self._workers.push(self._batch(target, places[i : i + size]) for i in range(0, len(places), size))

    # ------------------------------------------------------------------ find

    def _batch(self, target: Target, places: U64) -> Callable[[], _Found]:
        def job() -> _Found:
            return self._find(target, places)

        return job

    def _find(self, target: Target, places: U64) -> _Found:
        """Read a batch and number its contents. In a worker; reads status and changes nothing."""
        began = time.thread_time()
        slots = self._pages.slots(places)
        known = slots >= 0
        now = state(self._pages.status[slots])
        changed = places[known & (now == State.CHANGED)]
        (places,) = marked(known & (now == State.QUEUED), places)
        if not target.attached:
            places = places[:0]
        keys, codes = np.empty(0, np.uint64), np.empty(0, np.uint8)
        if len(places):
            try:
                keys, codes = target._memory.read_keys(address(places))
            except TargetError:
                codes = np.full(len(places), ReadCode.GONE, np.uint8)
                keys = np.zeros(len(places), np.uint64)
            except (OSError, MemoryError):  # not the target's: they are read again
                changed, places = in_order(np.concatenate((changed, places))), places[:0]
        (keys,) = marked(codes == ReadCode.OK, keys)
        frames = self._contents.find(keys)
        ids, is_new = self._index.intern(*marked(frames == NO_FRAME, keys))
        return _Found(target, places, changed, codes, keys, frames, ids, is_new, time.thread_time() - began)

    def _work(self, tally: Tally, progress: Progress | None, until: float | None) -> None:
        """Find, plan, merge and free."""
        self._pages.settle()
        batches = len(self._workers)
        found: list[_Found] = []
        if batches:
            total = batches * self._batch_pages

            def tell(done: int) -> None:
                if progress is not None:
                    progress("find", min(total, done * self._batch_pages), total)

            found = self._workers.drain(until, tell)
        found.sort(key=lambda f: (f.target._number, int(f.places[0]) if len(f.places) else 0))
        for f in found:
            tally.cpu_s["find"] += f.cpu_s
        if found:
            with self._phase(tally, "plan"):
                zero, members = self._resolve(found, tally)
                planned = self._decider.plan(zero, members, tally)
            self._merge(planned, tally, progress)
        with self._phase(tally, "free"):
            self._free(tally)

    def _resolve(self, found: list[_Found], tally: Tally) -> tuple[U64, Members]:
        """Settle what was found: changed, gone and unique pages; return ``(zero pages, pages that can be merged)``."""
        self._apply(distinct(np.concatenate([f.changed for f in found])), Event.RETRY)
        where = self._index.where
        for f in found:
            tally.read += int(np.count_nonzero(f.codes != ReadCode.SHARED))
            where[f.ids[f.is_new]] = NOWHERE
        twice = repeated(np.concatenate([f.places for f in found]))
        if twice.any():
            # A range that went and came back was queued anew while its first batch still waited.
            ends = np.cumsum([len(f.places) for f in found])[:-1]
            found = [f.take(~marks) for f, marks in zip(found, np.split(twice, ends), strict=True)]
        # Batch after batch, in the order of places: what is made on the way stays in the cache.
        parts = [self._pair(f, tally) for f in found]
        zero, *rest = (np.concatenate(column) for column in zip(*parts, strict=True))
        return zero, self._decider.members(Twins(*rest[:3]), Members(*rest[3:]), tally)

    def _pair(self, f: _Found, tally: Tally) -> tuple[U64, ...]:
        """Settle a batch; return zero pages, the columns of its :class:`Twins`, and those of what joins a frame."""
        zero = f.places[:0]
        if f.codes.any():
            self._apply(f.places[f.codes == ReadCode.GONE], Event.LOST)
            forked = f.places[f.codes == ReadCode.SHARED]
            tally.forked += len(forked)
            self._apply(forked, Event.FORKED)
            zero = f.places[f.codes == ReadCode.ZERO]
            tally.zero += len(zero)
        (places,) = marked(f.codes == ReadCode.OK, f.places)
        framed = f.frames != NO_FRAME
        joins = places[framed], f.keys[framed], f.frames[framed].astype(np.uint64)
        places, keys = marked(~framed, places, f.keys)
        own = page_location(places, self._period)
        where = self._index.where
        believed = np.zeros(len(places), np.bool_)
        seen = np.flatnonzero(~f.is_new)
        believed[seen] = self._believed(where[f.ids[seen]])
        location = plan.pair(f.ids, own, where, believed)
        alone = location == own
        (unique,) = marked(alone, places)
        slots = self._pages.slots(unique)
        self._pages.apply(slots, Event.UNIQUE)
        self._pages.due[slots] = self._period & 255
        twin = ~alone
        return zero, places[twin], keys[twin], location[twin], *joins

    def _believed(self, locations: U64) -> Bools:
        """Tell which locations hold: the page is what it was, and nobody shares it since a fork."""
        good = self._index.believed(locations, self._pages)
        # Those of this period have just been read as the target's alone.
        before = np.flatnonzero(good & (locations & np.uint64(255) != np.uint64(self._period & 255)))
        if len(before):
            places = place_of(locations[before])
            with contextlib.suppress(TargetError):  # it has ended: the merge will say so
                shared = self._families.shared_now(places)
                good[before[shared]] = False
                forked = distinct(places[shared])
                self._index.stale_hint += len(forked)
                self._apply(forked, Event.FORKED)
        return good

    # ------------------------------------------------------------------ merge

    def _merge(self, planned: Planned, tally: Tally, progress: Progress | None) -> None:
        """Have it done, and book what came of it: wave after wave, so that each is given what the last has freed."""
        total = len(planned.zero) + len(planned.members.places)
        if not total:
            return
        before = {target: target._mappings for target in self._targets.values()}
        zero, done = planned.zero, 0
        for members in planned.waves(WAVE_FRAMES):
            with self._phase(tally, "plan"):
                filled, fresh = self._decider.fill(members, tally)

            def tell(part: float, done: int = done, size: int = len(zero) + len(members.places)) -> None:
                if progress is not None:
                    progress("merge", done + int(part * size), total)

            results = self._map(zero, filled, tell)
            with self._phase(tally, "plan"):
                self._book_results(results, zero, filled, fresh, tally)
            done += len(zero) + len(members.places)
            zero = zero[:0]
        with self._phase(tally, "plan"):
            self._contents.settle()
            for target, mappings in before.items():
                if target.attached and self._refresh(target, tally):
                    # what the kernel says: it joins neighbouring mappings of one file, and splits those around a run
                    tally.mappings_added += max(0, target._mappings - mappings)

    def _map(self, zero: U64, members: Members, tell: Callable[[float], None]) -> list[_Done]:
        """Have the workers drop zero pages and map frames; ``tell`` is told the share of it that is done."""
        first, pages = plan.merge_runs(members.places, members.frames)
        start, frame = members.places[first], members.frames[first].astype(np.uint32)
        zfirst, zpages = runs(zero)
        zstart = zero[zfirst]
        owner, zowner = target_of(start), target_of(zstart)
        jobs: list[Callable[[], _Done]] = []
        for number in distinct(np.concatenate((owner, zowner))):
            mine, zmine = owner == number, zowner == number
            target = self._targets[int(number)]
            jobs.append(self._job(target, zstart[zmine], zpages[zmine], start[mine], pages[mine], frame[mine]))
        waiting = self._workers.take_all()
        self._workers.push(jobs)
        try:
            results: list[_Done] = self._workers.drain(None, lambda done: tell(done / max(1, len(jobs))))
            return results
        finally:
            self._workers.push(waiting)

    def _book_results(self, results: list[_Done], zero: U64, members: Members, fresh: U32, tally: Tally) -> None:
        zcodes = np.full(len(zero), PageCode.TIMEOUT, np.uint8)
        codes = np.full(len(members.places), PageCode.TIMEOUT, np.uint8)
        for done in results:
            tally.cpu_s["merge"] += done.cpu_s + done.outside_cpu_s
            for outcome in done.outcomes:
                self._book(done.target, outcome)
                tally.pauses.append(outcome.pauses_s)
            zcodes[target_of(zero) == done.target._number] = done.zero_codes
            codes[target_of(members.places) == done.target._number] = done.codes
        dropped = zero[zcodes == PageCode.DONE]
        tally.dropped += len(dropped)
        self._apply(dropped, Event.ZERO)
        self._book_merged(members.take(codes == PageCode.DONE), fresh, tally)
        self._settle(zero, zcodes, tally)
        self._settle(members.places, codes, tally)
        self._frames.watch(distinct(members.frames).astype(np.uint32))

    def _job(self, target: Target, zstart: U64, zpages: I64, start: U64, pages: I64, frame: U32) -> Callable[[], _Done]:
        """Return the job of one target: its requests, one after the other, in a worker."""

        def job() -> _Done:
            began = time.thread_time()
            memory = target._memory
            outcomes: list[Outcome] = []
            zero_codes: list[U8] = []
            codes: list[U8] = []
            for s, n, _ in plan.requests(zstart, zpages, None, REQUEST_PAGES):
                zero_codes.append(_ask(outcomes, memory.drop_zero, s, n))
            for s, n, f in plan.requests(start, pages, frame, REQUEST_PAGES):
                codes.append(_ask(outcomes, memory.merge, s, n, f))
            none = np.empty(0, np.uint8)
            return _Done(
                target,
                np.concatenate([none, *zero_codes]),
                np.concatenate([none, *codes]),
                outcomes,
                time.thread_time() - began,
                sum(o.cpu_s for o in outcomes),
            )

        return job

    def _book(self, target: Target, outcome: Outcome) -> None:
        """Count what a request cost a target."""
        target._pauses.add(outcome.pauses_s)
        self._pauses.add(outcome.pauses_s)

    def _book_merged(self, members: Members, fresh: U32, tally: Tally) -> None:
        """Book pages that map their frame now: status, sharers, and the content of frames just filled."""
        frames = members.frames.astype(np.uint32)
        self._apply(members.places, Event.SHARED)
        np.add.at(self._frames.live, frames, np.uint32(1))
        tally.merged += len(frames)
        owner = target_of(members.places)
        for number in distinct(owner):
            self._targets[int(number)]._merged += int((owner == number).sum())
        # A page that maps it, compared and unwritten since it was read, is what proves the content of a frame.
        proved, index, _, _ = grouped(frames)
        new = np.isin(proved, fresh)
        keys = members.keys[index[new]]
        self._contents.add(keys, proved[new])
        self._index.stale_hint += len(distinct(keys))

    def _settle(self, places: U64, codes: U8, tally: Tally) -> None:
        """Book the pages that were left alone, by reason."""
        left = codes != PageCode.DONE
        if not left.any():
            return
        places, codes = places[left], codes[left]
        owner = target_of(places)
        for number in distinct(owner):
            target = self._targets.get(int(number))
            count = np.bincount(codes[owner == number], minlength=len(PageCode))
            refused = {PageCode(i).name: int(n) for i, n in enumerate(count) if n}
            tally.refused.update(refused)
            if target is not None:
                target._refused.update(refused)
        self._apply(places[codes == PageCode.GONE], Event.LOST)
        self._apply(places[codes == PageCode.REFUSED], Event.REFUSED)
        tally.forked += int((codes == PageCode.SHARED).sum())
        self._apply(places[codes == PageCode.SHARED], Event.FORKED)
        again = (codes == PageCode.DIFFERS) | (codes == PageCode.WRITTEN) | (codes == PageCode.TIMEOUT)
        self._apply(places[again], Event.RETRY)

    def _apply(self, places: U64, event: Event) -> None:
        """Apply an event to pages that are tracked still; those that become volatile get their time."""
        if not len(places):
            return
        slots = self._pages.slots(places)
        if (slots < 0).any():
            places, slots = places[slots >= 0], slots[slots >= 0]
        after = self._pages.apply(slots, event)
        if event == Event.RETRY:
            order = np.argsort(places, kind="stable")
            self._schedule(places[order], slots[order], after[order])

    # ------------------------------------------------------------------ free

    def _let_go(self, tally: Tally) -> None:
        """Unmerge runs whose frames nobody reads any more: every sharer has written and has a copy of its own."""
        written = [t for t in self.targets if t._wasted_since]
        if not any(
            t._wasted_since * LET_GO_SHARE >= t._rows.pages or self._period - t._let_go >= LET_GO_PERIODS
            for t in written
        ):
            return
        for target in self.targets:
            target._wasted_since, target._let_go = 0, self._period
            if not target._wasted or not len(target._rows):
                continue
            rows = target._rows
            places, frames = rows.expand()
            places = places[(self._frames.live[frames] == 0) & (self._families.heirs[frames] == 0)]
            try:
                places = places[~self._families.shared_now(places)]
            except TargetError:
                continue  # it has ended, which the next look will find
            first, pages = runs(places)
            start = places[first]
            whole = np.isin(start, rows.start) & np.isin(start + pages.astype(np.uint64), rows.end)
            worth = whole | (pages >= LET_GO_RUN)
            for s, n, _ in plan.requests(start[worth], pages[worth], None, REQUEST_PAGES):
                outcomes: list[Outcome] = []
                codes = _ask(outcomes, functools.partial(target._memory.unmerge, apart=True), s, n)
                tally.let_go += int((codes == PageCode.DONE).sum())
                for outcome in outcomes:
                    self._book(target, outcome)
                    tally.pauses.append(outcome.pauses_s)
                    tally.cpu_s["free"] += outcome.cpu_s
            if worth.any():
                self._refresh(target, tally)

    def _free(self, tally: Tally) -> None:
        """Let go what nobody reads, free the frames seen unmapped twice, and sweep the index if it is stale."""
        self._let_go(tally)
        out, _ = self._frames.reclaim(self._backend)
        if len(out):
            self._contents.drop(out)
        stale = self._index.stale_hint
        if len(self._index) and (stale * SWEEP_SHARE > max(len(self._index), SWEEP_MIN) or not self._targets):
            self._index.sweep(self._pages)

    # ------------------------------------------------------------------ figures

    @property
    def stats(self) -> Stats:
        """What the engine knows and has done until now."""
        with self._lock:
            pages, frames, totals = self._pages, self._frames, self._totals
            return Stats(
                period=self._period,
                targets=len(self._targets),
                left_alone=sum(bool(t._left_alone) for t in self._targets.values()),
                tracked=pages.tracked,
                states=_named(pages.counts),
                frames=frames.used,
                frames_waiting=frames.waiting,
                frames_freed=frames.freed,
                sharers=int(pages.counts[State.SHARED]),
                saved_bytes=self._saved_bytes(),
                index_entries=len(self._index) + len(self._contents),
                index_bytes=self._index.nbytes + self._contents.nbytes,
                metadata_bytes=self._metadata_bytes(),
                pages_read=totals.read,
                pages_written=totals.written,
                pages_merged=totals.merged,
                pages_dropped=totals.dropped,
                wasted_merges=totals.wasted,
                let_go=totals.let_go,
                incomplete_looks=frames.incomplete,
                missed_looks=totals.missed,
                mappings_added=totals.mappings_added,
                left_for_budget=totals.left_for_budget,
                left_huge=totals.left_huge,
                huge_split=totals.huge_split,
                refused=dict(totals.refused),
                queue_batches=len(self._workers),
                cpu_s=dict(totals.cpu_s),
                cpu_budget_left_s=self._workers.budget.left_s,
                pauses=copy.deepcopy(self._pauses),
                trouble=self._trouble,
            )

    def _target_stats(self, target: Target) -> TargetStats:
        with self._lock:
            counts = self._pages.counts_of(target._number)
            return TargetStats(
                pid=target.pid,
                left_alone=target._left_alone,
                trouble=target._trouble.text,
                states=_named(counts),
                tracked=int(counts.sum()),
                mappings=target._mappings,
                mappings_left=self._limits.mappings_left(target),
                mapped_pages=target._rows.pages,
                saved_bytes=round(self._families.saved_pages(target) * PAGE_SIZE),
                merged_pages=target._merged,
                wasted_merges=target._wasted,
                refused=dict(target._refused),
                pauses=copy.deepcopy(target._pauses),
            )

    def _metadata_bytes(self) -> int:
        """Bytes of index, status and books: what is touched of them, not what is reserved."""
        seen = self._pages.tracked - int(self._pages.counts[State.ABSENT])
        waiting = sum(start.nbytes + count.nbytes for parts in self._due.values() for start, count in parts)
        rows = sum(20 * len(t._rows) for t in self._targets.values())
        index = self._index.nbytes + self._contents.nbytes
        return index + 2 * seen + Frames.BYTES * self._frames.used + waiting + rows

    def _saved_bytes(self) -> int:
        """Memory given back: pages merged or zero, less frames, mappings and what the engine keeps of them.

        Each merged page was its target's alone. Frames that only others map are theirs: they would have the page.
        """
        counts = self._pages.counts
        gross = int(counts[State.SHARED] + counts[State.ZERO]) - (self._frames.used - self._frames.outside)
        mappings = sum(len(t._rows) for t in self._targets.values())
        return gross * PAGE_SIZE - mappings * plan.MAPPINGS_PER_RUN * MAPPING_BYTES - self._metadata_bytes()

    def _report(self, tally: Tally, saved_before: int) -> MergeReport:
        totals = self._totals
        for name in (
            *("read", "written", "zero", "dropped", "duplicate", "merged", "frames", "mappings_added"),
            *("wasted", "left_for_budget", "left_huge", "left_pool", "left_short", "huge_split", "missed", "let_go"),
            "forked",
        ):
            setattr(totals, name, getattr(totals, name) + getattr(tally, name))
        totals.refused.update(tally.refused)
        for phase, seconds in tally.cpu_s.items():
            totals.cpu_s[phase] += seconds
        return MergeReport(
            targets=len(self._targets),
            regions=tally.regions,
            pages=tally.read,
            written_pages=tally.written,
            zero_pages=tally.zero,
            forked_pages=tally.forked,
            dropped_pages=tally.dropped,
            duplicate_pages=tally.duplicate,
            merged_pages=tally.merged,
            frames=tally.frames,
            mappings_added=tally.mappings_added,
            saved_bytes=self._saved_bytes() - saved_before,
            engine_cpu_s=sum(tally.cpu_s.values()),
            pauses_s=np.concatenate([np.empty(0), *tally.pauses]),
            refused=dict(tally.refused),
            left_for_budget=tally.left_for_budget,
            left_huge=tally.left_huge,
            left_pool=tally.left_pool,
            left_short=tally.left_short,
            huge_split=tally.huge_split,
        )

    @contextlib.contextmanager
    def _phase(self, tally: Tally, name: str) -> Iterator[None]:
        began, outside = time.thread_time(), tally.outside_cpu_s
        try:
            yield
        finally:
            spent = time.thread_time() - began + tally.outside_cpu_s - outside
            tally.cpu_s[name] += spent
            self._workers.budget.pay(spent)  # the workers sleep for it, too

    def _check_open(self) -> None:
        if self._closed:
            raise PageOneError("engine: closed; make a new one")


def _ask(outcomes: list[Outcome], request: Callable[..., Outcome], *arrays: npt.NDArray[Any]) -> U8:
    """Make a request (places, pages, …); the pages of a target that has gone meanwhile are gone."""
    start, pages = arrays[:2]
    try:
        outcome = request(address(start), *arrays[1:])
    except TargetError:
        return np.full(int(pages.sum()), PageCode.GONE, np.uint8)
    except (OSError, MemoryError):  # not the target's: it is asked again
        return np.full(int(pages.sum()), PageCode.TIMEOUT, np.uint8)
    outcomes.append(outcome)
    return outcome.code


def _named(counts: I64) -> dict[str, int]:
    return {s.name.lower(): int(counts[s]) for s in State}


def _max_map_count() -> int:
    try:
        return int(Path("/proc/sys/vm/max_map_count").read_text())
    except (OSError, ValueError):
        return 65530  # the kernel's default


def _available_bytes() -> int:
    """Return the memory that the system could give out now (``MemAvailable``), bytes."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise PageOneError("cannot find MemAvailable in /proc/meminfo")


def _owner(pid: int) -> int:
    """Return the user whom a process belongs to. Raises :class:`TargetError` when there is none."""
    try:
        return Path(f"/proc/{pid}").stat().st_uid
    except OSError:
        raise TargetError(f"process {pid}: no such process") from None

"""The engine: follows targets, merges what has come to rest, unmerges what nobody reads, gives everything back.

For: users and the command line. Its own are the life of an engine and the order of a period; each step is a module of
functions from (accounting, arrays) to arrays::

    scan   what was written since the last scan?      ranges  -> status of pages
    find   pages at rest: read their keys             batches -> keys -> twins         (workers)
    plan   which equal pages share which frame?       twins   -> runs
    merge  map the runs, drop the zero pages          runs    -> codes -> status       (workers)
    free   frames that nobody maps, entries gone stale

Every step is numpy on whole batches; no statement runs per page. One thread owns the accounting; workers only read and
merge, between two scans, so that a queued page's status changes only when the engine scans.
"""

from __future__ import annotations

import functools
import importlib
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import cast

from pageone import procfs
from pageone.engine import find, free, merge, plan, scan
from pageone.engine.accounting import Accounting
from pageone.engine.backend import Backend
from pageone.engine.metrics import MergeReport, Stats, Tally, TargetStats
from pageone.engine.queue import CpuBudget, Workers, be_modest, cpu_share
from pageone.engine.target import Target
from pageone.errors import PageOneError, TargetError, UsageError
from pageone.policy import HUGE_SHARE, MAP_SHARE, MAX_SHARING, MIN_RUN, REPEAT_SHARE, Limits

Progress = Callable[[str, int, int], None]
"""Called with a phase (``"find"``, ``"merge"``), the pages done and the pages there are."""

__all__ = ["Engine", "Progress", "Target"]

SCANS_SHARE = 0.25  #: most of a CPU budget that scans take: they come less often than asked for where it needs that
SCANS_APART_MAX_S = 60.0  #: but not less often than this


class Engine:
    """Keeps equal pages of its targets in shared frames.

    Args:
        period: seconds between two scans (0.05 works).
        quiet_periods: scans in a row that must find a page unwritten before it is read.
        workers: threads that read and merge.
        domain: name of the set of targets that may share. None: all targets must belong to one user.
        max_sharing: pages that may share one frame; None lifts the cap.
        cpu: share of one CPU that the engine may use on average, such as ``"20%"`` or ``0.2``; None for no limit.
        map_share: share of ``vm.max_map_count`` up to which a target's mappings may grow.
        huge_share: split a transparent huge page only when more than this share of it can be given back.
        min_run: leave alone equal pages in runs shorter than this; each run costs a target up to two mappings.
        repeat_share: frames given to a content repeated very often, as a share of its pages.
        nice: run the engine's own threads at this niceness.
        idle: run them only when the CPU has nothing else to do.
        backend: where processes and frames come from; None for the running system.
        owner: tells a PID's user, for the domain check; None for the owner of ``/proc/PID``.
        max_map_count: most mappings of a process; None for ``vm.max_map_count``.
        batch_pages: pages that a worker reads, and the accounting takes, at a time.

    All are keywords. What users want to know is in ``stats``; tests and benchmarks may read ``accounting`` and
    ``backend``, too.

    Raises :class:`UsageError` for a value out of its range, before anything is touched.

    """

    def __init__(
        self,
        *,
        period: float = 20.0,
        quiet_periods: int = 2,
        workers: int = 1,
        domain: str | None = None,
        max_sharing: int | None = MAX_SHARING,
        cpu: float | str | None = None,
        map_share: float = MAP_SHARE,
        huge_share: float = HUGE_SHARE,
        repeat_share: float = REPEAT_SHARE,
        min_run: int = MIN_RUN,
        nice: int | None = None,
        idle: bool = False,
        backend: Backend | None = None,
        owner: Callable[[int], int] | None = None,
        max_map_count: int | None = None,
        batch_pages: int = 8192,
    ) -> None:
        if not period > 0:
            raise UsageError(f"period: {period}: must be more than 0 seconds")
        if not 1 <= quiet_periods <= 100:
            raise UsageError(f"quiet periods: {quiet_periods}: must be between 1 and 100")
        if max_sharing is not None and max_sharing < 2:
            raise UsageError(f"max sharing: {max_sharing}: at least 2 pages share a frame")
        for name, share in (("map share", map_share), ("huge share", huge_share), ("repeat share", repeat_share)):
            if not 0 <= share <= 1:
                raise UsageError(f"{name}: {share}: must be between 0 and 1")
        budget = CpuBudget(cpu_share(cpu))
        self.period = period
        self.domain = domain
        mappings = int(map_share * (max_map_count or procfs.max_map_count()))
        limits = Limits(max_sharing or 1 << 31, repeat_share, huge_share, min_run, mappings)
        self._nice, self._idle = nice, idle
        self._workers = Workers(workers, budget, nice, idle)
        if backend is None:
            # late and by name: the logic needs no Linux, and only here does it reach up for what lies above it
            backend = cast(Backend, importlib.import_module("pageone.live").LiveBackend())
            owner = owner or _owner
        self.backend = backend
        self.accounting = Accounting(backend.frames_max, limits, quiet_periods, batch_pages)
        self._owner = owner
        self._user: int | None = None
        self._lock = threading.RLock()
        self._scan_cpu_s = 0.0  #: what scans have cost lately
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
            if any(t.pid == pid for t in self.targets):
                raise TargetError(f"process {pid}: attached already")
            user = None
            if self.domain is None and self._owner is not None:
                user = self._owner(pid)
                if self._user is not None and self.targets and user != self._user:
                    raise TargetError(
                        f"process {pid}: belongs to user {user}, the other targets to {self._user}: "
                        "memory is shared within one user only; name a domain to group them on purpose"
                    )
            memory = self.backend.attach(pid)
            self._user = user
            target = Target(self.accounting.next_number(), memory, self._target_stats)
            self.accounting.targets[target.number] = target
            return target

    def bypass_cpu_budget_when(self, urgent: Callable[[], bool]) -> None:
        """Suspend the CPU budget while ``urgent()`` is True: somebody waits for the engine. Called every 0.1 s."""
        self._workers.urgent = urgent

    @property
    def targets(self) -> list[Target]:
        """The targets attached now."""
        return list(self.accounting.targets.values())

    def detach(
        self,
        target: Target,
        progress: Progress | None = None,
        stop: Callable[[], bool] | None = None,
        available_bytes: Callable[[], int] | None = None,
    ) -> bool:
        """Give the merged pages of a target memory of their own again and detach it; return whether that was finished.

        Pages of which relatives, forked since, map the same frame stay merged, and guarded until these processes end:
        each would need a copy, where without PageONE they would share one (``target.left_pages`` says how many).

        The engine calls ``stop`` before each request of some thousand pages: when it returns True the target stays
        attached, with the rest still merged, and the result is False; calling again goes on. ``available_bytes``
        returns the memory that is available, by default the system's. Raises :class:`TargetError` before anything is
        done when that does not suffice, and when pages could not be given their own memory.
        """
        with self._lock:
            if not target.attached or self.accounting.targets.get(target.number) is not target:
                raise TargetError(f"process {target.pid}: not attached to this engine")
            return free.give_back(
                self.accounting,
                self.backend,
                target,
                available_bytes or procfs.available_bytes,
                functools.partial(progress or _silent, "unmerge"),
                stop or (lambda: False),
            )

    # ------------------------------------------------------------------ periods

    def step(self, progress: Progress | None = None, until: float | None = None) -> MergeReport:
        """Do one period at once, without waiting for it, and say what it did.

        ``until`` (``time.monotonic``): begin no more batches after that; they stay queued. With a CPU budget the
        workers sleep as it asks. Cost: in proportion to what was written and what has come to rest.
        """
        with self._lock:
            began = time.monotonic()
            self._check_open()
            tally, saved = Tally(), self.accounting.saved_bytes()
            self.accounting.period += 1
            with tally.phase("scan", self._workers.budget.pay):
                for target in self.targets:
                    scan.scan(self.accounting, target, tally)
                self.accounting.queue_due()
                scan.queue_forked(self.accounting, now=False)
            self._scan_cpu_s = (self._scan_cpu_s + tally.cpu_s["scan"]) / 2
            if until is not None and until > began:
                # A scan that has taken all of a period, on a busy machine, must not starve the work: as long again.
                now = time.monotonic()
                until = max(until, now + max(self.period / 4, now - began))
            return self._work(tally, saved, progress or _silent, until)

    def merge_once(self, quiet_s: float = 1.0, progress: Progress | None = None) -> MergeReport:
        """Make one pass over all targets: merge what stays unwritten for ``quiet_s`` seconds, and say what it did.

        Periods, back-off and what is queued from before do not matter for it.
        """
        with self._lock:
            self._check_open()
            tally, saved = Tally(), self.accounting.saved_bytes()
            self.accounting.period += 1
            with tally.phase("scan", self._workers.budget.pay):
                for target in self.targets:
                    scan.scan(self.accounting, target, tally)
            first = tally.written_pages
            time.sleep(quiet_s)
            self.accounting.period += 1
            with tally.phase("scan", self._workers.budget.pay):
                for target in self.targets:
                    scan.queue_resting(self.accounting, target, scan.scan(self.accounting, target, tally))
                scan.queue_forked(self.accounting, now=True)
            tally.written_pages -= first
            return self._work(tally, saved, progress or _silent, None)

    def _work(self, tally: Tally, saved_before: int, progress: Progress, until: float | None) -> MergeReport:
        """Find, plan, merge and free what is queued, and report."""
        accounting, workers = self.accounting, self._workers
        self._push_ready()
        accounting.pages.settle()
        if len(workers):
            size, total = accounting.batch_pages, len(workers) * accounting.batch_pages
            found: list[find.Found] = workers.drain(
                until, lambda done: progress("find", min(total, done * size), total)
            )
            tally.cpu_s["find"] += sum(f.cpu_s for f in found)
            if found:
                with tally.phase("plan", workers.budget.pay):
                    planned = plan.plan(accounting, *find.settle(accounting, found, tally), tally)
                merge.merge(accounting, self.backend, workers, planned, tally, functools.partial(progress, "merge"))
        with tally.phase("free", workers.budget.pay):
            free.free(accounting, self.backend, tally)
        self._push_ready()
        accounting.totals.add(tally)
        saved = accounting.saved_bytes() - saved_before
        return MergeReport.of(tally, targets=len(accounting.targets), saved_bytes=saved)

    def _push_ready(self) -> None:
        """Put what has been queued into the workers' queue, in batches."""
        size, ready = self.accounting.batch_pages, self.accounting.take_ready()
        for target, page_ids in ready:
            batches = (page_ids[i : i + size] for i in range(0, len(page_ids), size))
            self._workers.push(functools.partial(find.read, self.accounting, target, batch) for batch in batches)

    def run(self, stop: Callable[[], bool] | None = None) -> None:
        """Do a period every ``period`` seconds, in this thread, until ``stop`` says True or all targets have gone."""
        self._follow(stop or (lambda: False), idle=False)

    def _follow(self, stop: Callable[[], bool], *, idle: bool) -> None:
        """Do periods until ``stop`` or :meth:`stop`; if not ``idle``, also until all targets have gone."""
        ahead = time.monotonic()
        while not stop() and not self._stop.is_set():
            # Late, it goes on from now: a period whose end has passed would leave no time for the work.
            ahead = max(ahead, time.monotonic()) + self.scan_every_s
            try:
                self.step(until=ahead)
                self._trouble = ""
            except (OSError, MemoryError) as error:  # the system lacks something for a moment
                self._trouble = str(error) or type(error).__name__
            if not idle and not self.targets:
                return
            self._stop.wait(max(0.0, ahead - time.monotonic()))

    @property
    def scan_every_s(self) -> float:
        """Seconds between two scans: the period, or more where they would take too much of the CPU budget."""
        share = self._workers.budget.share
        if share is None or self._workers.urgent():
            return self.period
        return max(self.period, min(SCANS_APART_MAX_S, self._scan_cpu_s / (share * SCANS_SHARE)))

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
                self.backend.close()

    def __enter__(self) -> Engine:
        """Return the engine itself; :meth:`close` is called at the end."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the engine."""
        self.close()

    # ------------------------------------------------------------------ figures

    @property
    def stats(self) -> Stats:
        """What the engine knows and has done until now."""
        with self._lock:
            return self.accounting.stats(
                queue_batches=len(self._workers),
                cpu_budget_left_s=self._workers.budget.left_s,
                trouble=self._trouble,
            )

    def _target_stats(self, target: Target) -> TargetStats:
        with self._lock:
            return self.accounting.target_stats(target)

    def _check_open(self) -> None:
        if self._closed:
            raise PageOneError("engine: closed; make a new one")


def _silent(phase: str, done: int, total: int) -> None:
    """Tell nobody."""


def _owner(pid: int) -> int:
    """Return the user whom a process belongs to. Raises :class:`TargetError` when there is none."""
    try:
        return procfs.user(pid)
    except OSError:
        raise TargetError(f"process {pid}: no such process") from None

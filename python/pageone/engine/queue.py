"""The queue of batches and the threads that work it off, within a CPU budget.

For: the engine. May call the native lock-free queue (crossbeam). A job is a callable that does thousands of pages;
jobs of all targets share one queue, so a target with much to do never leaves a worker idle, and what is not done when
time is up stays queued for the next period.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from pageone._native import queue as _native_queue
from pageone.engine.clock import cpu_s
from pageone.errors import PageOneError, UsageError

__all__ = ["BACKGROUND_CPU", "CpuBudget", "Workers", "cpu_share"]

Job = Callable[[], Any]

#: Most of one CPU that an engine in the background takes, unless it is told otherwise: a GiB is merged in 20 s, and its
#: program stands still for some 3 % of that time.
BACKGROUND_CPU = "10%"


def cpu_share(value: float | str | None) -> float | None:
    """Return a share of one CPU from ``0.2``, ``"20%"`` or ``"0.2"``; None stays None. Raises ``UsageError``."""
    if value is None:
        return None
    text = str(value).strip()
    try:
        share = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        raise UsageError(f"cpu budget {value!r}: give a share of one CPU, such as 20% or 0.2") from None
    if not 0.001 <= share <= 1024:
        raise UsageError(f"cpu budget {value!r}: must be at least 0.1%")
    return share


class CpuBudget:
    """Holds the CPU time of all workers at a share of the time that passes, on average.

    ``burst_s``: CPU-seconds that may be spent ahead after a pause. Unused time is not saved beyond that, so that a
    night without work does not end in an hour of full load.
    """

    def __init__(self, share: float | None, burst_s: float = 0.05, clock: Callable[[], float] = time.monotonic) -> None:
        self.share = share
        self._burst = burst_s
        self._credit = burst_s
        self._clock = clock
        self._last = clock()
        self._lock = threading.Lock()

    def pay(self, cpu_s: float) -> float:
        """Record CPU time that was spent; return for how many seconds the caller should sleep now."""
        if self.share is None:
            return 0.0
        with self._lock:
            now = self._clock()
            self._credit = min(self._burst, self._credit + (now - self._last) * self.share) - cpu_s
            self._last = now
            return max(0.0, -self._credit / self.share)

    @property
    def left_s(self) -> float | None:
        """CPU-seconds that may be spent at once; negative when overdrawn; None without a budget."""
        return None if self.share is None else self._credit


class Workers:
    """``count`` threads that take jobs from one lock-free queue while :meth:`drain` lets them.

    ``nice``: added to the niceness of the workers; ``idle``: run them only when nothing else wants the CPU
    (``SCHED_IDLE``). Both touch only these threads.
    """

    def __init__(
        self, count: int = 1, budget: CpuBudget | None = None, nice: int | None = None, idle: bool = False
    ) -> None:
        if count < 1:
            raise UsageError(f"workers: {count}: at least one is needed")
        self.count = count
        self.budget = budget or CpuBudget(None)
        self._nice, self._idle = nice, idle
        #: Asked while workers sleep for the budget: when it says True they go on at once. The time is not forgotten.
        self.urgent: Callable[[], bool] = lambda: False
        self._queue: _native_queue.BatchQueue[Job] = _native_queue.BatchQueue()
        self._wake = threading.Condition()
        self._threads: list[threading.Thread] = []
        self._busy = 0
        self._open = False
        self._closed = False
        self._until: float | None = None
        self._results: list[Any] = []
        self._errors: list[BaseException] = []

    def __len__(self) -> int:
        """Return how many jobs are waiting."""
        return len(self._queue)

    def push(self, jobs: Iterable[Job]) -> None:
        """Append jobs to the queue; they are worked off by the next :meth:`drain`."""
        for job in jobs:
            self._queue.push(job)

    def drain(self, until: float | None = None, progress: Callable[[int], None] | None = None) -> list[Any]:
        """Let the workers work until the queue is empty, or until the clock (``time.monotonic``) says ``until``.

        Returns the results of the jobs done, in the order in which they ended; jobs not begun stay queued. The first
        exception of a job is raised after all workers have come to rest. ``progress`` is called with the number done.
        """
        self._start()
        with self._wake:
            self._results, self._errors = [], []
            self._until = until
            self._open = True
            self._wake.notify_all()
        try:
            with self._wake:
                told = 0
                while self._busy or (len(self._queue) and not self._late() and not self._errors):
                    self._wake.wait(0.5)
                    if progress is not None and len(self._results) > told:
                        told = len(self._results)
                        progress(told)
        finally:
            with self._wake:
                self._open = False
                while self._busy:
                    self._wake.wait(0.5)
        results, self._results = self._results, []  # nothing is kept of them here: they are long
        if self._errors:
            raise self._errors[0]
        if progress is not None:
            progress(len(results))
        return results

    def take_all(self) -> list[Job]:
        """Take every waiting job out of the queue."""
        jobs: list[Job] = []
        while (job := self._queue.pop()) is not None:
            jobs.append(job)
        return jobs

    def clear(self) -> int:
        """Throw away what is queued; return how many jobs that were."""
        return len(self.take_all())

    def close(self) -> None:
        """Let running jobs end and stop the threads. Jobs still queued are dropped."""
        with self._wake:
            self._closed, self._open = True, False
            self._wake.notify_all()
        for thread in self._threads:
            thread.join()
        self._threads.clear()
        self.clear()

    def _late(self) -> bool:
        return self._until is not None and time.monotonic() >= self._until

    def _start(self) -> None:
        if self._closed:
            raise PageOneError("engine: closed")
        while len(self._threads) < self.count:
            name = f"pageone-worker-{len(self._threads)}"
            thread = threading.Thread(target=self._work, name=name, daemon=True)
            # One whose start is interrupted is not waited for: it does nothing, and ends with the others.
            thread.start()
            self._threads.append(thread)

    def _work(self) -> None:
        be_modest(self._nice, self._idle)
        while True:
            with self._wake:
                while not self._closed and not (self._open and len(self._queue) and not self._late()):
                    self._wake.wait()
                if self._closed:
                    return
                self._busy += 1
            try:
                self._work_off()
            finally:
                with self._wake:
                    self._busy -= 1
                    self._wake.notify_all()

    def _work_off(self) -> None:
        while self._open and not self._late() and not self._errors:
            job = self._queue.pop()
            if job is None:
                return
            began = cpu_s()
            try:
                result = job()
                outside = float(getattr(result, "outside_cpu_s", 0.0))
            except BaseException as error:
                self._errors.append(error)
                return
            self._results.append(result)
            pause = self.budget.pay(cpu_s() - began + outside)
            while pause > 0 and self._open and not self.urgent():
                time.sleep(min(pause, 0.1))
                pause -= 0.1


def be_modest(nice: int | None, idle: bool) -> None:
    """Lower the calling thread's claim to the CPU; what the system refuses is left as it is."""
    thread = threading.get_native_id()
    if nice is not None:
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, thread, nice)
    if idle:
        with contextlib.suppress(OSError):
            os.sched_setscheduler(thread, os.SCHED_IDLE, os.sched_param(0))

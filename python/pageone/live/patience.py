"""Reading of a process without waiting for it for ever.

For: whatever reads of ``/proc/PID`` or of a process's memory on behalf of others. Whoever does may have to wait for the
process: its address space may be locked, or the memory be of a file system or of a userfaultfd that does not answer.
No signal ends such a wait but one that ends all of us. So it is done by another thread, which is left behind when it
gets no further, and the process is left alone for a while. Cost: some 30 µs a call.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from pageone import procfs
from pageone.engine import clock
from pageone.errors import TargetError

__all__ = ["HeldUpError", "read", "spare"]

T = TypeVar("T")

#: A call that has got no further for so long is left behind, seconds.
PATIENCE_S = 2.0
#: It gets further when it takes so much CPU time meanwhile, seconds.
PROGRESS_CPU_S = 0.005
#: How long a process is left alone after that, seconds; twice that each time it happens again, up to the most.
REST_S, REST_MOST_S = 60.0, 3600.0
#: Calls that take so long without CPU time, seconds, are added up, for so many seconds; together they may take
#: ``SLOW_MOST_S``. Else a process could make each wait for as long as it is waited for.
SLOW_S, SLOW_FOR_S, SLOW_MOST_S = 0.1, 60.0, 6.0


class HeldUpError(TargetError):
    """A process held up whoever read its memory, and is left alone for a while."""


class _Hand:
    """A thread that reads of processes for another, in turn."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        self._todo: queue.SimpleQueue[Any] = queue.SimpleQueue()
        # It knows the queue only: so it ends when nobody has this object any more.
        self._thread = threading.Thread(target=_work, args=(self._todo,), name="pageone-reader", daemon=True)
        self._thread.start()

    def __del__(self) -> None:
        self._todo.put(None)

    def give(self, work: Callable[..., Any], args: tuple[Any, ...]) -> queue.SimpleQueue[Any]:
        """Have it done; returns where the result, an exception or None, and the CPU-seconds come."""
        answer: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._todo.put((work, args, answer))
        return answer

    def cpu_s(self) -> float:
        """CPU-seconds that it has used so far."""
        return time.clock_gettime(time.pthread_getcpuclockid(self._thread.ident or 0))


def _work(todo: queue.SimpleQueue[Any]) -> None:
    while (item := todo.get()) is not None:
        work, args, answer = item
        began = time.thread_time()
        result, failed = None, None
        try:
            result = work(*args)
        except BaseException as error:
            failed = error
        answer.put((result, failed, time.thread_time() - began))
        del item, work, args, answer, result, failed  # nothing is kept of it


class _Held:
    """What is known of a process that has been waited for."""

    def __init__(self, identity: int | None) -> None:
        self.identity = identity
        self.times = 0
        self.until = 0.0  #: left alone until then (``time.monotonic``)
        self.hand: _Hand | None = None  #: that is left behind in it
        self.answer: queue.SimpleQueue[Any] | None = None  #: what that is to fill
        self.slow_since, self.slow_s = 0.0, 0.0

    def let_be(self, now: float) -> None:
        self.until = now + min(REST_MOST_S, REST_S * 2**self.times)
        self.times += 1

    def is_stuck(self) -> bool:
        return self.answer is not None and self.answer.empty()


class _Mine(threading.local):
    hand: _Hand | None = None


_mine = _Mine()
_held: dict[int, _Held] = {}
_lock = threading.Lock()


def read(pid: int, work: Callable[..., T], *args: Any) -> T:
    """Return ``work(*args)``, which reads of process ``pid`` and changes nothing here.

    Raises what it raises, and :class:`HeldUpError` where that took too long, or has lately: then it may still go on.
    """
    _refuse(pid)
    hand = _mine.hand
    if hand is None or hand.owner != os.getpid():
        hand = _mine.hand = _Hand()
    began, used = time.monotonic(), hand.cpu_s()
    answer = hand.give(work, args)
    while True:
        try:
            result, failed, cpu_s = answer.get(timeout=PATIENCE_S)
            break
        except queue.Empty:
            before, used = used, hand.cpu_s()
            if used - before < PROGRESS_CPU_S:
                _mine.hand = None
                with _lock:
                    held = _of(pid)
                    held.hand, held.answer = hand, answer
                    held.let_be(time.monotonic())
                raise _error(pid, held) from None
    clock.count(cpu_s)
    waited = time.monotonic() - began - cpu_s
    if waited > SLOW_S:
        _slow(pid, waited)
    if failed is not None:
        raise failed
    return result  # type: ignore[no-any-return]


def spare(pid: int, work: Callable[..., Any], *args: Any) -> None:
    """Do something when nobody is left behind in process ``pid``: now, or by whoever is, on coming back."""
    with _lock:
        held = _held.get(pid)
        if held is not None and held.hand is not None and held.is_stuck():
            held.hand.give(work, args)
            return
    work(*args)


def _of(pid: int) -> _Held:
    """Return what is known of a process. The lock must be held."""
    identity = procfs.identity(pid)
    held = _held.get(pid)
    if held is None or (identity is not None and held.identity != identity and not held.is_stuck()):
        for gone in [p for p, h in _held.items() if not h.is_stuck() and procfs.identity(p) != h.identity]:
            del _held[gone]
        held = _held[pid] = _Held(identity)
    return held


def _refuse(pid: int) -> None:
    """Raise where a process is to be left alone."""
    if pid not in _held:
        return
    with _lock:
        held = _of(pid)
        if held.is_stuck() or time.monotonic() < held.until:
            raise _error(pid, held)
        held.hand = held.answer = None


def _slow(pid: int, waited: float) -> None:
    """Record that a process was waited for, though not too long."""
    with _lock:
        held, now = _of(pid), time.monotonic()
        if now - held.slow_since > SLOW_FOR_S:
            held.slow_since, held.slow_s = now, 0.0
        held.slow_s += waited
        if held.slow_s > SLOW_MOST_S:
            held.slow_s = 0.0
            held.let_be(now)


def _error(pid: int, held: _Held) -> HeldUpError:
    rest = max(0.0, held.until - time.monotonic())
    return HeldUpError(
        f"process {pid}: holds up whoever reads its memory, which is locked or does not answer: "
        f"left alone{f' for {rest:.0f} s' if rest else ''}"
    )

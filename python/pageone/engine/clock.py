"""CPU time of the engine's threads, with that of whoever worked for them.

For: the engine, whose budget counts it, and backends, which have some of it done by other threads.
"""

from __future__ import annotations

import threading
import time

__all__ = ["count", "cpu_s"]


class _Others(threading.local):
    seconds = 0.0


_others = _Others()


def cpu_s() -> float:
    """CPU-seconds of the calling thread, and those that :func:`count` was told of in it."""
    return time.thread_time() + _others.seconds


def count(seconds: float) -> None:
    """Count CPU-seconds that another thread has spent for the calling one."""
    _others.seconds += seconds

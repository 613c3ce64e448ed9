"""What is measured: proportional set size and memory available.

For: ``pageone.demo.show`` and reports at the command line. It reads /proc and nothing else.
"""

from __future__ import annotations

import mmap
import re
import time
from collections.abc import Iterable
from pathlib import Path

import psutil

from pageone import procfs

__all__ = ["available_bytes", "pss_bytes", "resting_bytes", "settled_available_bytes", "stolen_s"]


#: Free pages on the lists of the CPUs that are not worth waiting for.
_RESTING = 16 << 20
#: Lists that have not grown shorter for so long are as short as they get.
_STEADY_S = 3.0


def pss_bytes(pids: Iterable[int]) -> int:
    """Return the sum of the proportional set sizes of processes, in bytes. Cost: one walk of their page tables."""
    return sum(procfs.memory_bytes(pid, "Pss") or 0 for pid in pids)


def available_bytes() -> int:
    """Return ``MemAvailable`` of /proc/meminfo, in bytes."""
    return int(psutil.virtual_memory().available)


def stolen_s() -> float:
    """Return the seconds for which the hypervisor had other work for our processors, since boot; 0 on bare metal.

    The kernel counts most of them as CPU time of whatever ran: a figure from a run with many is worth little.
    """
    return float(getattr(psutil.cpu_times(), "steal", 0.0))


def resting_bytes() -> int:
    """Return the bytes that are free but counted nowhere: on the kernel's lists of free pages for each CPU.

    A burst of freed pages stays there (hundreds of MiB on Linux 6.7 and newer, whose lists grow by themselves) and
    moves on to the free memory that is counted by an eighth a second. Source: ``/proc/zoneinfo``.
    """
    counts = re.findall(r"^ +count: +(\d+)$", Path("/proc/zoneinfo").read_text(), re.MULTILINE)
    return sum(map(int, counts)) * mmap.PAGESIZE


def settled_available_bytes(readings: int = 5, apart_s: float = 0.1, within_s: float = 40.0) -> int:
    """Return the median of several readings of ``MemAvailable``, once the kernel counts what has been freed.

    Root asks the kernel to bring its statistics up to date (``/proc/sys/vm/stat_refresh``), which takes a moment; other
    users wait for it, up to ``within_s`` seconds, as long as the lists grow shorter.
    """
    deadline = time.monotonic() + within_s
    least, since = resting_bytes(), time.monotonic()
    while least > _RESTING and time.monotonic() < min(deadline, since + _STEADY_S):
        try:
            Path("/proc/sys/vm/stat_refresh").write_text("1")
            time.sleep(0.02)
        except OSError:
            time.sleep(0.5)
        if (now := resting_bytes()) < least:
            least, since = now, time.monotonic()
    seen = []
    for _ in range(readings):
        seen.append(available_bytes())
        time.sleep(apart_s)
    return sorted(seen)[readings // 2]

"""What the kernel says of memory: proportional set size of processes and memory available.

For: ``pageone.demo.show``. It reads /proc and nothing else.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path

import psutil

__all__ = ["available_bytes", "pss_bytes", "settled_available_bytes"]


def pss_bytes(pids: Iterable[int]) -> int:
    """Return the sum of the proportional set sizes of processes, in bytes. Cost: one walk of their page tables."""
    total = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1]) * 1024
    return total


def available_bytes() -> int:
    """Return ``MemAvailable`` of /proc/meminfo, in bytes."""
    return int(psutil.virtual_memory().available)


def settled_available_bytes(looks: int = 5, apart_s: float = 0.1) -> int:
    """Return the median of several looks at ``MemAvailable``: other processes come and go meanwhile."""
    seen = []
    for _ in range(looks):
        seen.append(available_bytes())
        time.sleep(apart_s)
    return sorted(seen)[looks // 2]

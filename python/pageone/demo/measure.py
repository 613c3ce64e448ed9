"""What is measured: proportional set size, memory available, pauses.

For: ``pageone.demo.show`` and reports at the command line. It reads /proc and nothing else.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import psutil

__all__ = ["available_bytes", "pause_ms", "pss_bytes", "settled_available_bytes"]


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


def pause_ms(pauses_s: npt.NDArray[np.float64]) -> dict[str, float]:
    """Return p50, p99 and max of pauses given in seconds (any number of them), in milliseconds; 0 for none."""
    if not len(pauses_s):
        return {"p50": 0.0, "p99": 0.0, "max": 0.0}
    p50, p99 = np.percentile(pauses_s, [50, 99]) * 1000
    return {"p50": float(p50), "p99": float(p99), "max": float(pauses_s.max() * 1000)}

"""The demonstration itself: start workers, merge, measure, and let every worker check every byte.

For: ``pageone demo``. It calls the engine through its public interface, as a program of anybody's would.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pageone import procfs
from pageone.demo.measure import pss_bytes, settled_available_bytes, stolen_s
from pageone.demo.workers import Worker, WorkerSpec, start_workers
from pageone.engine import Engine, MergeReport, as_dict
from pageone.errors import PageOneError

__all__ = ["DemoResult", "run_demo"]

#: Pages that each worker writes after the merge, each its own, to show copy-on-write.
WRITTEN_PAGES = 1000

#: Interpreters have equal pages of their own, scattered one by one; the demonstration leaves those alone.
MIN_RUN = 16

_PAGE = 4096
_GIB = 1 << 30


@dataclass(frozen=True)
class DemoResult:
    """What the demonstration measured. Bytes and seconds; ``pss`` is the sum over the workers."""

    workers: int
    report: MergeReport
    pss_before: int
    pss_after: int
    available_before: int
    available_after: int
    stolen_s: float  #: that the hypervisor took while merging, on all processors

    @property
    def cpu_s_per_gib(self) -> float:
        """CPU-seconds of the engine for each GiB of pages that it looked at."""
        return self.report.engine_cpu_s / max(self.report.pages * _PAGE / _GIB, 1e-9)

    def as_dict(self) -> dict[str, Any]:
        """Return what ``pageone demo --json`` prints: the merge's report, and more; only if all checks passed."""
        return {
            **as_dict(self.report),
            "memavailable_gain_bytes": self.available_after - self.available_before,
            "verified": True,
            "engine_cpu_s_per_gib": self.cpu_s_per_gib,
            "pss_before_bytes": self.pss_before,
            "pss_after_bytes": self.pss_after,
            "stolen_s": self.stolen_s,
            "machine": machine(),
        }


def machine() -> dict[str, Any]:
    """Return what a figure must be read with: processor, number of them, kernel."""
    model = procfs.cpuinfo("model name") or platform.machine()
    return {"cpu": model, "cpus": os.cpu_count(), "kernel": platform.release()}


def run_demo(
    spec: WorkerSpec,
    count: int,
    *,
    step: Callable[[str], None] = lambda name: None,
    progress: Callable[[str, int, int], None] | None = None,
) -> DemoResult:
    """Start ``count`` workers, merge their memory, and have each check every byte, before and after writing.

    ``step`` is told what is being done; ``progress`` is handed to the engine. Raises ``Mismatch`` at the first wrong
    byte that a worker finds, ``TargetError`` or ``UnsupportedError`` where merging cannot be done. The workers end
    with this function, whatever happens.
    """
    step(f"starting {count} workers: each builds its memory alone")
    with start_workers(spec, count) as workers:
        pids = [worker.pid for worker in workers]
        built = _check_all(workers)
        pss_before, available_before = pss_bytes(pids), settled_available_bytes()
        step("merging")
        with Engine(min_run=MIN_RUN) as engine:
            for worker in workers:
                engine.attach(worker.pid)
            stolen = stolen_s()
            report = engine.merge_once(progress=progress)
            stolen = stolen_s() - stolen
            step("waiting until the kernel counts what is free")
            pss_after, available_after = pss_bytes(pids), settled_available_bytes()
            step("every worker checks every byte")
            if _check_all(workers) != built:
                raise PageOneError("a checksum changed by merging although every byte compared equal")
            step(f"each worker writes into {WRITTEN_PAGES:,} random pages, then all check again")
            for worker in workers:
                worker.write(WRITTEN_PAGES, seed=worker.number + 1)
            written = _check_all(workers)
            if any(after["common"] == before["common"] for after, before in zip(written, built, strict=True)):
                raise PageOneError("a worker does not see its own writes")
            if len({crc["common"] for crc in written}) != len(workers):
                raise PageOneError("a worker sees the writes of another")
    return DemoResult(len(workers), report, pss_before, pss_after, available_before, available_after, stolen)


def _check_all(workers: list[Worker]) -> list[dict[str, str]]:
    """Have all workers check at once; return the CRCs of each."""
    for worker in workers:
        worker.ask("check")
    return [worker.checked() for worker in workers]

"""The baselines: the kernel's KSM, the model of it, and PageONE itself; each brought to its end state and kept there.

For: :mod:`pageone.bench.ksm.run`. All have the same interface, :class:`Baseline`; nothing here compares them. CPU time
is that of the process's own clock, read from outside: of ``ksmd``, or of the engine, its guardian and what the targets
spent meanwhile (their victim threads apart).
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import psutil

from pageone import ksm
from pageone.bench.ksm import _engine_host
from pageone.bench.ksm.model import Model
from pageone.bench.processes import Image, Workers, cpu_s
from pageone.errors import PageOneError
from pageone.policy import MAPPING_BYTES

U8 = npt.NDArray[np.uint8]
U32 = npt.NDArray[np.uint32]
I64 = npt.NDArray[np.int64]

PAGE_SIZE = 4096

NAMES = ("ksm-kernel", "ksm-model-jhash2", "ksm-model-crc32c", "ksm-model-xxh64", "pageone")

#: Seconds between two readings of the kernel's counters.
POLL_S = 0.002
#: Scans without a change after which KSM is taken to have found what it finds, and scans at most.
SETTLED_SCANS, SCANS_MAX = 1, 40
#: A baseline that is not done by then is stuck.
TIMEOUT_S = 600.0
#: Steps of the engine without a change after which it is taken to be done, and steps at most.
SETTLED_STEPS, STEPS_MAX = 2, 40
#: A step that looked at fewer pages than this share of all has found nothing more.
REST_SHARE = 0.001


@dataclass
class Settled:
    """What it took to get to the end state: the last moment at which anything was found."""

    cpu_s: float
    wall_s: float  #: at work, waiting not counted
    observe_s: float  #: waiting by design before pages are taken to be at rest
    metadata_bytes: int
    found_pages: int  #: by its own account
    extra: dict[str, Any] = field(default_factory=dict)


class Baseline(Protocol):
    """One way to find and share equal pages."""

    name: str
    threads: int

    def settle(self) -> Settled:
        """Start, and go on until nothing more is found."""

    def stay(self, period_s: float, periods: int, changed: list[U32] | None) -> float:
        """Keep the state; return the CPU-seconds for each period of ``period_s`` seconds.

        ``changed``: the pages that have just been written before each period, or None for none.
        """

    def pause(self) -> None:
        """Do nothing until the next call."""

    def unmerge(self) -> tuple[float, float]:
        """Give every page memory of its own again; return seconds and CPU-seconds."""

    def close(self) -> None:
        """Stop."""


def write_pages(workers: Workers, pages: U32, seed: int) -> None:
    """Write one random byte in the middle of pages (numbers of the image)."""
    values = np.random.default_rng(seed).integers(0, 256, len(pages), dtype=np.uint8)
    for worker in workers:
        mine = (pages >= worker.first) & (pages < worker.first + worker.count)
        worker.ask(
            "write",
            pages=(pages[mine] - worker.first).tolist(),
            bytes=values[mine].tobytes().hex(),
            at=2048,
        )


class KernelKsm:
    """The kernel's KSM at full speed, every other knob at its default. Inside ``ksm.driven`` only."""

    name = "ksm-kernel"
    threads = 1

    def __init__(self, workers: Workers, pages: int) -> None:
        self.workers, self.pages = workers, pages
        pid = ksm.ksmd_pid()
        assert pid is not None
        self.pid = pid
        self.metadata = ksm.metadata_bytes() or 0

    def _found(self) -> tuple[int, int]:
        """Return full scans and pages found."""
        counters = ksm.read_counters()
        return counters.full_scans or 0, (counters.pages_sharing or 0) + (counters.ksm_zero_pages or 0)

    def settle(self) -> Settled:
        """See :class:`Baseline`. The end state: two full scans done, and nothing found in the last scans."""
        start_scans, _ = self._found()
        cpu, start = cpu_s(self.pid), time.monotonic()
        ksm.set_knob("run", 1)
        best, changed_scan, reached = -1, start_scans, None
        while True:
            scans, found = self._found()
            now = cpu_s(self.pid) - cpu, time.monotonic() - start
            if found > best:
                best, changed_scan, reached = found, scans, None
            if reached is None and scans >= start_scans + 2:
                reached = now
            # A scan that begins after the last change, and ends, has found nothing.
            if reached and scans > max(changed_scan, start_scans + 1) + SETTLED_SCANS:
                break
            if scans - start_scans > SCANS_MAX:
                break
            if now[1] > TIMEOUT_S:
                raise PageOneError("ksmd did not get on for minutes: is something else driving it?")
            time.sleep(POLL_S)
        counters = dataclasses.asdict(ksm.read_counters())
        return Settled(
            cpu_s=(reached or now)[0],
            wall_s=(reached or now)[1],
            observe_s=0.0,
            metadata_bytes=max(0, (ksm.metadata_bytes() or 0) - self.metadata),
            found_pages=best,
            extra={"scans": max(2, changed_scan + 1 - start_scans), "counters": counters},
        )

    def _scan(self) -> float:
        """Wait for the end of one more scan; return its CPU-seconds from now."""
        scans, cpu = self._found()[0], cpu_s(self.pid)
        end = time.monotonic() + TIMEOUT_S
        while self._found()[0] == scans and time.monotonic() < end:
            time.sleep(POLL_S)
        return cpu_s(self.pid) - cpu

    def stay(self, period_s: float, periods: int, changed: list[U32] | None) -> float:
        """See :class:`Baseline`: one full scan a period, so that a new duplicate is found as soon."""
        ksm.set_knob("run", 1)
        self._scan()
        total = 0.0
        for i in range(periods):
            if changed is not None:
                ksm.set_knob("run", 0)
                write_pages(self.workers, changed[i], i)
                ksm.set_knob("run", 1)
            total += self._scan()
        return total / periods

    def pause(self) -> None:
        """See :class:`Baseline`: at full speed ksmd would merge a page again before it is looked at."""
        ksm.set_knob("run", 0)

    def unmerge(self) -> tuple[float, float]:
        """See :class:`Baseline`: the writer of 2 to ``run`` does the work."""
        ksm.set_knob("run", 0)
        cpu, start = time.process_time(), time.monotonic()
        ksm.set_knob("run", 2)
        return time.monotonic() - start, time.process_time() - cpu

    def close(self) -> None:
        """See :class:`Baseline`."""
        ksm.set_knob("run", 2)


class KsmModel:
    """KSM's algorithm in this process, on the pages themselves; no page tables, no processes."""

    def __init__(self, checksum: str, threads: int, image: Image) -> None:
        self.name, self.threads = f"ksm-model-{checksum}", threads
        self.model = Model(image.count, checksum=checksum)
        self.bytes: U8 = image.pages()

    def settle(self) -> Settled:
        """See :class:`Baseline`."""
        cpu = wall = 0.0
        best, reached, scans = -1, (0.0, 0.0), 0
        for scan in range(1, SCANS_MAX):
            cost = self.model.scan(self.bytes, self.threads)
            cpu, wall = cpu + cost.cpu_s, wall + cost.wall_s
            found = self.model.counts().pages_sharing
            if found > best or scan == 2:
                best, reached, scans = found, (cpu, wall), scan
            if scan - max(scans, 2) >= SETTLED_SCANS:
                break
        return Settled(*reached, 0.0, self.model.metadata_bytes(), best, {"scans": scans})

    def stay(self, period_s: float, periods: int, changed: list[U32] | None) -> float:
        """See :class:`Baseline`: one full scan a period."""
        if changed is not None:
            self.bytes = np.array(self.bytes)
        total = 0.0
        for i in range(periods):
            if changed is not None:
                self.bytes[changed[i], 2048] += np.uint8(1)
                self.model.written(changed[i])
            total += self.model.scan(self.bytes, self.threads).cpu_s
        return total / periods

    def pause(self) -> None:
        """See :class:`Baseline`; it is never at work by itself."""

    def unmerge(self) -> tuple[float, float]:
        """See :class:`Baseline`; there is nothing to unmerge."""
        return float("nan"), float("nan")

    def close(self) -> None:
        """See :class:`Baseline`."""


class PageOne:
    """The engine with the real backend, in a process of its own."""

    name = "pageone"

    def __init__(self, workers: Workers, threads: int, period_s: float) -> None:
        self.workers, self.threads, self.period_s = workers, threads, period_s
        self.pages = sum(worker.count for worker in workers)
        self.process = subprocess.Popen(
            [sys.executable, _engine_host.__file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.known: dict[int, float] = {}
        self._ask({"period": period_s, "workers": threads})

    def _ask(self, message: dict[str, Any]) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps(message) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise PageOneError(f"the engine's process ended (code {self.process.wait()}): see its message above")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _cpu_s(self) -> float:
        """CPU-seconds of the engine, of every process that it started, and of the targets."""
        with contextlib.suppress(psutil.Error):
            for child in psutil.Process(self.process.pid).children(recursive=True):
                self.known.setdefault(child.pid, 0.0)
        self.known.setdefault(self.process.pid, 0.0)
        for pid in self.known:
            self.known[pid] = max(self.known[pid], cpu_s(pid))
        return sum(self.known.values()) + sum(worker.cpu_s() for worker in self.workers)

    def settle(self) -> Settled:
        """See :class:`Baseline`. Steps follow each other at once: what a real engine waits is ``observe_s``."""
        cpu = self._cpu_s()
        wall = self._ask({"do": "attach", "pids": [worker.pid for worker in self.workers]})["wall_s"]
        steps, found, last, reached = 0, 0, 0, (0.0, 0.0)
        pauses: list[float] = []
        refused: dict[str, int] = {}
        while steps - max(last, 3) < SETTLED_STEPS and steps < STEPS_MAX:
            report = self._ask({"do": "step"})
            steps, wall = steps + 1, wall + report["wall_s"]
            # A few pages that are written all the time come to rest now and then; that is no progress.
            if report["changed"] + report["pages"] > REST_SHARE * self.pages or not last:
                last, reached = steps, (self._cpu_s() - cpu, wall)
            found += report["changed"]
            pauses += report["pauses_s"]
            for code, pages in report["refused"].items():
                refused[code] = refused.get(code, 0) + pages
        stats = self._ask({"do": "stats"})
        stops = np.array(pauses or [0.0]) * 1e6
        return Settled(
            cpu_s=reached[0],
            wall_s=reached[1],
            observe_s=(last - 1) * self.period_s,
            metadata_bytes=stats["metadata_bytes"] + stats["mappings_added"] * MAPPING_BYTES,
            found_pages=found,
            extra={
                "steps": last,
                "refused": {code: pages for code, pages in refused.items() if pages},
                "mappings_added": stats["mappings_added"],
                "stops": len(pauses),
                "stop_p50_us": float(np.percentile(stops, 50)),
                "stop_p99_us": float(np.percentile(stops, 99)),
                "stop_max_us": float(stops.max()),
                "engine_bytes": self._engine_bytes(),
            },
        )

    def _engine_bytes(self) -> int:
        """Memory of the engine's processes themselves, interpreter and libraries included (USS)."""
        total = 0
        for pid in self.known:
            with contextlib.suppress(psutil.Error):
                total += psutil.Process(pid).memory_full_info().uss
        return total

    def stay(self, period_s: float, periods: int, changed: list[U32] | None) -> float:
        """See :class:`Baseline`: one step of the engine a period."""
        total = 0.0
        for i in range(periods):
            if changed is not None:
                write_pages(self.workers, changed[i], i)
            cpu = self._cpu_s()
            self._ask({"do": "step"})
            total += self._cpu_s() - cpu
        return total / periods

    def pause(self) -> None:
        """See :class:`Baseline`; the engine steps only when told."""

    def unmerge(self) -> tuple[float, float]:
        """See :class:`Baseline`: detaching every target."""
        cpu = self._cpu_s()
        wall = self._ask({"do": "detach"})["wall_s"]
        return wall, self._cpu_s() - cpu

    def close(self) -> None:
        """See :class:`Baseline`."""
        if self.process.stdin is not None:
            self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()


def missing(name: str) -> str | None:
    """Return why a baseline cannot run here; None if it can."""
    if name == "ksm-kernel":
        if not ksm.supported():
            return "this kernel has no KSM"
        if not os.access(ksm.KSM_DIR / "run", os.W_OK):
            return "only root may drive the kernel's KSM"
        if ksm.ksmd_pid() is None:
            return "ksmd is not visible here, so its CPU time is not either"
        if ksm.read_counters().pages_shared:
            return "KSM is in use on this machine: pages of other processes are merged"
    return None

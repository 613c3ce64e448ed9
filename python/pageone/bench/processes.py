"""Processes that hold the pages of a data set: started, told what to do, ended.

For: :mod:`pageone.bench.ksm` and tests. Every process copies its share of the set into private anonymous memory of its
own. It calls ``/proc`` to see which frames those pages use.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from pageone import procfs
from pageone.bench import _worker
from pageone.errors import PageOneError, TargetError

U64 = npt.NDArray[np.uint64]

PAGE_SIZE = 4096

#: Bytes of the area that a victim writes to all the time.
SCRATCH_BYTES = 1 << 20

_PRESENT = np.uint64(1 << 63)
_PFN = np.uint64((1 << 55) - 1)


def cpu_s(pid: int) -> float:
    """Return the CPU-seconds of a process so far, all threads, ended ones too; 0 if it has gone."""
    # The clock of another process, as clock_getcpuclockid(3) numbers it.
    with contextlib.suppress(OSError):
        return time.clock_gettime((~pid << 3) | 2)
    return 0.0


class Image:
    """The pages of a set, once, in a memory file that every process copies its share from."""

    def __init__(self, pages: npt.NDArray[np.uint8]) -> None:
        self.fd = os.memfd_create("pageone-bench")
        self.count = len(pages)
        os.ftruncate(self.fd, pages.nbytes)
        view = np.ascontiguousarray(pages).data.cast("B")
        done = 0
        while done < len(view):
            done += os.pwrite(self.fd, view[done:], done)

    def pages(self) -> npt.NDArray[np.uint8]:
        """Return the pages, uint8, shape (n, 4096): a read-only view of the file."""
        return np.memmap(f"/proc/self/fd/{self.fd}", np.uint8, "r", shape=(self.count, PAGE_SIZE))

    def close(self) -> None:
        """Give the memory back."""
        os.close(self.fd)


class Worker:
    """One process with pages ``first`` to ``first + count`` of an image."""

    def __init__(self, image: Image, first: int, count: int, merge: bool) -> None:
        self.first, self.count = first, count
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-S", _worker.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            pass_fds=(image.fd,),
        )
        self.pid = self.process.pid
        self._send(
            {"fd": image.fd, "offset": first * PAGE_SIZE, "bytes": count * PAGE_SIZE, "merge": merge,
             "scratch": SCRATCH_BYTES}
        )  # fmt: skip
        self.address = 0
        self.victim = 0

    def ready(self) -> None:
        """Wait until the pages are in place."""
        self.address = self._receive()["address"]

    def _send(self, message: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(message) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise self._lost() from None

    def _receive(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise self._lost()
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _lost(self) -> PageOneError:
        code = self.process.wait()
        return TargetError(f"benchmark process {self.pid} ended by itself (code {code}): see its message above")

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Give one order and wait for its answer; the orders are in :mod:`pageone.bench._worker`."""
        self._send({"do": do, **arguments})
        return self._receive()

    def frames(self) -> U64:
        """Return the physical frame number of each page, uint64, shape (count,); 0 where not present or not root."""
        fd = os.open(f"/proc/{self.pid}/pagemap", os.O_RDONLY)
        try:
            entries = np.frombuffer(os.pread(fd, self.count * 8, self.address // PAGE_SIZE * 8), np.uint64)
        finally:
            os.close(fd)
        return np.where(entries & _PRESENT, entries & _PFN, np.uint64(0)).astype(np.uint64)

    def start_victim(self) -> None:
        """Start a thread there that reads all over the pages and writes to an area of its own, at random."""
        self.victim = int(self.ask("victim")["tid"])

    def victim_figures(self) -> dict[str, float]:
        """End the victim; return its requests and their ``p50_us``, ``p99_us``, ``p999_us`` and ``max_us``."""
        self.victim = 0
        return self.ask("victim_figures")

    def cpu_s(self) -> float:
        """Return the CPU-seconds of the process without those of its victim."""
        total = cpu_s(self.pid)
        if self.victim:
            with contextlib.suppress(OSError):
                total -= procfs.cpu_s(self.victim)
        return total

    def close(self) -> None:
        """End the process and wait for it."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()


class Workers(Sequence[Worker]):
    """Several processes, each with a share of an image; a context manager that ends them all.

    ``bounds``: the first page of each process and the end of the last; equal shares by default. ``merge`` asks the
    kernel's KSM for the pages.
    """

    def __init__(
        self, image: Image, processes: int, *, merge: bool = False, bounds: Sequence[int] | None = None
    ) -> None:
        if bounds is None:
            bounds = np.linspace(0, image.count, processes + 1).astype(int).tolist()
        self._workers: list[Worker] = []
        try:
            for first, end in itertools.pairwise(bounds):
                self._workers.append(Worker(image, int(first), int(end - first), merge))
            for worker in self._workers:
                worker.ready()
        except BaseException:
            self.close()
            raise

    def __getitem__(self, index: Any) -> Any:
        return self._workers[index]

    def __len__(self) -> int:
        return len(self._workers)

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End every process."""
        for worker in self._workers:
            worker.close()

    def ask(self, do: str, **arguments: Any) -> list[dict[str, Any]]:
        """Give every process the same order at once; returns their answers, in order."""
        for worker in self._workers:
            worker._send({"do": do, **arguments})
        return [worker._receive() for worker in self._workers]

    def frames(self) -> U64:
        """Return the frame of every page of the image after touching each, uint64, shape (pages,); root only."""
        self.ask("touch")
        return np.concatenate([worker.frames() for worker in self._workers])

"""Starting victims, talking with them and reading their CPU time. For the engine's benchmarks."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from pageone import procfs
from pageone.errors import PageOneError, UsageError

GIB_PAGES = 1 << 18

__all__ = ["GIB_PAGES", "VictimProcess", "machine", "parse_size", "victims"]


class VictimProcess:
    """One victim."""

    def __init__(self, spec: dict[str, Any]) -> None:
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "PYTHONMALLOC": "malloc"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "pageone.bench._victim", json.dumps(spec)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self.pid = self._process.pid
        self.pages = int(spec["pages"])

    def tell(self, do: str, **arguments: Any) -> None:
        """Send an order without waiting for the answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
        self._process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        """Wait for an answer."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise PageOneError(f"the process under test (PID {self.pid}) has ended: {self._process.wait()}")
        result: dict[str, Any] = json.loads(line)
        return result

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Send an order and wait for the answer."""
        self.tell(do, **arguments)
        return self.answer()

    def cpu_s(self) -> float:
        """CPU-seconds of the process until now."""
        return sum(procfs.cpu_s(thread) for thread in procfs.threads(self.pid))

    def close(self) -> None:
        """End it."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.kill()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()


@contextmanager
def victims(kind: str, pages: int, count: int = 1, **spec: Any) -> Iterator[list[VictimProcess]]:
    """Start ``count`` victims of ``pages`` pages each and wait until they are ready; end them at the end."""
    started: list[VictimProcess] = []
    try:
        for number in range(count):
            started.append(VictimProcess({"kind": kind, "pages": pages, "number": number, **spec}))
        for victim in started:
            victim.answer()
        yield started
    finally:
        for victim in started:
            victim.close()


def machine() -> dict[str, Any]:
    """Describe the machine."""
    return {
        "cpu": procfs.cpuinfo("model name"),
        "cpus": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "kernel": platform.release(),
        "thp": Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text().strip(),
    }


def parse_size(text: str) -> int:
    """Return bytes from ``1GiB``, ``512MiB`` or a plain number of bytes. Raises ``UsageError``."""
    units = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
    match = re.fullmatch(r"\s*([0-9.]+)\s*([kmg]?)(i?b)?\s*", text.lower())
    try:
        size = int(float(match[1]) * units[match[2]]) if match else 0
    except ValueError:
        size = 0
    if size < 16 << 20:
        raise UsageError(f"size {text!r}: give at least 16MiB, such as 1GiB or 512MiB")
    return size

"""Start workers, talk with them over pipes, end them.

For: ``pageone.demo.show`` and tests. Each worker is a program of its own, started afresh: nothing is shared by fork
or by file, so that equal pages are equal only because each worker built them.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any

from pageone.errors import PageOneError, TargetError

__all__ = ["Mismatch", "Worker", "WorkerSpec", "start_workers"]

MIB = 1 << 20

#: Seconds within which a worker must answer: building or checking 1 GiB takes some three.
ANSWER_WITHIN_S = 300.0

_COMMON_SEED = 20170920  # the day PageONE was first shown
_OWN_SEED = 1_000_003


class Mismatch(PageOneError):
    """A worker found a byte of its memory that is not what it wrote; ``pages`` are the first of them."""

    def __init__(self, pid: int, pages: Sequence[dict[str, Any]]) -> None:
        self.pid = pid
        self.pages = list(pages)
        first = self.pages[0]
        super().__init__(
            f"worker {pid}: wrong byte in page {first['page']} of {first['part']} (address {first['address']:#x}, "
            f"offset {first['offset']}): found {first['found']}, expected {first['expected']}; "
            f"{len(self.pages)} pages told"
        )


@dataclass(frozen=True)
class WorkerSpec:
    """What a worker builds; sizes in bytes, multiples of the page size."""

    common: int
    own: int = 0
    zeros: int = 0
    common_seed: int = _COMMON_SEED

    def line(self, number: int) -> str:
        """Return the spec of worker ``number`` as the program reads it."""
        sizes = {"common": self.common, "own": self.own, "zeros": self.zeros}
        return json.dumps(
            {"sizes": sizes, "seeds": {"common": self.common_seed, "own": _OWN_SEED + number, "zeros": None}}
        )


class Worker:
    """A running worker. ``ask`` and ``answer`` may be called apart, to let several work at once."""

    def __init__(
        self,
        spec: WorkerSpec,
        number: int = 0,
        *,
        python: str = sys.executable,
        popen: dict[str, Any] | None = None,
    ) -> None:
        """Start the program; it builds its memory at once and ``wait_ready`` returns when it has.

        ``python`` and ``popen`` (options of ``subprocess.Popen``) let a test start it as another user.
        """
        self.number = number
        options: dict[str, Any] = {"env": _environment()} | (popen or {})
        self.process: subprocess.Popen[bytes] = subprocess.Popen(
            [python, "-m", "pageone.demo.program", spec.line(number)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # a Ctrl-C at the terminal is the parent's to handle
            **options,
        )
        self.pid = self.process.pid
        self._rest = b""

    def wait_ready(self) -> int:
        """Wait until the memory is built; return its pages."""
        return int(self.answer()["pages"])

    def ask(self, do: str, **arguments: object) -> None:
        """Send a question, with what JSON can say, and do not wait."""
        try:
            stdin = _pipe(self.process.stdin)
            stdin.write(json.dumps({"do": do} | arguments).encode() + b"\n")
            stdin.flush()
        except BrokenPipeError:
            raise self._lost() from None

    def answer(self, within_s: float = ANSWER_WITHIN_S) -> dict[str, Any]:
        """Wait for the next answer. Raises ``TargetError`` when the worker ends or does not answer in time."""
        deadline = time.monotonic() + within_s
        fd = _pipe(self.process.stdout).fileno()
        while b"\n" not in self._rest:
            ready, _, _ = select.select([fd], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise TargetError(f"worker {self.pid} did not answer within {within_s:g} s")
            data = os.read(fd, 1 << 16)
            if not data:
                raise self._lost()
            self._rest += data
        line, self._rest = self._rest.split(b"\n", 1)
        value: dict[str, Any] = json.loads(line)
        return value

    def check(self) -> dict[str, str]:
        """Have all bytes checked; return the CRC of each part. Raises :class:`Mismatch`."""
        self.ask("check")
        return self.checked()

    def checked(self) -> dict[str, str]:
        """Wait for the answer to a ``check`` that was asked for; as :meth:`check`."""
        told = self.answer()
        if told["wrong"]:
            raise Mismatch(self.pid, told["wrong"])
        crc: dict[str, str] = told["crc32"]
        return crc

    def write(self, pages: int, seed: int, part: str = "common") -> None:
        """Have one word written into each of ``pages`` random pages of a part."""
        self.ask("write", part=part, pages=pages, seed=seed)
        self.answer()

    def close(self) -> None:
        """End the worker: at once, and whatever it is doing."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(OSError):
                _pipe(pipe).close()

    def _lost(self) -> TargetError:
        code = self.process.wait()
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        return TargetError(f"worker {self.pid} ended while it was needed ({how})")


@contextlib.contextmanager
def start_workers(
    spec: WorkerSpec, count: int, *, python: str = sys.executable, popen: dict[str, Any] | None = None
) -> Iterator[list[Worker]]:
    """Start ``count`` workers at once, wait until all have built their memory, and end them on leaving."""
    workers: list[Worker] = []
    try:
        for number in range(count):
            workers.append(Worker(spec, number, python=python, popen=popen))
        for worker in workers:
            worker.wait_ready()
        yield workers
    finally:
        for worker in workers:
            worker.close()


def _environment() -> dict[str, str]:
    """Numerical libraries of a worker need no threads."""
    return os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None
    return pipe

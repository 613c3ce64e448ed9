"""A program's own memory merged, and that of its workers: an engine in a helper process, and a handle to it.

For: programs that call :func:`pageone.merge_self`. A process cannot stop itself, so the engine runs beside it, as
``python -m pageone.engine.helper``; it ends with the program, or when the handle is closed. One JSON object a line.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterable
from types import TracebackType
from typing import Any

from pageone.errors import PageOneError, TargetError

__all__ = ["SelfMerge", "merge_self"]

#: ``prctl`` option of the Yama security module: lets a process that is not an ancestor trace us (ptrace scope 1).
_PR_SET_PTRACER = 0x59616D61


class SelfMerge:
    """The helper of a program; see :func:`merge_self`. Use it from one thread at a time."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "pageone.engine.helper", json.dumps(options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        #: PID of the helper.
        self.pid = self._process.pid
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PTRACER, ctypes.c_ulong(self.pid), 0, 0, 0)
        self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise PageOneError(f"the helper that merges this program (PID {self.pid}) has ended; its message is above")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise TargetError(answer["error"])
        return answer

    def _ask(self, order: dict[str, Any]) -> dict[str, Any]:
        with self._lock:
            if self._process.stdin is None or self._process.stdin.closed:
                raise PageOneError("merge_self: closed")
            try:
                self._process.stdin.write(json.dumps(order) + "\n")
                self._process.stdin.flush()
            except BrokenPipeError:
                raise PageOneError(f"the helper that merges this program (PID {self.pid}) has ended") from None
            return self._answer()

    def add(self, pid: int) -> None:
        """Merge a worker's memory too. Raises :class:`TargetError` when it cannot be, the worker untouched."""
        self._ask({"do": "attach", "pid": pid})

    def step(self) -> dict[str, Any]:
        """Do one period at once; returns the fields of :class:`~pageone.engine.MergeReport`."""
        return self._ask({"do": "step"})

    def stats(self) -> dict[str, Any]:
        """Return the fields of :class:`~pageone.engine.Stats`, pauses in milliseconds."""
        return self._ask({"do": "stats"})

    def close(self, unmerge: bool = True) -> None:
        """End the helper, by default after giving every page its own memory back; otherwise merged pages stay so."""
        if self._process.stdin is None or self._process.stdin.closed:
            return
        try:
            if unmerge and self._process.poll() is None:
                self._ask({"do": "detach"})
        finally:
            self._process.stdin.close()
            self._process.wait()
            if self._process.stdout is not None:
                self._process.stdout.close()

    def __enter__(self) -> SelfMerge:
        """Return the handle itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()


def merge_self(workers: Iterable[int] = (), *, period: float = 20.0, **options: Any) -> SelfMerge:
    """Have the memory of this program, and of ``workers`` (PIDs), merged from now on by a helper process.

    ``options`` are those of :class:`~pageone.engine.Engine` that can be written as JSON: ``quiet_periods``, ``cpu``,
    ``max_sharing``, ``nice``, ``idle`` … Returns a handle, also a context manager; more workers are given to its
    ``add``. Raises :class:`TargetError` when this process may not be merged (the message says why) and
    :class:`PageOneError` when the helper could not start; nothing is changed then.
    """
    helper = SelfMerge({"period": period, **options})
    try:
        for pid in (os.getpid(), *workers):
            helper.add(pid)
    except BaseException:
        helper.close()
        raise
    return helper


def main() -> None:
    """Serve a program until its end of the pipe closes."""
    from pageone.engine import Engine, as_json

    with Engine(**json.loads(sys.argv[1])) as engine:
        print(json.dumps({"ready": True}), flush=True)
        engine.start()
        for line in sys.stdin:
            order = json.loads(line)
            answer = "{}"
            try:
                if order["do"] == "attach":
                    engine.attach(int(order["pid"]))
                elif order["do"] == "step":
                    answer = as_json(engine.step())
                elif order["do"] == "stats":
                    answer = as_json(engine.stats)
                elif order["do"] == "detach":
                    for target in engine.targets:
                        engine.detach(target)
            except PageOneError as error:
                answer = json.dumps({"error": str(error)})
            print(answer, flush=True)


if __name__ == "__main__":
    try:
        main()
    except PageOneError as problem:
        print(f"pageone: {problem}", file=sys.stderr)
        sys.exit(problem.exit_code)

"""A program's own memory merged, and that of its workers: a private domain of the service, and a handle to it.

For: programs that call :func:`pageone.merge_self`. Standard library only. A process cannot stop itself, so an engine
runs beside it, as with ``pageone run --private``; it ends with the last of the processes given to it, or when the
handle is closed.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from types import TracebackType
from typing import Any

from pageone.errors import PageOneError, TargetError
from pageone.service import client
from pageone.service.client import Connection, EngineRequest
from pageone.service.launch import allow_tracer
from pageone.service.place import Place, private_name, runtime_folder

__all__ = ["SelfMerge", "merge_self"]


class SelfMerge:
    """The engine of a program; see :func:`merge_self`. Any thread may call."""

    def __init__(self, *, period: float, cpu: float | str | None) -> None:
        request = EngineRequest(private_name(), os.geteuid(), period, None if cpu is None else str(cpu))
        self._place = Place(runtime_folder(), request.name)
        self._closed = False

        def status(connection: Connection) -> dict[str, Any]:
            with connection:
                return connection.request("status")

        #: PID of the engine.
        self.pid = int(client.ask(request, status)["pid"])
        allow_tracer(self.pid)

    def _ask(self, do: str, **values: Any) -> dict[str, Any]:
        if self._closed:
            raise PageOneError("merge_self: closed")
        connection = client.connect(self._place)
        if connection is None:
            raise PageOneError(f"the engine that merges this program (PID {self.pid}) has ended; see: pageone status")
        with connection:
            return connection.request(do, **values)

    def add(self, pid: int) -> None:
        """Merge a worker's memory too. Raises :class:`PageOneError` when it cannot be, the worker untouched."""
        reply = self._ask("attach", pids=[pid], strict=True)
        if not reply["attached"]:
            raise TargetError(reply["refused"][str(pid)])

    def step(self) -> dict[str, Any]:
        """Do one period at once; returns the fields of :class:`~pageone.engine.MergeReport`."""
        report: dict[str, Any] = self._ask("step")["report"]
        return report

    def stats(self) -> dict[str, Any]:
        """Return the fields of :class:`~pageone.engine.Stats`, pauses in milliseconds."""
        stats: dict[str, Any] = self._ask("status")["stats"]
        return stats

    def close(self, unmerge: bool = True) -> None:
        """End the engine, by default after giving every page its own memory back; otherwise merged pages stay so.

        Raises :class:`TargetError` when memory could not be given back; the engine goes on then.
        """
        if self._closed:
            return
        connection = client.connect(self._place)
        if connection is not None:
            with connection:
                reply = connection.request("stop", leave=not unmerge)
                if reply["failed"]:
                    raise TargetError("; ".join(f"PID {pid}: {reason}" for pid, reason in reply["failed"].items()))
                connection.wait_for_end()
        self._closed = True

    def __enter__(self) -> SelfMerge:
        """Return the handle itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()


def merge_self(workers: Iterable[int] = (), *, period: float = 20.0, cpu: float | str | None = None) -> SelfMerge:
    """Merge the memory of this program, and of ``workers`` (PIDs), from now on, by an engine of its own.

    ``period``: seconds between two scans; ``cpu``: share of one CPU that the engine may use on average, such as
    ``"20%"`` or ``0.2``, by default 10 %. Returns a handle, also a context manager; more workers are given to its
    ``add``. Raises :class:`PageOneError` when this process may not be merged (the message says why) or the engine could
    not start; nothing is changed then.
    """
    engine = SelfMerge(period=period, cpu=cpu)
    try:
        for pid in (os.getpid(), *workers):
            engine.add(pid)
    except BaseException:
        engine.close()
        raise
    return engine

"""Scanning without waiting for ever for a process that holds up whoever reads it.

For: the scan. What reads targets is done by a thread that is left behind when it gets no further and one of the
processes that it may be reading holds up lookers (:mod:`pageone.live.patience`). The scan then begins again without
that process: what a thread that was left behind still does is seen by nobody.
"""

from __future__ import annotations

import queue
import secrets
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from pageone._native import mem
from pageone.errors import TargetError
from pageone.live import patience
from pageone.scan import sources

__all__ = ["HeldUp", "Once", "held_up", "process"]

T = TypeVar("T")


class HeldUp(Exception):
    """A source is a process that holds up whoever reads it."""

    def __init__(self, source: sources.Source) -> None:
        super().__init__(held_up(source.name))
        self.source = source


def held_up(name: str) -> str:
    """Say that a process is not scanned, and why."""
    return f"{name}: not scanned: it holds up whoever reads its memory, which is locked or does not answer"


def process(pid: int) -> sources.Source:
    """Return the source of a process, as :func:`sources.process`; TargetError also for one that holds it up."""
    try:
        return patience.read(pid, sources.process, pid)
    except patience.HeldUpError:
        raise TargetError(held_up(f"process {pid}")) from None


class Once:
    """One attempt at a scan of sources; :meth:`advance` is to be called whenever something has been done."""

    def __init__(self, found: Sequence[sources.Source], advance: Callable[[int], None]) -> None:
        self._processes = [source for source in found if source.pid is not None and len(source)]
        self._advance = advance
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._steps = 0

    def advance(self, pages: int) -> None:
        """Tell that pages have been done; ends a thread that has been left behind."""
        with self._lock:
            if self._over.is_set():
                raise SystemExit
            self._steps += 1
            self._advance(pages)

    def run(self, work: Callable[[], T]) -> T:
        """Return ``work()``, done by a thread of its own. Raises what it raises, or :class:`HeldUp`."""
        answer: queue.SimpleQueue[Any] = queue.SimpleQueue()
        threading.Thread(target=_do, args=(work, answer), name="pageone-scan", daemon=True).start()
        try:
            steps = -1
            while True:
                try:
                    result, failed = answer.get(timeout=patience.PATIENCE_S)
                except queue.Empty:
                    before, steps = steps, self._steps
                    if steps == before:
                        self._find_who_holds_it_up()
                    continue
                if failed is not None:
                    raise failed
                return result  # type: ignore[no-any-return]
        finally:
            with self._lock:
                self._over.set()

    def _find_who_holds_it_up(self) -> None:
        key = mem.Key(secrets.token_bytes(32))
        for source in self._processes:
            try:
                # To read a page takes the lock of the address space, as all reading of it does.
                patience.read(source.pid or 0, source.keys, source.positions(np.zeros(1, np.int64)), key)
            except patience.HeldUpError:
                raise HeldUp(source) from None
            except OSError:
                continue  # ended meanwhile: nobody waits for it


def _do(work: Callable[[], Any], answer: queue.SimpleQueue[Any]) -> None:
    try:
        answer.put((work(), None))
    except BaseException as error:
        answer.put((None, error))

"""Worker threads of an engine, and what ends them."""

from __future__ import annotations

import threading

import pytest

from pageone.engine.queue import CpuBudget, Workers


def test_an_interrupt_while_workers_are_started_leaves_nothing_that_cannot_be_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    workers = Workers(2, CpuBudget(None))
    start = threading.Thread.start
    started: list[threading.Thread] = []

    def start_one(thread: threading.Thread) -> None:
        if started:
            raise KeyboardInterrupt
        started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_one)
    with pytest.raises(KeyboardInterrupt):
        workers.drain()
    workers.close()
    assert not started[0].is_alive()

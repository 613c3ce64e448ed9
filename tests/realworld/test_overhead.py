"""What being followed costs a program in speed: the same work alone, at default settings, and scanned every 0.2 s.

A measurement, printed as a line of JSON (``pytest -s``) with no verdict on time: machines differ and are noisy. Three
equal sets of programs take turns in the same run; one is followed by nobody, two are merged before anything is timed.
Only the engine of the set whose turn it is runs. At default settings each turn has one scan in it, though there would
be one in 20 seconds only.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pageone.engine import Engine
from pageone.engine.queue import BACKGROUND_CPU

from .conftest import ONE_THREAD, Domain, free_port, tell_job, wait_job, wait_port
from .test_redis import Client

pytestmark = [pytest.mark.realworld, pytest.mark.needs("merge")]

#: Periods in seconds, of the engines that ``pageone run`` starts; None: no engine.
PERIODS = {"alone": None, "default": 20.0, "eager": 0.2}
ROUNDS = 11
KEYS = 12_000
CONTENTS = 3_000
REQUESTS = 120_000
DATA_MIB = 48
JOBS = 20  #: of a worker in one turn


@contextmanager
def followed(pids: list[int], period: float | None, pages: int) -> Iterator[Engine | None]:
    """Merge programs by an engine with the limits of ``pageone run``, which stands still when it is handed out."""
    if period is None:
        yield None
        return
    with Engine(period=0.2, cpu=BACKGROUND_CPU) as engine:
        for pid in pids:
            engine.attach(pid)
        engine.start()
        Domain.until(lambda: engine.stats.sharers >= pages, f"{pages} pages shared", 120)
        engine.stop()
        engine.period = period
        yield engine


def timed(engine: Engine | None, work: Callable[[], None]) -> float:
    """Return the seconds that work takes, followed by an engine or by none."""
    if engine is not None:
        engine.start()
    began = time.monotonic()
    try:
        work()
        return time.monotonic() - began
    finally:
        if engine is not None:
            engine.stop()


def compare(name: str, engines: dict[str, Engine | None], work: dict[str, Callable[[], None]]) -> None:
    """Time every set in turn, and print medians of the ratios within each round."""
    took: dict[str, list[float]] = {kind: [] for kind in work}
    for kind in work:
        work[kind]()  # what is first has caches to fill
    order = list(work)
    for number in range(ROUNDS):
        shift = number % len(order)
        for kind in order[shift:] + order[:shift]:
            took[kind].append(timed(engines[kind], work[kind]))
    loss = {
        kind: sorted(100 * (its / alone - 1) for its, alone in zip(took[kind], took["alone"], strict=True))
        for kind in work
        if kind != "alone"
    }
    figures = {
        kind: {"percent": round(statistics.median(p), 1), "least": round(p[0], 1), "most": round(p[-1], 1)}
        for kind, p in loss.items()
    }
    shared = {kind: engine.stats.sharers for kind, engine in engines.items() if engine}
    alone = round(statistics.median(took["alone"]), 3)
    print(json.dumps({"test": f"overhead of {name}", "alone_s": alone, "longer": figures, "shared_pages": shared}))
    # A program of which nothing is merged any more has shown nothing.
    assert all(shared.values())


def _requests(argv: list[str]) -> None:
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL, timeout=120)


def _compute(workers: list[subprocess.Popen[str]]) -> None:
    for worker in workers:
        for _ in range(JOBS):
            tell_job(worker, "/dev/null")
    for worker in workers:
        for _ in range(JOBS):
            wait_job(worker, "done")


@pytest.mark.needs("program:redis-server", "program:redis-benchmark")
def test_what_a_redis_server_loses(spawn: Any, tmp_path: Path) -> None:
    work: dict[str, Callable[[], None]] = {}
    with ExitStack() as stack:
        engines: dict[str, Engine | None] = {}
        for kind, period in PERIODS.items():
            port = free_port()
            argv = ["redis-server", "--port", str(port), "--save", "", "--dir", str(tmp_path), "--daemonize", "no"]
            server = spawn(argv, stdout=subprocess.DEVNULL)
            wait_port(port, server)
            with Client(port) as client:
                for first in range(0, KEYS, 200):
                    numbers = range(first, min(KEYS, first + 200))
                    client.ask((b"SET", b"kept:%d" % n, (b"%d," % (n % CONTENTS) * 4096)[:4090]) for n in numbers)
            engines[kind] = stack.enter_context(followed([server.pid], period, KEYS // 4))
            bench = ["redis-benchmark", "-p", str(port), "-q", "-c", "20", "-n", str(REQUESTS), "-r", "20000"]
            work[kind] = partial(_requests, [*bench, "-t", "set,get"])
        compare("redis-benchmark set,get", engines, work)


def test_what_a_numerical_job_loses(spawn: Any, tmp_path: Path) -> None:
    work: dict[str, Callable[[], None]] = {}
    job = [sys.executable, str(Path(__file__).with_name("job.py")), "numpy", str(DATA_MIB)]
    with ExitStack() as stack:
        engines: dict[str, Engine | None] = {}
        for kind, period in PERIODS.items():
            workers = [spawn(job, env=dict(os.environ) | ONE_THREAD) for _ in range(2)]
            for worker in workers:
                wait_job(worker, "ready")
            engines[kind] = stack.enter_context(followed([w.pid for w in workers], period, DATA_MIB << 8))
            work[kind] = partial(_compute, workers)
        compare("a numpy job", engines, work)

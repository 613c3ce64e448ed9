"""Merged pages while the kernel pages them out, moves them about and brings them back: workers check every byte."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pageone.bench.swap import in_memory_group, reclaim, zram_missing, zram_swap
from pageone.demo.workers import Worker, WorkerSpec, start_workers
from pageone.engine import Engine

pytestmark = [pytest.mark.needs("root", "merge"), pytest.mark.timeout(180)]

MIB = 1 << 20
SPEC = WorkerSpec(common=24 * MIB, own=4 * MIB, zeros=4 * MIB)


@pytest.fixture
def group() -> Iterator[Path]:
    """A memory group with this process in it, and swap in compressed memory to page it out to."""
    if reason := zram_missing():
        pytest.skip(reason)
    with zram_swap(512 * MIB), in_memory_group([os.getpid()], f"pageone-test-{os.getpid()}") as made:
        yield made


def counter(name: str) -> int:
    lines = Path("/proc/vmstat").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.split()[0] == name))


def check_all(workers: list[Worker]) -> None:
    for worker in workers:
        worker.ask("check")
    for worker in workers:
        worker.checked()  # raises at the first wrong byte


def test_pages_keep_their_bytes_while_they_are_paged_out_and_compacted_and_written(group: Path) -> None:
    with start_workers(SPEC, 3) as workers, Engine(min_run=4) as engine:
        targets = [engine.attach(worker.pid) for worker in workers]
        merged = engine.merge_once().merged_pages
        assert merged > 3 * 6000
        paged = counter("pswpout")
        for worker in workers:
            worker.ask("churn", part="common", seconds=3.0, pages=64, seed=worker.number)
        until = time.monotonic() + 3.0
        while time.monotonic() < until:
            reclaim(group)
            Path("/proc/sys/vm/compact_memory").write_text("1")
            engine.step()
        assert all(worker.answer()["wrong"] == 0 for worker in workers)
        assert counter("pswpout") - paged > 2000, "the frames were not paged out: nothing has been shown"
        check_all(workers)
        # Given back while the frames are in swap.
        reclaim(group)
        for target in targets:
            engine.detach(target)
        check_all(workers)


def test_pages_in_swap_are_left_there_until_the_program_wants_them_back(group: Path) -> None:
    with start_workers(SPEC, 2) as workers, Engine(min_run=4) as engine:
        for worker in workers:
            engine.attach(worker.pid)
        paged, back = counter("pswpout"), counter("pswpin")
        reclaim(group)
        assert counter("pswpout") - paged > 2000, "nothing was paged out: nothing has been shown"
        assert engine.merge_once().merged_pages < 2000
        assert counter("pswpin") - back < 4000, "finding out what is equal has brought back what was paged out"
        check_all(workers)
        assert engine.merge_once().merged_pages > 2 * 6000
        check_all(workers)

"""Workers of the demonstration: they build equal memory alone, and a wrong byte cannot hide from them."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pageone.demo import Mismatch, Worker, WorkerSpec, start_workers
from pageone.demo.program import PAGE, Part
from pageone.errors import TargetError

MIB = 1 << 20
SPEC = WorkerSpec(common=4 * MIB, own=MIB, zeros=MIB)


@pytest.fixture
def pair() -> Iterator[list[Worker]]:
    with start_workers(SPEC, 2) as workers:
        yield workers


def test_workers_build_the_same_common_part_and_each_its_own(pair: list[Worker]) -> None:
    first, second = pair[0].check(), pair[1].check()
    assert first["common"] == second["common"]
    assert first["own"] != second["own"]
    assert first["zeros"] == second["zeros"]


def test_the_common_part_is_incompressible_and_page_aligned() -> None:
    part = Part("common", MIB, 1)
    assert part.words.ctypes.data % PAGE == 0
    assert len(np.unique(part.words)) == part.words.size


def test_writes_of_one_worker_are_seen_by_it_alone(pair: list[Worker]) -> None:
    before = pair[1].check()
    pair[0].write(100, seed=1)
    assert pair[0].check()["common"] != before["common"]
    assert pair[1].check() == before


def test_a_later_write_to_the_same_place_is_the_one_expected() -> None:
    part = Part("zeros", 2 * PAGE, None)
    for seed in range(2000):
        part.write(2, seed)
    assert part.check()[1] == []


@pytest.mark.parametrize("name", ["common", "own", "zeros"])
def test_a_byte_changed_behind_its_back_is_found_and_named(pair: list[Worker], name: str) -> None:
    worker = pair[0]
    worker.ask("where")
    start, end = worker.answer()[name]
    address = start + 37 * PAGE + 1234
    assert address < end
    with open(f"/proc/{worker.pid}/mem", "r+b", buffering=0) as memory:
        memory.seek(address)
        byte = memory.read(1)
        memory.seek(address)
        memory.write(bytes([byte[0] ^ 0x40]))
    with pytest.raises(Mismatch) as caught:
        worker.check()
    assert caught.value.pages[0]["page"] == 37
    assert caught.value.pages[0]["part"] == name
    assert caught.value.pages[0]["offset"] == 1234 // 8 * 8
    pair[1].check()


def test_a_byte_changed_in_a_written_page_is_found_too(pair: list[Worker]) -> None:
    worker = pair[0]
    worker.write(1024, seed=5)  # every page of the part
    worker.ask("where")
    start, _ = worker.answer()["common"]
    with open(f"/proc/{worker.pid}/mem", "r+b", buffering=0) as memory:
        memory.seek(start)
        page = bytearray(memory.read(PAGE))
        page[-1] ^= 1
        memory.seek(start)
        memory.write(page)
    with pytest.raises(Mismatch):
        worker.check()


def test_a_worker_that_dies_is_an_error_that_says_how(pair: list[Worker]) -> None:
    os.kill(pair[0].pid, signal.SIGKILL)
    with pytest.raises(TargetError, match="signal 9"):
        pair[0].check()


def test_a_worker_that_is_stopped_is_an_error_not_a_hang(pair: list[Worker]) -> None:
    os.kill(pair[0].pid, signal.SIGSTOP)
    pair[0].ask("check")
    with pytest.raises(TargetError, match="did not answer"):
        pair[0].answer(within_s=0.2)


def test_no_worker_outlives_the_block_that_started_it() -> None:
    pids: list[int] = []

    def fail_in_the_middle() -> None:
        with start_workers(SPEC, 2) as workers:
            pids.extend(worker.pid for worker in workers)
            raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        fail_in_the_middle()
    assert len(pids) == 2
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_churn_reads_back_what_it_wrote(pair: list[Worker]) -> None:
    pair[0].ask("churn", part="common", seconds=0.3, pages=50, seed=3)
    told = pair[0].answer()
    assert told["rounds"] > 0
    assert told["wrong"] == 0
    pair[0].check()


def test_an_ordinary_user_can_run_a_worker(as_user: Any) -> None:
    with start_workers(SPEC, 1, python=as_user.python, popen=as_user.identity) as (worker,):
        assert os.stat(f"/proc/{worker.pid}").st_uid == as_user.uid
        worker.check()


def test_what_a_worker_builds_shares_nothing_with_another(pair: list[Worker]) -> None:
    for worker in pair:
        worker.ask("where")
        start, end = worker.answer()["common"]
        rollup = 0
        inside = False
        for line in Path(f"/proc/{worker.pid}/smaps").read_text().splitlines():
            head = line.split()[0]
            if "-" in head and not head.endswith(":"):
                low, high = (int(x, 16) for x in head.split("-"))
                inside = low < end and start < high
            elif inside and head in ("Shared_Clean:", "Shared_Dirty:"):
                rollup += int(line.split()[1])
        assert rollup == 0

"""Numerical jobs under ``pageone run``: what they compute is bit by bit what they compute without.

Several workers have the same data, as those of a service do, so that most of it is merged. They compute while the
engine scans every 0.2 s, write to merged data, and again after they have been detached.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from .conftest import Domain, tell_job, wait_job

pytestmark = [pytest.mark.realworld, pytest.mark.needs("merge")]

WORKERS = 3
DATA_MIB = 48
ROUNDS = 4
PAGES = DATA_MIB << 8  #: of one worker's data


def _ask(worker: subprocess.Popen[str], path: Path) -> Path:
    tell_job(worker, path)
    return path


@pytest.mark.parametrize("kind", ["numpy", pytest.param("scikit-learn", marks=pytest.mark.needs("module:sklearn"))])
def test_results_are_bit_by_bit_those_of_a_run_without(kind: str, spawn: Any, domain: Domain, tmp_path: Path) -> None:
    job = [sys.executable, str(Path(__file__).with_name("job.py")), kind, str(DATA_MIB)]
    alone = spawn(job, env=domain.environment)
    wait_job(alone, "ready")
    expected = []
    for number in range(2):
        path = _ask(alone, tmp_path / f"alone-{number}")
        wait_job(alone, "done")
        expected.append(path.read_bytes())
    assert expected[0] == expected[1], "the job itself is not deterministic: nothing could be shown by it"

    workers = [spawn(domain.run(*job), env=domain.environment) for _ in range(WORKERS)]
    for worker in workers:
        wait_job(worker, "ready")
    domain.wait_merged((WORKERS - 1) * PAGES)

    def rounds(name: str, count: int) -> None:
        for number in range(count):
            paths = [_ask(worker, tmp_path / f"{name}-{number}-{worker.pid}") for worker in workers]
            for worker, path in zip(workers, paths, strict=True):
                wait_job(worker, "done")
                assert path.read_bytes() == expected[0]
                path.unlink()

    rounds("merged", ROUNDS)
    domain.tell(kind, result_mib=len(expected[0]) >> 20)
    domain.detach(*(worker.pid for worker in workers))
    rounds("detached", 1)

"""Programs that fork and discard while another tracer comes and goes: what it does to the guardian changes no byte."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pageone.engine import Engine
from pageone.live import LiveBackend

# An ordinary user's guardian traces what it follows all the time: nobody else can come.
pytestmark = [pytest.mark.needs("merge", "gcc"), pytest.mark.root]

SECONDS = float(os.environ.get("PAGEONE_STRESS_TRACED_SECONDS", "4"))
SOAK_SECONDS = float(os.environ.get("PAGEONE_SOAK_SECONDS", "600"))
SCENARIOS = ["discards", "orphans", "orphans", "forks"]
MERGED = 300
#: A tracer stays for so long at most.
LONGEST_MS = 300


@pytest.fixture
def stress(stress: Path, tmp_path: Path) -> Path:
    """The program under a name that nobody else runs."""
    return Path(shutil.copy(stress, tmp_path / f"stress{os.getpid()}"))


@pytest.fixture
def comes(tmp_path: Path) -> Path:
    program = tmp_path / "comes"
    source = Path(__file__).parents[1] / "programs" / "comes.c"
    subprocess.run(["gcc", "-O2", "-Wall", "-o", str(program), str(source)], check=True)
    return program


def _under_a_tracer(start: Callable[..., Any], spawn: Any, comes: Path, name: str, seconds: float) -> None:
    seed = time.time_ns() % 2**31
    print(f"seed {seed}")
    with Engine(period=0.05, quiet_periods=1, backend=LiveBackend(stop_timeout_s=0.2, pause_s=0.005)) as engine:
        programs = [start(scenario, seconds, k, nice=10) for k, scenario in enumerate(SCENARIOS, 2)]
        targets = [engine.attach(program.pid) for program in programs]
        engine.start()
        deadline = time.monotonic() + 30
        while min(t.stats.merged_pages for t in targets) <= MERGED and time.monotonic() < deadline:
            time.sleep(0.05)
        tracer = spawn([comes, str(seed), str(LONGEST_MS), name])
        for program in programs:
            program.begin()
        end = time.monotonic() + seconds + 60
        verdicts = []
        for scenario, program in zip(SCENARIOS, programs, strict=True):
            try:
                program.verdict(max(1.0, end - time.monotonic()))
            except AssertionError as error:
                verdicts.append(f"{scenario}: {error}")
        out, _ = tracer.communicate("\n", timeout=60)
        assert not verdicts, "\n".join(verdicts)
        came, refused = map(int, out.split())
        print(f"the tracer came {came} times, and was refused {refused} times")
        assert came > 5


@pytest.mark.xdist_group("stress")
@pytest.mark.timeout(180)
def test_no_byte_changes_while_another_tracer_comes_and_goes(
    start: Callable[..., Any], spawn: Any, comes: Path, stress: Path
) -> None:
    _under_a_tracer(start, spawn, comes, stress.name, SECONDS)


@pytest.mark.soak
def test_no_byte_changes_while_another_tracer_comes_and_goes_for_long(
    start: Callable[..., Any], spawn: Any, comes: Path, stress: Path
) -> None:
    _under_a_tracer(start, spawn, comes, stress.name, SOAK_SECONDS)

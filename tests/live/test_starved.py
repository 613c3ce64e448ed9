"""A target that hardly gets any processor stops late, and must not notice: not even one that is starved for seconds."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pageone import procfs
from pageone.engine import Engine

pytestmark = [
    pytest.mark.needs("merge", "root", "gcc"),
    pytest.mark.skipif(platform.machine() != "x86_64", reason="MADV_FREE of merged pages fails on AArch64"),
]

PAGES = 512
SPIN = "import os; os.nice(-12); os.sched_setaffinity(0, [0]); print(flush=True)\nwhile True: pass"


@pytest.mark.timeout(150)
def test_freeing_works_in_a_program_that_waits_seconds_for_a_processor(
    compiled: Callable[..., Path], spawn: Any, ask: Callable[..., str]
) -> None:
    program = compiled(Path(__file__).with_name("programs") / "starved.c")
    # In one session, or the kernel gives each the same share of a processor.
    programs = [spawn([program, str(PAGES), "0"], start_new_session=False) for _ in range(2)]
    for one in programs:
        assert one.stdout.readline() == "ready\n"
    with Engine() as engine:
        targets = [engine.attach(one.pid) for one in programs]
        while sum(target.stats.merged_pages for target in targets) < 2 * PAGES:
            engine.merge_once(0.2)
        for thread in procfs.threads(programs[0].pid):
            os.sched_setaffinity(thread, [0])
        os.setpriority(os.PRIO_PROCESS, programs[0].pid, 19)
        # As much of processor 0 as makes the target wait for some seconds each time.
        spinner = spawn([sys.executable, "-c", SPIN], start_new_session=False)
        assert spinner.stdout.readline() == "\n"
        failed, wrong = map(int, ask(programs[0], "free 6").split())
        spinner.kill()
        assert (failed, wrong) == (0, 0)

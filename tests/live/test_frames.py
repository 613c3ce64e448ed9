"""When a frame is freed: never while somebody can read it, and soon when nobody can, whatever else goes on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pageone.engine import Engine

pytestmark = pytest.mark.needs("merge")

PAGES = 512
#: How long the chains go on in ``make soak``.
SOAK_SECONDS = float(os.environ.get("PAGEONE_SOAK_SECONDS", "600"))
#: Milliseconds that a generation lasts, and whether each parent unmaps the memory after its fork and lives on.
CHAINS = [(0, 0), (1, 0), (10, 1), (30, 0), (100, 1)]

#: Run by root and by an ordinary user. Programs with the same memory end, each having begun a chain of children. Then
#: the engine looks for uses of the frames until the chains have ended, and says what their last children found.
DRIVER = """
import json, select, subprocess, sys, time
from pageone.engine import Engine
program, pages, seconds, *chains = sys.argv[1:]
programs = [
    subprocess.Popen([program, pages], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True)
    for _ in chains
]
for p in programs:
    assert p.stdout.readline() == "READY\\n"
with Engine(period=0.05) as engine:
    for p in programs:
        engine.attach(p.pid)
    deadline = time.monotonic() + 60
    merged = 0
    while merged < len(chains) * int(pages) and time.monotonic() < deadline:
        merged += engine.merge_once(0.1).merged_pages
    for p, chain in zip(programs, chains):
        print(chain, file=p.stdin, flush=True)
        p.wait()
    end = time.monotonic() + float(seconds)
    outs = [p.stdout for p in programs]
    # On a busy machine they take longer for the few generations that each must have.
    while time.monotonic() < end or len(select.select(outs, [], [], 0)[0]) < len(outs):
        engine.step()
        time.sleep(0.02)
    found = [p.stdout.read().split() for p in programs]
    deadline = time.monotonic() + 60
    while engine.stats.frames and time.monotonic() < deadline:
        engine.step()
        time.sleep(0.02)
    print(json.dumps({
        "merged": merged, "right": [int(f[0]) for f in found], "generations": [int(f[4]) for f in found],
        "frames": engine.stats.frames,
    }))
"""


@pytest.fixture
def chain(compiled: Callable[..., Path]) -> Path:
    return compiled(Path(__file__).with_name("chain.c"))


@pytest.mark.needs("gcc")
@pytest.mark.timeout(210 + 2 * SOAK_SECONDS)
@pytest.mark.parametrize("user", ["root", "ordinary"])
@pytest.mark.parametrize("seconds", [2.0, pytest.param(SOAK_SECONDS, marks=pytest.mark.soak)])
def test_a_chain_of_children_that_fork_and_end_keeps_its_frames(
    user: str, seconds: float, chain: Path, request: pytest.FixtureRequest
) -> None:
    chains = [f"{ms} {seconds} {unmaps}" for ms, unmaps in CHAINS]
    arguments = ["-c", DRIVER, str(chain), str(PAGES), str(seconds), *chains]
    if user == "ordinary":
        done = request.getfixturevalue("as_user").run(*arguments, timeout=200 + 2 * seconds)
    else:
        request.getfixturevalue("needs_root")
        done = subprocess.run(
            [sys.executable, *arguments], capture_output=True, text=True, timeout=200 + 2 * seconds, check=False
        )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["merged"] >= len(chains) * PAGES
    assert min(told["generations"]) > 5, told
    assert told["right"] == [PAGES] * len(chains), told
    assert told["frames"] == 0, "frames are given back once the chains have ended"


@pytest.mark.needs("gcc")
@pytest.mark.timeout(60)
def test_frames_are_given_back_while_other_programs_come_and_go(chain: Path, spawn: Any) -> None:
    programs = [spawn([chain, str(PAGES)]) for _ in range(2)]
    for program in programs:
        assert program.stdout.readline() == "READY\n"
    with Engine(period=0.05) as engine:
        for program in programs:
            engine.attach(program.pid)
        assert engine.merge_once(0.1).merged_pages >= PAGES
        for _ in range(2):
            spawn(["sh", "-c", "while :; do /bin/true; (/bin/true); done"])
        for program in programs:
            program.kill()
            program.wait()
        periods = 0
        while engine.stats.frames:
            engine.step()
            time.sleep(0.02)
            periods += 1
            assert periods < 100, "no scan is ever complete"

"""A program that is stopped and continued all the time, by a parent that waits for the news of each, as shells do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.needs("merge", "gcc")

SOURCE = Path(__file__).with_name("programs") / "storm.c"

#: Attaches two such programs, merges and detaches, over and over, until news was missed or this has been done often.
DRIVER = """
import json, select, subprocess, sys, time
from pageone.engine import Engine
from pageone.errors import TargetError
program = sys.argv[1]
storms = [subprocess.Popen([program, "7000"], stdin=-1, stdout=-1, text=True) for _ in range(2)]
try:
    pids = [int(storm.stdout.readline()) for storm in storms]
    for storm in storms:
        print(file=storm.stdin, flush=True)
    attached = merged = 0
    deadline = time.monotonic() + 40  # a busy machine may not stop them in time
    with Engine(period=0.05) as engine:
        while (attached < 16 or merged < 1000) and time.monotonic() < deadline:
            if select.select([storm.stdout for storm in storms], [], [], 0)[0]:
                break
            targets = []
            for pid in pids:
                try:
                    targets.append(engine.attach(pid))
                except TargetError as error:
                    assert "in time" in str(error), error  # it was held by others: the machine is busy
            attached += len(targets)
            merged += engine.merge_once(0.05).merged_pages
            for target in targets:
                while not engine.detach(target):
                    time.sleep(0.01)
    for storm in storms:
        print(file=storm.stdin, flush=True)
    told = [[int(word) for word in storm.stdout.readline().split()] for storm in storms]
finally:
    for storm in storms:
        storm.kill()
print(json.dumps([attached, merged, told]))
"""


@pytest.mark.timeout(100)
@pytest.mark.parametrize("who", ["root", "user"])
def test_a_parent_has_news_of_each_stop_and_of_each_going_on(
    who: str, compiled: Callable[..., Path], as_user: Any, python: Callable[..., Any]
) -> None:
    if who == "root" and not as_user.is_other:
        pytest.skip("needs root")
    run = python if who == "root" else as_user.run
    done = run("-c", DRIVER, str(compiled(SOURCE)), timeout=90)
    assert done.returncode == 0, done.stderr
    attached, merged, told = json.loads(done.stdout)
    print(f"attached {attached} times, merged {merged} pages; rounds: {[one[0] for one in told]}")
    for _, stops_lost, goes_lost, wrong, unanswered in told:
        assert (stops_lost, goes_lost, wrong, unanswered) == (0, 0, 0, 0), told
    assert attached >= 16
    assert merged >= 1000

"""Programs under stress of an ordinary user, whose forks are followed by tracing them, and with no rights of root's."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.needs("merge", "gcc")]

SECONDS = float(os.environ.get("PAGEONE_STRESS_USER_SECONDS", "8"))
SCENARIOS = ["writers", "signals", "calls", "forks", "dontneed", "guards", "suspended", "mappings", "anything"]

DRIVER = """
import json, subprocess, sys, time
from pageone.engine import Engine
from pageone.live import LiveBackend
program, seconds, *scenarios = sys.argv[1:]
verdicts = {}
with Engine(period=0.05, quiet_periods=1, backend=LiveBackend(stop_timeout_s=0.2)) as engine:
    running = []
    for seed, scenario in enumerate(scenarios, 2):
        argv = ["nice", "-n", "10", program, scenario, seconds, str(seed)]
        one = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        one.stdout.readline()
        running.append((scenario, one, engine.attach(one.pid)))
    engine.start()
    deadline = time.monotonic() + 30
    while min(t.stats.merged_pages for _, _, t in running) <= 300 and time.monotonic() < deadline:
        time.sleep(0.05)
    for scenario, one, target in running:
        verdicts[scenario] = [target.stats.merged_pages]
        one.stdin.write("x")
        one.stdin.flush()
    for scenario, one, _ in running:
        try:
            out = one.communicate(timeout=float(seconds) + 60)[0]
        except subprocess.TimeoutExpired:
            out = "hangs"
        verdicts[scenario] += [one.returncode, out.strip()]
    print(json.dumps(verdicts))
"""


@pytest.mark.xdist_group("stress")
@pytest.mark.timeout(150)
def test_no_byte_changes_and_nothing_hangs_for_an_ordinary_user(as_user: Any, stress: Path) -> None:
    done = as_user.run("-c", DRIVER, str(stress), str(SECONDS), *SCENARIOS, timeout=140)
    assert done.returncode == 0, done.stderr
    verdicts = json.loads(done.stdout)
    wrong = {
        scenario: told
        for scenario, told in verdicts.items()
        if told[0] <= 300 or told[1] != 0 or not told[2].startswith("OK")
    }
    assert not wrong

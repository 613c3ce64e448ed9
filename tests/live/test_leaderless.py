"""A process whose first thread has left the memory before the others, and has not ended: what they discard is zero."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.needs("merge", "gcc")

SOURCE = Path(__file__).with_name("programs") / "holds.c"

#: The child is guarded before its first thread leaves ("strike later", when it has discarded something), or after.
DRIVER = """
import json, os, subprocess, sys, time
import pageone._native
from pageone.engine import Engine
if len(sys.argv) > 3:
    pageone._native.__file__, os.environ["PAGEONE_FAILPOINTS"] = sys.argv[3:]
def start(kind):
    argv = [sys.argv[1], kind, sys.argv[2]]
    one = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    said = one.stdout.readline().strip()
    if said != "ready":
        print(json.dumps("no"))
        sys.exit()
    return one
def ask(one, what):
    print(what, file=one.stdin, flush=True)
    return int(one.stdout.readline())
programs = [start("leave"), start("none")]
with Engine(period=0.05) as engine:
    targets = [engine.attach(one.pid) for one in programs]
    until = time.monotonic() + 30
    while min(t.stats.merged_pages for t in targets) < 500 and time.monotonic() < until:
        engine.merge_once(0.2)
    told = {"merged": [t.stats.merged_pages for t in targets]}
    # Where a child is looked for through its first thread alone, one is never found that it has left before.
    for strike in ("strike later",) * 2 if "leaderless" in sys.argv[-1] else ("strike", "strike later") * 2:
        told.setdefault(strike, []).append(ask(programs[0], strike))
    told["wrong"] = [ask(one, "check") for one in programs]
for one in programs:
    one.kill()
print(json.dumps(told))
"""


@pytest.fixture
def found(
    mount_folder: Path,
    compiled: Callable[..., Path],
    as_user: Any,
    python: Callable[..., subprocess.CompletedProcess[str]],
) -> Callable[..., dict[str, list[int]]]:
    """Run the driver as ``who``, with failpoints of a native core if so given, and return what it found."""

    def go(who: str, *failpoints: str) -> dict[str, list[int]]:
        run = python if who == "root" and os.geteuid() == 0 else as_user.run
        done = run("-c", DRIVER, str(compiled(SOURCE)), str(mount_folder), *failpoints, timeout=80)
        assert done.returncode == 0, done.stderr
        told = json.loads(done.stdout)
        if told == "no":
            pytest.skip(f"needs FUSE: {done.stderr.strip()}")
        assert min(told["merged"]) >= 500, told
        assert told["wrong"] == [0, 0]
        found: dict[str, list[int]] = told
        return found

    return go


@pytest.mark.timeout(90)
@pytest.mark.parametrize("who", ["root", "user"])
def test_what_is_discarded_is_zero_though_the_first_thread_has_left_the_memory(
    who: str, found: Callable[..., dict[str, list[int]]]
) -> None:
    told = found(who)
    assert told["strike"] == told["strike later"] == [0, 0], told


@pytest.mark.timeout(90)
@pytest.mark.needs("root")
@pytest.mark.parametrize("failpoint", ["leaderless", "ending"])
def test_the_same_holds_where_its_mappings_cannot_be_told_or_no_stop_comes_about(
    failpoint: str, failpoints: Path, found: Callable[..., dict[str, list[int]]]
) -> None:
    told = found("root", str(failpoints), f"close,{failpoint}")
    assert told["strike later"] == [0, 0], told

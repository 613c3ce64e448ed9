"""A target that holds up whoever reads its memory: the engine leaves it alone, and goes on with all others."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pageone._native import mem
from pageone.engine.backend import ReadCode
from pageone.engine.clock import cpu_s
from pageone.live import patience
from pageone.live.guardian import Guardian

pytestmark = [pytest.mark.needs("merge", "gcc")]

#: Merges three programs, of which one then locks its own address space for good; then two more.
BESIDE = """
import json, subprocess, sys, time
from pageone.engine import Engine
from pageone.errors import TargetError
program, folder = sys.argv[1:]
running = []
def start(kind):
    running.append(subprocess.Popen([program, kind, folder], stdin=-1, stdout=-1, text=True))
    return running[-1], running[-1].stdout.readline().strip()
def ask(one, what):
    print(what, file=one.stdin, flush=True)
    return int(one.stdout.readline())
def merge(targets):
    until = time.monotonic() + 60
    while any(t.stats.merged_pages < 400 for t in targets):  # a busy machine may not stop them in time
        report = engine.merge_once(0.2)
        if time.monotonic() > until:
            sys.exit(f"not merged: {[t.stats for t in targets]}, {report}")
hostile, said = start("lock")
if said == "no":
    print(json.dumps("no"))
    sys.exit()
others = [start("none")[0] for _ in range(2)]
engine = Engine(period=0.05)
try:
    targets = [engine.attach(one.pid) for one in (hostile, *others)]
    merge(targets)
    ask(hostile, "strike")
    others += [start("none")[0] for _ in range(2)]
    targets += [engine.attach(one.pid) for one in others[2:]]
    merge(targets[3:])
    told = {"trouble": targets[0].stats.trouble, "wrong": [ask(one, "check") for one in others]}
    told["detached"] = [engine.detach(target) for target in targets[1:]]
    told["wrong after"] = [ask(one, "check") for one in others]
    try:
        engine.detach(targets[0])
    except TargetError as error:
        told["refused"] = str(error)
    told["tracked"] = engine.stats.targets
    engine.start()
    engine.stop()
finally:
    engine.close()
    for one in running:
        one.kill()
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def holds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    built = tmp_path_factory.mktemp("holds") / "holds"
    source = Path(__file__).parent / "programs" / "holds.c"
    subprocess.run(["gcc", "-O2", "-pthread", "-o", str(built), str(source)], check=True)
    return built


@pytest.mark.timeout(110)
@pytest.mark.parametrize("who", ["root", "user"])
def test_others_are_merged_and_detached_while_a_target_keeps_its_address_space_locked(
    who: str, holds: Path, mount_folder: Path, as_user: Any, python: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    if who == "root" and os.geteuid() == 0:
        done = python("-c", BESIDE, str(holds), str(mount_folder), timeout=100)
    else:
        copy = as_user.folder / "holds"
        shutil.copy2(holds, copy)
        copy.chmod(0o755)
        done = as_user.run("-c", BESIDE, str(copy), str(mount_folder), timeout=100)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    if told == "no":
        pytest.skip(f"needs FUSE: {done.stderr.strip()}")
    print(told)
    assert "left alone" in told["trouble"]
    assert "left alone" in told["refused"]
    assert told["wrong"] == told["wrong after"] == [0] * 4
    assert told["detached"] == [True] * 4
    assert told["tracked"] == 1


@pytest.mark.timeout(60)
def test_frames_of_others_are_filled_while_a_target_keeps_its_address_space_locked(
    holds: Path, mount_folder: Path, spawn: Any, ask: Callable[..., str]
) -> None:
    running = [spawn([holds, kind, mount_folder]) for kind in ("lock", "none")]
    if running[0].stdout.readline() != "ready\n":
        pytest.skip(f"needs FUSE: {running[0].stderr.read()}")
    assert running[1].stdout.readline() == "ready\n"
    data = [_resting(one.pid) for one in running]
    guardian = Guardian(1 << 16, pause_s=0.001, stop_timeout_s=0.02)
    try:
        frames = np.arange(256, dtype=np.uint32)
        assert not guardian.pool.fill(running[0].pid, data[0], frames)[0].any()
        ask(running[0], "strike")
        for _ in range(2):
            assert (guardian.pool.fill(running[0].pid, data[0], frames + 256)[0] == ReadCode.GONE).all()
            assert not guardian.pool.fill(running[1].pid, data[1], frames + 512)[0].any()
    finally:
        guardian.close()


def _resting(pid: int) -> Any:
    """Return the addresses of 256 pages of the largest mapping that a program has written."""
    start, end, perms, _, _, inode, _, _ = mem.maps(pid)
    size = np.where((perms & 3 == 3) & (inode == 0), end - start, 0)
    at = int(np.argmax(size))
    return start[at] + np.arange(256, dtype=np.uint64) * np.uint64(4096)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "PATIENCE_S", 0.05)
    monkeypatch.setattr(patience, "REST_S", 0.0)


def test_a_read_that_gets_no_further_is_left_behind_and_not_repeated_before_it_has_ended(
    impatient: None, spawn: Any
) -> None:
    one = spawn.python("input()")
    held, calls = threading.Event(), []

    def wait() -> None:
        calls.append(threading.get_ident())
        held.wait()

    for _ in range(3):
        with pytest.raises(patience.HeldUpError, match=f"process {one.pid}"):
            patience.read(one.pid, wait)
    assert len(calls) == 1
    assert patience.read(os.getpid(), lambda: 7) == 7
    closed: list[int] = []
    patience.spare(one.pid, closed.append, 1)
    assert not closed
    held.set()
    deadline = time.monotonic() + 20
    while not closed:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert patience.read(one.pid, lambda: 8) == 8


def test_a_read_that_takes_long_because_there_is_much_to_see_is_waited_for(impatient: None) -> None:
    def work() -> float:
        began = time.thread_time()
        while time.thread_time() - began < 0.5:
            pass
        return time.thread_time() - began

    before = cpu_s()
    assert patience.read(os.getpid(), work) >= 0.5
    assert cpu_s() - before >= 0.5, "it counts as CPU time of whoever asked"


def test_who_always_lets_others_wait_a_little_is_left_alone_too(monkeypatch: pytest.MonkeyPatch, spawn: Any) -> None:
    monkeypatch.setattr(patience, "SLOW_MOST_S", 0.5)
    one = spawn.python("input()")
    for _ in range(2):
        patience.read(one.pid, time.sleep, 0.3)
    with pytest.raises(patience.HeldUpError):
        patience.read(one.pid, time.sleep, 0.3)


def test_what_a_read_raises_is_raised_where_it_was_asked_for() -> None:
    with pytest.raises(FileNotFoundError):
        patience.read(os.getpid(), os.stat, "/nowhere/at/all")

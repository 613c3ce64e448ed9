"""Processes that share a target's memory without being threads of it are found, also when process ids begin anew."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from pageone import _native
from pageone.engine import Engine
from pageone.errors import TargetError

pytestmark = [pytest.mark.needs("merge", "root", "gcc", "program:unshare")]

SOURCE = Path(__file__).with_name("programs") / "sharer.c"
HOSTILE = Path(__file__).with_name("hostile.c")
LINUX = tuple(int(n) for n in platform.release().split("-")[0].split(".")[:2])

#: In a PID namespace with few ids: two programs are attached, and one of them gets a process in its memory whose id is
#: below the newest that was known when both were last stopped, while the newest since is above that.
DRIVER = """
import subprocess, sys, time
from pathlib import Path
from typing import Any
from pageone.engine import Engine
from pageone.errors import TargetError
Path("/proc/sys/kernel/pid_max").write_text("700")

def newest():
    return int(Path("/proc/loadavg").read_text().split()[-1])

def use_ids_until(low, high):
    ask(births, f"ids {low} {high}")
    assert low < newest() < high  # of the engine's threads none is born meanwhile

def ask(one, what):
    one.stdin.write(what + chr(10))
    one.stdin.flush()
    return one.stdout.readline().strip()

pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
*programs, births = [subprocess.Popen([sys.argv[1]], **pipes, text=True) for _ in "abc"]
assert all(one.stdout.readline() == "ready" + chr(10) for one in (*programs, births))
with Engine() as engine:
    first, second = [engine.attach(one.pid) for one in programs]
    use_ids_until(500, 600)
    until = time.monotonic() + 20  # on a busy machine a program may not stop in time
    while first.stats.merged_pages + second.stats.merged_pages < 1024:
        assert time.monotonic() < until
        engine.merge_once(0.2)
    known = newest()
    use_ids_until(0, 400)
    sharer = int(ask(programs[0], "clone"))
    assert 0 < sharer < known, (sharer, known)
    assert [ask(one, "write") for one in programs] == ["ready"] * 2
    use_ids_until(known, known + 60)
    before = first.stats.merged_pages
    for _ in range(3):
        engine.merge_once(0.2)
    print("merged beside it", first.stats.merged_pages - before, first.stats.refused)
for one in (*programs, births):
    one.kill()
"""


#: The same beside a program whose threads use all ids many times a second, so that the kernel notes the births of both
#: programs, where it does. The newcomer comes only then.
STORM = """
import subprocess, sys, time
from pathlib import Path
import pageone._native
from pageone.engine import Engine
pageone._native.__file__ = sys.argv[4]  # what the guardian is told to load
Path("/proc/sys/kernel/pid_max").write_text("700")

def newest():
    return int(Path("/proc/loadavg").read_text().split()[-1])

def begin_anew():
    before = newest()
    while newest() >= before:
        before = newest()

def ask(one, what):
    one.stdin.write(what + chr(10))
    one.stdin.flush()
    return one.stdout.readline().strip()

def merge(engine, more):
    want = sum(target.stats.merged_pages for target in engine.targets) + more
    until = time.monotonic() + 30  # on a busy machine a program may not stop in time
    while sum(target.stats.merged_pages for target in engine.targets) < want:
        assert time.monotonic() < until
        engine.merge_once(0.2)

pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
argvs = [sys.argv[1]], [sys.argv[1]], [sys.argv[2], "threads"]
*programs, storm = [subprocess.Popen(argv, **pipes, text=True) for argv in argvs]
assert all(one.stdout.readline() == "ready" + chr(10) for one in (*programs, storm))
with Engine() as engine:
    first, second = [engine.attach(one.pid) for one in programs]
    merge(engine, 1024)
    ask(storm, "strike")
    for _ in range(2):
        begin_anew()
        assert [ask(one, "write") for one in programs] == ["ready"] * 2
        merge(engine, 1024)
    noted = Path("/proc", str(engine.backend.guardian.pid), "maps").read_text().count("anon_inode:[perf_event]")
    begin_anew()
    assert int(ask(programs[0], sys.argv[3])) > 0
    assert [ask(one, "write") for one in programs] == ["ready"] * 2
    begin_anew()
    before = first.stats.merged_pages
    for _ in range(3):
        engine.merge_once(0.2)
    print("merged beside it", first.stats.merged_pages - before, "noted", noted)
for one in (*programs, storm):
    one.kill()
"""


def in_a_pid_namespace(driver: str, *argv: object) -> str:
    before = Path("/proc/sys/kernel/pid_max").read_text()
    own = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", sys.executable, "-c", driver]
    done = subprocess.run([*own, *map(str, argv)], capture_output=True, text=True, timeout=110, check=False)
    assert Path("/proc/sys/kernel/pid_max").read_text() == before
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.timeout(130)
@pytest.mark.skipif(LINUX < (6, 14), reason="needs a limit of process ids for each PID namespace (Linux 6.14)")
@pytest.mark.parametrize("how", ["clone", "leave"])
def test_a_process_in_a_targets_memory_is_found_in_a_storm_of_threads(how: str, compiled: Any) -> None:
    told = in_a_pid_namespace(STORM, compiled(SOURCE), compiled(HOSTILE), how, _native.__file__)
    assert told.startswith("merged beside it 0 ")
    if told.endswith("noted 0\n"):
        pytest.skip("the kernel notes no births for root here")


@pytest.mark.timeout(130)
@pytest.mark.skipif(LINUX < (6, 14), reason="needs a limit of process ids for each PID namespace (Linux 6.14)")
@pytest.mark.needs("failpoints")
def test_it_is_found_there_also_where_no_births_are_noted(
    compiled: Any, failpoints: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PAGEONE_FAILPOINTS", "newcomers")
    told = in_a_pid_namespace(STORM, compiled(SOURCE), compiled(HOSTILE), "clone", failpoints)
    assert told == "merged beside it 0 noted 0\n"


@pytest.mark.timeout(130)
@pytest.mark.skipif(LINUX < (6, 14), reason="needs a limit of process ids for each PID namespace (Linux 6.14)")
def test_a_process_in_a_targets_memory_is_found_after_process_ids_have_begun_anew(compiled: Any) -> None:
    assert in_a_pid_namespace(DRIVER, compiled(SOURCE)).startswith("merged beside it 0 ")


def test_a_process_in_a_targets_memory_is_found_though_its_first_thread_has_ended(
    tmp_path: Path, spawn: Any, ask: Callable[..., str]
) -> None:
    program = tmp_path / "sharer"
    subprocess.run(["gcc", "-O1", "-Wall", "-Wextra", "-o", program, SOURCE], check=True)
    target = spawn([program])
    assert target.stdout.readline() == "ready\n"
    sharer = int(ask(target, "leave"))
    try:
        until = time.monotonic() + 30
        while psutil.Process(sharer).status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < until
        with Engine() as engine, pytest.raises(TargetError, match="runs in its memory"):
            engine.attach(target.pid)
    finally:
        os.kill(sharer, signal.SIGKILL)

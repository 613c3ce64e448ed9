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

from pageone.engine import Engine
from pageone.errors import TargetError

pytestmark = [pytest.mark.needs("merge", "root", "gcc", "program:unshare")]

SOURCE = Path(__file__).with_name("programs") / "sharer.c"
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


@pytest.mark.timeout(130)
@pytest.mark.skipif(LINUX < (6, 14), reason="needs a limit of process ids for each PID namespace (Linux 6.14)")
def test_a_process_in_a_targets_memory_is_found_after_process_ids_have_begun_anew(compiled: Any) -> None:
    before = Path("/proc/sys/kernel/pid_max").read_text()
    program = compiled(SOURCE)
    argv = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", sys.executable, "-c", DRIVER, str(program)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=110, check=False)
    assert Path("/proc/sys/kernel/pid_max").read_text() == before
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("merged beside it 0 "), done.stdout


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

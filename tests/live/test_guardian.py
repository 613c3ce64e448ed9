"""A guardian that nothing holds up: descriptors that run out."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.needs("merge", "gcc")

#: Children that live at once.
CHILDREN = int(os.environ.get("PAGEONE_CHILDREN", "300"))
#: Descriptors that a process may have.
DESCRIPTORS = int(os.environ.get("PAGEONE_DESCRIPTORS", "150"))


@pytest.fixture(scope="module")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    built = tmp_path_factory.mktemp("forks") / "forks"
    source = Path(__file__).with_name("forks.c")
    subprocess.run(["gcc", "-O2", "-o", str(built), str(source)], check=True)
    return built


#: Merges two programs, one of which has many children; without the right to raise its own hard limit.
FORKING = """
import ctypes, json, resource, subprocess, sys, time
from pageone.engine import Engine
program, children, soft, hard = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
ctypes.CDLL(None).prctl(24, 24, 0, 0, 0)  # what this process starts cannot have CAP_SYS_RESOURCE
pair = [subprocess.Popen([program], stdin=-1, stdout=-1, text=True) for _ in range(2)]
def ask(one, what):
    print(what, file=one.stdin, flush=True)
    return int(one.stdout.readline())
for one in pair:
    one.stdout.readline()
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
with Engine() as engine:
    for one in pair:
        engine.attach(one.pid)
    told = {"merged": 0}
    while told["merged"] < 120:  # a busy machine may not stop them in time
        told["merged"] += engine.merge_once(0.2).merged_pages
    begun = time.monotonic()
    told["forked"] = ask(pair[0], f"fork {children}")
    told["wrong"] = ask(pair[0], "discard") + ask(pair[0], "check") + ask(pair[1], "check")
    told["seconds"] = time.monotonic() - begun
    told["merged again"] = engine.merge_once(0.2).merged_pages
    told["wrong later"] = ask(pair[0], "check") + ask(pair[1], "check")
    told["detached"] = all(engine.detach(target) for target in engine.targets)
    told["wrong after"] = ask(pair[0], "check") + ask(pair[1], "check")
for one in pair:
    one.stdin.close()
    one.wait()
print(json.dumps(told))
"""


@pytest.mark.timeout(110)
@pytest.mark.parametrize("who", ["root", "user"])
@pytest.mark.parametrize("hard", ["low", "high"])
def test_as_many_children_as_a_program_likes_live_discard_and_read_zeros(
    who: str, hard: str, forks: Path, as_user: Any
) -> None:
    most = DESCRIPTORS if hard == "low" else 20_000
    numbers = [str(n) for n in (CHILDREN, DESCRIPTORS, most)]
    if who == "root" and os.geteuid() == 0:
        argv = [sys.executable, "-c", FORKING, str(forks), *numbers]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=100)
    else:
        copy = as_user.folder / "forks"
        shutil.copy2(forks, copy)
        copy.chmod(0o755)
        done = as_user.run("-c", FORKING, str(copy), *numbers, timeout=100)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    print(told)
    assert told["merged"] >= 120
    assert told["forked"] == CHILDREN
    assert told["wrong"] == told["wrong later"] == told["wrong after"] == 0
    assert told["detached"]

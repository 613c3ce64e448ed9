"""A program that its user may not read any more keeps the frames that it maps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pageone.live.process import ids_of_user

pytestmark = pytest.mark.needs("merge")

#: Run as an ordinary user. ``when`` the programs start: before the pool is made, or after.
DRIVER = """
import ctypes, json, subprocess, sys, time
from pageone.engine import Engine
PROGRAM = '''
import ctypes, mmap, sys
N = 512
def page(k):
    return (k.to_bytes(4, "little") + bytes(range(1, 252)) * 17)[:4096]
memory = mmap.mmap(-1, N * 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
for k in range(N):
    memory[4096 * k : 4096 * (k + 1)] = page(k)
print("ready", flush=True)
for line in sys.stdin:
    if line.startswith("hide"):
        print(ctypes.CDLL(None).prctl(4, 0, 0, 0, 0), flush=True)
    elif line.startswith("discard"):
        memory.madvise(mmap.MADV_DONTNEED, 0, 64 * 4096)
        print(memory[: 64 * 4096].count(0), flush=True)
    else:
        print(sum(memory[4096 * k : 4096 * (k + 1)] == page(k) for k in range(N)), flush=True)
'''
def start():
    argv = [sys.executable, "-c", PROGRAM]
    program = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert program.stdout.readline() == "ready\\n"
    return program
def ask(program, what):
    print(what, file=program.stdin, flush=True)
    return int(program.stdout.readline())
programs = [start(), start()] if sys.argv[1] == "before" else []
with Engine(period=0.05) as engine:
    time.sleep(0.05)
    programs = programs or [start(), start()]
    targets = [engine.attach(p.pid) for p in programs]
    merged = engine.merge_once(0.2).merged_pages
    assert ask(programs[0], "hide") == 0
    programs[1].kill()
    programs[1].wait()
    for _ in range(12):
        engine.step()
    right, used = ask(programs[0], "check"), engine.stats.frames
    time.sleep(2.5)  # the guardian has checked whether it still is what was attached
    zeros = ask(programs[0], "discard")
    if len(sys.argv) > 2:
        engine.close()
        zeros, right = ask(programs[0], "discard"), ask(programs[0], "check") + 64
    programs[0].kill()
    programs[0].wait()
    # Looks come less and less often while they cannot be complete, and other programs of this user may hide, too.
    left, deadline = 0, time.monotonic() + 40
    while len(sys.argv) == 2 and time.monotonic() < deadline:
        engine.step()
        left = engine.stats.frames
        if not left:
            break
    print(json.dumps({"merged": merged, "right": right, "used": used, "zeros": zeros, "left": left}))
"""


@pytest.mark.xdist_group("hiding")
@pytest.mark.timeout(120)
@pytest.mark.parametrize("how", ["before", "after", "after, without engine"])
def test_a_program_that_hides_keeps_its_frames_and_its_guard(how: str, as_user: Any) -> None:
    done = as_user.run("-c", DRIVER, *how.split(", "), timeout=100)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["merged"] >= 1000
    assert told["right"] == 512
    assert told["used"] >= 512
    assert told["zeros"] == 64 * 4096, "what it discards reads as zeros"
    assert told["left"] == 0, "frames are given back once it has ended"


def test_ids_that_a_user_may_take_in_a_namespace(tmp_path: Path) -> None:
    table = tmp_path / "subuid"
    table.write_text("else:100000:65536\n4242:165536:10\n\n4242:broken\n4242:300000:5\n")
    assert ids_of_user(4242, table) == [range(4242, 4243), range(165536, 165546), range(300000, 300005)]
    assert ids_of_user(4242, tmp_path / "none") == [range(4242, 4243)]

"""A program that ends while it is merged, and a child that discards while it is attached."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.needs("merge", "gcc")]

#: What both drivers begin with: a program, and its pages merged.
MERGED = """
import atexit, os, random, signal, subprocess, sys, threading, time
import numpy as np
from pageone.engine.backend import PAGE_SIZE
from pageone.errors import TargetError
from pageone.live import LiveBackend

pages = int(sys.argv[2])
backend = LiveBackend(pool_bytes=pages * PAGE_SIZE, stop_timeout_s=0.5)

def start(*more):
    program = subprocess.Popen([*sys.argv[1:], *more], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    atexit.register(program.kill)
    return program, int(program.stdout.readline())

def attach(pid):
    until = time.monotonic() + 30  # on a busy machine it may not stop in time
    while True:
        try:
            return backend.attach(pid)
        except TargetError as error:
            if "in time" not in str(error) or time.monotonic() > until:
                raise

def runs(rest):
    return np.array([rest], np.uint64), np.array([pages], np.uint32), np.array([0], np.uint32)

def merge(memory, rest):
    address, count, frame = runs(rest)
    memory.regions()
    memory.written(address, address + np.uint64(pages * PAGE_SIZE))
    return memory.merge(address, count, frame).code

def fill(memory, rest):
    each = rest + PAGE_SIZE * np.arange(pages, dtype=np.uint64)
    assert not backend.fill(np.arange(pages, dtype=np.uint32), memory, each)[0].any()
"""

KILLED = (
    MERGED
    + """
seed = random.randrange(1 << 30)
print("seed", seed)
chance = random.Random(seed)
merged = 0
for _ in range(25):
    program, rest = start("discard")
    memory = attach(program.pid)
    fill(memory, rest)
    print(file=program.stdin, flush=True)
    ended = threading.Event()

    def merge_and_give_back():
        global merged
        try:
            while not ended.is_set():
                merged += int((merge(memory, rest) == 0).sum())
                memory.unmerge(*runs(rest)[:2])
        except (TargetError, OSError):
            pass

    thread = threading.Thread(target=merge_and_give_back)
    thread.start()
    time.sleep(chance.uniform(0.02, 0.08))
    program.kill()
    program.wait(timeout=20)
    ended.set()
    thread.join()
    backend.release(program.pid)
assert merged > 0
print("ended", merged)
backend.close()
"""
)

DISCARDING = (
    MERGED
    + """
program, rest = start()
memory = attach(program.pid)
fill(memory, rest)
until = time.monotonic() + 30
while (merge(memory, rest) != 0).any():
    assert time.monotonic() < until
    time.sleep(0.02)
wrong = []
for _ in range(8):
    print(file=program.stdin, flush=True)
    child = int(program.stdout.readline())
    # Its parent's fork is over: it is guarded, or given back.
    os.kill(child, signal.SIGUSR1)
    time.sleep(0.01)
    try:
        attach(child)
    except TargetError as error:
        print(error)
    wrong.append(int(program.stdout.readline()))
    backend.release(child)
print("wrong", wrong)
program.kill()
program.wait()
backend.close()
sys.exit(any(wrong))
"""
)


@pytest.fixture(scope="session")
def program(compiled: Any) -> Path:
    return compiled(Path(__file__).with_name("programs") / "endings.c")


@pytest.mark.parametrize(("driver", "pages"), [(KILLED, 256), (DISCARDING, 512)], ids=["killed", "discarding"])
@pytest.mark.parametrize("user", ["root", "ordinary"])
def test_who_is_killed_in_a_merge_ends_and_who_is_attached_in_a_discard_reads_zeros(
    driver: str, pages: int, user: str, program: Path, spawn: Any, request: pytest.FixtureRequest
) -> None:
    if user == "root":
        process = spawn.python(driver, str(program), str(pages))
        out, err = process.communicate(timeout=100)
        code = process.returncode
    else:
        as_user = request.getfixturevalue("as_user")
        done = as_user.run("-c", driver, str(program), str(pages), timeout=100)
        out, err, code = done.stdout, done.stderr, done.returncode
    assert code == 0, out + err

"""A program's descriptors while it is stopped: none of another's is taken for its own, and nobody takes that of frames.

For the length of a stop the descriptor of the frames stands in the table of the thread that maps them. That table may
be one of the thread's own (``unshare``), and another process may have it too (``clone`` with ``CLONE_FILES``).
"""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = pytest.mark.needs("merge")

PAGES = 256

#: Memory that is merged, and what a program may ask of the system for its tables of descriptors.
COMMON = f"""
import ctypes, mmap, os, select, signal, socket, sys, threading, time
CLONE_FILES, CLONE = 0x400, {{"x86_64": 56, "aarch64": 220}}[os.uname().machine]
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
memory = mmap.mmap(-1, {PAGES} * 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
content = b"".join(n.to_bytes(4, "little") + bytes(range(1, 256)) * 16 + bytes(12) for n in range({PAGES}))
memory[:] = content
"""

PLAIN = COMMON + "print('ready', flush=True)\ntime.sleep(60)\n"

#: Has a process with its descriptors, and memory of its own, that looks for the frames among them.
SHARING = (
    COMMON
    + """
found = mmap.mmap(-1, 4096)
def share():
    child = libc.syscall(CLONE, CLONE_FILES | signal.SIGCHLD, 0, 0, 0, 0)
    if child == 0:
        libc.prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG
        memory.close()  # the parent's alone, so that nothing but the descriptors is in the way of merging it
        while True:
            for number in range(3, 16):
                try:
                    found[0] |= "pageone" in os.readlink(f"/proc/self/fd/{number}")
                except OSError:
                    pass
    return child
print("ready", flush=True)
for line in sys.stdin:
    if line == "share\\n":
        child = share()
    elif line == "end\\n":
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    print(found[0], memory[:] == content, flush=True)
"""
)

#: A thread with a table of its own, in which numbers are free that are the program's connection in that of the others.
APART = (
    COMMON
    + """
ours, peers = socket.socketpair()
peers.setblocking(False)
def apart():
    assert libc.unshare(CLONE_FILES) == 0
    os.close(ours.fileno())
    os.close(peers.fileno())
    print("ready", flush=True)
    while True:
        pass
threading.Thread(target=apart, daemon=True).start()
wait = select.poll()
wait.register(0, select.POLLIN)
# In a wait with a limit, so that the other thread is the one to choose for calls.
while wait.poll(600_000) and sys.stdin.readline():
    try:
        stray = len(peers.recv(4096))
    except BlockingIOError:
        stray = 0
    print(stray, memory[:] == content, flush=True)
"""
)

DRIVER = """
import json, subprocess, sys
from pageone.engine import Engine
from pageone.errors import TargetError
programs = [
    subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    for code in sys.argv[1:3]
]
def ask(what):
    print(what, file=programs[0].stdin, flush=True)
    return programs[0].stdout.readline().strip()
try:
    for program in programs:
        assert program.stdout.readline() == "ready\\n"
    with Engine() as engine:
"""

DRIVER_SHARING = (
    DRIVER
    + """
        print(ask("share"))
        try:
            engine.attach(programs[0].pid)
        except TargetError as error:
            print(error)
        print(ask("end"))
        for program in programs:
            engine.attach(program.pid)
        print(ask("share"))
        refused = engine.merge_once(0.2).refused.get("REFUSED", 0)
        target = engine.targets[0]
        print(target.stats.states["shared"], refused >= 256)
        print(ask("end"))
        print(engine.detach(target))
        target = engine.attach(target.pid)
        engine.merge_once(0.2)
        print(target.stats.states["shared"] >= 256)
        print(ask("look"))
finally:
    for program in programs:
        program.kill()
"""
)

DRIVER_APART = (
    DRIVER
    + """
        for program in programs:
            engine.attach(program.pid)
        print(sum(engine.merge_once(0.2).merged_pages for _ in range(3)) >= 256)
        print(ask("look"))
        for target in engine.targets:
            print(engine.detach(target))
        print(ask("look"))
finally:
    for program in programs:
        program.kill()
"""
)


@pytest.fixture(params=["an ordinary user", "root"])
def run(request: Any, as_user: Any, python: Any) -> Any:
    if request.param == "root":
        request.getfixturevalue("needs_root")
        return python
    return as_user.run


def test_the_frames_are_lent_to_nobody_whose_descriptors_another_process_has(run: Any) -> None:
    ran = run("-c", DRIVER_SHARING, SHARING, PLAIN)
    assert ran.returncode == 0, ran.stderr
    _, refused, _, _, shared, _, *then = ran.stdout.splitlines()
    assert "another process has its descriptors" in refused
    assert shared == "0 True"
    assert then == ["True", "True", "0 True"]


def test_a_thread_with_descriptors_of_its_own_is_sent_nothing_through_those_of_others(run: Any) -> None:
    ran = run("-c", DRIVER_APART, APART, PLAIN)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines() == ["True", "0 True", "True", "True", "0 True"]

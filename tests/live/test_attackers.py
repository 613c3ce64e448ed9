"""Nobody writes a frame, and nobody reads one that is not theirs, whatever descriptor they get hold of.

The engine runs as an ordinary user and, in a test of root, as root; the attackers are other processes of that user.
They try on each process of the engine to open its descriptors, to give the files behind them other rights, to take
copies of them, and to write.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

pytestmark = pytest.mark.needs("merge")

#: Two programs with equal pages, merged; then the attacker, told of the engine's processes; what the programs hold now.
DRIVER = """
import json, os, subprocess, sys
from pageone.engine import Engine
program, attacker = sys.argv[1:3]
def start(code, *args):
    return subprocess.Popen(
        [sys.executable, "-c", code, *args], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
programs = [start(program) for _ in range(2)]
try:
    for p in programs:
        assert p.stdout.readline() == "ready\\n"
    with Engine() as engine:
        for p in programs:
            engine.attach(p.pid)
        merged = engine.merge_once(0.2).merged_pages
        found = json.loads(start(attacker, str(os.getpid()), str(engine.backend.guardian.pid)).communicate()[0])
        found["merged"] = merged
        found["right"] = [p.communicate("check\\n")[0] for p in programs] == ["True\\n"] * 2
        found["apart"] = engine.backend.pool.apart
        print(json.dumps(found))
finally:
    for p in programs:
        p.kill()
"""

PROGRAM = """
import mmap, sys
memory = mmap.mmap(-1, 256 * 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
content = b"".join(n.to_bytes(4, "little") + bytes(range(1, 256)) * 16 + bytes(12) for n in range(256))
memory[:] = content
print("ready", flush=True)
for line in sys.stdin:
    print(memory[:] == content, flush=True)
"""

#: Prints how often it got hold of a descriptor of the pool, and how often it wrote by one.
ATTACKER = """
import ctypes, json, os, sys
libc = ctypes.CDLL(None, use_errno=True)
GETFD = 438
held = written = 0
def use(descriptor):
    global held, written
    if "pageone" not in os.readlink(f"/proc/self/fd/{descriptor}"):
        return
    held += 1
    path = f"/proc/self/fd/{descriptor}"
    for step in (lambda: os.fchmod(descriptor, 0o600), lambda: os.chmod(path, 0o600)):
        try:
            step()
        except OSError:
            pass
    for what in (descriptor, path):
        try:
            file = what if what == descriptor else os.open(what, os.O_RDWR)
            written += os.pwrite(file, b"mine", 4096)
        except OSError:
            pass
for pid in map(int, sys.argv[1:]):
    owner = os.pidfd_open(pid)
    for number in range(256):
        try:
            path = f"/proc/{pid}/fd/{number}"
            if "pageone" in os.readlink(path):
                os.chmod(path, 0o600)
            use(os.open(path, os.O_RDWR if "pageone" in os.readlink(path) else os.O_RDONLY | os.O_NONBLOCK))
        except OSError:
            pass
        copy = libc.syscall(GETFD, owner, number, 0)
        if copy >= 0:
            use(copy)
print(json.dumps({"held": held, "written": written}))
"""

#: The same user without any of its capabilities: what root is in a container that takes them away.
WITHOUT_CAPABILITIES = """
import ctypes
libc = ctypes.CDLL(None)
for capability in range(64):
    libc.prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP
libc.prctl(47, 4, 0, 0, 0)  # PR_CAP_AMBIENT_CLEAR_ALL
header, none = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
assert libc.capset(header, none) == 0
"""


@pytest.fixture(params=["an ordinary user", "root"])
def run(request: Any, as_user: Any, pageone: Any) -> Callable[..., Any]:
    """Run Python as the user whose engine it is; root's attackers have no capabilities."""
    if request.param == "an ordinary user":
        return as_user.run  # type: ignore[no-any-return]
    request.getfixturevalue("needs_root")

    def as_root(*args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, *args], capture_output=True, text=True, timeout=60)

    as_root.unprivileged = WITHOUT_CAPABILITIES  # type: ignore[attr-defined]
    return as_root


def _told(ran: Any) -> dict[str, Any]:
    assert ran.returncode == 0, ran.stderr
    told: dict[str, Any] = json.loads(ran.stdout)
    return told


def test_no_process_of_the_same_user_gets_at_frames_by_way_of_the_engine_or_its_guardian(
    run: Callable[..., Any],
) -> None:
    attacker = getattr(run, "unprivileged", "") + ATTACKER
    found = _told(run("-c", DRIVER, PROGRAM, attacker))
    assert found.pop("merged") >= 256
    assert found == {"held": 0, "written": 0, "right": True, "apart": True}


#: Becomes a process that may mount nothing and make no user namespace, as in a container that forbids both.
WITHOUT_MOUNTS = (
    """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
ids = os.geteuid(), os.getegid()
assert libc.unshare(0x10000000) == 0  # CLONE_NEWUSER
for name, text in (("uid_map", f"{ids[0]} {ids[0]} 1"), ("setgroups", "deny"), ("gid_map", f"{ids[1]} {ids[1]} 1")):
    with open(f"/proc/self/{name}", "w") as file:
        file.write(text)
with open("/proc/sys/user/max_user_namespaces", "w") as file:
    file.write("0")
"""
    + WITHOUT_CAPABILITIES
)


def test_where_nothing_can_be_mounted_the_pool_is_a_memory_file_and_the_same_holds(as_user: Any) -> None:
    found = _told(as_user.run("-c", WITHOUT_MOUNTS + DRIVER, PROGRAM, ATTACKER))
    assert found.pop("merged") >= 256
    assert found == {"held": 0, "written": 0, "right": True, "apart": False}


def test_a_guardian_that_nobody_may_look_into_keeps_no_frames_of_another_engine_from_being_freed(as_user: Any) -> None:
    scans = (
        "from pageone.engine import Engine\n"
        "with Engine() as first, Engine() as second:\n"
        "    for engine in (first, second):\n"
        # Where programs are started all the time some scans are in vain.
        "        print(any(engine.backend.mapped_frames()[2] for _ in range(50)))\n"
    )
    ran = as_user.run("-c", scans)
    assert ran.stdout == "True\nTrue\n", ran.stderr

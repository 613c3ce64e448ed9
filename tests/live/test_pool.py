"""A program whose memory is merged holds no way to the frames of others, nor to change one that it shares."""

from __future__ import annotations

import errno
import json
from typing import Any

import pytest

pytestmark = pytest.mark.needs("merge")

PAGES = 256

#: Tries what a program could try, and says what came of it.
PROGRAM = f"""
import ctypes, errno, json, mmap, os, sys
SIZE = {PAGES} * 4096
memory = mmap.mmap(-1, SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
first = ctypes.addressof(ctypes.c_char.from_buffer(memory))
content = b"".join(n.to_bytes(4, "little") + bytes(range(1, 256)) * 16 + bytes(12) for n in range({PAGES}))
memory[:] = content
libc = ctypes.CDLL(None, use_errno=True)
libc.mremap.restype = ctypes.c_size_t
libc.mremap.argtypes = [ctypes.c_size_t, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int]
def opened(path, how):
    try:
        os.close(os.open(path, how))
        return 0
    except OSError as error:
        return error.errno
print("ready", flush=True)
for line in sys.stdin:
    if line == "check\\n":
        print(json.dumps(memory[:] == content), flush=True)
        continue
    found = {{}}
    lines = [l for l in open("/proc/self/maps") if l.endswith("/memfd:pageone (deleted)\\n")]
    start, end = lines[0].split()[0].split("-")
    found["merged"] = len(lines)
    found["shared mappings"] = sum(l.split()[1].endswith("s") for l in lines)
    files = [os.readlink(f"/proc/self/fd/{{n}}") for n in os.listdir("/proc/self/fd") if n != "3"]
    found["descriptors"] = sum("pageone" in file for file in files)
    found["map_files"] = opened(f"/proc/self/map_files/{{start}}-{{end}}", os.O_RDONLY)
    again = libc.mremap(int(start, 16), 0, 4096, 1)  # a second mapping of the same, were it shared
    found["again"] = ctypes.get_errno() if again == 2**64 - 1 else 0
    # Past the protection, as a debugger would.
    own = os.open("/proc/self/mem", os.O_RDWR)
    found["written"] = os.pwrite(own, b"mine", first)
    memory[4096 : 2 * 4096] = bytes(4096)
    found["changed"] = memory[:4] == b"mine" and not any(memory[4096 : 2 * 4096])
    print(json.dumps(found), flush=True)
"""

DRIVER = """
import json, subprocess, sys
from pageone.engine import Engine
programs = [
    subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    for _ in range(2)
]
def ask(program, what):
    print(what, file=program.stdin, flush=True)
    return json.loads(program.stdout.readline())
try:
    for program in programs:
        assert program.stdout.readline() == "ready\\n"
    with Engine() as engine:
        for program in programs:
            engine.attach(program.pid)
        engine.merge_once(0.2)
        print(json.dumps([ask(programs[0], "try"), ask(programs[1], "check")]))
finally:
    for program in programs:
        program.kill()
"""


def test_a_program_can_neither_write_a_frame_nor_map_one_that_it_does_not_share(as_user: Any) -> None:
    ran = as_user.run("-c", DRIVER, PROGRAM)
    assert ran.returncode == 0, ran.stderr
    tried, other_unchanged = json.loads(ran.stdout)
    assert tried.pop("merged") >= 1
    assert tried == {
        "shared mappings": 0,
        "descriptors": 0,
        "map_files": errno.EPERM,
        "again": errno.EINVAL,
        "written": 4,
        "changed": True,
    }
    assert other_unchanged

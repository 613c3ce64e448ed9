"""What a program has said of its memory holds when it is merged, and after: hidden from children, for KSM, where."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import WITH_LIBC

from pageone import procfs
from pageone.engine import Engine
from pageone.live import backend

pytestmark = pytest.mark.needs("merge")

PAGES = 256

#: Hides its memory from children, and says on demand whether a child finds all of it (True), reads other bytes (False),
#: or lacks some (None). DOFORK takes the hiding back, of all or of the second half, which alone is looked at then.
PROGRAM = f"""
N, DONTFORK, DOFORK = {PAGES}, 10, 11
at = libc.mmap(0, N * SIZE, 3, 0x22, -1, 0)
assert libc.madvise(at, N * SIZE, DONTFORK) == 0
for k in range(N):
    ctypes.memmove(at + SIZE * k, page(k + 1), SIZE)
print("ready", flush=True)
seen = range(N)
for line in sys.stdin:
    if line.startswith("take back"):
        seen = range(N // 2 if line.endswith("half\\n") else 0, N)
        assert libc.madvise(at + SIZE * seen[0], len(seen) * SIZE, DOFORK) == 0
    child = os.fork()
    if not child:
        os._exit(not all(ctypes.string_at(at + SIZE * k, SIZE) == page(k + 1) for k in seen))
    status = os.waitpid(child, 0)[1]
    print({{0: True, 256: False, signal.SIGSEGV: None}}[status & ~128], flush=True)
"""


@pytest.fixture
def programs(spawn: Any) -> list[subprocess.Popen[str]]:
    started = [spawn.mapper(PROGRAM) for _ in range(2)]
    for program in started:
        assert program.stdout.readline() == "ready\n"
    return started


@pytest.fixture
def engine(programs: list[subprocess.Popen[str]]) -> Iterator[Engine]:
    with Engine() as engine:
        for program in programs:
            engine.attach(program.pid)
        engine.step()  # the advice is read
        yield engine


def test_what_is_hidden_from_children_stays_hidden(
    programs: list[subprocess.Popen[str]], engine: Engine, ask: Callable[..., str]
) -> None:
    assert engine.merge_once(0.2).merged_pages >= 2 * PAGES
    assert ask(programs[0], "fork") == "None"
    assert engine.detach(engine.targets[0])
    assert ask(programs[0], "fork") == "None"


def _take_back_before_merging(
    programs: list[subprocess.Popen[str]], engine: Engine, ask: Callable[..., str]
) -> list[str]:
    found = [ask(programs[0], "take back")]
    assert engine.merge_once(0.2).merged_pages >= 2 * PAGES
    found.append(ask(programs[0], "fork"))
    assert engine.detach(engine.targets[0])
    return [*found, ask(programs[0], "fork")]


def test_what_is_hidden_no_more_is_there(
    programs: list[subprocess.Popen[str]], engine: Engine, ask: Callable[..., str]
) -> None:
    assert _take_back_before_merging(programs, engine, ask) == ["True"] * 3


def test_without_asking_again_it_is_not(
    programs: list[subprocess.Popen[str]], ask: Callable[..., str], activate: Callable[[str], None], request: Any
) -> None:
    activate("hidden")
    engine = request.getfixturevalue("engine")
    assert _take_back_before_merging(programs, engine, ask) == ["True", "None", "None"]


def test_what_lies_beside_hidden_memory_is_there(
    programs: list[subprocess.Popen[str]], engine: Engine, ask: Callable[..., str]
) -> None:
    assert ask(programs[0], "take back half") == "True"
    # Two new mappings: their advice is read when that has not been done for a while.
    deadline = time.monotonic() + 20
    while sum(target.stats.merged_pages for target in engine.targets) < 2 * PAGES:
        assert time.monotonic() < deadline
        engine.merge_once(0.2)
    assert ask(programs[0], "fork") == "True"


def test_what_is_hidden_no_more_after_it_was_merged_is_there_when_given_back(
    programs: list[subprocess.Popen[str]], engine: Engine, ask: Callable[..., str]
) -> None:
    assert engine.merge_once(0.2).merged_pages >= 2 * PAGES
    assert ask(programs[0], "take back") == "True"
    assert engine.detach(engine.targets[0])
    assert ask(programs[0], "fork") == "True"


#: Says "ready" when two ranges are filled, the second of them meant for KSM ("ksm") or placed on a node ("node").
MARKED = """
N = 64
ranges = [libc.mmap(0, (N + 1) * SIZE, 0, 0x22, -1, 0) for _ in range(2)]
for n, at in enumerate(ranges):
    assert libc.mprotect(word(at), word(N * SIZE), 3) == 0
    for k in range(N):
        ctypes.memmove(at + SIZE * k, page(1000 * n + k + 1), SIZE)
if sys.argv[1] == "ksm":
    assert libc.madvise(ranges[1], N * SIZE, 12) == 0
elif libc.syscall(237, word(ranges[1]), word(N * SIZE), word(2), ctypes.byref(ctypes.c_ulong(1)), word(8), word(0)):
    print("no policies")
print("ready", *ranges, flush=True)
sys.stdin.read()
"""


def marked(spawn: Any, what: str) -> tuple[list[int], list[int]]:
    programs = [spawn.python(WITH_LIBC + MARKED, what) for _ in range(2)]
    told = [program.stdout.readline().split() for program in programs]
    if told[0][0] != "ready":
        pytest.skip(" ".join(told[0]))
    return [program.pid for program in programs], [int(at) for at in told[0][1:]]


def flags_at(pid: int, at: int) -> tuple[str, frozenset[str]]:
    """Return the name of the mapping at an address, and its flags."""
    text = Path(f"/proc/{pid}/smaps").read_text()
    names = {int(line[: line.index("-")], 16): line for line in text.splitlines() if " rw-p " in line}
    return names[at].split(maxsplit=5)[-1] if len(names[at].split()) > 5 else "", procfs.mapping_flags_in(text)[at]


def test_memory_meant_for_ksm_stays_so(spawn: Any) -> None:
    if not Path("/sys/kernel/mm/ksm").exists():
        pytest.skip("a kernel without KSM")
    pids, (_, its) = marked(spawn, "ksm")
    with Engine() as engine:
        targets = [engine.attach(pid) for pid in pids]
        deadline = time.monotonic() + 20
        while "pageone" not in flags_at(pids[0], its)[0]:
            assert time.monotonic() < deadline
            engine.merge_once(0.2)
        assert "mg" in flags_at(pids[0], its)[1]
        assert engine.detach(targets[0])
    name, flags = flags_at(pids[0], its)
    assert not name
    assert "mg" in flags


def test_memory_with_a_place_of_its_own_is_left_alone_where_there_are_several(
    spawn: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend, "_SEVERAL_NODES", True)
    pids, (other, its) = marked(spawn, "node")
    with Engine() as engine:
        for pid in pids:
            engine.attach(pid)
        deadline = time.monotonic() + 20
        while "pageone" not in flags_at(pids[0], other)[0]:
            assert time.monotonic() < deadline
            engine.merge_once(0.2)
        assert not flags_at(pids[0], its)[0]


#: Two programs, each with two ranges of 64 pages of the same bytes, the second mapped with MAP_NORESERVE; merged, a
#: part of them discarded, another mapped anew, and given back. Prints after each what mappings there are of the second:
#: first page, behind its last, and how they count.
UNRESERVED = """
import json, subprocess, sys, time
from pathlib import Path
from pageone.engine import Engine
from pageone.procfs import mapping_flags_in
def counts():
    text = Path(f"/proc/{pid}/smaps").read_text()
    flags = mapping_flags_in(text)
    pieces = [line.split()[0].split("-") for line in text.splitlines() if " rw-p " in line]
    pieces = [(int(start, 16), int(end, 16)) for start, end in pieces]
    pieces = [(start, end) for start, end in pieces if at <= start < at + 64 * 4096]
    return [[(start - at) // 4096, (end - at) // 4096, *sorted(flags[start] & {"nr", "ac"})] for start, end in pieces]
def frames(*ranges):
    lines = [line for line in Path(f"/proc/{pid}/maps").read_text().splitlines() if "memfd:pageone" in line]
    its = [[int(edge, 16) for edge in line.split()[0].split("-")] for line in lines]
    return sum((end - start) // 4096 for start, end in its for at in ranges if at <= start < at + 64 * 4096)
def ask(one, what):
    one.stdin.write(what + chr(10))
    one.stdin.flush()
    return one.stdout.readline().split()
def until(so):
    deadline = time.monotonic() + 20
    while not so():
        assert time.monotonic() < deadline, counts()
        engine.merge_once(0.1)
pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
programs = [subprocess.Popen([sys.executable, "-u", "-c", sys.argv[1]], **pipes) for _ in "ab"]
try:
    other, at = map(int, programs[0].stdout.readline().split())
    programs[1].stdout.readline()
    pid = programs[0].pid
    with Engine() as engine:
        first, second = [engine.attach(one.pid) for one in programs]
        until(lambda: frames(other, at) == 128)
        seen = [counts()]
        went = ask(programs[0], "discard")
        seen.append(counts())
        for one in programs:
            went += ask(one, "map anew")
        until(lambda: frames(at) == 62)
        went += ask(programs[0], "look")
        gone = engine.detach(first)
        seen.append(counts())
        went += ask(programs[0], "look")
    print(json.dumps([seen, went, gone, frames(other, at)]))
finally:
    for one in programs:
        one.kill()
"""

NOT_PROMISED = """
N = 64
ranges = [libc.mmap(0, (N + 2) * SIZE, 0, 0x22 | flag, -1, 0) + SIZE for flag in (0, 0x4000)]
def fill(n, some):
    for k in some:
        ctypes.memmove(ranges[n] + SIZE * k, page(1000 * n + k + 1), SIZE)
for n in range(2):
    assert libc.mprotect(word(ranges[n]), word(N * SIZE), 3) == 0
    fill(n, range(N))
print(*ranges, flush=True)
zero = set()
for line in sys.stdin:
    if line == "discard\\n":
        assert libc.madvise(ranges[1] + 4 * SIZE, 2 * SIZE, 4) == 0
        zero = {4, 5}
    elif line == "map anew\\n":
        assert libc.mmap(ranges[1] + 20 * SIZE, 24 * SIZE, 3, 0x32, -1, 0) == ranges[1] + 20 * SIZE
        fill(1, range(20, 44))
    read = [ctypes.string_at(ranges[1] + SIZE * k, SIZE) for k in range(N)]
    print(all(read[k] == (bytes(SIZE) if k in zero else page(1000 + k + 1)) for k in range(N)), flush=True)
"""


@pytest.mark.parametrize("who", ["root or this user", "an ordinary user"])
def test_memory_that_is_not_promised_stays_so_merged_discarded_and_given_back(
    who: str, as_user: Any, python: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    if Path("/proc/sys/vm/overcommit_memory").read_text().strip() == "2":
        pytest.skip("the kernel promises all memory here")
    arguments = ("-c", UNRESERVED, WITH_LIBC + NOT_PROMISED)
    if who == "an ordinary user":
        if not as_user.is_other:
            pytest.skip("this is an ordinary user")
        done = as_user.run(*arguments)
    else:
        done = python(*arguments)
    assert done.returncode == 0, done.stderr
    (merged, discarded, given_back), went, gone, frames = json.loads(done.stdout)
    assert merged == [[0, 64, "nr"]]
    assert {tuple(piece[2:]) for piece in discarded} == {("nr",)}
    assert given_back == [[0, 20, "nr"], [20, 44, "ac"], [44, 64, "nr"]]
    assert set(went) == {"True"}
    assert gone
    assert frames == 0

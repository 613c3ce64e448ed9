"""A program that is stopped again and again sees from transfers and time-outs what it would see without."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import random
import select
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pageone.engine.backend import PAGE_SIZE, PageOutcome, TargetMemory
from pageone.errors import TargetError
from pageone.live import LiveBackend

pytestmark = pytest.mark.needs("merge")

SECONDS = 3.0
LONG_S = 36_000
MANY = 20_000
BYTES = 1 << 18
BYTES_SOAK = 1 << 20
PERIOD_S = 0.05
PAGES = 64
LARGE = 1 << 20
#: Stops that a run must have made to have shown something, however busy the machine is.
STOPS = 10
#: How long a run may take: some 20 s, but on a very busy machine most stops of the threads, 70 and more, come too late.
RUN_S = 240
#: The number of the system call in which a stopped transfer waits.
PPOLL = {"x86_64": "271", "aarch64": "73"}.get(platform.machine(), "")
#: How long something is waited for that takes no time but on a very busy machine.
PATIENCE_S = 60


@pytest.fixture
def backend() -> Iterator[LiveBackend]:
    made = LiveBackend(pool_bytes=1 << 20, stop_timeout_s=0.5)
    try:
        yield made
    finally:
        made.close()


# --- every kind side by side --------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def transfers(compiled: Callable[..., Path]) -> Path:
    return compiled(Path(__file__).with_name("programs") / "transfers.c")


#: Merges the program's pages at rest and unmerges them again, until it ends, or ends it when it has been stopped often
#: enough; prints how often that was.
DRIVER = f"""
import json, subprocess, sys, time
import numpy as np
from pageone.engine.backend import PAGE_SIZE
from pageone.errors import TargetError
from pageone.live import LiveBackend
pause, seconds, stops, *argv = sys.argv[1:]
program = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
rest = int(program.stdout.readline().split()[1])
backend = LiveBackend(pool_bytes=1 << 20, stop_timeout_s=0.5)
memory = backend.attach(program.pid)
program.stdin.write("x\\n")
program.stdin.flush()
memory.regions()
time.sleep(0.1)
address, pages, frame = np.array([rest], np.uint64), np.array([{PAGES}], np.uint32), np.array([0], np.uint32)
each = rest + PAGE_SIZE * np.arange({PAGES}, dtype=np.uint64)
backend.fill(np.arange({PAGES}, dtype=np.uint32), memory, each)
done = 0
began = time.monotonic()
while program.poll() is None:
    if done >= int(stops) and time.monotonic() - began > float(seconds):
        program.stdin.close()
        break
    for go in (lambda: memory.merge(address, pages, frame), lambda: memory.unmerge(address, pages)):
        try:
            memory.regions()
            done += int((go().code == 0).all())
            memory.written(address, address + np.uint64({PAGES} * PAGE_SIZE))
        except TargetError as error:  # it has ended, or could not be reached on a busy machine
            print(error, file=sys.stderr)
        time.sleep(float(pause))
print(json.dumps([done, program.wait(), program.stdout.read()]))
backend.close()
"""


def _verdict(done: subprocess.CompletedProcess[str], stops: int) -> None:
    assert done.returncode == 0, done.stderr
    made, code, told = json.loads(done.stdout)
    print(f"{made} stops: {told}")
    assert code == 0, told
    assert told.startswith("OK"), told
    assert made >= stops, f"only {made} stops: {told}"


def _arguments(program: Path, folder: Path, wanted: int, size: int) -> list[str]:
    seed = random.randrange(1 << 30)
    print("seed", seed)
    return [str(a) for a in (program, folder, LONG_S, wanted, size, seed)]


@pytest.mark.timeout(RUN_S + 30)
@pytest.mark.needs("gcc")
def test_no_transfer_of_any_kind_is_cut_short_or_interrupted(transfers: Path, tmp_path: Path, spawn: Any) -> None:
    argv = _arguments(transfers, tmp_path, 0, BYTES)
    process = spawn.python(DRIVER, "0.01", str(SECONDS), str(STOPS), *argv)
    out, err = process.communicate(timeout=RUN_S)
    _verdict(subprocess.CompletedProcess(argv, process.returncode, out, err), STOPS)


@pytest.mark.timeout(RUN_S + 30)
@pytest.mark.needs("gcc")
def test_nor_under_the_engine_of_an_ordinary_user(transfers: Path, as_user: Any) -> None:
    argv = _arguments(transfers, as_user.folder / "home", 0, BYTES)
    _verdict(as_user.run("-c", DRIVER, "0.01", str(SECONDS), str(STOPS), *argv, timeout=RUN_S), STOPS)


@pytest.mark.soak
@pytest.mark.needs("gcc")
def test_none_of_twenty_thousand_large_ones_of_each_kind_is(transfers: Path, tmp_path: Path, spawn: Any) -> None:
    argv = _arguments(transfers, tmp_path, MANY, BYTES_SOAK)
    process = spawn.python(DRIVER, str(PERIOD_S), str(LONG_S), "0", *argv)
    out, err = process.communicate()
    _verdict(subprocess.CompletedProcess(argv, process.returncode, out, err), MANY // 100)


# --- one transfer, step by step -----------------------------------------------------------------------------------

#: Makes one large call of each line that it is given, on a descriptor that it has inherited, and tells the result.
CALLER = f"""
import json, mmap, os, signal, socket, sys, threading, time
LARGE, PAGES = {LARGE}, {PAGES}
rest = mmap.mmap(-1, PAGES * 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
for k in range(PAGES):
    rest[4096 * k : 4096 * k + 4096] = bytes([k + 1]) * 4096
import ctypes
print(ctypes.addressof(ctypes.c_char.from_buffer(rest)), flush=True)
handled = []
def call(what, fd):
    since = time.monotonic()
    try:
        if what == "write":
            n = os.write(fd, b"w" * LARGE)
        elif what == "send":
            n = socket.socket(fileno=os.dup(fd)).send(b"w" * LARGE)
        elif what == "receive":
            n = len(socket.socket(fileno=os.dup(fd)).recv(LARGE, socket.MSG_WAITALL))
    except OSError as error:
        n = -error.errno
    print(json.dumps([n, handled]), flush=True)
for line in sys.stdin:
    what, *rest_of = line.split()
    if what == "handle":
        signal.signal(int(rest_of[0]), lambda n, f: handled.append(n))
        signal.siginterrupt(int(rest_of[0]), rest_of[1] == "interrupt")
        print("ready", flush=True)
    elif what == "discard":
        since = time.monotonic()
        rest.madvise(mmap.MADV_DONTNEED)
        print(json.dumps([rest[:] == bytes(PAGES * 4096), time.monotonic() - since]), flush=True)
    elif what == "replace":
        os.dup2(os.memfd_create("other"), int(rest_of[0]))
        print("replaced", flush=True)
    elif what == "other":
        print(os.fstat(int(rest_of[0])).st_size, flush=True)
    elif what == "aside":
        threading.Thread(target=call, args=(rest_of[0], int(rest_of[1])), daemon=True).start()
    else:
        call(what, int(rest_of[0]))
"""


class Caller:
    """A program that makes a large call on one end of a pipe or socket, of which the test has the other."""

    def __init__(self, spawn: Any, theirs: int, ours: int) -> None:
        self.fd, self.ours = theirs, ours
        self.process = spawn.python(CALLER, pass_fds=[theirs])
        self.pid = self.process.pid
        self.rest = int(self.process.stdout.readline())

    def begin(self, what: str) -> None:
        self.tell(f"{what} {self.fd}")

    def tell(self, what: str) -> None:
        self.process.stdin.write(what + "\n")
        self.process.stdin.flush()

    def answer(self) -> Any:
        readable, _, _ = select.select([self.process.stdout], [], [], PATIENCE_S)
        assert readable, f"it does not answer: {self.threads()}"
        return json.loads(self.process.stdout.readline())

    def threads(self) -> list[tuple[str, ...]]:
        """What each thread does, for whoever has to find out why it does not go on."""
        found = []
        for task in Path(f"/proc/{self.pid}/task").iterdir():
            kept = ("State", "TracerPid", "Sig", "Shd")
            status = [line for line in (task / "status").read_text().splitlines() if line.startswith(kept)]
            found.append((task.name, (task / "syscall").read_text(), (task / "wchan").read_text(), *status))
        return found

    def sleeps(self) -> None:
        """Wait until the first thread, or any other, has slept in the call for a while: it has done what it could."""
        until = time.monotonic() + 20
        before, same = "", 0
        while same < 5 and time.monotonic() < until:
            time.sleep(0.02)
            tasks = os.listdir(f"/proc/{self.pid}/task")
            stats = [Path(f"/proc/{self.pid}/task/{t}/stat").read_text().rsplit(") ", 1)[1].split() for t in tasks]
            state = repr([(s[0], s[11], s[12]) for s in stats])
            inside = any(self._is_in_the_call(t) for t in tasks)
            same = same + 1 if inside and state == before and all(s[0] == "S" for s in stats) else 0
            before = state
        assert same, "it has not begun"

    def _is_in_the_call(self, thread: str) -> bool:
        """Whether a thread waits in a call on a descriptor that is not standard input, or (once stopped) to go on."""
        words = Path(f"/proc/{self.pid}/task/{thread}/syscall").read_text().split()
        return len(words) > 1 and (2 < int(words[1], 16) < 1 << 16 or words[0] == PPOLL)

    def give(self, size: int) -> None:
        while size > 0:
            size -= os.write(self.ours, b"r" * size)

    def read(self, size: int) -> bytes:
        parts = []
        while size > 0:
            part = os.read(self.ours, size)
            assert part, "closed"
            parts.append(part)
            size -= len(part)
        return b"".join(parts)


@pytest.fixture(params=["write", "send", "receive"])
def caller(request: Any, spawn: Any) -> Iterator[tuple[Caller, str, Callable[[], Any]]]:
    """A program in the midst of a transfer, which call, and what lets it finish: returns the bytes, and its answer."""
    what = request.param
    if what == "write":
        ours, theirs = os.pipe()
        keep: list[Any] = []
    else:
        mine, other = socket.socketpair()
        keep = [mine, other]
        ours, theirs = mine.fileno(), other.fileno()
    program = Caller(spawn, theirs, ours)

    def finish() -> Any:
        if what == "receive":
            program.give(LARGE // 2)
        else:
            assert program.read(LARGE) == b"w" * LARGE
        return program.answer()

    program.begin(what)
    program.give(LARGE - LARGE // 2 if what == "receive" else 0)
    program.sleeps()
    yield program, what, finish
    for end in keep:
        end.close()
    if not keep:
        os.close(ours)
        os.close(theirs)


def _attach(backend: LiveBackend, pid: int) -> TargetMemory:
    """Attach to a process; on a busy machine it may not stop in time."""
    until = time.monotonic() + PATIENCE_S
    while True:
        try:
            return backend.attach(pid)
        except TargetError as error:
            if "in time" not in str(error) or time.monotonic() > until:
                raise


def _merge(backend: LiveBackend, memory: TargetMemory, rest: int) -> None:
    """Merge the pages at rest, whatever it takes."""
    address, pages, frame = np.array([rest], np.uint64), np.array([PAGES], np.uint32), np.array([0], np.uint32)
    each = rest + PAGE_SIZE * np.arange(PAGES, dtype=np.uint64)
    for _ in range(200):
        memory.regions()
        memory.written(address, address + np.uint64(PAGES * PAGE_SIZE))
        assert not backend.fill(np.arange(PAGES, dtype=np.uint32), memory, each)[0].any()
        code = memory.merge(address, pages, frame).code
        if (code == PageOutcome.DONE).all():
            return
        time.sleep(0.02)
    pytest.fail(f"not merged: {code}")


def test_a_transfer_in_whose_midst_a_program_is_attached_is_whole(caller: Any, backend: LiveBackend) -> None:
    program, _, finish = caller
    _attach(backend, program.pid)
    assert finish() == [LARGE, []]


def test_with_its_failpoint_it_is_not(caller: Any, activate: Callable[[str], None]) -> None:
    activate("transfers")
    program, _, _ = caller
    unguarded = LiveBackend(pool_bytes=1 << 20)
    try:
        _attach(unguarded, program.pid)
        n, _ = program.answer()
        assert 0 < n < LARGE
    finally:
        unguarded.close()


def test_so_is_one_that_was_stopped_many_times_and_detached(caller: Any, backend: LiveBackend) -> None:
    program, what, finish = caller
    memory = _attach(backend, program.pid)
    for _ in range(3):
        _merge(backend, memory, program.rest)
        memory.unmerge(np.array([program.rest], np.uint64), np.array([PAGES], np.uint32))
    memory.detach()
    assert finish() == [LARGE, []]
    memory = _attach(backend, program.pid)
    program.begin(what)
    program.give(100 if what == "receive" else 0)
    program.sleeps()
    _merge(backend, memory, program.rest)
    program.give(LARGE - LARGE // 2 - 100 if what == "receive" else 0)
    assert finish() == [LARGE, []]


def test_and_one_whose_guardian_is_killed(caller: Any, spawn: Any) -> None:
    program, _, finish = caller
    backend = LiveBackend(pool_bytes=1 << 20)
    try:
        _merge(backend, _attach(backend, program.pid), program.rest)
        os.kill(backend.guardian.pid, signal.SIGKILL)
        assert finish() == [LARGE, []]
    finally:
        backend.close()


def test_a_discard_does_not_wait_for_it(caller: Any, backend: LiveBackend) -> None:
    program, what, finish = caller
    assert finish() == [LARGE, []]
    program.begin(f"aside {what}")
    program.give(LARGE - LARGE // 2 if what == "receive" else 0)
    program.sleeps()
    _merge(backend, _attach(backend, program.pid), program.rest)
    program.tell("discard")
    zeros, took = program.answer()
    assert zeros
    assert took < 5
    assert finish() == [LARGE, []]


def test_nothing_goes_to_another_file_that_gets_the_number_of_a_closed_one(spawn: Any, backend: LiveBackend) -> None:
    mine, other = socket.socketpair()
    program = Caller(spawn, other.fileno(), mine.fileno())
    program.begin("aside write")
    program.sleeps()
    _attach(backend, program.pid)
    program.sleeps()
    program.tell(f"replace {other.fileno()}")
    assert program.process.stdout.readline() == "replaced\n"
    other.close()
    mine.setblocking(False)
    got = 0
    with contextlib.suppress(BlockingIOError):
        while part := mine.recv(1 << 20):
            got += len(part)
    n, _ = program.answer()
    assert n == got
    program.tell(f"other {program.fd}")
    assert program.process.stdout.readline() == "0\n"
    mine.close()


@pytest.mark.parametrize("stopped", [False, True])
@pytest.mark.parametrize("way", ["interrupt", "restart"])
@pytest.mark.parametrize("what", ["write", "receive"])
def test_a_signal_ends_it_with_what_was_done_whether_it_was_stopped_or_not(
    what: str, way: str, stopped: bool, spawn: Any, backend: LiveBackend
) -> None:
    mine, other = socket.socketpair()
    program = Caller(spawn, other.fileno(), mine.fileno())
    program.tell(f"handle {int(signal.SIGUSR1)} {way}")
    assert program.process.stdout.readline() == "ready\n"
    program.begin(what)
    if what == "receive":
        mine.send(b"r" * 1000)
    program.sleeps()
    if stopped:
        _attach(backend, program.pid)
    program.sleeps()
    os.kill(program.pid, signal.SIGUSR1)
    n, handled = program.answer()
    assert handled in ([], [signal.SIGUSR1])  # the interpreter runs its handlers when it likes
    if what == "receive":
        assert n == 1000
    else:
        mine.setblocking(False)
        got = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                got += len(mine.recv(1 << 20))
        assert 0 < n == got < LARGE
    mine.close()
    other.close()


#: Waits on a socket for a limited time again and again; tells how long it took, or what came instead.
WAITER = """
import socket, struct, sys, time
a, b = socket.socketpair()
a.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("qq", 1, 0))
print("ready", flush=True)
for line in sys.stdin:
    since = time.monotonic()
    try:
        a.recv(1)
        print("received", flush=True)
    except BlockingIOError:
        print(time.monotonic() - since, flush=True)
    except OSError as error:
        print(error, flush=True)
"""


def test_a_limited_wait_on_a_socket_ends_in_time_however_often_it_is_stopped(spawn: Any, backend: LiveBackend) -> None:
    program = spawn.python(WAITER)
    assert program.stdout.readline() == "ready\n"
    memory = _attach(backend, program.pid)
    ended = threading.Event()
    address, pages = np.array([0x1000], np.uint64), np.array([1], np.uint32)

    def stop() -> None:
        while not ended.wait(0.02):
            try:
                memory.unmerge(address, pages)
            except TargetError:
                return

    stopper = threading.Thread(target=stop)
    stopper.start()
    try:
        program.stdin.write("wait\n")
        program.stdin.flush()
        told = program.stdout.readline()
        assert 0.99 < float(told) < 3
    finally:
        ended.set()
        stopper.join()


#: An ordinary user's engine traces its programs all the time: signals that are ignored come to the tracer, too.
IGNORED = """
import json, os, signal, subprocess, sys, time
from pathlib import Path
from pageone.live import LiveBackend
ours, theirs = os.pipe()
code = f"import os; input(); print(os.write({theirs}, b'w' * (1 << 20)))"
pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
program = subprocess.Popen([sys.executable, "-c", code], pass_fds=[theirs], **pipes)
def sleeps():
    before, same = "", 0
    while same < 5:
        time.sleep(0.02)
        s = Path(f"/proc/{program.pid}/stat").read_text().rsplit(") ", 1)[1].split()
        state = (s[0], s[11], s[12])
        same = same + 1 if state == before and s[0] == "S" else 0
        before = state
sleeps()
backend = LiveBackend(pool_bytes=1 << 20)
backend.attach(program.pid)
program.stdin.write("\\n")
program.stdin.flush()
sleeps()
got = len(os.read(ours, 100_000))
for ignored in (signal.SIGCHLD, signal.SIGURG, signal.SIGWINCH):
    sleeps()
    os.kill(program.pid, ignored)
    sleeps()
    got += len(os.read(ours, 4096))
while got < 1 << 20:
    got += len(os.read(ours, 1 << 16))
print(program.stdout.readline())
backend.close()
"""


def test_a_signal_that_is_ignored_does_not_end_it_for_an_ordinary_user_either(as_user: Any) -> None:
    done = as_user.run("-c", IGNORED, timeout=50)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == LARGE

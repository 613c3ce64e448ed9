"""Users of the command line, each with engines of its own in a folder of its own, that end with the test."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pageone.service import protocol

MIB = 1 << 20

#: Memory that no other seed has, checked against the seed for every line that comes; ends with stdin.
WORKER = """
import mmap, os, random, sys
size, seed = int(sys.argv[1]), int(sys.argv[2])
made = lambda: random.Random(seed).randbytes(size)
data = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # on page boundaries, unlike the heap
data[:] = made()
print("ready", os.getpid(), flush=True)
for line in sys.stdin:
    print("right" if data[:] == made() else "WRONG", flush=True)
"""


def until(true: Callable[[], Any], seconds: float = 90.0) -> Any:
    """Wait for something to become true, and return it; fails the test when it does not."""
    end = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < end, f"still not so after {seconds} seconds"
        time.sleep(0.02)
    return found


def merged_bytes(pid: int) -> int:
    """Return how much of a process is mapped from a pool."""
    total = 0
    try:
        lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    for line in lines:
        if line.endswith("/memfd:pageone (deleted)"):
            start, end = line.split()[0].split("-")
            total += int(end, 16) - int(start, 16)
    return total


def pss(pid: int) -> int:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise AssertionError


class User:
    """Runs ``pageone`` as this user or another."""

    def __init__(self, folder: Path, python: str, options: dict[str, Any], uid: int) -> None:
        self.folder, self.python, self.uid = folder, python, uid
        self.options = options
        self.runtime = Path(options["env"]["XDG_RUNTIME_DIR"])
        self.pageone = str(folder / "pageone")
        Path(self.pageone).write_text(f"#!{python}\nfrom pageone.cli import main\nmain()\n")
        os.chmod(self.pageone, 0o755)
        self.worker = str(folder / "worker.py")
        Path(self.worker).write_text(WORKER)
        self.processes: list[subprocess.Popen[bytes]] = []

    def run(self, *args: str, timeout: float = 60, **options: Any) -> subprocess.CompletedProcess[bytes]:
        """Run ``pageone ARGS``, without the terminal that this test may have."""
        settings: dict[str, Any] = {"capture_output": True, "timeout": timeout, "stdin": subprocess.DEVNULL}
        if "input" in options:
            del settings["stdin"]
        return subprocess.run([self.pageone, *args], **(self.options | settings | options))

    def start(self, *argv: str, **options: Any) -> subprocess.Popen[bytes]:
        """Start a program; it is killed with its group at the end."""
        settings: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "start_new_session": True}
        process = subprocess.Popen(argv, **(self.options | settings | options))
        self.processes.append(process)
        return process

    def work(self, size: int, seed: int, *under: str) -> subprocess.Popen[bytes]:
        """Start a worker, under a command line such as ``pageone run --``, and wait until it is ready."""
        process = self.start(*under, self.python, self.worker, str(size), str(seed))
        assert process.stdout
        assert process.stdout.readline().startswith(b"ready")
        return process

    def status(self) -> list[dict[str, Any]]:
        """Return the engines, as ``pageone status --json`` has them, without the cost of a program for each reading."""
        found = []
        for path in sorted(self.runtime.glob("pageone/*.sock")):
            with socket.socket(socket.AF_UNIX) as connection:
                try:
                    connection.connect(str(path))
                    protocol.send(connection, {"do": "status"})
                    reply = protocol.receive(connection, protocol.REPLY_MAX)
                except OSError:
                    continue  # it has just ended
            if reply is not None and reply["ok"]:
                found.append(reply)
        return found

    def close(self) -> None:
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(timeout=20)
            for pipe in (process.stdin, process.stdout, process.stderr):
                if pipe:
                    with contextlib.suppress(OSError):
                        pipe.close()
        self.run("stop", "--leave")


def wait_periods(user: User, count: int) -> None:
    """Wait until the one engine of a user has done so many more periods."""
    last = user.status()[0]["stats"]["period"] + count
    until(lambda: user.status()[0]["stats"]["period"] >= last)


def right(process: subprocess.Popen[bytes]) -> bool:
    """Whether a worker finds all its bytes right."""
    assert process.stdin
    assert process.stdout
    process.stdin.write(b"\n")
    process.stdin.flush()
    return process.stdout.readline() == b"right\n"


@contextlib.contextmanager
def _folder(make_folder_for_all: Callable[[str], Path]) -> Iterator[Path]:
    made = make_folder_for_all("pageone-service-")
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


@pytest.fixture
def folder(make_folder_for_all: Callable[[str], Path]) -> Iterator[Path]:
    with _folder(make_folder_for_all) as made:
        yield made


def _user(kind: str, folder: Path, request: pytest.FixtureRequest) -> User:
    runtime = folder / "run"
    runtime.mkdir(mode=0o700)
    if kind == "ordinary user":
        other = request.getfixturevalue("as_user")
        os.chown(runtime, other.uid, -1)
        options = dict(other.identity)
        options["env"] = other.environment | {"XDG_RUNTIME_DIR": str(runtime)}
        return User(folder, other.python, options, other.uid)
    environment = dict(os.environ) | {"XDG_RUNTIME_DIR": str(runtime), "COLUMNS": "200"}
    return User(folder, sys.executable, {"env": environment, "cwd": "/"}, os.geteuid())


@pytest.fixture
def user(folder: Path, request: pytest.FixtureRequest) -> Iterator[User]:
    """This user; parametrized indirectly with ``"ordinary user"``, another one."""
    made = _user(getattr(request, "param", "this user"), folder, request)
    try:
        yield made
    finally:
        made.close()


both = pytest.mark.parametrize("user", ["this user", "ordinary user"], indirect=True)


@pytest.fixture(scope="module")
def busy(request: pytest.FixtureRequest, make_folder_for_all: Callable[[str], Path]) -> Iterator[User]:
    """This user (or, parametrized, another), whose engine runs already and ends with the module."""
    with _folder(make_folder_for_all) as folder:
        made = _user(getattr(request, "param", "this user"), folder, request)
        try:
            made.work(MIB, 99, made.pageone, "run", "--period", "0.1", "--")
            yield made
        finally:
            made.close()


both_busy = pytest.mark.parametrize("busy", ["this user", "ordinary user"], indirect=True)


class Terminal:
    """A shell on a pseudo-terminal, as a person uses it."""

    def __init__(self, user: User) -> None:
        self.master, slave = os.openpty()
        self.seen = b""
        script = "PS1='>' PS2= HISTFILE= exec bash --norc --noediting -i"
        self.shell = user.start(
            "bash",
            "-c",
            script,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(slave)
        self.say(f'pageone() {{ {shlex.quote(user.pageone)} "$@"; }}; stty -echo')
        self.say("echo be''gun")
        self.expect(b"begun")

    def say(self, line: str) -> None:
        os.write(self.master, line.encode() + b"\n")

    def press(self, key: bytes) -> None:
        os.write(self.master, key)

    def expect(self, text: bytes, seconds: float = 90) -> bytes:
        """Read until ``text`` comes; returns what came before it."""
        end = time.monotonic() + seconds
        while text not in self.seen:
            left = end - time.monotonic()
            assert left > 0, f"no {text!r} in {self.seen!r}"
            if select.select([self.master], [], [], left)[0]:
                self.seen += os.read(self.master, 4096)
        before, _, self.seen = self.seen.partition(text)
        return before

    def close(self) -> None:
        os.close(self.master)


@pytest.fixture
def terminal(busy: User) -> Iterator[Terminal]:
    made = Terminal(busy)
    try:
        yield made
    finally:
        made.close()

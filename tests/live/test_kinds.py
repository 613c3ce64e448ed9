"""Memory that the kernel or a device writes behind the page tables is left alone, whatever way it was registered."""

from __future__ import annotations

import ctypes
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pageone._native import mem
from pageone.engine import Engine
from pageone.errors import TargetError
from pageone.live import preflight

pytestmark = pytest.mark.needs("merge", "gcc")

#: Two programs of one kind, merged, or tried to be: with what they are for begun before they are attached, or after all
#: of their memory has been merged. Prints what was refused, what was found open, how many pages were merged before and
#: after, and whether what they do goes right.
DRIVER = """
import json, subprocess, sys
from pageone.engine import Engine
from pageone.errors import TargetError
program, kind, when = sys.argv[1:]
found = {"refused": [], "left_alone": [], "merged": [], "went": []}
def ask(one, what):
    one.stdin.write(what + chr(10))
    one.stdin.flush()
    answer = one.stdout.readline().strip()
    if answer.startswith("SKIP"):
        print(json.dumps({"skip": answer[5:]}))
        raise SystemExit
    return answer
programs = [subprocess.Popen([program, kind], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in "ab"]
try:
    for one in programs:
        assert one.stdout.readline() == "ready\\n"
        if when == "before":
            assert ask(one, "open") == "open"
    with Engine() as engine:
        for one in programs:
            try:
                engine.attach(one.pid)
            except TargetError as error:
                found["refused"].append(str(error))
        found["merged"].append(engine.merge_once(0.1).merged_pages if engine.targets else 0)
        if when == "after":
            for one in programs:
                assert ask(one, "open") == "open"
        for _ in range(3):
            engine.merge_once(0.1)
        found["left_alone"] = [target.stats.left_alone for target in engine.targets]
        found["merged"].append(sum(target.stats.merged_pages for target in engine.targets))
        found["went"] = [ask(one, "go") for one in programs for _ in range(3)]
        found["counted"] = engine.stats.left_alone
finally:
    for one in programs:
        one.kill()
print(json.dumps(found))
"""


@pytest.fixture
def program(compiled: Callable[..., Path]) -> Path:
    return compiled(Path(__file__).parent / "programs" / "kinds.c")


def told(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    if "skip" in found:
        pytest.skip(found["skip"])
    return found


@pytest.fixture(params=["root or this user", "an ordinary user"])
def drive(request: Any, program: Path) -> Callable[[str, str], dict[str, Any]]:
    if request.param == "an ordinary user":
        as_user = request.getfixturevalue("as_user")
        if not as_user.is_other:
            pytest.skip("this is an ordinary user")
        return lambda kind, when: told(as_user.run("-c", DRIVER, str(program), kind, when))
    argv = [sys.executable, "-c", DRIVER, str(program)]
    return lambda kind, when: told(
        subprocess.run([*argv, kind, when], capture_output=True, text=True, timeout=60, check=False)
    )


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(("kind", "name"), [("ring", "io_uring"), ("buffer", "io_uring"), ("umem", "protocol XDP")])
def test_what_is_registered_with_the_kernel_works_on(
    drive: Callable[[str, str], dict[str, Any]], kind: str, name: str, when: str
) -> None:
    found = drive(kind, when)
    assert found["went"] == ["right"] * 6, found
    if found["refused"]:
        assert when == "before"
        assert all(name in reason for reason in found["refused"])
    else:
        assert all(name in reason for reason in found["left_alone"]), found
        assert found["counted"] == 2
    if when == "before":
        assert found["merged"] == [0, 0]
    else:
        assert found["merged"][0] >= 64  # there was something to lose


def wait_until(engine: Engine, so: Callable[[], bool]) -> None:
    """Do periods until it is so: descriptors are not scanned in each."""
    deadline = time.monotonic() + 20
    while not so():
        assert time.monotonic() < deadline
        engine.step()


def test_what_was_merged_before_stays_merged_and_in_the_books_until_it_can_be_given_back(
    spawn: Any, program: Path, ask: Callable[..., str]
) -> None:
    programs = [spawn([program, "ring"]) for _ in range(2)]
    for one in programs:
        assert one.stdout.readline() == "ready\n"
    with Engine() as engine:
        first, _ = [engine.attach(one.pid) for one in programs]
        assert engine.merge_once(0.1).merged_pages >= 128
        answer = ask(programs[0], "open")
        if answer != "open":
            pytest.skip(answer)
        wait_until(engine, lambda: first.stats.left_alone == "anon_inode:[io_uring]")
        assert first.stats.mapped_pages >= 64
        with pytest.raises(TargetError, match="could not be given their own memory"):
            engine.detach(first)
        assert ask(programs[0], "go") == "right"
        assert ask(programs[0], "close") == "closed"
        wait_until(engine, lambda: not first.stats.left_alone)
        assert engine.detach(first)
    assert "memfd:pageone" not in Path(f"/proc/{programs[0].pid}/maps").read_text()


def behind(pid: int | None = None) -> str | None:
    return mem.Kinds().behind(os.getpid() if pid is None else pid)


def _device(path: str, flags: int = os.O_RDONLY | os.O_NONBLOCK) -> Callable[[], int]:
    return lambda: os.open(path, flags)


def _call(number: int, *arguments: int) -> Callable[[], int]:
    def call() -> int:
        fd = int(ctypes.CDLL(None, use_errno=True).syscall(number, *map(ctypes.c_long, arguments)))
        if fd < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        return fd

    return call


def _socket(*kind: int) -> Callable[[], int]:
    return lambda: socket.socket(*kind).detach()


HARMLESS: dict[str, Callable[[], int]] = {
    "null": _device("/dev/null"),
    "zero": _device("/dev/zero"),
    "urandom": _device("/dev/urandom"),
    "terminal": lambda: os.openpty()[1],
    "kvm": _device("/dev/kvm", os.O_RDWR),
    "fuse": _device("/dev/fuse", os.O_RDWR),
    "tun": _device("/dev/net/tun", os.O_RDWR),
    "vsock": _device("/dev/vsock"),
    "disk": _device("/dev/loop0"),
    "file": _device(__file__),
    "folder": _device("/"),
    "proc": _device("/proc/self/status"),
    "namespace": _device("/proc/self/ns/net"),
    "memfd": lambda: os.memfd_create("x"),
    "pipe": lambda: os.pipe()[0],
    "eventfd": _call(290, 0, 0),
    "epoll": _call(291, 0),
    "inotify": _call(294, 0),
    "timerfd": _call(283, 1, 0),
    "pidfd": _call(434, os.getpid(), 0),
    "userfaultfd": _call(323, 1),
    "unix": _socket(socket.AF_UNIX, socket.SOCK_DGRAM),
    "tcp": _socket(socket.AF_INET, socket.SOCK_STREAM),
    "udp6": _socket(socket.AF_INET6, socket.SOCK_DGRAM),
    "netlink": _socket(socket.AF_NETLINK, socket.SOCK_RAW),
    "packet": _socket(socket.AF_PACKET, socket.SOCK_RAW),
}


@pytest.mark.parametrize("kind", HARMLESS)
def test_what_ordinary_programs_have_open_is_known_to_be_harmless(kind: str) -> None:
    assert behind() is None
    try:
        fd = HARMLESS[kind]()
    except OSError as error:
        pytest.skip(f"not to be had here: {error}")
    try:
        assert behind() is None
    finally:
        os.close(fd)


def test_what_is_not_known_counts_as_dangerous() -> None:
    # No device: of the kinds of files that the kernel makes, one that nobody would merge a program with.
    parameters = ctypes.create_string_buffer(120)
    try:
        fd = _call(425, 8, ctypes.addressof(parameters))()
    except OSError as error:
        pytest.skip(f"no io_uring here: {error}")
    try:
        assert behind() == "anon_inode:[io_uring]"
    finally:
        os.close(fd)
    assert behind() is None


#: Has a thread with a descriptor table of its own, in which alone it opens a socket of AF_XDP.
THREAD = """
import socket, threading
def go():
    assert libc.unshare(0x400) == 0
    try:
        its = socket.socket(44, socket.SOCK_RAW, 0)
    except OSError as error:
        print("SKIP", error, flush=True)
        os._exit(0)
    print("ready", flush=True)
    sys.stdin.readline()
threading.Thread(target=go).start()
"""


@pytest.mark.needs("root")
def test_the_table_of_a_thread_is_looked_at_too(spawn: Any) -> None:
    one = spawn.mapper(THREAD)
    line = one.stdout.readline()
    if line != "ready\n":
        pytest.skip(f"no AF_XDP here: {line}")
    assert behind(one.pid) == "a socket of protocol XDP"
    with pytest.raises(TargetError, match="protocol XDP"):
        preflight.check(one.pid)

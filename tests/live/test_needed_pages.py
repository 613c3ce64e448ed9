"""A page that the kernel itself writes while calls run inside a target is not moved from under it."""

from __future__ import annotations

import platform
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from pageone.engine.backend import PAGE_SIZE, PageOutcome, TargetMemory
from pageone.live import LiveBackend

pytestmark = [
    pytest.mark.needs("merge"),
    pytest.mark.skipif(platform.machine() != "x86_64", reason="asks for the thread's own data as x86-64 has it"),
]

#: How long something is waited for that takes no time but on a very busy machine.
PATIENCE_S = 40

#: Tells where the kernel keeps its part of restartable sequences: at an offset from the thread's own data, by glibc.
SLEEPER = """
import ctypes, sys
libc = ctypes.CDLL(None)
libc.pthread_self.restype = ctypes.c_void_p
try:
    size = ctypes.c_uint.in_dll(libc, "__rseq_size").value
    area = libc.pthread_self() + ctypes.c_ssize_t.in_dll(libc, "__rseq_offset").value if size else 0
except ValueError:
    area = 0
print(area, flush=True)
for line in sys.stdin:
    print("here", flush=True)
"""


@pytest.fixture
def backend() -> Iterator[LiveBackend]:
    made = LiveBackend(pool_bytes=1 << 20)
    try:
        yield made
    finally:
        made.close()


def _wait_until_at_rest(memory: TargetMemory, page: int) -> None:
    """Look until the page has been written no more: the kernel writes it when the thread wakes, too."""
    start, end = np.array([page], np.uint64), np.array([page + PAGE_SIZE], np.uint64)
    unwritten, deadline = 0, time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        unwritten = 0 if len(memory.written(start, end).start) else unwritten + 1
        if unwritten == 3:
            return
    pytest.fail("the page is written all the time")


def _merge(backend: LiveBackend, process: subprocess.Popen[str], *passing: PageOutcome) -> PageOutcome:
    """Ask for the page to be exchanged for a frame with the same bytes; return what came of it.

    Asked again when the thread had just woken, and after the codes in ``passing``.
    """
    assert process.stdout
    area = int(process.stdout.readline())
    if not area:
        pytest.skip("needs a C library with restartable sequences (glibc 2.35)")
    page = area & ~(PAGE_SIZE - 1)
    memory = backend.attach(process.pid)
    deadline = time.monotonic() + PATIENCE_S
    while not (((regions := memory.regions()).start <= page) & (page < regions.end)).any():
        assert time.monotonic() < deadline, "no mapping that is tracked holds the page"
        time.sleep(0.01)  # a small mapping is not used at once
    address, frame = np.array([page], np.uint64), np.array([0], np.uint32)
    while time.monotonic() < deadline:
        _wait_until_at_rest(memory, page)
        assert backend.fill(frame, memory, address)[0] == 0
        code = PageOutcome(int(memory.merge(address, np.array([1], np.uint32), frame).code[0]))
        if code not in (PageOutcome.WRITTEN, PageOutcome.DIFFERS, PageOutcome.TIMEOUT, *passing):
            return code
        time.sleep(0.01)
    pytest.fail("never at rest long enough to be asked for")


def _answer(process: subprocess.Popen[str], line: str = "") -> str:
    assert process.stdin
    assert process.stdout
    process.stdin.write(line + "\n")
    process.stdin.flush()
    return process.stdout.readline().strip()


def test_the_page_that_the_kernel_writes_when_a_thread_was_preempted_stays_where_it_is(
    spawn: Any, backend: LiveBackend
) -> None:
    process = spawn.python(SLEEPER)
    assert _merge(backend, process) == PageOutcome.REFUSED
    assert _answer(process) == "here"


def test_with_its_failpoint_that_page_is_moved(spawn: Any, activate: Callable[[str], None]) -> None:
    activate("rseq")
    unguarded = LiveBackend(pool_bytes=1 << 20)
    try:
        process = spawn.python(SLEEPER)
        # If its thread is preempted just then the program dies of it: that is what the safeguard is for.
        assert _merge(unguarded, process) == PageOutcome.DONE or process.wait(20) == -signal.SIGSEGV
    finally:
        unguarded.close()


#: Its first thread waits in a call that a list would make lose its timeout, so that the second, which answers, is
#: chosen for lists; told to, it waits in another, and is chosen itself. Told again it says whether the kernel knows its
#: part of restartable sequences, and has written there which processor it runs on.
TWO_THREADS = (
    SLEEPER.split("print(area")[0]
    + """
import ctypes, os, select, threading
libc = ctypes.CDLL(None, use_errno=True)
RSEQ, SIGNATURE = 334, 0x53053053  # number of the call, and what the C library registers with, on x86-64
print(area, flush=True)
ours, theirs = os.pipe()
def answer():
    for line in sys.stdin:
        print("here", flush=True)
        if line == "go on\\n":
            os.write(theirs, b".")
threading.Thread(target=answer, daemon=True).start()
waits = select.poll()
waits.register(ours, select.POLLIN)
waits.poll(1_000_000)
os.read(ours, 1)
os.read(ours, 1)
os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
again = libc.syscall(RSEQ, ctypes.c_void_p(area), max(size, 32), 0, SIGNATURE)
right = ctypes.c_uint.from_address(area + 4).value == max(os.sched_getaffinity(0))
print("known" if (again, ctypes.get_errno()) == (-1, 16) else "unknown", "right" if right else "wrong", flush=True)
"""
)


def test_such_a_page_of_another_thread_is_merged_and_written_anew_when_it_is_given_back(
    spawn: Any, backend: LiveBackend
) -> None:
    process = spawn.python(TWO_THREADS)
    # Refused until the first thread has come to its wait.
    assert _merge(backend, process, PageOutcome.REFUSED) == PageOutcome.DONE
    assert _answer(process, "go on") == "here"
    memory = backend.targets[process.pid]
    regions = memory.regions()
    merged = regions.merged.astype(bool)
    pages = ((regions.end - regions.start)[merged] // PAGE_SIZE).astype(np.uint32)
    assert pages.sum() == 1
    assert memory.unmerge(regions.start[merged], pages).code.tolist() == [PageOutcome.DONE]
    memory.detach()
    assert _answer(process, "go on") == "here"
    assert process.stdout.readline() == "known right\n"

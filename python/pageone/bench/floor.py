"""What the kernel alone takes for the calls that no merging from user space can do without: the floor under the engine.

For: ``pageone bench engine``, which prints it beside the engine's own figures, measured in the same run on the same
machine. Nothing is decided, compared with other pages or accounted for here: memory of another process is read, frames
are written, pages are replaced by frames and compared with them, threads are stopped (with the guardian's own code, for
Python's part in 64 threads would be as much again). Else standard library and numpy only.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import numpy as np

from pageone._native import mem
from pageone.bench._victims import GIB_PAGES

PAGE = 4096

PIECE = 512  #: pages a call: what the engine reads at once
RUN = 256  #: pages of one replacement, about what one stop of the engine does
LONE = 20_000  #: pages replaced one by one; each costs two mappings
STOPS = 200

MADV_NOHUGEPAGE, MADV_POPULATE_READ = 15, 22
FIXED = 0x10

__all__ = ["floor"]

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_libc.memcmp.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]


class _Range(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]


def floor(pages: int) -> dict[str, Any]:
    """Measure on ``pages`` pages; CPU-seconds a GiB of tracked memory for the cases of ``pageone bench engine``.

    ``unique``: every page read once. ``runs``: that, and half of the pages copied into frames, and all replaced by
    frames and compared with them. ``scattered``: half of the pages have a twin, each replaced by itself.
    ``stop_ms``: all 64 sleeping threads of a process stopped and released, and nothing done. Cost: some seconds.
    """
    read = _reading(pages)
    fill = _filling(pages // 2)
    replace = _replacing(pages)
    lone = _replacing_alone()
    stops = _stopping(64)
    return {
        "read_us_per_page": read * 1e6,
        "fill_us_per_frame": fill * 1e6,
        "replace_us_per_page": replace * 1e6,
        "replace_alone_us_per_page": lone * 1e6,
        "unique_cpu_s_per_gib": read * GIB_PAGES,
        "merge_runs_cpu_s_per_gib": (read + (read + fill) / 2 + replace) * GIB_PAGES,
        "merge_scattered_cpu_s_per_gib": (read + (read + fill) / 4 + lone / 2) * GIB_PAGES,
        "stop_ms": {"p50": float(np.median(stops)) * 1e3, "p99": float(np.percentile(stops, 99)) * 1e3},
    }


def _cpu_s(action: Callable[[], None]) -> float:
    began = time.process_time()
    action()
    return time.process_time() - began


def _memory(pages: int) -> mmap.mmap:
    """Return private memory in small pages, each written."""
    memory = mmap.mmap(-1, pages * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(MADV_NOHUGEPAGE)
    np.frombuffer(memory, np.uint64)[:: PAGE // 8] = 1
    return memory


def _address(memory: mmap.mmap) -> int:
    return int(np.frombuffer(memory, np.uint8).ctypes.data)


@contextmanager
def _child(program: str, *arguments: object) -> Iterator[tuple[int, list[int]]]:
    """Run a program that prints numbers on a line, and then waits; yields its PID and the numbers."""
    child = subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        yield child.pid, [int(n) for n in child.stdout.readline().split()]
    finally:
        child.stdin.close()
        child.wait()
        child.stdout.close()


_HOLDER = """
import sys
from pageone.bench import floor
memory = floor._memory(int(sys.argv[1]))
print(floor._address(memory), flush=True)
sys.stdin.read()
"""

_SLEEPERS = """
import sys, threading
for _ in range(int(sys.argv[1]) - 1):
    threading.Thread(target=threading.Event().wait, daemon=True).start()
print(flush=True)
sys.stdin.read()
"""


def _reading(pages: int) -> float:
    """Return the CPU-seconds of reading a page of another process, in pieces."""
    with _child(_HOLDER, pages) as (pid, (base,)), closing(_memory(PIECE)) as into:
        to = _Range(_address(into), PIECE * PAGE)

        def read() -> None:
            for first in range(0, pages - PIECE + 1, PIECE):
                of = _Range(base + first * PAGE, PIECE * PAGE)
                got = _libc.process_vm_readv(pid, ctypes.byref(to), 1, ctypes.byref(of), 1, 0)
                if got != PIECE * PAGE:
                    raise OSError(ctypes.get_errno(), "process_vm_readv")

        return _cpu_s(read) / (pages // PIECE * PIECE)


def _filling(pages: int) -> float:
    """Return the CPU-seconds of writing a frame of a file in memory, from a buffer that stays in the cache."""
    fd = os.memfd_create("pageone-bench")
    try:
        os.ftruncate(fd, pages * PAGE)
        with closing(_memory(64)) as source:
            piece = memoryview(source)

            def fill() -> None:
                for first in range(0, pages - 63, 64):
                    os.pwrite(fd, piece, first * PAGE)

            spent = _cpu_s(fill) / (pages // 64 * 64)
            piece.release()
            return spent
    finally:
        os.close(fd)


@contextmanager
def _frames(pages: int) -> Iterator[int]:
    fd = os.memfd_create("pageone-bench")
    try:
        os.ftruncate(fd, pages * PAGE)
        with mmap.mmap(fd, pages * PAGE) as frames:
            words = np.frombuffer(frames, np.uint64)
            words[:: PAGE // 8] = 1
            del words
        yield fd
    finally:
        os.close(fd)


def _map_over(at: int, pages: int, fd: int, frame: int) -> None:
    got = _libc.mmap(at, pages * PAGE, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | FIXED, fd, frame * PAGE)
    if got != at:
        raise OSError(ctypes.get_errno(), "mmap")


def _replacing(pages: int) -> float:
    """Return the CPU-seconds of comparing a page with its frame and having the frame in its place, in runs."""
    with _frames(pages) as fd, closing(mmap.mmap(fd, pages * PAGE, prot=mmap.PROT_READ)) as frames:
        memory = _memory(pages)
        base, other = _address(memory), int(np.frombuffer(frames, np.uint8).ctypes.data)

        def replace() -> None:
            for first in range(0, pages - RUN + 1, RUN):
                at, length = base + first * PAGE, RUN * PAGE
                # The frames' own pages are in this process's page table after this, as they must be in a target's.
                if _libc.memcmp(at, other + first * PAGE, length):
                    raise AssertionError("pages that were made equal differ")
                _map_over(at, RUN, fd, first)
                _libc.madvise(at, length, MADV_POPULATE_READ)

        spent = _cpu_s(replace) / (pages // RUN * RUN)
        del memory
        return spent


def _replacing_alone() -> float:
    """Return the CPU-seconds of the same for every other page by itself, less what the loop takes."""
    with _frames(LONE) as fd:
        memory = _memory(2 * LONE)
        base = _address(memory)

        def replace() -> None:
            for i in range(LONE):
                _map_over(base + 2 * i * PAGE, 1, fd, i)

        def nothing() -> None:
            for i in range(LONE):
                _libc.mmap(base + 2 * i * PAGE, 0, 3, mmap.MAP_PRIVATE | FIXED, fd, i * PAGE)  # refused: no length

        spent = (_cpu_s(replace) - _cpu_s(nothing)) / LONE
        del memory
        return spent


def _stopping(threads: int) -> list[float]:
    """Return how long it takes to stop and release all threads of a process that sleeps, seconds a time."""
    with _child(_SLEEPERS, threads) as (pid, _):
        before = os.getpriority(os.PRIO_PROCESS, 0)
        try:
            with contextlib.suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, 0, -10)  # as the guardian asks for, and root may have
            return mem.bare_stops(pid, STOPS, 0.005)
        finally:
            with contextlib.suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, 0, before)

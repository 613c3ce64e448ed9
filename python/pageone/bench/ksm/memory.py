"""The set ``memory``: private anonymous pages of real Python workers, started and read on the spot.

For: :mod:`pageone.bench.ksm.run`. Starts processes of its own and reads ``/proc/PID/mem`` of those only.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import numpy.typing as npt

from pageone._native import mem
from pageone.bench.ksm import _memory
from pageone.errors import PageOneError

U8 = npt.NDArray[np.uint8]
U64 = npt.NDArray[np.uint64]

PAGE_SIZE = 4096

#: Pages at most, all workers together: 1 GiB.
PAGES_MAX = 1 << 18

#: /proc/PID/pagemap: present in memory; mapped by this process alone (so not the kernel's zero page).
_PRESENT, _EXCLUSIVE = np.uint64(1 << 63), np.uint64(1 << 56)


def dump(processes: int) -> tuple[list[U8], list[str]]:
    """Start workers and return each one's resident private anonymous pages, and the libraries they had loaded.

    Pages are uint8, shape (n, 4096), in the order of their addresses; the kernel's zero page is left out, as it is
    shared already. Raises ``PageOneError`` when a worker does not come up. Cost: some seconds, most of it imports.
    """
    workers = [
        subprocess.Popen([sys.executable, _memory.__file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(processes)
    ]
    try:
        libraries: list[str] = []
        for worker in workers:
            assert worker.stdout is not None
            line = worker.stdout.readline()
            if not line:
                raise PageOneError(f"a worker for the set memory ended (code {worker.wait()}): see its message above")
            libraries = json.loads(line)
        return [_resident(worker.pid, PAGES_MAX // processes) for worker in workers], libraries
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
            for pipe in (worker.stdin, worker.stdout):
                if pipe is not None:
                    pipe.close()


def _resident(pid: int, most: int) -> U8:
    parts: list[U8] = []
    starts, ends, perms, _, _, inodes, which, names = mem.maps(pid)
    writable = (perms & (mem.PERM_READ | mem.PERM_WRITE | mem.PERM_SHARED)) == (mem.PERM_READ | mem.PERM_WRITE)
    wanted_maps = writable & (inodes == 0) & ~np.array([n.startswith("[stack") for n in names])[which]
    memory = os.open(f"/proc/{pid}/mem", os.O_RDONLY)
    pagemap = os.open(f"/proc/{pid}/pagemap", os.O_RDONLY)
    try:
        for start, end in zip(starts[wanted_maps].tolist(), ends[wanted_maps].tolist(), strict=True):
            entries = np.frombuffer(
                os.pread(pagemap, (end - start) // PAGE_SIZE * 8, start // PAGE_SIZE * 8), np.uint64
            )
            wanted = ((entries & _PRESENT) != 0) & ((entries & _EXCLUSIVE) != 0)
            if not wanted.any():
                continue
            # Read from the first to the last wanted page of each piece: holes of large reservations cost nothing.
            edges = np.flatnonzero(np.diff(np.concatenate(([0], wanted.astype(np.int8), [0]))))
            for first, stop in edges.reshape(-1, 2).tolist():
                data = os.pread(memory, (stop - first) * PAGE_SIZE, start + first * PAGE_SIZE)
                parts.append(np.frombuffer(data, np.uint8).reshape(-1, PAGE_SIZE))
    finally:
        os.close(memory)
        os.close(pagemap)
    return np.concatenate(parts)[:most]

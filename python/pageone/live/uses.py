"""The scan for uses of frames: which mappings of the pool there are, in all processes, and whether any can be missing.

For: ``backend``. Reads /proc and nothing else. A list of processes is no snapshot: a child may be born behind the place
that has been listed, of a parent that ends before it is scanned. So processes are listed and scanned until a list
has nobody new. Why nobody is missing then:

A mapping of frames is inherited at birth and only ever lost, but by targets, which are always scanned. Take a
process that maps a frame when the last listing ends, and the line of its ancestors that mapped it. One of them, A, is
the last that was born before that listing began; it lived, and mapped the frame, until its child in the line was born,
or lives still. Either A was there in the listing before: then it was scanned, mapping the frame, and is counted. Or
it was born since, and so was the rest of the line, with ids that ascend, since the kernel counts ids up. The list is
made in the order of ids. If A has ended before its id was passed, that child has a higher id, not passed yet, etc.:
one of the line is listed. It was not there before, so the list has somebody new, and is not the last.

Where ids have begun from the start again meanwhile everything is listed anew. What may still be missed is a child whose
birth is not finished: its memory is copied some microseconds before it is listed. While it is being born its parent
waits in ``fork`` and has the mapping, unless another thread takes it away in that moment; the second scan that a frame
is given before it is freed, a period later, finds the child.
"""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from pageone import procfs
from pageone._native import mem
from pageone.engine.backend import PAGE_SIZE, U32, U64
from pageone.engine.clock import cpu_s
from pageone.live import patience, process, shown

__all__ = ["Uses"]

#: Processes are listed so often, and for so long (CPU-seconds), until a list has nobody new. Where programs are started
#: all the time none may be found; then the scan was in vain and is repeated later.
LISTS_MAX = 100
SCAN_CPU_S = 0.1
#: One that cannot be read is tried so often: where it was just ending it is gone then.
HIDDEN_TRIES = 4
#: How often the threads of a process are listed to find one that still has memory.
THREADS_TRIES = 10

#: Errors that say that there is no such process, or that it has no memory (any more).
_GONE = (errno.ENOENT, errno.ESRCH)


class Uses:
    """Finds the mappings of one pool.

    ``is_pool`` tells which files (device, inode) are the pool. ``guardian``: the process that has it, which maps no
    frame and may not be read.
    """

    def __init__(self, is_pool: Callable[[U64, U64], npt.NDArray[np.bool_]], guardian: int) -> None:
        self._is_pool = is_pool
        self._guardian = guardian
        self._since = procfs.identity(os.getpid()) or 0
        #: Start time of each process that has been a target and may map frames for as long as it lives.
        self._once: dict[int, int | None] = {}
        #: Start time of each process that was seen without frames, and so never has any: it can inherit none any more.
        self._clean: dict[int, int] = {}
        self._found: list[tuple[U32, U32]] = []

    def remember(self, pid: int) -> None:
        """Scan a process for as long as it lives: it has become a target."""
        self._once[pid] = procfs.identity(pid)
        self._clean.pop(pid, None)

    def scan(self) -> tuple[U32, U32, bool]:
        """Return the mappings of the pool as ``(first frame, pages)``, and whether none can be missing.

        Cost: a read of the state of each process, of the maps of those that are new or map frames, and some lists.
        """
        self._found = []
        self._once = {pid: since for pid, since in self._once.items() if process.lives(pid, since)}
        try:
            settled = self._until_nobody_is_new()
        except OSError:  # no descriptor or no memory to be had: nothing is known then
            settled = False
        found, self._found = self._found, []
        none = np.empty(0, np.uint32)
        first = np.concatenate([none, *(f for f, _ in found)])
        pages = np.concatenate([none, *(p for _, p in found)])
        return first, pages, settled

    def _until_nobody_is_new(self) -> bool:
        """Scan all processes, also those that are born meanwhile; whether a list without new ones was reached."""
        until = cpu_s() + SCAN_CPU_S
        known: set[int] = set()
        hidden: Counter[int] = Counter()
        clean: dict[int, int] = {}
        listed_before = False
        last_id = procfs.last_id()
        for _ in range(LISTS_MAX):
            began = procfs.last_id()
            listed = self._processes()
            if not last_id <= began <= procfs.last_id():
                known, listed_before = set(), False  # ids came again: one that is known may be another process
            new = listed - known
            settled = listed_before and not new
            given_up = cpu_s() > until or (new and min(hidden[pid] for pid in new) >= HIDDEN_TRIES)
            if settled or (listed_before and given_up):
                self._clean = clean
                return settled
            for pid in new:
                if self._scan_process(pid, clean):
                    known.add(pid)
                else:
                    hidden[pid] += 1
            listed_before, last_id = True, began
        self._clean = clean
        return False

    def _processes(self) -> set[int]:
        """Return the ids of all processes, read in ascending order, with those of former targets that are not shown."""
        listed = set(procfs.processes())
        listed.update(pid for pid, since in self._once.items() if pid not in listed and process.lives(pid, since))
        return listed

    def _scan_process(self, pid: int, clean: dict[int, int]) -> bool:
        """Note what a process maps of the pool; those that map nothing go into ``clean``.

        False for one that may map frames and cannot be read: it hides, or is just ending.
        """
        if pid == self._guardian:
            return True
        identity = procfs.identity(pid)
        if identity is not None and self._clean.get(pid) == identity:
            clean[pid] = identity
            return True
        try:
            memory = self._mappings(pid)
        except (PermissionError, patience.HeldUpError):
            memory = None
        if not memory and pid in self._once:
            return not process.lives(pid, self._once[pid])
        if memory is None:
            if not process.cannot_map_pool(pid, self._since) and not shown.maps_none(pid, self._is_pool):
                return False
        elif not memory and not _is_kernel_thread(pid):
            return True  # it is ending, or a zombie
        uses = False
        for start, end, offset, ours in memory or ():
            if ours.any():
                uses = True
                first, pages = offset[ours] // PAGE_SIZE, (end - start)[ours] // PAGE_SIZE
                self._found.append((first.astype(np.uint32), pages.astype(np.uint32)))
        if not uses and pid not in self._once and identity is not None and procfs.identity(pid) == identity:
            clean[pid] = identity
        return True

    def _mappings(self, pid: int) -> list[tuple[U64, U64, U64, npt.NDArray[np.bool_]]]:
        """Return the mappings of a process as ``(start, end, offset, of the pool)``; empty where it has no memory.

        Of one that maps frames they are read twice: the kernel tells them piece by piece, and one that is moved
        meanwhile may be in none. The first thread may have ended before the others, and have no memory any more.
        """
        threads, seen = [pid], set[int]()
        for _ in range(THREADS_TRIES):
            for thread in threads:
                seen.add(thread)
                once = self._read(thread)
                if once is not None:
                    again = self._read(thread) if once[3].any() or pid in self._once else None
                    return [once] if again is None else [once, again]
            try:
                threads = [t for t in procfs.threads(pid) if t not in seen]
            except OSError as error:
                if error.errno not in _GONE:
                    raise
                return []
            if not threads:
                return []
        raise OSError(errno.EAGAIN, f"process {pid}: its threads come and go")

    def _read(self, thread: int) -> tuple[U64, U64, U64, npt.NDArray[np.bool_]] | None:
        try:
            start, end, _, offset, device, inode, _, _ = patience.read(thread, mem.maps, thread)
        except OSError as error:
            if error.errno in _GONE:
                return None
            raise
        return (start, end, offset, self._is_pool(device, inode)) if len(start) else None


def _is_kernel_thread(pid: int) -> bool:
    try:
        return procfs.stat(pid).kernel
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return False

"""Which pages that a huge page maps as a whole are shared since a fork, though the page map calls them their owner's.

For: the account of a scan. Of all pages of such a huge page the kernel's page map tells what it knows of the first,
which a child may have written and so alone not share. The engine has it mapped page by page before it merges any of it,
and then leaves what is shared; a scan changes nothing. As root it asks how often each frame is mapped, exactly; others
learn from ``smaps`` only how much of a mapping is shared, and where that is more than the page map says nothing is
promised of that mapping's huge pages.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from pageone import procfs
from pageone._native import mem
from pageone.scan.sources import PAGE_SIZE, Source

I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]
Bools = npt.NDArray[np.bool_]

_FRAME, _OWN = np.uint64(mem.ENTRY_FRAME), np.uint64(mem.ENTRY_EXCLUSIVE)
_PAGE = np.uint64(PAGE_SIZE)


def shared_unseen(source: Source, mapcounts: Callable[[U64], U64]) -> tuple[I64, U64]:
    """Return the pages of a source, ascending, that are shared so, and their frames (0 where they are not told).

    ``mapcounts`` tells how often frames are mapped. Cost: some 20 ns a page of huge pages, and for others than root the
    kernel's walk for ``smaps``, where there are any.
    """
    which = np.flatnonzero(source.huge)
    none = np.empty(0, np.int64), np.empty(0, np.uint64)
    if source.pid is None or not len(which):
        return none
    start = source.start[which]
    end = start + source.pages[which].astype(np.uint64) * _PAGE
    page = np.concatenate([np.arange(source.first[i], source.first[i + 1]) for i in which.tolist()])
    with contextlib.suppress(OSError):  # it has ended: what is known of it was known before
        fd = os.open(f"/proc/{source.pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        try:
            entries = mem.pagemap_entries(fd, start, end)
            own = (entries & _OWN) != 0
            frame = entries & _FRAME
            if frame.any():
                own[own] = mapcounts(frame[own]) > 1
            else:
                own &= _in_doubt(source.pid, fd, source.positions(page))
            return page[own], frame[own]
        finally:
            os.close(fd)
    return none


def _in_doubt(pid: int, fd: int, at: U64) -> Bools:
    """Tell which addresses lie in mappings of which less is the process's own than the page map says."""
    doubt = np.zeros(len(at), bool)
    for low, high, told in procfs.smaps(pid):
        if told.get("AnonHugePages"):
            entries = mem.pagemap_entries(fd, np.array([low], np.uint64), np.array([high], np.uint64))
            own = told.get("Private_Clean", 0) + told.get("Private_Dirty", 0)
            if np.count_nonzero(entries & _OWN) * PAGE_SIZE > own:
                doubt |= (low <= at) & (at < high)
    return doubt


__all__ = ["shared_unseen"]

"""Small array helpers that every step of the engine shares: reserved columns, runs, extents.

For: the other modules of ``pageone.engine``. Pure numpy; knows nothing of pages or processes.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

I64 = npt.NDArray[np.int64]
U32 = npt.NDArray[np.uint32]
U64 = npt.NDArray[np.uint64]
Bools = npt.NDArray[np.bool_]

__all__ = ["Extents", "Reserve", "ascending", "coalesce", "distinct", "expand", "grouped", "in_order", "marked"]
__all__ += ["repeated", "requests", "runs"]


class Reserve:
    """A zeroed column of ``capacity`` elements that costs memory only where it has been written.

    ``data`` is the numpy array. The kernel commits it page by page (``MAP_NORESERVE``), so a column may be as long
    as the largest index that could ever occur, with no growing and no copying.
    """

    def __init__(self, capacity: int, dtype: npt.DTypeLike) -> None:
        kind = np.dtype(dtype)
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0x4000)
        self._map = mmap.mmap(-1, max(1, capacity) * kind.itemsize, flags=flags)
        self.data: npt.NDArray[Any] = np.frombuffer(self._map, dtype=kind, count=capacity)

    def clear(self, start: int, stop: int) -> None:
        """Set ``data[start:stop]`` to zero and give whole pages of it back to the system."""
        size = self.data.itemsize
        first = -(-start * size // mmap.PAGESIZE) * mmap.PAGESIZE
        last = stop * size // mmap.PAGESIZE * mmap.PAGESIZE
        if last - first < 16 * mmap.PAGESIZE:
            self.data[start:stop] = 0
            return
        self.data[start : first // size] = 0
        self.data[last // size : stop] = 0
        self._map.madvise(mmap.MADV_DONTNEED, first, last - first)


def marked(which: Bools, *columns: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], ...]:
    """Return what is marked of each column; the columns themselves where all is. Cost: next to nothing then."""
    return columns if which.all() else tuple(column[which] for column in columns)


def expand(start: npt.NDArray[Any], count: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return ``start[0], start[0]+1 … , start[1], …``: every element of runs. Cost: about 10 ns an element.

    ``start``: ``(n,)`` of any integer dtype, which the result has too; ``count``: ``(n,)``, elements of each run.
    """
    many = count.astype(start.dtype)
    total = int(many.sum())
    if len(start) == 1:
        return np.arange(start[0], start[0] + many[0], dtype=start.dtype)
    offset = np.cumsum(many, dtype=start.dtype) - many
    result = np.repeat(start - offset, many.astype(np.int64))
    result += np.arange(total, dtype=start.dtype)
    return result


def coalesce(start: U64, end: U64) -> tuple[U64, U64]:
    """Join ranges (ascending, disjoint) that touch; return the fewest ranges that cover the same."""
    if not len(start):
        return start, end
    opens = np.concatenate(([True], start[1:] != end[:-1]))
    closes = np.concatenate((opens[1:], [True]))
    return start[opens], end[closes]


def ascending(values: npt.NDArray[Any]) -> bool:
    """Tell whether each value is greater than the one before: then there is nothing to sort, and none is repeated."""
    return bool((values[1:] > values[:-1]).all())


def in_order(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the values sorted; themselves where they are ascending already."""
    return values if ascending(values) else np.sort(values)


def distinct(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the distinct values, ascending; themselves where they are that already.

    Sorts otherwise: for large integers a tenth of what ``numpy.unique`` takes (2.4).
    """
    if ascending(values):
        return values
    ordered = np.sort(values)
    return ordered[np.concatenate(([True], ordered[1:] != ordered[:-1]))]


def grouped(values: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], I64, I64, I64]:
    """Return ``(distinct values, first index of each, number of each element's value, elements of each)``.

    What ``numpy.unique`` gives with everything asked for, without its detour over masked arrays.
    """
    if not len(values):
        none = np.empty(0, np.int64)
        return values, none, none, none
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    new = np.concatenate(([True], ordered[1:] != ordered[:-1]))
    heads = np.flatnonzero(new)
    number = np.empty(len(values), np.int64)
    number[order] = np.cumsum(new) - 1
    return ordered[heads], order[heads], number, np.diff(heads, append=len(values))


def repeated(values: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Mark values that came before, ``(n,)``. Cost: next to nothing for ascending ones, else a sort."""
    marks = np.zeros(len(values), np.bool_)
    if not ascending(values):
        marks[:] = True
        marks[np.unique(values, return_index=True)[1]] = False
    return marks


def runs(*columns: npt.NDArray[Any]) -> tuple[I64, I64]:
    """Split ``0..n`` where not all ``columns`` step by exactly one; return ``(first index, elements)`` of each run."""
    n = len(columns[0])
    if n == 0:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    breaks = np.zeros(n - 1, np.bool_)
    for column in columns:
        breaks |= column[1:] - column[:-1] != column.dtype.type(1)
    first = np.concatenate(([0], np.flatnonzero(breaks) + 1)).astype(np.int64)
    return first, np.diff(first, append=n)


def requests(start: U64, pages: I64, frame: U32 | None, limit: int, step: int = 1) -> Iterator[tuple[U64, U32, U32]]:
    """Cut runs into requests of at most ``limit`` pages: yields ``(start, pages, frame)`` of the runs of each.

    ``start``: page ids, or addresses with their ``step`` from page to page; ``frame``: first frames, or None (then the
    third element is empty). The one place where runs are cut.
    """
    if not len(start):
        return
    parts = -(-pages // limit)
    run = np.repeat(np.arange(len(start)), parts)
    before = (np.arange(len(run)) - np.repeat(np.cumsum(parts) - parts, parts)) * limit
    size = np.minimum(pages[run] - before, limit)
    cut_start = start[run] + (before * step).astype(np.uint64)
    cut_frame = np.empty(0, np.uint32) if frame is None else frame[run] + before.astype(np.uint32)
    low = 0
    ends = np.cumsum(size)
    while low < len(run):
        done = int(ends[low] - size[low])
        high = max(low + 1, int(np.searchsorted(ends, done + limit, side="right")))
        yield cut_start[low:high], size[low:high].astype(np.uint32), cut_frame[low:high]
        low = high


class Extents:
    """Which of the numbers ``0..capacity`` are free: given out in consecutive numbers as far as that is possible."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._start: I64 = np.zeros(1, np.int64)
        self._stop: I64 = np.full(1, capacity, np.int64)

    @property
    def free(self) -> int:
        """How many numbers are free."""
        return int((self._stop - self._start).sum())

    def take_run(self, n: int) -> int | None:
        """Take ``n`` consecutive numbers, first fit; return the first, or None when no free range is that long."""
        fits = np.flatnonzero(self._stop - self._start >= n)
        if not len(fits):
            return None
        i = int(fits[0])
        first = int(self._start[i])
        self._start[i] += n
        if self._start[i] == self._stop[i]:
            self._start, self._stop = np.delete(self._start, i), np.delete(self._stop, i)
        return first

    def take(self, n: int) -> I64:
        """Take ``n`` numbers, in one run if there is one, else the lowest; fewer when fewer are free. Ascending."""
        if n == 0:
            return np.empty(0, np.int64)
        first = self.take_run(n)
        if first is not None:
            return np.arange(first, first + n, dtype=np.int64)
        size = self._stop - self._start
        before = np.cumsum(size) - size
        part = np.clip(n - before, 0, size)
        got = expand(self._start, part)
        self._start = self._start + part
        keep = self._start < self._stop
        self._start, self._stop = self._start[keep], self._stop[keep]
        return got

    def give(self, numbers: I64) -> None:
        """Give numbers back, in any order, none of them free already."""
        if not len(numbers):
            return
        ordered = np.sort(numbers)
        first, count = runs(ordered)
        start = np.concatenate((self._start, ordered[first]))
        stop = np.concatenate((self._stop, ordered[first] + count))
        order = np.argsort(start, kind="stable")
        start, stop = start[order], stop[order]
        joined = np.concatenate(([True], start[1:] != stop[:-1]))
        last = np.concatenate((joined[1:], [True]))
        self._start, self._stop = start[joined], stop[last]

    def give_run(self, first: int, n: int) -> None:
        """Give ``n`` consecutive numbers back."""
        start = np.append(self._start, first)
        stop = np.append(self._stop, first + n)
        order = np.argsort(start, kind="stable")
        start, stop = start[order], stop[order]
        joined = np.concatenate(([True], start[1:] != stop[:-1]))
        last = np.concatenate((joined[1:], [True]))
        self._start, self._stop = start[joined], stop[last]

"""From equal pages to runs: which page gets which frame, and what is worth doing. Pure functions of arrays.

For: the engine; tested with numbers typed by hand. May call ``arrays``. Places and frames are as in ``pages`` and
``frames``; ``group`` numbers contents from 0.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from pageone.engine.arrays import runs

U32 = npt.NDArray[np.uint32]
U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

__all__ = ["MAPPINGS_PER_RUN", "PAGES_PER_HUGE", "afford", "frames_wanted", "merge_runs", "pair", "spread"]
__all__ += ["requests", "worth_splitting"]

#: Mappings that a run in the middle of another mapping adds: one becomes three.
MAPPINGS_PER_RUN = 2
PAGES_PER_HUGE = 512  #: x86-64 and aarch64 with 4 KiB pages: 2 MiB


def pair(ids: U32, own: U64, stored: U64, believed: Bools) -> U64:
    """Return for each page the location of its content: its own where nothing equal is known before it.

    ``ids``: number of each page's content; ``own``: each page's own location, no two alike; ``believed``: whether
    what is stored for its content still holds; ``stored``: the column of locations by content, *changed in place*: of
    several pages of a content without a believed location the first becomes its location. Cost: about 20 ns a page.
    """
    lost = np.flatnonzero(~believed)[::-1]
    stored[ids[lost]] = own[lost]  # numpy assigns in order: the last, which is the first page, stays
    return stored[ids]


def frames_wanted(pages: I64, max_sharing: int, repeat_share: float) -> I64:
    """Return how many frames each content should have for its number of ``pages``.

    As many as the cap on sharers asks for; and for contents repeated more than ``1 / repeat_share`` times as many as
    that share of its pages, so that long runs of one content map to runs of frames (repeat blocks) and need few
    mappings. Never more than pages.
    """
    capped = -(-pages // max_sharing)
    repeated = (pages * repeat_share).astype(np.int64)
    return np.minimum(pages, np.maximum(np.maximum(capped, repeated), 1))


def spread(load: I64, pages: int) -> I64:
    """Assign ``pages`` to frames with the given ``load``: the least used first, in rounds of consecutive frames.

    Returns for each page the index of its frame. The resulting loads differ by no more than the given ones did, and
    pages that follow each other get frames that follow each other within a round.
    """
    order = np.sort(load)
    levels = np.arange(1, len(order) + 1) * order - np.cumsum(order)  # pages needed to raise the lowest i to order[i]
    count = int(np.searchsorted(levels, pages, side="right"))
    base, extra = divmod(pages + int(order[:count].sum()), count)
    height = np.full(len(load), base, np.int64)
    lowest = np.argsort(load, kind="stable")[:count]
    fill = np.zeros(len(load), np.int64)
    fill[lowest] = height[lowest] - load[lowest]
    fill[np.sort(lowest)[:extra]] += 1
    turn = np.repeat(np.arange(len(load)), fill)
    ahead = np.arange(len(turn)) - np.repeat(np.cumsum(fill) - fill, fill)
    return turn[np.argsort(ahead, kind="stable")]


def merge_runs(places: U64, frames: U64) -> tuple[I64, I64]:
    """Return ``(first index, pages)`` of the runs in which both places and frames are consecutive.

    ``places`` ascending. A place's target is part of it, so no run crosses targets.
    """
    return runs(places, frames)


def afford(pages: I64, budget: int) -> Bools:
    """Choose the runs that a budget of mappings allows: the longest first; of equal length, the first."""
    chosen = np.zeros(len(pages), np.bool_)
    order = np.argsort(-pages, kind="stable")
    chosen[order[: max(0, budget) // MAPPINGS_PER_RUN]] = True
    return chosen


def worth_splitting(candidates: I64, share: float, pages_per_block: int = PAGES_PER_HUGE) -> Bools:
    """Tell which huge pages are worth splitting: those of which more than ``share`` can be given back.

    ``candidates``: pages of each that are zero or have an equal page.
    """
    return candidates > share * pages_per_block


def requests(start: U64, pages: I64, frame: U32 | None, limit: int) -> Iterator[tuple[U64, U32, U32]]:
    """Cut runs into requests of at most ``limit`` pages: yields ``(start, pages, frame)`` of the runs of each.

    ``start``: places; ``frame``: first frames, or None (then the third element is empty).
    """
    if not len(start):
        return
    parts = -(-pages // limit)
    run = np.repeat(np.arange(len(start)), parts)
    before = (np.arange(len(run)) - np.repeat(np.cumsum(parts) - parts, parts)) * limit
    size = np.minimum(pages[run] - before, limit)
    cut_start = start[run] + before.astype(np.uint64)
    cut_frame = np.empty(0, np.uint32) if frame is None else frame[run] + before.astype(np.uint32)
    low = 0
    ends = np.cumsum(size)
    while low < len(run):
        done = int(ends[low] - size[low])
        high = max(low + 1, int(np.searchsorted(ends, done + limit, side="right")))
        yield cut_start[low:high], size[low:high].astype(np.uint32), cut_frame[low:high]
        low = high

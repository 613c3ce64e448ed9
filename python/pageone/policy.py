"""What is worth doing: the arithmetic of planning and the constants behind it, for all who plan or promise.

For: the engine and its backend, which act on it, ``scan``, which promises what they do, and ``bench``. Pure functions
of numbers, names and numpy arrays, tested with values typed by hand; knows neither a process nor the system.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

__all__ = ["FLAGS_REPEATED", "HUGE_SHARE", "MAPPINGS_PER_RUN", "MAPPING_BYTES", "MAP_SHARE", "MAX_SHARING", "MIN_RUN"]
__all__ += ["PAGES_PER_HUGE", "REPEAT_SHARE", "Limits", "advice", "afford", "flags_at", "frames_wanted"]
__all__ += ["left_for_flags", "left_for_name", "placed_apart", "spread", "worth_splitting"]

#: Pages that may share one frame: KSM's default, too. The kernel walks over all of them.
MAX_SHARING = 256
#: A content repeated very often gets a frame for each ``1 / REPEAT_SHARE`` of its pages.
REPEAT_SHARE = 1 / 128
#: A transparent huge page is split only when more than this share of it can be given back.
HUGE_SHARE = 0.5
#: A target's mappings may grow to this share of ``vm.max_map_count``: the rest is the program's.
MAP_SHARE = 0.5
#: Equal pages in shorter runs than this are left alone.
MIN_RUN = 1
#: Mappings that a run in the middle of another mapping adds: one becomes three.
MAPPINGS_PER_RUN = 2
#: What one mapping costs the kernel (``vm_area_struct`` and its place in the tree), bytes.
MAPPING_BYTES = 256
#: x86-64 and aarch64 with 4 KiB pages: 2 MiB.
PAGES_PER_HUGE = 512
#: Mappings that are never merged, by name: grown or written by the kernel.
_NAMES_LEFT = re.compile(r"^\[(stack|vdso|vvar|vvar_vclock|vsyscall|uprobes)")
#: Flags, as smaps has them, whose meaning a merged mapping would not keep: locked, wiped in children, of a device (io,
#: pf, mm), huge pages of hugetlbfs, growing down, a shadow stack, and (``key``) under a protection key.
_FLAGS_LEFT = frozenset(("lo", "wf", "io", "pf", "ht", "mm", "gd", "ss", "key"))
#: Flags that new mappings are given again, and the bit that asks for it: don't fork, don't dump, huge pages wanted, not
#: wanted, KSM may merge.
FLAGS_REPEATED = {"dc": 1, "dd": 2, "hg": 4, "nh": 8, "mg": 16, "nr": 32}


@dataclass(frozen=True)
class Limits:
    """What is asked for; see :class:`~pageone.engine.Engine`."""

    max_sharing: int = MAX_SHARING
    repeat_share: float = REPEAT_SHARE
    huge_share: float = HUGE_SHARE
    min_run: int = MIN_RUN
    mappings: int = int(MAP_SHARE * 65530)  #: most mappings that a target may have

    def mappings_left(self, mappings: int) -> int:
        """Return how many mappings may still be added to a target that has so many."""
        return max(0, self.mappings - mappings)


def frames_wanted(pages: I64, limits: Limits) -> I64:
    """Return how many frames each content should have for its number of ``pages``.

    As many as the cap on sharers asks for; and for contents repeated more than ``1 / repeat_share`` times as many as
    that share of its pages, so that long runs of one content map to runs of frames (repeat blocks) and need few
    mappings. Never more than pages.
    """
    capped = -(-pages // limits.max_sharing)
    repeated = (pages * limits.repeat_share).astype(np.int64)
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


def afford(pages: I64, budget: int) -> Bools:
    """Choose the runs that a budget of mappings allows: the longest first; of equal length, the first."""
    chosen = np.zeros(len(pages), np.bool_)
    order = np.argsort(-pages, kind="stable")
    chosen[order[: max(0, budget) // MAPPINGS_PER_RUN]] = True
    return chosen


def worth_splitting(candidates: I64, limits: Limits) -> Bools:
    """Tell which huge pages are worth splitting: those of which more than ``huge_share`` can be given back.

    ``candidates``: pages of each that are zero or have an equal page.
    """
    return candidates > limits.huge_share * PAGES_PER_HUGE


# --- what is left alone ---------------------------------------------------------------------------------------


def left_for_name(names: Sequence[str]) -> Bools:
    """Tell which names are those of mappings that are never merged."""
    return np.array([bool(_NAMES_LEFT.match(its)) for its in names], np.bool_)


def flags_at(flags: Mapping[int, frozenset[str]], starts: U64) -> list[frozenset[str]]:
    """Return the flags of the mapping that each address is in; a mapping that was not told counts as a device's."""
    ascending = sorted(flags)
    return [flags.get(_at_or_below(ascending, at), frozenset(("io",))) for at in starts.tolist()]


def left_for_flags(flags: Sequence[frozenset[str]]) -> Bools:
    """Tell which mappings are left alone for their flags."""
    return np.array([bool(its & _FLAGS_LEFT) for its in flags], np.bool_)


def advice(flags: Sequence[frozenset[str]]) -> U64:
    """Return the bits of what is to be asked for again of the mappings that take the place of these."""
    return np.array([sum(bit for flag, bit in FLAGS_REPEATED.items() if flag in its) for its in flags], np.uint64)


def placed_apart(policies: Mapping[int, str], usual: str, starts: U64) -> Bools:
    """Tell which mappings have a memory policy of their own (``mbind``), not the process's: frames have none."""
    ascending = sorted(policies)
    its = [policies.get(_at_or_below(ascending, at), usual) for at in starts.tolist()]
    return np.array([policy != usual for policy in its], np.bool_)


def _at_or_below(ascending: list[int], value: int) -> int:
    """Return the last of ``ascending`` that is not above ``value``; -1 where all are."""
    at = bisect.bisect_right(ascending, value)
    return ascending[at - 1] if at else -1

"""From counted contents to what merging would save: frames, runs, mappings, regions, pairs. Arrays in, a report out.

For: :mod:`pageone.scan`. The numbers are those of the engine's rules (see ``docs/scan.md``); no target is read but for
the previews of the most repeated contents, ``/proc/kpagecount`` for sharers outside the targets, and the page maps of
huge pages.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pageone import procfs
from pageone.policy import (
    MAP_SHARE,
    MAPPING_BYTES,
    MAPPINGS_PER_RUN,
    PAGES_PER_HUGE,
    Limits,
    afford,
    frames_wanted,
    worth_splitting,
)
from pageone.scan.duplicates import UNSTABLE, ZERO, DuplicateCount
from pageone.scan.huge import shared_unseen
from pageone.scan.report import ScanReport

U8 = npt.NDArray[np.uint8]
U32 = npt.NDArray[np.uint32]
U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]
F64 = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

#: What KSM needs for each page that it may merge (ksm_rmap_item) and for each frame (ksm_stable_node).
KSM_PAGE_BYTES, KSM_FRAME_BYTES = 64, 64
#: Targets in the matrix of pairs, contents and bytes of each that are shown.
PAIRS, CONTENTS, PREVIEW = 32, 12, 32
#: Pages accounted for at once, so that what is needed for a while stays small.
CHUNK = 1 << 21


@dataclass
class _Duplicates:
    """Pages of contents that more than one page has, ascending; ``content`` counts those contents from 0."""

    page: U32
    content: U32
    extent: U32  # across all sources
    first_extent: I64  # of each source
    count: I64  # by content: pages


def mapcounts(frame: U64) -> U64:
    """Return how often each frame is mapped, of all processes; zero where the kernel does not tell."""
    counts = np.zeros(len(frame), np.uint64)
    with contextlib.suppress(OSError), open("/proc/kpagecount", "rb", buffering=0) as file:
        window = 1 << 16
        which = frame // np.uint64(window)
        for start in np.unique(which).tolist():
            data = np.frombuffer(os.pread(file.fileno(), window * 8, start * window * 8), np.uint64)
            mine = which == start
            at = (frame[mine] % np.uint64(window)).astype(np.int64)
            counts[mine] = np.where(at < len(data), data[np.minimum(at, max(0, len(data) - 1))] if len(data) else 0, 0)
    return counts


def page_cache_shared(rows: list[U64], page_size: int) -> int:
    """Return bytes that mapping pages of files more than once saves.

    ``rows``: for each target ``(device, inode, first page, page after the last)`` of its resident ranges.
    """
    if not rows:
        return 0
    table = np.concatenate(rows)
    if not len(table):
        return 0
    total = int((table[:, 3] - table[:, 2]).sum())
    table = table[np.lexsort((table[:, 2], table[:, 1], table[:, 0]))]
    # A file after the other on one line, so that a running maximum of the ends works across files.
    new = np.r_[True, (table[1:, :2] != table[:-1, :2]).any(axis=1)]
    group = np.cumsum(new) - 1
    length = np.zeros(int(group[-1]) + 1, np.uint64)
    np.maximum.at(length, group, table[:, 3])
    base = np.r_[np.uint64(0), np.cumsum(length)[:-1]]
    low, high = table[:, 2] + base[group], table[:, 3] + base[group]
    reached = np.r_[np.uint64(0), np.maximum.accumulate(high)[:-1]]
    fresh = high - np.minimum(high, np.maximum(low, reached))
    return (total - int(fresh.sum())) * page_size


def account(counted: DuplicateCount, changed: Bools | None = None, min_run: int = 1) -> ScanReport:
    """Return the report of a count. ``changed``: the pages that a second scan found changed.

    ``min_run``: the engine's option of that name: equal pages in shorter runs are left alone.

    Cost: about 0.1 µs a duplicate page, less for others.
    """
    limits = Limits(min_run=min_run, mappings=int(MAP_SHARE * procfs.max_map_count()))
    report = ScanReport(page_size=counted.sources[0].page_size if counted.sources else 4096)
    size = report.page_size
    zero = np.flatnonzero(counted.ids == ZERO).astype(np.uint32)
    report.pages = counted.total
    report.zero_pages = len(zero)
    report.unstable_pages = int(np.count_nonzero(counted.ids == UNSTABLE))
    report.duplicate_pages = int(counted.extra.sum(dtype=np.int64))
    report.distinct_pages = report.pages - report.zero_pages - report.unstable_pages - report.duplicate_pages

    duplicates = _duplicates(counted)
    frames = _Frames(counted, duplicates, zero)
    report.sharing = frames.sharing
    _targets(counted, duplicates, zero, report)
    _sharing(counted, frames, report)
    saved, saved_zero = _savings(counted, duplicates, zero, frames, report, limits)
    _regions(counted, duplicates, zero, saved, saved_zero, report)
    _pairs(counted, duplicates, report)
    _contents(counted, duplicates, report)
    if changed is not None:
        dup_changed = changed[duplicates.page]
        report.watch = {
            "changed_pages": int(np.count_nonzero(changed)),
            "changed_duplicates": int(np.count_nonzero(dup_changed)),
            "changed_zero_pages": int(np.count_nonzero(changed[zero])),
            "saveable_quiet_bytes": int(saved[~dup_changed].sum() + saved_zero[~changed[zero]].sum()) * size,
            "by_target": [
                int(np.count_nonzero(changed[int(a) : int(b)]))
                for a, b in zip(counted.base[:-1], counted.base[1:], strict=True)
            ],
        }
    for source in counted.sources:
        report.problems += source.notes
    return report


def _duplicates(counted: DuplicateCount) -> _Duplicates:
    repeated = np.flatnonzero(counted.extra)
    # In the order of their first pages, which is the order in which the engine would give frames.
    repeated = repeated[np.argsort(counted.representative[repeated], kind="stable")]
    number = np.zeros(len(counted.extra), np.uint32)  # plus one; touched only where there is a duplicate
    number[repeated] = np.arange(1, len(repeated) + 1, dtype=np.uint32)
    first_extent = np.concatenate((np.zeros(1, np.int64), np.cumsum([len(s.pages) for s in counted.sources])))
    pages, contents, extents = [], [], []
    for low in range(0, counted.total, CHUNK):
        ids = counted.ids[low : low + CHUNK]
        stable = ids < UNSTABLE
        index = np.zeros(len(ids), np.uint32)
        index[stable] = number[ids[stable]]
        rows = np.flatnonzero(index)
        pages.append((rows + low).astype(np.uint32))
        contents.append(index[rows] - np.uint32(1))
        extents.append(_extents(counted, rows + low, first_extent))
    empty = [np.empty(0, np.uint32)]
    content = np.concatenate(contents or empty)
    return _Duplicates(
        page=np.concatenate(pages or empty),
        content=content,
        extent=np.concatenate(extents or empty),
        first_extent=first_extent,
        count=counted.extra[repeated].astype(np.int64) + 1,
    )


def _extents(counted: DuplicateCount, page: I64, first_extent: I64) -> U32:
    """Return the extent, across sources, of pages given in ascending order."""
    cuts = np.searchsorted(page, counted.base)
    out = np.empty(len(page), np.uint32)
    for number in np.flatnonzero(np.diff(cuts)).tolist():
        part = slice(int(cuts[number]), int(cuts[number + 1]))
        out[part] = counted.sources[number].extent_of(page[part] - counted.base[number]) + first_extent[number]
    return out


def _by_extent(counted: DuplicateCount, what: str) -> npt.NDArray[np.generic]:
    """Return a column with an element for each extent of all sources."""
    columns: list[npt.NDArray[np.generic]] = []
    for source in counted.sources:
        if what == "mergeable":
            columns.append(np.array([r.mergeable for r in source.regions], bool)[source.region])
        elif what == "start":
            columns.append(source.start)
        elif what == "region":
            columns.append(source.region)
        elif what == "huge":
            columns.append(source.huge)
        else:
            raise ValueError(what)
    return np.concatenate(columns) if columns else np.empty(0)


class _Frames:
    """Which pages are mapped more than once, and which frames are theirs alone.

    ``lead``: page by page of ``page`` (ascending), whether it stands for its frame: the first of it in the targets, of
    a frame that nobody else maps. A page mapped once always stands for its frame.
    """

    def __init__(self, counted: DuplicateCount, duplicates: _Duplicates, zero: U32) -> None:
        self.page, frame = _shared(counted)
        live = any(source.pid is not None for source in counted.sources)
        self.sharing = "none" if not live else "frames" if os.geteuid() == 0 else "assumed"
        if len(frame) and not frame.any():
            # The kernel does not tell frames: equal shared pages are taken for one frame.
            self.sharing = "assumed"
            frame = counted.ids[self.page].astype(np.uint64)
        _, first, inverse, count = np.unique(frame, return_index=True, return_inverse=True, return_counts=True)
        self.lead = np.zeros(len(self.page), bool)
        self.lead[first] = True
        #: Mappings of frames beyond the first, in the targets.
        self.repeats = len(self.page) - len(first)
        if self.sharing == "frames" and len(frame):
            outside = mapcounts(frame[first]) > count.astype(np.uint64)
            self.lead &= ~outside[inverse]

    def frees(self, page: U32) -> Bools:
        """Whether unmapping each page (ascending), with the others of its frame, frees a frame counted with it."""
        out = np.ones(len(page), bool)
        at, inside = self._among(page)
        out[inside] = self.lead[at[inside]]
        return out

    def own(self, page: U32) -> Bools:
        """Whether each page (ascending) is mapped once: the engine merges no other, for that frees nothing."""
        return ~self._among(page)[1]

    def _among(self, page: U32) -> tuple[I64, Bools]:
        """Return where pages (ascending) stand in ``page``, and whether they do."""
        at = np.searchsorted(self.page, page)
        inside = at < len(self.page)
        inside[inside] = self.page[at[inside]] == page[inside]
        return at, inside


def _shared(counted: DuplicateCount) -> tuple[U32, U64]:
    """Return the pages that are mapped more than once, ascending, and their frames: also those within huge pages."""
    page, frame = counted.shared()
    found = [shared_unseen(source, mapcounts) for source in counted.sources]
    pages = [page, *((its + base).astype(np.uint32) for (its, _), base in zip(found, counted.base, strict=False))]
    frames = np.concatenate([frame, *(its for _, its in found)])
    # What was mapped page by page since it was counted is in both.
    unique, first = np.unique(np.concatenate(pages), return_index=True)
    return unique, frames[first]


def _targets(counted: DuplicateCount, duplicates: _Duplicates, zero: U32, report: ScanReport) -> None:
    owner = np.searchsorted(counted.base, duplicates.page, side="right") - 1
    # Of each content, its pages in one target: the first in a target that is not the content's first is "across".
    order = np.lexsort((owner, duplicates.content)) if len(counted.sources) > 1 else np.arange(len(owner))
    if len(counted.sources) > 1:
        content, target = duplicates.content[order], owner[order]
        new_pair = np.r_[True, (content[1:] != content[:-1]) | (target[1:] != target[:-1])] if len(order) else []
        pairs = int(np.count_nonzero(new_pair))
        report.duplicates_across = pairs - len(duplicates.count)
    report.duplicates_inside = report.duplicate_pages - report.duplicates_across
    dup_pages = np.bincount(owner, minlength=len(counted.sources))
    zero_pages = np.bincount(np.searchsorted(counted.base, zero, side="right") - 1, minlength=len(counted.sources))
    for number, source in enumerate(counted.sources):
        low, high = int(counted.base[number]), int(counted.base[number + 1])
        unstable = int(np.count_nonzero(counted.ids[low:high] == UNSTABLE))
        report.targets.append(
            {
                "name": source.name,
                "kind": source.kind,
                "pid": source.pid,
                "pages": high - low,
                "zero_pages": int(zero_pages[number]),
                "repeated_pages": int(dup_pages[number]),
                "unique_pages": high - low - int(zero_pages[number]) - int(dup_pages[number]) - unstable,
                "unstable_pages": unstable,
                "huge_pages": int(source.pages[source.huge].sum()) // PAGES_PER_HUGE,
                "swapped_pages": source.swapped,
                "hole_pages": source.holes,
                "tail_bytes": source.tail_bytes,
                "mappings": source.mappings,
            }
        )


def _sharing(counted: DuplicateCount, frames: _Frames, report: ScanReport) -> None:
    size = report.page_size
    zero_page = sum(source.zero_mapped for source in counted.sources)
    report.already_shared = {
        "fork_bytes": frames.repeats * size,
        "page_cache_bytes": page_cache_shared([source.file_pages for source in counted.sources], size),
        "zero_page_bytes": zero_page * size,
    }
    report.already_shared_bytes = sum(report.already_shared.values())


def _savings(
    counted: DuplicateCount, duplicates: _Duplicates, zero: U32, frames: _Frames, report: ScanReport, limits: Limits
) -> tuple[F64, F64]:
    """Fill in what PageONE and KSM would save; returns the frames saved by each duplicate page and each zero page."""
    size = report.page_size
    extent, content, contents = duplicates.extent, duplicates.content, len(duplicates.count)
    mergeable = _by_extent(counted, "mergeable").astype(bool)
    huge = _by_extent(counted, "huge").astype(bool)
    zero_extent = _extents(counted, zero.astype(np.int64), duplicates.first_extent)
    frees, zero_frees = frames.frees(duplicates.page), frames.frees(zero)

    # KSM takes any private page; zero pages share frames too, as use_zero_pages is off unless switched on.
    freed = np.bincount(content, weights=frees, minlength=contents).astype(np.int64)
    ksm_saved = np.maximum(0, freed - -(-duplicates.count // limits.max_sharing))
    zero_freed = int(np.count_nonzero(zero_frees))
    ksm_zero = max(0, zero_freed - -(-len(zero) // limits.max_sharing)) if len(zero) else 0
    worth = ksm_saved > 0
    stable = int((-(-duplicates.count[worth] // limits.max_sharing)).sum()) + -(-len(zero) // limits.max_sharing)
    ksm_cost = report.pages * KSM_PAGE_BYTES + stable * KSM_FRAME_BYTES
    ksm_bytes = (int(ksm_saved.sum()) + ksm_zero) * size
    report.ksm = {
        "saveable_bytes": ksm_bytes,
        "metadata_bytes": ksm_cost,
        "net_bytes": ksm_bytes - ksm_cost,
        "huge_pages_split": _huge_units(counted, np.r_[duplicates.page, zero], np.r_[extent, zero_extent], huge),
    }

    # PageONE: private anonymous memory that one process has alone; a huge page is split only for more than half of it.
    own, zero_own = frames.own(duplicates.page), frames.own(zero)
    able = mergeable[extent] & own
    zero_able = mergeable[zero_extent] & zero_own
    all_page = np.r_[duplicates.page[able], zero[zero_able]]
    all_extent = np.r_[extent[able], zero_extent[zero_able]]
    whole, split = _whole_huge(counted, all_page, all_extent, huge, limits)
    kept = int(np.count_nonzero(whole))
    first_zero = int(np.count_nonzero(able))
    able[np.flatnonzero(able)[whole[:first_zero]]] = False
    zero_able[np.flatnonzero(zero_able)[whole[first_zero:]]] = False

    left_out = left_short = 0
    while True:
        count = np.bincount(content[able], minlength=contents)
        needed = np.where(count > 1, frames_wanted(count, limits), 0)
        saved = np.where(count > 1, np.maximum(0, count - needed), 0)
        taken = able & (saved > 0)[content]
        runs = _Runs(counted, duplicates, taken, np.where(saved > 0, needed, 0))
        short = runs.length < limits.min_run
        over = runs.over_budget(limits) if not short.any() else np.zeros(len(short), bool)
        if not short.any() and not over.any():
            break
        # What is left out may leave others of its content alone: count again without it.
        left = runs.rows_of(short | over, len(able))
        left_short += int(runs.length[short].sum())
        left_out += int(runs.length[over].sum())
        able &= ~left
    share = np.where(count > 0, saved / np.maximum(count, 1), 0.0)
    by_page = np.where(taken, share[content], 0.0)
    by_zero = zero_able.astype(np.float64)
    saved_bytes = (int(saved.sum()) + int(by_zero.sum())) * size
    cost = runs.mappings * MAPPING_BYTES
    report.saveable_bytes = saved_bytes
    report.pageone = {
        "saveable_bytes": saved_bytes,
        "zero_bytes": int(by_zero.sum()) * size,
        "frames": int(needed[saved > 0].sum()),
        "merged_pages": int(np.count_nonzero(taken)),
        "runs": len(runs.length),
        "mappings": runs.mappings,
        "mapping_bytes": cost,
        "net_bytes": saved_bytes - cost,
        "over_budget_pages": left_out,
        "short_run_pages": left_short,
        "huge_pages_split": split,
        "huge_pages_kept_whole": kept,
        "not_mergeable_pages": int(np.count_nonzero(~mergeable[extent]) + np.count_nonzero(~mergeable[zero_extent])),
        "shared_pages": int(np.count_nonzero(~own) + np.count_nonzero(~zero_own)),
        "run_lengths": runs.histogram(),
    }
    return by_page, by_zero


def _huge_index(counted: DuplicateCount, page: U32, extent: U32, huge: Bools) -> tuple[I64, U64]:
    """Return the rows that lie in huge pages, and a number for the huge page of each."""
    rows = np.flatnonzero(huge[extent]) if len(extent) else np.empty(0, np.int64)
    if not len(rows):
        return rows, np.empty(0, np.uint64)
    owner = np.searchsorted(counted.base, page[rows], side="right") - 1
    unit = np.empty(len(rows), np.uint64)
    for number in np.unique(owner).tolist():
        mine = owner == number
        at = counted.sources[number].positions(page[rows[mine]].astype(np.int64) - counted.base[number])
        unit[mine] = at // np.uint64(PAGES_PER_HUGE * 4096) | np.uint64(number << 40)
    return rows, unit


def _huge_units(counted: DuplicateCount, page: U32, extent: U32, huge: Bools) -> int:
    return len(np.unique(_huge_index(counted, page, extent, huge)[1]))


def _whole_huge(counted: DuplicateCount, page: U32, extent: U32, huge: Bools, limits: Limits) -> tuple[Bools, int]:
    """Return which pages stay unmerged since too little of their huge page could be, and how many are split."""
    whole = np.zeros(len(page), bool)
    rows, unit = _huge_index(counted, page, extent, huge)
    if not len(rows):
        return whole, 0
    _, inverse, count = np.unique(unit, return_inverse=True, return_counts=True)
    enough = worth_splitting(count, limits)
    whole[rows] = ~enough[inverse]
    return whole, int(np.count_nonzero(enough))


class _Runs:
    """Runs of pages that would map to runs of frames, with the mappings that they need."""

    def __init__(self, counted: DuplicateCount, duplicates: _Duplicates, taken: Bools, needed: I64) -> None:
        self.rows = np.flatnonzero(taken)
        page = duplicates.page[self.rows].astype(np.int64)
        extent = duplicates.extent[self.rows]
        content = duplicates.content[self.rows]
        self.owner = np.searchsorted(counted.base, page, side="right") - 1
        frame = (np.cumsum(needed) - needed)[content]
        start = _by_extent(counted, "start").astype(np.uint64)
        region = _by_extent(counted, "region").astype(np.int64)
        first_page = np.concatenate(
            [s.first[:-1] + b for s, b in zip(counted.sources, counted.base, strict=False)] or [page]
        )
        size = counted.sources[0].page_size if counted.sources else 4096
        at = start[extent] // np.uint64(size) + (page - first_page[extent]).astype(np.uint64)
        if len(page):
            follows = (self.owner[1:] == self.owner[:-1]) & (region[extent[1:]] == region[extent[:-1]])
            follows &= at[1:] == at[:-1] + np.uint64(1)
            # Frames that follow each other, or one content with frames enough for a run of it.
            same = (content[1:] == content[:-1]) & (needed[content[1:]] > 1)
            cut = np.r_[True, ~(follows & ((frame[1:] == frame[:-1] + 1) | same))]
        else:
            cut = np.empty(0, bool)
        self.first = np.flatnonzero(cut)
        self.length = np.diff(np.r_[self.first, len(page)])
        self.run_owner = self.owner[self.first] if len(page) else np.empty(0, np.int64)
        # A run in the middle of a mapping makes two more of it; next to another run, one.
        beside = np.r_[False, follows[self.first[1:] - 1]] if len(page) else np.empty(0, bool)
        self.added = np.where(beside, 1, 2)
        self.mappings = int(self.added.sum())
        self.sources = counted.sources

    def over_budget(self, limits: Limits) -> Bools:
        """Return the runs that a target's budget of mappings leaves out, the shortest first."""
        over = np.zeros(len(self.length), bool)
        for number, source in enumerate(self.sources):
            if source.pid is None:
                continue
            mine = np.flatnonzero(self.run_owner == number)
            left = limits.mappings_left(source.mappings)
            if len(mine) * MAPPINGS_PER_RUN > left:
                over[mine] = ~afford(self.length[mine], left)
        return over

    def rows_of(self, runs: Bools, count: int) -> Bools:
        """Return which rows of the duplicates lie in the given runs."""
        out = np.zeros(count, bool)
        out[self.rows[np.repeat(runs, self.length)]] = True
        return out

    def histogram(self) -> list[dict[str, int]]:
        """Return the runs by length, in powers of two."""
        if not len(self.length):
            return []
        power = np.floor(np.log2(self.length)).astype(np.int64)
        return [
            {
                "from": 1 << p,
                "to": (2 << p) - 1,
                "runs": int(np.count_nonzero(power == p)),
                "pages": int(self.length[power == p].sum()),
            }
            for p in np.unique(power).tolist()
        ]


def _sums(index: npt.NDArray[np.integer], weight: F64, length: int) -> F64:
    """Sum weights by index; bincount makes integers of nothing."""
    return np.bincount(index, weights=weight, minlength=length).astype(np.float64)


def _regions(
    counted: DuplicateCount, duplicates: _Duplicates, zero: U32, saved: F64, saved_zero: F64, report: ScanReport
) -> None:
    size = report.page_size
    names: dict[str, int] = {}
    label = []
    for source in counted.sources:
        several = len(counted.sources) == 1 or source.kind == "process"
        of_region = np.array([names.setdefault(r.kind if several else source.name, len(names)) for r in source.regions])
        label.append(of_region[source.region] if len(source.region) else np.empty(0, np.int64))
    kind = np.concatenate(label) if label else np.empty(0, np.int64)
    zero_extent = _extents(counted, zero.astype(np.int64), duplicates.first_extent)
    pages = np.concatenate([s.pages for s in counted.sources]) if counted.sources else np.empty(0, np.int64)
    total = np.bincount(kind, weights=pages, minlength=len(names))
    repeated = np.bincount(kind[duplicates.extent], minlength=len(names))
    zeros = np.bincount(kind[zero_extent], minlength=len(names))
    bytes_saved = _sums(kind[duplicates.extent], saved, len(names)) + _sums(kind[zero_extent], saved_zero, len(names))
    for name, number in names.items():
        report.regions.append(
            {
                "kind": name,
                "pages": int(total[number]),
                "zero_pages": int(zeros[number]),
                "repeated_pages": int(repeated[number]),
                "saveable_bytes": round(float(bytes_saved[number]) * size),
            }
        )
    report.regions.sort(key=lambda row: -int(row["saveable_bytes"]))
    owner = np.searchsorted(counted.base, duplicates.page, side="right") - 1
    zero_owner = np.searchsorted(counted.base, zero, side="right") - 1
    each = _sums(owner, saved, len(counted.sources)) + _sums(zero_owner, saved_zero, len(counted.sources))
    for target, amount in zip(report.targets, each.tolist(), strict=True):
        target["saveable_bytes"] = round(amount * size)


def _pairs(counted: DuplicateCount, duplicates: _Duplicates, report: ScanReport) -> None:
    if len(counted.sources) < 2:
        return
    owner = np.searchsorted(counted.base, duplicates.page, side="right") - 1
    amount = np.bincount(owner, minlength=len(counted.sources))
    chosen = np.argsort(-amount, kind="stable")[:PAIRS]
    chosen = np.sort(chosen[amount[chosen] > 0])
    place = np.full(len(counted.sources), -1)
    place[chosen] = np.arange(len(chosen))
    matrix = np.zeros((len(chosen), len(chosen)))
    step = 1 << 16
    order = np.argsort(duplicates.content, kind="stable")
    content = duplicates.content[order]
    where = place[owner[order]]
    for low in range(0, len(duplicates.count), step):
        a, b = np.searchsorted(content, [low, low + step])
        part, column = content[a:b].astype(np.int64) - low, where[a:b]
        has = np.zeros((step, len(chosen)), np.float32)
        has[part[column >= 0], column[column >= 0]] = 1
        matrix += has.T @ has
    report.pairs = {
        "targets": [counted.sources[i].name for i in chosen.tolist()],
        "pages": np.rint(matrix).astype(np.int64).tolist(),
    }


def _contents(counted: DuplicateCount, duplicates: _Duplicates, report: ScanReport) -> None:
    if report.zero_pages > 1:
        report.contents.append({"pages": report.zero_pages, "hex": "00" * PREVIEW, "what": "all bytes 00"})
    if not len(duplicates.count):
        return
    top = np.argsort(-duplicates.count, kind="stable")[:CONTENTS]
    # The first page of each content: rows are ascending by page.
    is_top = np.isin(duplicates.content, top.astype(np.uint32))
    rows = np.flatnonzero(is_top)
    content, first = np.unique(duplicates.content[rows], return_index=True)
    representative = dict(zip(content.tolist(), duplicates.page[rows[first]].tolist(), strict=True))
    for number in top.tolist():
        page = representative[number]
        owner = int(np.searchsorted(counted.base, page, side="right")) - 1
        data = counted.preview(owner, page - int(counted.base[owner]))
        report.contents.append(
            {"pages": int(duplicates.count[number]), "hex": data[:PREVIEW].hex(), "what": describe(data)}
        )
    report.contents.sort(key=lambda row: -int(row["pages"]))


def describe(data: bytes) -> str:
    """Say what a page looks like, in a few words."""
    if not data:
        return "gone"
    bytes_ = np.frombuffer(data, np.uint8)
    if (bytes_ == bytes_[0]).all():
        return f"all bytes {bytes_[0]:02x}"
    for period in (2, 4, 8, 16, 32, 64):
        if len(bytes_) % period == 0 and (bytes_.reshape(-1, period) == bytes_[:period]).all():
            return f"repeats every {period} bytes"
    zeros = int(np.count_nonzero(bytes_ == 0))
    if zeros > 0.9 * len(bytes_):
        return f"{100 * zeros // len(bytes_)} % zeros"
    printable = int(np.count_nonzero((bytes_ >= 32) & (bytes_ < 127) | (bytes_ == 10)))
    return "text" if printable > 0.9 * len(bytes_) else ""

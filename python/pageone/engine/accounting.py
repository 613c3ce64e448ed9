"""All that an engine knows, in one place: pages, index, contents, frames, families, targets, and what was counted.

For: the steps of a period (``scan``, ``find``, ``plan``, ``merge``, ``free``), which are functions of this and of
arrays. May call the columns that it is made of; asks nothing of a process. One thread changes it; workers only read,
between two scans, so that the status of a queued page changes only when the engine scans.
"""

from __future__ import annotations

import copy

import numpy as np
import numpy.typing as npt

from pageone.engine.arrays import in_order, marked, runs
from pageone.engine.backend import PAGE_SIZE
from pageone.engine.contents import Contents
from pageone.engine.families import Families
from pageone.engine.frames import NO_FRAME, Frames
from pageone.engine.index import Index
from pageone.engine.metrics import Pauses, Stats, Tally, TargetStats, totals
from pageone.engine.pages import PageTable, target_of
from pageone.engine.status import Event, State, level, state
from pageone.engine.target import Rows, Target
from pageone.policy import MAPPING_BYTES, MAPPINGS_PER_RUN, Limits

U8 = npt.NDArray[np.uint8]
U32 = npt.NDArray[np.uint32]
U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

__all__ = ["Accounting"]

TARGET_NUMBERS = 1 << 20


class Accounting:
    """The state of one engine.

    ``quiet_periods``: scans in a row at which a page must be found unwritten before it is read. ``batch_pages``: pages
    that are read, or accounted for, at a time: 32 MiB are some milliseconds of reading, and what is made on the way
    stays in the cache.
    """

    def __init__(self, frames_max: int, limits: Limits, quiet_periods: int, batch_pages: int) -> None:
        self.limits = limits
        self.quiet_periods = quiet_periods
        self.batch_pages = batch_pages
        self.period = 0
        self.pages = PageTable()
        self.index = Index()
        self.contents = Contents()
        self.frames = Frames(frames_max)
        self.targets: dict[int, Target] = {}
        self.families = Families(self.pages, self.frames, self.targets)
        self.totals = Tally()
        self.pauses = Pauses()
        #: Pages that are queued and in no batch yet: page ids of one target each, ascending.
        self._ready: list[U64] = []
        self._due: dict[int, list[tuple[U64, I64]]] = {}
        self._next_number = 1

    # ------------------------------------------------------------------ targets

    def next_number(self) -> int:
        """Return a number that no target has."""
        while self._next_number in self.targets:
            self._next_number = self._next_number % (TARGET_NUMBERS - 1) + 1
        number = self._next_number
        self._next_number = number % (TARGET_NUMBERS - 1) + 1
        return number

    def set_rows(self, target: Target, rows: Rows) -> tuple[U64, U32]:
        """Replace what a target maps of the pool, and the status of pages that map it no longer.

        Returns page ids and frames of the rows that are new.
        """
        old = target.rows
        merged_anew, target.merged_anew = target.merged_anew, []
        if rows == old:
            return rows.start[:0], rows.frame[:0]
        gone, gone_frames = old.without(rows).expand()
        new_ids, new_frames = rows.without(old).expand()
        target.rows = rows
        self.frames.map(new_frames)
        self.frames.unmap(gone_frames)
        if not len(gone):
            return new_ids, new_frames
        counted = _latest(gone, gone_frames, merged_anew)
        frames = rows.frames_of(gone)
        indices = self.pages.indices(gone)
        was = np.where(indices >= 0, state(self.pages.status[indices]), State.ABSENT)
        shared, inherited = was == State.SHARED, was == State.INHERITED
        read = (shared | inherited) & (frames != counted)
        lost = frames == NO_FRAME
        # Where other frames were moved over a page it reads those.
        np.add.at(self.frames.live, frames[read & shared & ~lost], np.uint32(1))
        np.add.at(self.families.inherited, frames[read & inherited & ~lost], np.uint32(1))
        self.pages.apply(indices[read & lost], Event.LOST)
        self.release(gone[read], counted[read], shared[read])
        return new_ids, new_frames

    def forget(self, target: Target) -> None:
        """Drop a target that is gone or detached; its entries in the index go stale."""
        self.set_rows(target, Rows.none())
        self.index.stale_hint += int(self.pages.counts_of(target.number)[State.UNIQUE])
        none = np.empty(0, np.uint64)
        self.pages.update(target.number, none, none)
        self.targets.pop(target.number, None)
        target.attached = False
        target.memory.release()
        if not self.targets:
            self.index.stale_hint = max(self.index.stale_hint, len(self.index))

    # ------------------------------------------------------------------ pages

    def apply(self, page_ids: U64, event: Event) -> None:
        """Apply an event to pages that are tracked still; those that become volatile get their time."""
        if not len(page_ids):
            return
        indices = self.pages.indices(page_ids)
        if (indices < 0).any():
            page_ids, indices = page_ids[indices >= 0], indices[indices >= 0]
        after = self.pages.apply(indices, event)
        if event == Event.RETRY:
            order = np.argsort(page_ids, kind="stable")
            self.schedule(page_ids[order], indices[order], after[order])

    def release(self, page_ids: U64, frames: U32, shared: Bools) -> None:
        """Count one reader less for each frame. ``shared``: whether the page was ``SHARED``, else it was inherited."""
        page_ids, frames, shared = marked(frames != NO_FRAME, page_ids, frames, shared)
        self.families.forget(frames[~shared])
        np.subtract.at(self.frames.live, frames[shared], np.uint32(1))
        self.families.succeed(page_ids[shared], frames[shared])

    # ------------------------------------------------------------------ what is to happen when

    def schedule(self, page_ids: U64, indices: I64, status: U8) -> None:
        """Have volatile pages come due after their quiet periods and their back-off. ``page_ids`` ascending."""
        page_ids, indices, status = marked(state(status) == State.VOLATILE, page_ids, indices, status)
        if not len(page_ids):
            return
        wait = level(status)
        self.pages.due[indices] = (np.uint8((self.period + self.quiet_periods) & 255) + wait).astype(np.uint8)
        for extra in np.flatnonzero(np.bincount(wait)):
            (mine,) = marked(wait == extra, page_ids)
            first, count = runs(mine)
            when = self.period + self.quiet_periods + int(extra)
            self._due.setdefault(when, []).append((mine[first], count))

    def queue_due(self) -> None:
        """Queue the volatile pages whose wait is over."""
        found: dict[int, list[U64]] = {}
        for when in [w for w in self._due if w <= self.period]:
            for start, count in self._due.pop(when):
                page_ids, indices = self.pages.indices_of_ranges(start, count)
                status = self.pages.status[indices]
                ready = (state(status) == State.VOLATILE) & (self.pages.due[indices] == when & 255)
                if ready.any():
                    ready_ids, indices = marked(ready, page_ids, indices)
                    self.pages.apply(indices, Event.DUE)
                    found.setdefault(int(target_of(ready_ids[:1])[0]), []).append(ready_ids)
        self._ready += [in_order(np.concatenate(parts)) for parts in found.values()]

    def enqueue(self, page_ids: U64) -> None:
        """Queue volatile, held or forked pages of one target now. ``page_ids`` ascending."""
        if len(page_ids):
            self.pages.apply(self.pages.indices(page_ids), Event.DUE)
            self._ready.append(page_ids)

    def take_ready(self) -> list[tuple[Target, U64]]:
        """Return the pages that have been queued since asked last, and whose they are."""
        ready, self._ready = self._ready, []
        owners = [self.targets.get(int(target_of(page_ids[:1])[0])) for page_ids in ready]
        return [(target, page_ids) for target, page_ids in zip(owners, ready, strict=True) if target is not None]

    # ------------------------------------------------------------------ figures

    def add_pauses(self, target: Target, pauses_s: npt.NDArray[np.float64]) -> None:
        """Count how long a target stood still for a request."""
        target.pauses.add(pauses_s)
        self.pauses.add(pauses_s)

    def saved_bytes(self) -> int:
        """Return the memory given back: pages merged or zero, less frames, mappings and what the engine keeps of them.

        Each merged page was its target's alone. Frames that only others map are theirs: they would have the page.
        """
        counts = self.pages.counts
        gross = int(counts[State.SHARED] + counts[State.ZERO]) - (self.frames.used - self.frames.outside)
        mappings = sum(len(t.rows) for t in self.targets.values())
        return gross * PAGE_SIZE - mappings * MAPPINGS_PER_RUN * MAPPING_BYTES - self.metadata_bytes()

    def metadata_bytes(self) -> int:
        """Return the bytes of all this: what is touched of it, not what is reserved."""
        seen = self.pages.tracked - int(self.pages.counts[State.ABSENT])
        waiting = sum(start.nbytes + count.nbytes for parts in self._due.values() for start, count in parts)
        rows = sum(20 * len(t.rows) for t in self.targets.values())
        index = self.index.nbytes + self.contents.nbytes
        return index + 2 * seen + Frames.BYTES * self.frames.used + waiting + rows

    def stats(self, *, queue_batches: int, cpu_budget_left_s: float | None, trouble: str) -> Stats:
        """Return what is known and was done until now; the arguments are the engine's own figures."""
        pages, frames = self.pages, self.frames
        return Stats(
            period=self.period,
            targets=len(self.targets),
            left_alone=sum(bool(t.left_alone) for t in self.targets.values()),
            tracked=pages.tracked,
            states=_named(pages.counts),
            frames=frames.used,
            frames_waiting=frames.waiting,
            frames_freed=frames.freed,
            sharers=int(pages.counts[State.SHARED]),
            saved_bytes=self.saved_bytes(),
            index_entries=len(self.index) + len(self.contents),
            index_bytes=self.index.nbytes + self.contents.nbytes,
            metadata_bytes=self.metadata_bytes(),
            incomplete_use_scans=frames.incomplete,
            queue_batches=queue_batches,
            cpu_budget_left_s=cpu_budget_left_s,
            pauses=copy.deepcopy(self.pauses),
            trouble=trouble,
            **totals(self.totals),
        )

    def target_stats(self, target: Target) -> TargetStats:
        """Return what is known of one target. Cost: a pass over its status bytes."""
        counts = self.pages.counts_of(target.number)
        return TargetStats(
            pid=target.pid,
            left_alone=target.left_alone,
            trouble=target.trouble.text,
            states=_named(counts),
            tracked=int(counts.sum()),
            mappings=target.mappings,
            mappings_left=self.limits.mappings_left(target.mappings),
            mapped_pages=target.rows.pages,
            saved_bytes=round(self.families.saved_pages(target) * PAGE_SIZE),
            merged_pages=target.merged,
            wasted_merges=target.wasted,
            refused=dict(target.refused),
            pauses=copy.deepcopy(target.pauses),
        )


def _named(counts: I64) -> dict[str, int]:
    return {s.name.lower(): int(counts[s]) for s in State}


def _latest(page_ids: U64, frames: U32, since: list[tuple[U64, U32]]) -> U32:
    """Return the frames of pages, for those that have been merged ``since`` the last of these."""
    if not since:
        return frames
    ids, others = (np.concatenate(parts) for parts in zip(*since, strict=True))
    order = np.argsort(ids, kind="stable")
    ids, others = ids[order], others[order]
    at = np.searchsorted(ids, page_ids, side="right") - 1
    found = at >= 0
    found[found] = ids[at[found]] == page_ids[found]
    latest = frames.copy()
    latest[found] = others[at[found]]
    return latest

"""The second step: which pages at rest have an equal one? Batches of page ids in, twins out.

For: the engine. :func:`read` runs in a worker: it reads pages of one target and changes nothing but the tree, which is
made for that. :func:`settle` runs in the engine's thread: it tells changed, gone, zero and unique pages from those that
have an equal page. May call ``accounting``; asks targets for keys of pages, and whose a page is.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pageone.engine.accounting import Accounting
from pageone.engine.arrays import distinct, in_order, marked, repeated
from pageone.engine.backend import ReadCode
from pageone.engine.clock import cpu_s
from pageone.engine.frames import NO_FRAME
from pageone.engine.index import NO_VERSION, page_id_of, page_version
from pageone.engine.metrics import Tally
from pageone.engine.pages import address
from pageone.engine.status import Event, State, state
from pageone.engine.target import Target
from pageone.errors import TargetError

U8 = npt.NDArray[np.uint8]
U32 = npt.NDArray[np.uint32]
U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

__all__ = ["Found", "Members", "Twins", "pair", "read", "settle"]


@dataclass
class Found:
    """What a batch was found to be.

    One element a page read; ``keys`` and ``frames`` one for each that is readable and not zero, ``ids`` and ``is_new``
    one for each of these whose content has no frame.
    """

    target: Target
    page_ids: U64
    changed: U64  #: pages of the batch that were written while queued
    codes: U8
    keys: U64
    frames: U32  #: a frame of the same content, or ``NO_FRAME``
    ids: U32
    is_new: Bools
    cpu_s: float

    def take(self, which: Bools) -> Found:
        """Return what was found of some of the pages."""
        readable = which[self.codes == ReadCode.OK]
        lone = readable[self.frames == NO_FRAME]
        pages = (self.page_ids[which], self.changed, self.codes[which], self.keys[readable], self.frames[readable])
        return Found(self.target, *pages, self.ids[lone], self.is_new[lone], self.cpu_s)


@dataclass
class Twins:
    """Pages that have an equal page without a frame: one element a page; ``version``: where that is, and since when."""

    page_ids: U64
    keys: U64
    version: U64


@dataclass
class Members:
    """Pages that have an equal page: one element a page; ``frames`` from ``plan.NEW_FRAME`` on are planned ones."""

    page_ids: U64
    keys: U64
    frames: U64

    def take(self, which: I64 | Bools) -> Members:
        """Return some of them."""
        return Members(self.page_ids[which], self.keys[which], self.frames[which])


def read(accounting: Accounting, target: Target, page_ids: U64) -> Found:
    """Read a batch and number its contents. In a worker; reads status and changes nothing."""
    began = cpu_s()
    indices = accounting.pages.indices(page_ids)
    known = indices >= 0
    now = state(accounting.pages.status[indices])
    changed = page_ids[known & (now == State.CHANGED)]
    (page_ids,) = marked(known & (now == State.QUEUED), page_ids)
    if not target.attached:
        page_ids = page_ids[:0]
    keys, codes = np.empty(0, np.uint64), np.empty(0, np.uint8)
    if len(page_ids):
        try:
            keys, codes = target.memory.read_keys(address(page_ids))
        except TargetError:
            codes = np.full(len(page_ids), ReadCode.GONE, np.uint8)
            keys = np.zeros(len(page_ids), np.uint64)
        except (OSError, MemoryError):  # not the target's: they are read again
            changed, page_ids = in_order(np.concatenate((changed, page_ids))), page_ids[:0]
    (keys,) = marked(codes == ReadCode.OK, keys)
    frames = accounting.contents.find(keys)
    ids, is_new = accounting.index.intern(*marked(frames == NO_FRAME, keys))
    return Found(target, page_ids, changed, codes, keys, frames, ids, is_new, cpu_s() - began)


def settle(accounting: Accounting, found: list[Found], tally: Tally) -> tuple[U64, Twins, Members]:
    """Settle changed, gone and unique pages; return ``(zero pages, twins, pages whose content has a frame)``."""
    found = sorted(found, key=lambda f: (f.target.number, int(f.page_ids[0]) if len(f.page_ids) else 0))
    accounting.apply(distinct(np.concatenate([f.changed for f in found])), Event.RETRY)
    versions = accounting.index.versions
    for f in found:
        tally.pages += int(np.count_nonzero(f.codes != ReadCode.SHARED))
        versions[f.ids[f.is_new]] = NO_VERSION
    twice = repeated(np.concatenate([f.page_ids for f in found]))
    if twice.any():
        # A range that went and came back was queued anew while its first batch still waited.
        ends = np.cumsum([len(f.page_ids) for f in found])[:-1]
        found = [f.take(~marks) for f, marks in zip(found, np.split(twice, ends), strict=True)]
    # Batch after batch, in the order of page ids: what is made on the way stays in the cache.
    parts = [_settle_batch(accounting, f, tally) for f in found]
    zero, *rest = (np.concatenate(column) for column in zip(*parts, strict=True))
    return zero, Twins(*rest[:3]), Members(*rest[3:])


def pair(ids: U32, own: U64, stored: U64, believed: Bools) -> U64:
    """Return for each page the version of its content: its own where nothing equal is known before it.

    ``ids``: number of each page's content; ``own``: each page's own version, no two alike; ``believed``: whether
    what is stored for its content still holds; ``stored``: the column of versions by content, *changed in place*: of
    several pages of a content without a believed version the first becomes its version. Cost: about 20 ns a page.
    """
    lost = np.flatnonzero(~believed)[::-1]
    stored[ids[lost]] = own[lost]  # numpy assigns in order: the last, which is the first page, stays
    return stored[ids]


def _settle_batch(accounting: Accounting, f: Found, tally: Tally) -> tuple[U64, ...]:
    """Settle a batch; return zero pages, the columns of its :class:`Twins`, and those of what joins a frame."""
    zero = f.page_ids[:0]
    if f.codes.any():
        accounting.apply(f.page_ids[f.codes == ReadCode.GONE], Event.LOST)
        forked = f.page_ids[f.codes == ReadCode.SHARED]
        tally.forked_pages += len(forked)
        accounting.apply(forked, Event.FORKED)
        zero = f.page_ids[f.codes == ReadCode.ZERO]
        tally.zero_pages += len(zero)
    (page_ids,) = marked(f.codes == ReadCode.OK, f.page_ids)
    framed = f.frames != NO_FRAME
    joins = page_ids[framed], f.keys[framed], f.frames[framed].astype(np.uint64)
    page_ids, keys = marked(~framed, page_ids, f.keys)
    own = page_version(page_ids, accounting.period)
    versions = accounting.index.versions
    believed = np.zeros(len(page_ids), np.bool_)
    seen = np.flatnonzero(~f.is_new)
    believed[seen] = _believed(accounting, versions[f.ids[seen]])
    version = pair(f.ids, own, versions, believed)
    alone = version == own
    (unique,) = marked(alone, page_ids)
    indices = accounting.pages.indices(unique)
    accounting.pages.apply(indices, Event.UNIQUE)
    accounting.pages.due[indices] = accounting.period & 255
    twin = ~alone
    return zero, page_ids[twin], keys[twin], version[twin], *joins


def _believed(accounting: Accounting, versions: U64) -> Bools:
    """Tell which versions hold: the page is what it was, and nobody shares it since a fork."""
    good = accounting.index.believed(versions, accounting.pages)
    # Those of this period have just been read as the target's alone.
    before = np.flatnonzero(good & (versions & np.uint64(255) != np.uint64(accounting.period & 255)))
    if len(before):
        page_ids = page_id_of(versions[before])
        with contextlib.suppress(TargetError):  # it has ended: the merge will say so
            shared = accounting.families.shared_now(page_ids)
            good[before[shared]] = False
            forked = distinct(page_ids[shared])
            accounting.index.stale_hint += len(forked)
            accounting.apply(forked, Event.FORKED)
    return good

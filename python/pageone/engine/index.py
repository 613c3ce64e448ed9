"""The index of contents: from a page's key to where an equal page, or a frame, was last seen.

For: the engine. May call the key tree of ``pageone.one`` and ``pages``. An entry is a *location*, one ``uint64`` in a
column indexed by the tree's number for the key:

- a frame: bit 63 and the frame's number. Frames never change, so it cannot go stale;
- a page: its place in bits 8–62 and in bits 0–7 the period (mod 256) in which it came to rest. It is believed while the
  page is unique and came to rest in that period. A write costs nothing here: it makes the entry stale, and whoever
  reaches a stale entry next simply takes it over. What nobody reaches is swept.

An entry is a hint, not a proof: every merge compares all bytes while the target is stopped. So it does no harm that a
period number comes round again.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pageone.engine.arrays import Reserve
from pageone.engine.pages import PageTable
from pageone.engine.status import State, state
from pageone.one import KeyTree

U32 = npt.NDArray[np.uint32]
U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

__all__ = ["FRAME", "NOWHERE", "Index", "frame_location", "frame_of", "is_frame", "page_location", "place_of"]

FRAME = np.uint64(1 << 63)
NOWHERE = np.uint64(0xFFFF_FFFF_FFFF_FFFF >> 1)  #: a page that no target has
_IDS = 1 << 32
ENTRY_BYTES = 28 + 8  #: what an entry takes at most: in the tree (its own figure), and its location


def page_location(places: U64, period: int) -> U64:
    """Return the location of pages that came to rest in ``period``."""
    return places << np.uint64(8) | np.uint64(period & 255)


def frame_location(frames: U32) -> U64:
    """Return the location of frames."""
    return frames.astype(np.uint64) | FRAME


def is_frame(locations: U64) -> Bools:
    """Tell which locations are frames."""
    return np.asarray(locations >= FRAME)


def frame_of(locations: U64) -> U32:
    """Return the frame of locations that are frames."""
    return (locations & ~FRAME).astype(np.uint32)


def place_of(locations: U64) -> U64:
    """Return the place of locations that are pages."""
    return locations >> np.uint64(8)


class Index:
    """Keys and the location last known of each."""

    def __init__(self) -> None:
        self._tree = KeyTree()
        self._where = Reserve(_IDS, np.uint64)
        #: Location of each entry, by the tree's number for its key.
        self.where: U64 = self._where.data
        self.stale_hint = 0  #: about how many entries have gone stale since the last sweep

    def __len__(self) -> int:
        """Return the number of entries, stale ones included."""
        return len(self._tree)

    @property
    def nbytes(self) -> int:
        """Bytes held, at most: the tree and the locations."""
        return ENTRY_BYTES * self._tree.id_bound

    def intern(self, keys: U64) -> tuple[U32, Bools]:
        """Return the number of each key and whether it is new (its first occurrence). From any thread."""
        return self._tree.intern(keys)

    def believed(self, locations: U64, pages: PageTable) -> Bools:
        """Tell which locations still hold: frames, and pages still unique since the period they name."""
        slots = pages.slots(place_of(locations))
        period = (locations & np.uint64(255)).astype(np.uint8)
        good = (slots >= 0) & (state(pages.status[slots]) == State.UNIQUE) & (pages.due[slots] == period)
        return np.asarray(good | is_frame(locations))

    def retire(self, ids: U32) -> None:
        """Have entries go stale: their contents are no longer anywhere."""
        self.where[ids] = NOWHERE
        self.stale_hint += len(ids)

    def sweep(self, pages: PageTable) -> int:
        """Remove every stale entry; return how many. Cost: a pass over all entries. Not while jobs are under way."""
        keys, ids = self._tree.items()
        dead = ~self.believed(self.where[ids], pages)
        self.stale_hint = 0
        if dead.all():
            # with nothing left the tree starts anew, so that its memory goes too
            self._where.clear(0, self._tree.id_bound)
            self._tree = KeyTree()
        else:
            self._tree.remove(keys[dead])
        return int(dead.sum())

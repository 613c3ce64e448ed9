"""The index of unique pages: from a page's key to where a page of that content was last seen.

For: the engine. May call the key tree of ``pageone.one`` and ``pages``. An entry is a *location*, one ``uint64`` in a
column indexed by the tree's number for the key: the page's place in bits 8–62 and in bits 0–7 the period (mod 256) in
which it came to rest. It is believed while the page is unique and came to rest in that period. A write costs nothing
here: it makes the entry stale, and whoever reaches a stale entry next simply takes it over. What nobody reaches is
swept; so are contents that have been given frames, which are found in ``contents`` from then on.

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

__all__ = ["NOWHERE", "Index", "page_location", "place_of"]

NOWHERE = np.uint64(0xFFFF_FFFF_FFFF_FFFF >> 1)  #: a page that no target has
_IDS = 1 << 32
REBUILD_SHARE = 2  #: the tree is made anew when a sweep leaves one in so many of the entries that it had
ENTRY_BYTES = 28 + 8  #: what an entry takes at most: in the tree (its own figure), and its location


def page_location(places: U64, period: int) -> U64:
    """Return the location of pages that came to rest in ``period``."""
    return places << np.uint64(8) | np.uint64(period & 255)


def place_of(locations: U64) -> U64:
    """Return the place of locations."""
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
        """Tell which locations still hold: the page is unique since the period that it names."""
        slots = pages.slots(place_of(locations))
        period = (locations & np.uint64(255)).astype(np.uint8)
        good = (slots >= 0) & (state(pages.status[slots]) == State.UNIQUE) & (pages.due[slots] == period)
        return np.asarray(good)

    def sweep(self, pages: PageTable) -> int:
        """Remove every stale entry; return how many. Cost: a pass over all entries. Not while jobs are under way."""
        keys, ids = self._tree.items()
        where = self.where[ids]
        alive = self.believed(where, pages)
        self.stale_hint = 0
        if int(alive.sum()) * REBUILD_SHARE <= self._tree.id_bound:
            # The tree keeps what it once needed: with little left it is made anew, so that its memory goes too.
            self._where.clear(0, self._tree.id_bound)
            self._tree = KeyTree()
            ids, _ = self._tree.intern(keys[alive])
            self.where[ids] = where[alive]
        else:
            self._tree.remove(keys[~alive])
        return int(len(keys) - alive.sum())

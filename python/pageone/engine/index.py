"""The index of unique pages: from a page's key to where a page of that content was last seen.

For: the engine. May call the key tree of ``pageone.one`` and ``pages``. An entry is a *version*, one ``uint64`` in a
column indexed by the tree's number for the key: the page id in bits 8–62 and in bits 0–7 the period (mod 256) in
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

__all__ = ["NO_VERSION", "Index", "page_id_of", "page_version"]

NO_VERSION = np.uint64(0xFFFF_FFFF_FFFF_FFFF >> 1)  #: a page that no target has
_IDS = 1 << 32
REBUILD_SHARE = 2  #: the tree is made anew when a sweep leaves one in so many of the entries that it had
ENTRY_BYTES = 28 + 8  #: what an entry takes at most: in the tree (its own figure), and its version


def page_version(page_ids: U64, period: int) -> U64:
    """Return the version of pages that came to rest in ``period``."""
    return page_ids << np.uint64(8) | np.uint64(period & 255)


def page_id_of(versions: U64) -> U64:
    """Return the page ids of versions."""
    return versions >> np.uint64(8)


class Index:
    """Keys and the version last known of each."""

    def __init__(self) -> None:
        self._tree = KeyTree()
        self._versions = Reserve(_IDS, np.uint64)
        #: Version of each entry, by the tree's number for its key.
        self.versions: U64 = self._versions.data
        self.stale_hint = 0  #: about how many entries have gone stale since the last sweep

    def __len__(self) -> int:
        """Return the number of entries, stale ones included."""
        return len(self._tree)

    @property
    def nbytes(self) -> int:
        """Bytes held, at most: the tree and the versions."""
        return ENTRY_BYTES * self._tree.id_bound

    def intern(self, keys: U64) -> tuple[U32, Bools]:
        """Return the number of each key and whether it is new (its first occurrence). From any thread."""
        return self._tree.intern(keys)

    def believed(self, versions: U64, pages: PageTable) -> Bools:
        """Tell which versions still hold: the page is unique since the period that it names."""
        indices = pages.indices(page_id_of(versions))
        period = (versions & np.uint64(255)).astype(np.uint8)
        good = (indices >= 0) & (state(pages.status[indices]) == State.UNIQUE) & (pages.due[indices] == period)
        return np.asarray(good)

    def sweep(self, pages: PageTable) -> int:
        """Remove every stale entry; return how many. Cost: a pass over all entries. Not while jobs are under way."""
        keys, ids = self._tree.items()
        versions = self.versions[ids]
        alive = self.believed(versions, pages)
        self.stale_hint = 0
        if int(alive.sum()) * REBUILD_SHARE <= self._tree.id_bound:
            # The tree keeps what it once needed: with little left it is made anew, so that its memory goes too.
            self._versions.clear(0, self._tree.id_bound)
            self._tree = KeyTree()
            ids, _ = self._tree.intern(keys[alive])
            self.versions[ids] = versions[alive]
        else:
            self._tree.remove(keys[~alive])
        return int(len(keys) - alive.sum())

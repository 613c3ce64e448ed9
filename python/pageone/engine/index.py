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

import threading

import numpy as np
import numpy.typing as npt

from pageone.engine.arrays import Reserve
from pageone.engine.pages import PageTable
from pageone.engine.status import State, state

U32 = npt.NDArray[np.uint32]
U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

__all__ = ["FRAME", "NOWHERE", "Index", "frame_location", "frame_of", "is_frame", "page_location", "place_of"]

FRAME = np.uint64(1 << 63)
NOWHERE = np.uint64(0xFFFF_FFFF_FFFF_FFFF >> 1)  #: a page that no target has
_IDS = 1 << 32


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


class KeyTable:
    """Numbers for keys: a sorted array with insertion by merging. Any thread; one at a time."""

    def __init__(self) -> None:
        self._keys: U64 = np.empty(0, np.uint64)
        self._ids: U32 = np.empty(0, np.uint32)
        self._free: U32 = np.empty(0, np.uint32)
        self._lock = threading.Lock()
        self.high = 0

    def __len__(self) -> int:
        return len(self._keys)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self._keys.nbytes + self._ids.nbytes + self._free.nbytes

    def intern(self, keys: U64) -> tuple[U32, Bools]:
        """Return ``(numbers, is_new)``."""
        content, index, inverse = np.unique(keys, return_index=True, return_inverse=True)
        with self._lock:
            at = np.searchsorted(self._keys, content)
            known = np.zeros(len(content), np.bool_)
            inside = at < len(self._keys)
            known[inside] = self._keys[at[inside]] == content[inside]
            ids = np.empty(len(content), np.uint32)
            ids[known] = self._ids[at[known]]
            n = int((~known).sum())
            reuse = self._free[:n]
            self._free = self._free[n:]
            fresh = np.arange(self.high, self.high + n - len(reuse), dtype=np.uint32)
            self.high += len(fresh)
            ids[~known] = np.concatenate((reuse, fresh))
            self._keys = np.insert(self._keys, at[~known], content[~known])
            self._ids = np.insert(self._ids, at[~known], ids[~known])
        is_new = np.zeros(len(keys), np.bool_)
        is_new[index[~known]] = True
        return ids[inverse], is_new

    def remove(self, ids: U32) -> None:
        """Remove keys by number."""
        with self._lock:
            keep = ~np.isin(self._ids, ids)
            self._free = np.concatenate((self._free, self._ids[~keep]))
            self._keys, self._ids = self._keys[keep], self._ids[keep]

    def ids(self) -> U32:
        """Return the numbers in use."""
        return self._ids


class Index:
    """Keys and the location last known of each."""

    def __init__(self) -> None:
        self._tree = KeyTable()
        self._where = Reserve(_IDS, np.uint64)
        #: Location of each entry, by the tree's number for its key.
        self.where: U64 = self._where.data
        self.stale_hint = 0  #: about how many entries have gone stale since the last sweep

    def __len__(self) -> int:
        """Return the number of entries, stale ones included."""
        return len(self._tree)

    @property
    def nbytes(self) -> int:
        """Bytes held: the tree and the locations."""
        return self._tree.nbytes + 8 * self._tree.high

    def intern(self, keys: U64) -> tuple[U32, Bools]:
        """Return the number of each key and whether it is new (its first occurrence). From any thread."""
        return self._tree.intern(keys)

    def believed(self, locations: U64, pages: PageTable) -> Bools:
        """Tell which locations still hold: frames, and pages still unique since the period they name."""
        slots = pages.slots(place_of(locations))
        period = (locations & np.uint64(255)).astype(np.uint8)
        good = (slots >= 0) & (state(pages.status[slots]) == State.UNIQUE) & (pages.due[slots] == period)
        return np.asarray(good | is_frame(locations))

    def remove(self, ids: U32) -> None:
        """Remove entries by number; their numbers may be given to other keys."""
        self._tree.remove(ids)

    def sweep(self, pages: PageTable) -> int:
        """Remove every stale entry; return how many. Cost: a pass over all entries. Not while jobs are under way."""
        ids = self._tree.ids()
        dead = ids[~self.believed(self.where[ids], pages)]
        self.remove(dead)
        self.stale_hint = 0
        return len(dead)

"""Contents that have frames: which frames hold which, by key, in 13 bytes a frame.

For: the engine. May call ``arrays`` and ``frames``. Rows of a key and a frame, ascending by key; a content with several
frames has several rows. Frames never change, so a row holds until its frame goes out of use. Before rows are searched,
a bitmap tells most keys that have none: a page without a twin pays some nanoseconds, however many there are.

Workers read while the engine's thread changes nothing: what it adds counts only once it has been settled.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pageone.engine.arrays import distinct
from pageone.engine.frames import NO_FRAME

U8 = npt.NDArray[np.uint8]
U32 = npt.NDArray[np.uint32]
U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]

__all__ = ["Contents"]

BITS_PER_ROW = 8  #: of the bitmap, at least half as many: one key of so many that have no row is looked for in vain


class Contents:
    """Frames by the key of what they hold."""

    def __init__(self) -> None:
        #: Key and frame of each row, ascending by key.
        self.keys: U64 = np.empty(0, np.uint64)
        self.frames: U32 = np.empty(0, np.uint32)
        self._added: list[tuple[U64, U32]] = []
        self._map(0)

    def __len__(self) -> int:
        """Return the number of contents."""
        return len(distinct(self.keys))

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.keys.nbytes + self.frames.nbytes + self._bitmap.nbytes

    def add(self, keys: U64, frames: U32) -> None:
        """Add frames that hold the contents of these keys; they are found after :meth:`settle`."""
        if len(frames):
            self._added.append((keys, frames))

    def settle(self) -> None:
        """Put what was added in its place. Cost: a pass over all rows, if anything was."""
        if not self._added:
            return
        keys = np.concatenate([self.keys, *(k for k, _ in self._added)])
        frames = np.concatenate([self.frames, *(f for _, f in self._added)])
        self._added.clear()
        order = np.argsort(keys, kind="stable")
        self._set(keys[order], frames[order])

    def drop(self, frames: U32) -> None:
        """Forget frames that go out of use. Cost: a pass over all rows."""
        self.settle()
        kept = ~np.isin(self.frames, frames)
        if not kept.all():
            self._set(self.keys[kept], self.frames[kept])

    def rows(self, keys: U64) -> tuple[I64, I64]:
        """Return the first row of each key and the one behind its last; the same where it has none."""
        return np.searchsorted(self.keys, keys), np.searchsorted(self.keys, keys, side="right")

    def find(self, keys: U64) -> U32:
        """Return a frame of each key, ``NO_FRAME`` where it has none. Cost: 20 ns a key without, 200 with a frame."""
        found = np.full(len(keys), NO_FRAME, np.uint32)
        if len(self.keys):
            bit = keys >> self._shift
            byte = self._bitmap[(bit >> np.uint64(3)).astype(np.intp)]
            maybe = np.flatnonzero(byte >> (bit & np.uint64(7)).astype(np.uint8) & np.uint8(1))
            wanted = keys[maybe]
            at = np.minimum(np.searchsorted(self.keys, wanted), len(self.keys) - 1)
            there = self.keys[at] == wanted
            found[maybe[there]] = self.frames[at[there]]
        return found

    def _set(self, keys: U64, frames: U32) -> None:
        self.keys, self.frames = keys, frames
        self._map((BITS_PER_ROW * len(keys)).bit_length() - 1 if len(keys) else 0)

    def _map(self, bits: int) -> None:
        """Make the bitmap of ``2**bits`` bits anew, eight at least: bit ``key >> shift`` of every key is set."""
        bits = max(bits, 3)
        self._shift = np.uint64(64 - bits)
        seen = np.zeros(1 << bits, np.bool_)
        seen[(self.keys >> self._shift).astype(np.intp)] = True
        self._bitmap: U8 = np.packbits(seen, bitorder="little")

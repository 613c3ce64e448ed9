"""Stubs of `pageone._native.one`, the crate ``sdtree``. Private: ``pageone.one`` checks what these are given.

Arrays are C-contiguous and one-dimensional, or ``TypeError`` is raised. Calls on batches release the GIL; any number of
threads may use one tree at once. The source of the method is in ``docs/sdtree.md``.
"""

from typing import final

import numpy as np
import numpy.typing as npt

@final
class KeyTree:
    """A set of 64-bit keys with dense ids; see :class:`pageone.one.KeyTree`."""

    def __new__(cls, capacity: int, seed: bytes) -> KeyTree:
        """Make room for ``capacity`` keys; ``seed`` decides how keys are spread."""

    def intern(self, keys: npt.NDArray[np.uint64]) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.bool_]]:
        """Put in ``(n,)`` keys; returns ``(n,)`` ids and whether each is new. ``MemoryError``: all ids are in use."""

    def find(self, keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
        """Return the id of each of ``(n,)`` keys, ``(n,)``; -1 where there is none."""

    def remove(self, keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
        """Take out ``(n,)`` keys; returns whether each was there, ``(n,)``."""

    def items(self) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint32]]:
        """Return all keys and their ids, ``(len,)`` both. Cost: a walk over the tree."""

    def __len__(self) -> int: ...
    @property
    def id_bound(self) -> int:
        """All ids ever given are below this."""

    def stats(self) -> dict[str, int | float]:
        """Return the size (in bytes) and shape of the tree; see :meth:`pageone.one.KeyTree.stats`."""

@final
class SDTree:
    """A set of byte strings with dense ids; see :class:`pageone.one.SDTree`.

    A batch is ``(data, offsets)``: rows of ``object_size`` bytes end to end in ``data`` (``offsets`` None), strings
    end to end of which number ``i`` lies from ``offsets[i]`` to ``offsets[i + 1]``, or a list of ``bytes``.
    ``ValueError`` for bytes that are no whole rows, for offsets that fall or lead out of the data, and for lengths
    that the tree cannot hold.
    """

    def __new__(cls, object_size: int | None, order: str, capacity: int, seed: bytes) -> SDTree:
        """Make a tree of objects of ``object_size`` bytes, or of any length (None).

        ``order``: ``sampled``, ``hashed`` or ``raw``; ``seed``: secret bytes, at least 16 against an adversary.
        ``ValueError`` for other orders or sizes.
        """

    def intern(
        self, data: npt.NDArray[np.uint8] | list[bytes], offsets: npt.NDArray[np.int64] | None = None
    ) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.bool_]]:
        """Put in ``n`` objects; returns ``(n,)`` ids and whether each is new. ``MemoryError``: all ids in use."""

    def find(
        self, data: npt.NDArray[np.uint8] | list[bytes], offsets: npt.NDArray[np.int64] | None = None
    ) -> npt.NDArray[np.int64]:
        """Return the id of the equal object for each of a batch, ``(n,)``; -1 where there is none."""

    def remove(
        self, data: npt.NDArray[np.uint8] | list[bytes], offsets: npt.NDArray[np.int64] | None = None
    ) -> npt.NDArray[np.bool_]:
        """Take out a batch; returns whether each was there, ``(n,)``."""

    def get_rows(self, ids: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint8]:
        """Return the rows of ``(n,)`` ids end to end, ``(n * object_size,)``; ``KeyError`` for an id not in use."""

    def get_list(self, ids: npt.NDArray[np.uint32]) -> list[bytes]:
        """Return the objects of ``(n,)`` ids; ``KeyError`` for an id not in use. Holds the GIL."""

    def ids(self) -> npt.NDArray[np.uint32]:
        """Return the ids of all objects, ``(len,)``. Cost: a walk over the tree."""

    def clear(self) -> None:
        """Take out all objects that are there now."""

    def __len__(self) -> int: ...
    @property
    def id_bound(self) -> int:
        """All ids ever given are below this."""

    def stats(self) -> dict[str, int | float]:
        """Return the size (in bytes) and shape of the tree; see :meth:`pageone.one.SDTree.stats`."""

def unique_rows(
    data: npt.NDArray[np.uint8], size: int, seed: bytes
) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint32]]:
    """Return where each distinct row of ``size`` bytes is seen first, and for each row the number of its distinct row.

    ``data``: ``(n * size,)``. Returns ``(first, inverse)``, ``(u,)`` and ``(n,)``, in first-seen order. ``ValueError``
    for rows of no bytes or 2**32 - 1 of them. Releases the GIL.
    """

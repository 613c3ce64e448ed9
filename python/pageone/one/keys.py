"""Dense numbers for 64-bit keys, from any number of threads."""

from __future__ import annotations

import secrets

import numpy as np
import numpy.typing as npt

from pageone._native import one as _one

__all__ = ["KeyTree"]


def as_keys(keys: npt.ArrayLike) -> npt.NDArray[np.uint64]:
    """Return ``keys`` as a C-contiguous ``(n,)`` array of uint64; a copy only where it must be.

    Raises ``TypeError`` for anything but unsigned or non-negative integers, ``ValueError`` for a wrong shape.
    """
    array = np.asarray(keys)
    if array.ndim != 1:
        raise ValueError(f"keys must have one dimension, not shape {array.shape}")
    if array.dtype != np.uint64:
        if array.size == 0:
            return np.empty(0, np.uint64)
        if array.dtype.kind not in "ui":
            raise TypeError(f"keys must be uint64, not {array.dtype}")
        if array.dtype.kind == "i" and int(array.min()) < 0:
            raise TypeError("keys must be uint64; a negative one was given")
        array = array.astype(np.uint64)
    return np.ascontiguousarray(array)


class KeyTree:
    """A set of ``uint64`` keys that gives each a small, dense id; the SD tree for objects of eight bytes.

    Any number of Python threads may use one tree at once: calls release the GIL, and none waits for
    another. Ids are dense (of one thread: 0, 1, 2, … in first-seen order), and those of removed keys are
    given to later keys, so numpy columns of length :attr:`id_bound` can be indexed by id. At most 28 bytes
    an entry.

    ``capacity``: number of keys for which the tree makes room at once; it grows past that by itself.
    ``seed``: secret bytes that decide how keys are spread (not which ids they get); random if not given.

    >>> import numpy as np
    >>> tree = KeyTree()
    >>> ids, is_new = tree.intern(np.array([70, 90, 70], np.uint64))
    >>> ids.tolist(), is_new.tolist()
    ([0, 1, 0], [True, True, False])
    >>> tree.find(np.array([90, 91], np.uint64)).tolist()
    [1, -1]
    >>> tree.remove(np.array([70, 71], np.uint64)).tolist(), len(tree)
    ([True, False], 1)
    """

    __slots__ = ("_native",)

    def __init__(self, capacity: int = 0, *, seed: bytes | None = None) -> None:
        if capacity < 0:
            raise ValueError(f"capacity must not be negative: {capacity}")
        self._native = _one.KeyTree(capacity, secrets.token_bytes(32) if seed is None else seed)

    def intern(self, keys: npt.ArrayLike) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.bool_]]:
        """Put each key into the set unless it is there.

        ``keys``: ``(n,)`` uint64. Returns ``(ids, is_new)``: ``(n,)`` uint32 and ``(n,)`` bool; of equal
        keys in one call the first is new. Raises ``TypeError``/``ValueError`` for a wrong dtype or shape,
        ``MemoryError`` when 2**32 - 1 ids are in use. Cost: about 0.1 µs a key.
        """
        return self._native.intern(as_keys(keys))

    def find(self, keys: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """Return the id of each key, ``(n,)`` int64, -1 where absent. Cost: about 0.1 µs a key."""
        return self._native.find(as_keys(keys))

    def remove(self, keys: npt.ArrayLike) -> npt.NDArray[np.bool_]:
        """Take keys out; returns ``(n,)`` bool: whether each was there. Cost: about 0.1 µs a key."""
        return self._native.remove(as_keys(keys))

    def items(self) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint32]]:
        """Return all keys and their ids, ``(len,)`` uint64 and uint32, in no particular order."""
        return self._native.items()

    def __len__(self) -> int:
        return len(self._native)

    def __contains__(self, key: object) -> bool:
        return isinstance(key, int) and 0 <= key < 1 << 64 and bool(self.find(np.array([key], np.uint64))[0] >= 0)

    @property
    def id_bound(self) -> int:
        """All ids ever given are below this."""
        return self._native.id_bound

    def stats(self) -> dict[str, int | float]:
        """Return the size and shape of the tree.

        Keys: ``objects``, ``id_bound``, ``index_bytes``, ``bytes_per_object``, ``depth_mean``, ``depth_max``,
        ``table_bits``. The depth counts the edges from the root table (which resolves ``table_bits`` key
        bits at once) to a key. Cost: a walk over the tree.
        """
        return self._native.stats()

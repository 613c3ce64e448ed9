"""The SD tree for Python: an exact, lock-free set of byte strings, many at a time."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from typing import Any, Generic, Literal, Protocol, TypeAlias, TypeVar, cast, overload

import numpy as np
import numpy.typing as npt

from pageone._native import one as _one

__all__ = ["ArrowStrings", "Buffer", "Objects", "SDTree"]

U8 = npt.NDArray[np.uint8]
I64 = npt.NDArray[np.int64]

Order: TypeAlias = Literal["sampled", "hashed", "raw"]


class Buffer(Protocol):
    """Anything with the buffer protocol: ``bytes``, ``bytearray``, ``memoryview``, ``mmap``, numpy arrays."""

    def __buffer__(self, flags: int, /) -> memoryview:
        """Return a view of the bytes."""


class ArrowStrings(Protocol):
    """An Arrow array of binary or string type, as pyarrow has it."""

    @property
    def type(self) -> Any:
        """The Arrow type; its name decides."""

    @property
    def null_count(self) -> int:
        """Nulls in the array."""

    @property
    def offset(self) -> int:
        """The first element, within the buffers."""

    def buffers(self) -> Sequence[Any]:
        """Return validity, offsets and data."""

    def __len__(self) -> int:
        """Return the number of elements."""


# Many objects: rows in an array, whole rows in a buffer, a sequence of byte strings, or an Arrow array.
Objects: TypeAlias = U8 | Buffer | Sequence[Buffer] | ArrowStrings

# What a tree gives back for ids: rows of one length in an array, or byte strings in a list.
Got = TypeVar("Got", bound="U8 | list[bytes]", covariant=True)


def flat_rows(rows: object, size: int) -> U8:
    """Return the bytes of ``rows`` end to end, ``(n * size,)`` uint8, without a copy.

    ``rows``: a C-contiguous ``(n, size)`` uint8 array, or a buffer of whole rows. Raises ``TypeError`` for what is
    no buffer or has another dtype or strides, ``ValueError`` for another shape.
    """
    if isinstance(rows, np.ndarray):
        if rows.dtype != np.uint8:
            raise TypeError(f"rows must be uint8, not {rows.dtype}; use rows.view(np.uint8)")
        if rows.ndim != 2 or rows.shape[1] != size:
            raise ValueError(f"rows must have the shape (n, {size}), not {rows.shape}")
        if not rows.flags.c_contiguous:
            raise TypeError("rows must be C-contiguous; use numpy.ascontiguousarray(rows)")
        return cast(U8, rows.reshape(-1))
    try:
        view = memoryview(cast(Buffer, rows))
        flat = np.frombuffer(view, np.uint8) if view.nbytes else np.empty(0, np.uint8)
    except TypeError as error:
        raise TypeError(
            f"rows must be a uint8 array of shape (n, {size}) or a buffer, not {type(rows).__name__}"
        ) from error
    if flat.size % size:
        raise ValueError(f"a buffer of {flat.size} bytes is no whole number of rows of {size}")
    return flat


def strings(objects: Objects) -> tuple[U8 | list[bytes], I64 | None]:
    """Return byte strings as the core takes them: an Arrow array's data and offsets, or a list of ``bytes``."""
    if hasattr(objects, "buffers") and hasattr(objects, "null_count"):
        return _arrow(cast(ArrowStrings, objects))
    if isinstance(objects, (bytes, bytearray, memoryview, str)) or not isinstance(objects, Sequence):
        raise TypeError(
            f"objects of any length must be a list of bytes or an Arrow binary array, not {type(objects).__name__}"
        )
    return [o if type(o) is bytes else _bytes(o) for o in objects], None


def _bytes(item: object) -> bytes:
    if isinstance(item, (int, str)):
        raise TypeError(f"objects must be bytes or buffers, not {type(item).__name__}")
    return bytes(memoryview(cast(Buffer, item)))


def _arrow(array: ArrowStrings) -> tuple[U8, I64]:
    """Return data and offsets of a pyarrow ``binary`` or ``large_binary`` (or string) array; no copy of the data."""
    width = {"binary": np.int32, "string": np.int32, "large_binary": np.int64, "large_string": np.int64}
    kind = str(array.type)
    if kind not in width:
        raise TypeError(f"an Arrow array must be binary or large_binary, not {kind}")
    if array.null_count:
        raise ValueError(f"an Arrow array with {array.null_count} nulls: a null is no object; drop or fill them")
    _, offsets, data = array.buffers()
    n = len(array)
    if n == 0:
        return np.empty(0, np.uint8), np.zeros(1, np.int64)
    at = np.frombuffer(offsets, width[kind])[array.offset : array.offset + n + 1]
    body = np.frombuffer(data, np.uint8) if data is not None and data.size else np.empty(0, np.uint8)
    return body, at.astype(np.int64)


class SDTree(Generic[Got]):
    r"""An exact set of byte strings that gives each a small, dense id: the SD tree.

    ``object_size``: bytes of each object (4096, a page, by default), or None for objects of any length up to
    64 MiB; ``b"a"``, ``b"a\0"`` and ``b""`` are three objects. ``order``: how keys are ordered inside,
    ``"sampled"`` (the default), ``"hashed"`` (for objects that are in the caches anyway) or ``"raw"`` (nothing
    hashed; deep for real data). ``capacity``: objects for which room is made at once; the tree grows past that
    by itself. ``seed``: secret bytes for the hash, random if not given; ids do not depend on it.

    The tree keeps a copy of each distinct object. Two objects are equal when all their bytes are; no hash decides.
    Any number of Python threads may use one tree at once: calls release the GIL, and none waits for another, not
    even for a thread suspended in the middle of a call. If an array is written to while it is interned, each row
    counts as it was copied; the tree stays whole.

    Ids of one thread are 0, 1, 2, … in first-seen order; ids of removed objects are given to later ones.

    >>> import numpy as np
    >>> tree = SDTree(object_size=4)
    >>> rows = np.frombuffer(b"onceonlyonce", np.uint8).reshape(-1, 4)
    >>> ids, is_new = tree.intern(rows)
    >>> ids.tolist(), is_new.tolist()
    ([0, 1, 0], [True, True, False])
    >>> b"only" in tree, tree.get([1]).tobytes()
    (True, b'only')
    >>> words = SDTree(object_size=None)
    >>> words.intern([b"a", b"a\0", b"", b"a"])[0].tolist()
    [0, 1, 2, 0]
    """

    __slots__ = ("_native", "object_size")

    @overload
    def __init__(
        self: SDTree[U8],
        object_size: int = 4096,
        *,
        order: Order = "sampled",
        capacity: int = 0,
        seed: bytes | None = None,
    ) -> None: ...
    @overload
    def __init__(
        self: SDTree[list[bytes]],
        object_size: None,
        *,
        order: Order = "sampled",
        capacity: int = 0,
        seed: bytes | None = None,
    ) -> None: ...
    def __init__(
        self,
        object_size: int | None = 4096,
        *,
        order: Order = "sampled",
        capacity: int = 0,
        seed: bytes | None = None,
    ) -> None:
        if object_size is not None and object_size < 1:
            raise ValueError(f"object_size must be at least 1, not {object_size}")
        if capacity < 0:
            raise ValueError(f"capacity must not be negative: {capacity}")
        self.object_size = object_size
        self._native = _one.SDTree(object_size, order, capacity, secrets.token_bytes(32) if seed is None else seed)

    def _input(self, objects: Objects) -> tuple[U8 | list[bytes], I64 | None]:
        size = self.object_size
        if size is None:
            return strings(objects)
        if isinstance(objects, (list, tuple)) or hasattr(objects, "null_count"):
            return strings(objects)
        return flat_rows(objects, size), None

    def intern(self, objects: Objects) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.bool_]]:
        """Put each object into the tree unless an equal one is there.

        ``objects``: of a fixed size, a C-contiguous ``(n, object_size)`` uint8 array or any buffer of whole rows
        (memory-mapped files, too); of either kind, a list of ``bytes`` or an Arrow binary array. Returns
        ``(ids, is_new)``: ``(n,)`` uint32 and ``(n,)`` bool; of equal objects in one call the first is new.
        Raises ``TypeError``/``ValueError`` for a wrong type, dtype, shape, stride or length, with the tree as
        before, ``MemoryError`` when 2**32 - 1 ids are in use. Cost: reads a few cache lines of an object without a
        twin, and copies it if it is new.
        """
        return self._native.intern(*self._input(objects))

    def find(self, objects: Objects) -> I64:
        """Return the id of the equal object for each, ``(n,)`` int64, -1 where there is none.

        ``objects`` and what is raised: as for :meth:`intern`. Cost: a search each; what is there is read whole.
        """
        return self._native.find(*self._input(objects))

    def remove(self, objects: Objects) -> npt.NDArray[np.bool_]:
        """Take out the objects equal to those given; returns ``(n,)`` bool: whether each was there.

        ``objects`` and what is raised: as for :meth:`intern`. Cost: as :meth:`find`. Ids and memory are used
        again when no call that was under way can hold them.
        """
        return self._native.remove(*self._input(objects))

    def get(self, ids: npt.ArrayLike) -> Got:
        """Return the objects of ``ids``, ``(n,)`` integers.

        Of a tree with an ``object_size``: an ``(n, object_size)`` uint8 array; of one without: a list of ``bytes``.
        Raises ``KeyError`` for an id that is not in use, ``TypeError`` for what are no integers. Cost: a copy of each
        object.
        """
        array = np.atleast_1d(np.asarray(ids))
        if array.ndim != 1 or (array.size and array.dtype.kind not in "ui"):
            raise TypeError(f"ids must be a one-dimensional array of integers, not {array.dtype} {array.shape}")
        if array.size and not 0 <= int(array.min()) <= int(array.max()) < 2**32:
            raise KeyError(int(array.min()) if int(array.min()) < 0 else int(array.max()))
        wanted = np.ascontiguousarray(array, np.uint32)
        if self.object_size is None:
            return cast(Got, self._native.get_list(wanted))
        return cast(Got, self._native.get_rows(wanted).reshape(-1, self.object_size))

    def clear(self) -> None:
        """Take out all objects that are in the tree now; those that other threads put in meanwhile may stay."""
        self._native.clear()

    def __len__(self) -> int:
        return len(self._native)

    def __contains__(self, item: object) -> bool:
        try:
            one = _bytes(item)
        except TypeError:
            return False
        if self.object_size is not None and len(one) != self.object_size:
            return False
        return bool(self._native.find([one])[0] >= 0)

    def __iter__(self) -> Iterator[bytes]:
        """Iterate over the objects, as ``bytes``, in no particular order; those removed meanwhile are left out."""
        ids = self._native.ids()
        for start in range(0, len(ids), 1024):
            for i in ids[start : start + 1024]:
                try:
                    item = self._native.get_list(np.array([i], np.uint32))[0]
                except KeyError:
                    continue
                yield item

    @property
    def id_bound(self) -> int:
        """All ids ever given are below this."""
        return self._native.id_bound

    def stats(self) -> dict[str, int | float]:
        """Return the size and shape of the tree.

        Keys: ``objects``, ``id_bound``, ``index_bytes`` (all that was allocated but the objects), ``object_bytes``
        (allocated for the copies), ``bytes_per_object`` (of index), ``depth_mean``, ``depth_max`` (edges from the
        root table), ``table_bits`` (key bits that the root table resolves). Cost: a walk over the tree.
        """
        return self._native.stats()

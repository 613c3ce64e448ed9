"""Distinct rows of an array, exactly, in first-seen order."""

from __future__ import annotations

import secrets
from typing import Any, Literal, TypeAlias, TypeVar, overload

import numpy as np
import numpy.typing as npt

from pageone._native import one as _one

__all__ = ["unique_rows"]

I64: TypeAlias = npt.NDArray[np.int64]
S = TypeVar("S", bound=np.generic)


@overload
def unique_rows(
    a: npt.NDArray[S],
    return_index: Literal[False] = False,
    return_inverse: Literal[False] = False,
    return_counts: Literal[False] = False,
) -> npt.NDArray[S]: ...
@overload
def unique_rows(
    a: npt.NDArray[S],
    return_index: Literal[False] = False,
    return_inverse: Literal[False] = False,
    *,
    return_counts: Literal[True],
) -> tuple[npt.NDArray[S], I64]: ...
@overload
def unique_rows(
    a: npt.NDArray[S], return_index: Literal[False], return_inverse: Literal[False], return_counts: Literal[True]
) -> tuple[npt.NDArray[S], I64]: ...
@overload
def unique_rows(
    a: npt.NDArray[S],
    return_index: Literal[False] = False,
    *,
    return_inverse: Literal[True],
    return_counts: Literal[False] = False,
) -> tuple[npt.NDArray[S], I64]: ...
@overload
def unique_rows(
    a: npt.NDArray[S],
    return_index: Literal[False],
    return_inverse: Literal[True],
    return_counts: Literal[False] = False,
) -> tuple[npt.NDArray[S], I64]: ...
@overload
def unique_rows(
    a: npt.NDArray[S],
    return_index: Literal[False] = False,
    *,
    return_inverse: Literal[True],
    return_counts: Literal[True],
) -> tuple[npt.NDArray[S], I64, I64]: ...
@overload
def unique_rows(
    a: npt.NDArray[S], return_index: Literal[False], return_inverse: Literal[True], return_counts: Literal[True]
) -> tuple[npt.NDArray[S], I64, I64]: ...
@overload
def unique_rows(
    a: npt.NDArray[S],
    return_index: Literal[True],
    return_inverse: Literal[False] = False,
    return_counts: Literal[False] = False,
) -> tuple[npt.NDArray[S], I64]: ...
@overload
def unique_rows(
    a: npt.NDArray[S],
    return_index: Literal[True],
    return_inverse: Literal[False] = False,
    *,
    return_counts: Literal[True],
) -> tuple[npt.NDArray[S], I64, I64]: ...
@overload
def unique_rows(
    a: npt.NDArray[S], return_index: Literal[True], return_inverse: Literal[False], return_counts: Literal[True]
) -> tuple[npt.NDArray[S], I64, I64]: ...
@overload
def unique_rows(
    a: npt.NDArray[S], return_index: Literal[True], return_inverse: Literal[True], return_counts: Literal[False] = False
) -> tuple[npt.NDArray[S], I64, I64]: ...
@overload
def unique_rows(
    a: npt.NDArray[S], return_index: Literal[True], return_inverse: Literal[True], return_counts: Literal[True]
) -> tuple[npt.NDArray[S], I64, I64, I64]: ...
@overload
def unique_rows(
    a: npt.NDArray[S], return_index: bool = False, return_inverse: bool = False, return_counts: bool = False
) -> npt.NDArray[S] | tuple[npt.NDArray[Any], ...]: ...
def unique_rows(
    a: npt.NDArray[S], return_index: bool = False, return_inverse: bool = False, return_counts: bool = False
) -> npt.NDArray[S] | tuple[npt.NDArray[Any], ...]:
    """Return the distinct rows of ``a`` in first-seen order, as ``numpy.unique(a, axis=0)`` does in sorted order.

    ``a``: an array of shape ``(n, ...)``, C-contiguous (others are copied), of any dtype without object fields;
    a row is ``a[i]``. It may be memory-mapped and larger than memory: rows stay where they are, and only the
    distinct ones are copied, into the result. Bytes decide: ``0.0`` and ``-0.0`` are two rows, NaNs of the same
    bits are one (``numpy.unique`` says the opposite of both), and padding bytes of structured dtypes count.

    Returns the array of distinct rows, ``(u, ...)``, or a tuple of it with, as asked for: ``index`` ``(u,)`` int64,
    the row where each was seen first; ``inverse`` ``(n,)`` int64, so that ``result[inverse]`` is ``a``; ``counts``
    ``(u,)`` int64. Raises ``TypeError`` for object dtypes, ``ValueError`` for rows of no bytes or an array without
    dimensions. Cost: see ``docs/one.md``; about 22 bytes of memory a distinct row, and eight a row.

    >>> import numpy as np
    >>> rows = np.array([[3, 4], [1, 2], [3, 4]])
    >>> unique_rows(rows, return_counts=True)
    (array([[3, 4],
           [1, 2]]), array([2, 1]))
    """
    a = np.asanyarray(a)
    if a.dtype.hasobject:
        raise TypeError(f"rows of Python objects have no bytes of their own: dtype {a.dtype}")
    if a.ndim == 0:
        raise ValueError("an array without dimensions has no rows")
    whole = a
    if len(a) == 0:
        index = np.empty(0, np.int64)
        inverse = np.empty(0, np.int64)
    else:
        if a[0].nbytes == 0:
            raise ValueError(f"rows of no bytes: shape {a.shape}")
        whole = np.ascontiguousarray(a)
        flat = whole.reshape(-1).view(np.uint8)
        first, number = _one.unique_rows(flat, whole[0].nbytes, secrets.token_bytes(32))
        index = first.astype(np.int64)
        inverse = number.astype(np.int64) if return_inverse else np.empty(0, np.int64)
    # Copies whole rows, where an index of its own dimension would copy element by element.
    result: list[Any] = [np.take(np.asarray(whole), index, axis=0)]
    if return_index:
        result.append(index)
    if return_inverse:
        result.append(inverse)
    if return_counts:
        counts = np.bincount(number, minlength=len(index)) if len(a) else np.empty(0)
        result.append(counts.astype(np.int64))
    return result[0] if len(result) == 1 else tuple(result)

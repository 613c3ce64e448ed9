"""Stubs of `pageone._native.baselines`: there only in a checkout, not in a wheel."""

from typing import Any

import numpy as np
import numpy.typing as npt

def names() -> list[str]:
    """Return the names of all that can be measured."""

def floors() -> list[str]:
    """Return the names of those that find nothing, but say what the machine can do."""

def kinds() -> list[str]:
    """Return the names of the families of pages that :func:`fill` makes."""

def fill(kind: str, rows: npt.NDArray[np.uint8], copies: int, size: int, seed: int) -> None:
    """Fill ``rows``, ``(n * size,)``, with members of a family, each ``copies`` times. ``ValueError`` for no family."""

def measure(
    name: str, rows: npt.NDArray[np.uint8], misses: npt.NDArray[np.uint8], size: int, threads: int
) -> dict[str, Any]:
    """Measure one, once, with ``rows``, ``(n * size,)``: all put in, found again, ``misses`` looked for, all removed.

    Returns ``(wall ns, CPU ns, counted)`` by operation, ``bytes``, and ``depth_mean`` and ``depth_max`` or None.
    ``ValueError`` for a name that is none, rows that are not whole, and threads that it cannot have.
    """

"""Stubs of `pageone._native.duplicates`."""

from typing import final

import numpy as np
import numpy.typing as npt

@final
class DuplicateCount:
    """Counts pages. ``targets``: (is a process, PID or descriptor, position and first page of each extent).

    ``ids``, ``extra``, ``representative``, ``keys`` are views, not copies; what they hold is said in
    ``pageone.scan.duplicates``.
    """

    def __new__(
        cls,
        targets: list[tuple[bool, int, npt.NDArray[np.uint64], npt.NDArray[np.int64]]],
        page_size: int,
        seed: bytes,
        mask: int,
        remember: bool,
    ) -> DuplicateCount: ...
    def count(
        self, target: int, low: int, high: int
    ) -> tuple[
        tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint32], npt.NDArray[np.uint64]],
        tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint64]],
        int,
    ]:
        """Read and count pages ``low`` to ``high`` of a target; returns ``(doubts, shared, error)``.

        ``doubts``: page, id and key of those that must be read again; ``shared``: page and pagemap entry of those that
        are mapped more than once; ``error``: the number of the error that ended it, 0 for none. ``ValueError`` for
        pages that are not the target's, ``MemoryError`` when all ids are in use. Releases the GIL.
        """

    def add(self, ids: npt.NDArray[np.uint32]) -> None:
        """Count one more page for each of ``(n,)`` ids. ``ValueError`` for one that is none."""

    @property
    def ids(self) -> npt.NDArray[np.uint32]: ...
    @property
    def extra(self) -> npt.NDArray[np.uint32]: ...
    @property
    def representative(self) -> npt.NDArray[np.uint32]: ...
    @property
    def keys(self) -> npt.NDArray[np.uint64] | None: ...

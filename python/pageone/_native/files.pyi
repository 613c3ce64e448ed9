"""Stubs of `pageone._native.files`."""

from typing import final

import numpy as np
import numpy.typing as npt

_Ranges = tuple[
    npt.NDArray[np.uint32],
    npt.NDArray[np.uint64],
    npt.NDArray[np.uint32],
    npt.NDArray[np.uint64],
    npt.NDArray[np.uint64],
    npt.NDArray[np.bool_],
]

@final
class FileScan:
    """One scan of files. ``unit``: bytes of a block; ``shortest``: blocks of a range to be shared, at least.

    ``memory``: bytes for one pass over keys; ``seed``: 32 random bytes; ``mask``: bits of keys that are kept;
    ``cpu_share`` of one CPU and ``rate`` in bytes a second, 0 for no limit. ``ValueError`` for another unit than a
    power of two from 512 to 1 MiB.
    """

    def __new__(
        cls,
        *,
        smallest: int,
        whole: bool,
        unit: int,
        shortest: int,
        threads: int,
        memory: int,
        across: bool,
        seed: bytes,
        mask: int,
        cpu_share: float,
        rate: int,
    ) -> FileScan: ...
    def run(self, roots: list[tuple[int, int, int]], leave: list[tuple[int, int]], keys: int) -> None:
        """List, read and compare. ``roots``: descriptor, number of the file system, and what that can do (0 to 2).

        ``leave``: device and inode of files left out; ``keys``: descriptor of an index or an empty file. ``OSError``,
        ``ECANCELED`` when stopped. Releases the GIL.
        """

    def share(self, order: npt.NDArray[np.uint64]) -> bool:
        """Share ranges of ``to_share()`` by number, in this order; ``False`` when stopped. Releases the GIL."""

    def stop(self) -> None:
        """End what runs at the next safe instant."""

    def progress(self) -> tuple[str, int, int]:
        """Return the step, what is done of it, and all of it."""

    def outcome(self) -> tuple[int, int, int, list[tuple[int, int]]]:
        """Return bytes shared, calls, bytes that differ, and bytes refused by error number."""

    def path(self, file: int) -> tuple[int, bytes]:
        """Return the number of a file's root and its path below it."""

    def files(
        self,
    ) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64], npt.NDArray[np.uint32], npt.NDArray[np.uint32]]:
        """Return size, bytes allocated, owner and number of the file system by file."""

    def classes(self) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint64]]:
        """Return the members of all groups of equal files, and where each group ends."""

    def ranges(self) -> _Ranges:
        """Return ``(src, src_at, dst, dst_at, len, long)`` of equal ranges, each compared byte by byte."""

    def to_share(self) -> _Ranges:
        """As ``ranges``: what can be shared and is not yet."""

    def counts(self) -> list[tuple[str, int]]:
        """Return all counters by name."""

"""Stubs of `pageone._native.ksm`: there only in a checkout, not in a wheel."""

import numpy as np
import numpy.typing as npt

class Model:
    """KSM's algorithm over pages; see :class:`pageone.bench.ksm.model.Model`."""

    def __init__(
        self, pages: int, checksum: str, smart_scan: bool, use_zero_pages: bool, max_page_sharing: int
    ) -> None:
        """Make one for ``pages`` pages; the rest are the kernel's knobs. ``ValueError`` for one out of range."""

    def scan(self, pages: npt.NDArray[np.uint8], threads: int) -> tuple[float, float, int]:
        """Scan every page once; returns CPU-seconds, seconds, comparisons. Releases the GIL."""

    def written(self, pages: npt.NDArray[np.uint32]) -> None:
        """Tell which pages were written. Releases the GIL."""

    def counts(self) -> list[int]:
        """Return shared, sharing, unshared, volatile, zero, skipped, scans, chains, dups."""

    def frames(self) -> npt.NDArray[np.int64]:
        """Return the frame of each page, -1 for none, -2 for the zero page."""

    def metadata_bytes(self) -> int:
        """Return the bytes of the model's records."""

def checksums(name: str, pages: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint32]:
    """Return the checksum of each page, shape (n,). Releases the GIL."""

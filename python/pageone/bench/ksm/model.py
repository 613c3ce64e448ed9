"""KSM's algorithm in user space, on an array of pages: what the kernel would find, and with which checksum.

For: :mod:`pageone.bench.ksm`, in a checkout: nobody's wheel has it. The work is done by the crate ``ksmmodel``; its
documentation says what is modelled and what is left out (page tables).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pageone.bench import _checkout
from pageone.errors import UsageError

if TYPE_CHECKING:
    from pageone._native import ksm as _native
else:
    _native = _checkout.native("ksm")

#: Checksums by which the model tells that a page changed; "xxh64" is the kernel's since 5.0, "jhash2" before.
CHECKSUMS = ("jhash2", "crc32c", "xxh64")

PAGE_SIZE = 4096


@dataclass(frozen=True)
class ModelCounts:
    """The model's counters, under the names of the kernel's; pages."""

    pages_shared: int  #: frames in use
    pages_sharing: int  #: further pages that use them: what is saved
    pages_unshared: int  #: pages in the unstable tree after the last scan
    pages_volatile: int  #: pages in no tree: just changed, or skipped
    ksm_zero_pages: int  #: pages given back to the zero page
    pages_skipped: int  #: pages that smart scan passed over, all scans together
    full_scans: int
    stable_node_chains: int  #: contents with more than one frame
    stable_node_dups: int  #: frames of those contents


@dataclass(frozen=True)
class ModelScan:
    """What one scan cost."""

    cpu_s: float  #: CPU-seconds, all threads
    wall_s: float
    compared: int  #: pages compared with memcmp


class Model:
    """KSM over ``pages`` pages.

    ``checksum``: one of :data:`CHECKSUMS`. The other knobs are the kernel's, with its defaults. Raises
    ``UsageError`` for a knob out of range.

    >>> import numpy as np
    >>> pages = np.zeros((4, 4096), np.uint8)
    >>> pages[2:] = 7
    >>> model = Model(4)
    >>> _ = model.scan(pages); _ = model.scan(pages)
    >>> model.counts().pages_shared, model.counts().pages_sharing
    (2, 2)
    """

    def __init__(
        self,
        pages: int,
        *,
        checksum: str = "xxh64",
        smart_scan: bool = True,
        use_zero_pages: bool = False,
        max_page_sharing: int = 256,
    ) -> None:
        try:
            self._model = _native.Model(pages, checksum, smart_scan, use_zero_pages, max_page_sharing)
        except (ValueError, OverflowError) as error:
            raise UsageError(str(error)) from None
        self.pages = pages

    def scan(self, pages: npt.NDArray[np.uint8], threads: int = 1) -> ModelScan:
        """Scan every page once.

        ``pages``: uint8, shape (n, 4096), C order, the same n every time; read only, not kept. Threads share one
        read-write lock around the trees. Releases the GIL. Raises ``UsageError`` for another shape. Cost: a
        checksum a page, and for a quiet page two descents with a memcmp at each level.
        """
        try:
            return ModelScan(*self._model.scan(pages, threads))
        except (ValueError, OverflowError) as error:
            raise UsageError(str(error)) from None

    def written(self, pages: npt.NDArray[np.uint32]) -> None:
        """Tell that pages were written since the last scan (their numbers, uint32): sharing of those is broken."""
        try:
            self._model.written(pages)
        except ValueError as error:
            raise UsageError(str(error)) from None

    def counts(self) -> ModelCounts:
        """Return the counters now. Cost: one pass over 4 bytes a page."""
        return ModelCounts(*self._model.counts())

    def frames(self) -> npt.NDArray[np.int64]:
        """Return the number of each page's frame, int64, shape (n,); -1 not shared, -2 given to the zero page."""
        return self._model.frames()

    def metadata_bytes(self) -> int:
        """Return the bytes of the model's own records (the kernel's are larger, 64 bytes a page and more)."""
        return self._model.metadata_bytes()

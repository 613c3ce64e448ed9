"""What the engine needs of the memory below it: the contract between policy (engine) and mechanism (live).

For: the engine, which decides with arrays and never touches a process, and ``pageone.live``, which does what is
asked and decides nothing. Tests give the engine a backend made of numpy arrays; the real one is
``pageone.live.LiveBackend``.

Conventions: addresses are byte addresses, ``uint64``, multiples of ``PAGE_SIZE``; counts of pages are ``uint32``;
frames are numbered from 0 in the pool, ``uint32``. A *run* is a range of consecutive pages that maps to
consecutive frames. No call takes or returns anything per page but numpy arrays.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

import numpy as np
import numpy.typing as npt

U8 = npt.NDArray[np.uint8]
U32 = npt.NDArray[np.uint32]
U64 = npt.NDArray[np.uint64]
F64 = npt.NDArray[np.float64]

PAGE_SIZE = 4096
#: Most pages of one request (:func:`pageone.engine.arrays.requests` cuts runs to it): while one is carried out, other
#: targets' events may have to wait.
REQUEST_PAGES = 8192


class PageFlag(IntEnum):
    """Bits of the ``flags`` that :meth:`TargetMemory.written` returns for each range."""

    HUGE = 1  #: mapped by a transparent huge page


class ReadCode(IntEnum):
    """What :meth:`TargetMemory.read_keys` found at each address."""

    OK = 0
    ZERO = 1  #: all bytes are zero
    GONE = 2  #: not mapped or not readable any more, or no memory is held there
    SHARED = 3  #: other processes map it too, since a fork: not read
    NO_ROOM = 4  #: not filled, since a control group lets the guardian have no more memory: :meth:`Backend.fill` alone


class Hold(IntEnum):
    """Whose a page is, as :meth:`TargetMemory.holds` tells."""

    NONE = 0  #: nobody's: never touched, discarded, or the kernel's zero page
    OWN = 1  #: this process's alone
    SHARED = 2  #: other processes map it too, since a fork: what one of them does to its own mapping frees nothing
    FILE = 3  #: a file's, as a frame of the pool is
    SWAPPED = 4  #: in swap: the kernel does not tell whose


class PageOutcome(IntEnum):
    """What became of each page of a request to merge, drop or unmerge."""

    DONE = 0
    DIFFERS = 1  #: verified inside the stop and found different from the frame (or not zero): left alone
    WRITTEN = 2  #: written since the last :meth:`TargetMemory.written`: left alone
    GONE = 3  #: mapping has changed or vanished: left alone
    REFUSED = 4  #: locked, pinned, no memory or no mapping left: left alone
    TIMEOUT = 5  #: the target did not stop in time: left alone, may be asked again
    SHARED = 6  #: other processes map it too, since a fork: left alone, for nothing would be freed


@dataclass(frozen=True)
class Regions:
    """Mappings that may be tracked: private, anonymous (or merged by us), readable and writable.

    All arrays have one element a region, in ascending order; ``start`` and ``end`` are byte addresses.
    ``merged`` is 1 where the mapping is one of the pool, with ``frame`` its first frame (else 0).
    """

    start: U64
    end: U64
    merged: U8
    frame: U32
    mappings: int  #: number of all mappings of the target, for the budget
    left_alone: str = ""  #: what keeps the target from being merged now; then only its merged regions are told


@dataclass(frozen=True)
class Inherited:
    """What a process that is not attached maps of the pool: byte addresses ``start`` to ``end``, first ``frame``.

    One element a mapping in every array, ascending.
    """

    start: U64
    end: U64
    frame: U32


@dataclass(frozen=True)
class PageRanges:
    """Ranges of pages: ``start``/``end`` byte addresses, ``flags`` of :class:`PageFlag`, one element a range."""

    start: U64
    end: U64
    flags: U8


@dataclass(frozen=True)
class Outcome:
    """What a request did. ``code``: one :class:`PageOutcome` a page, in the order of the request's pages."""

    code: U8
    pauses_s: F64  #: seconds the target stood still, one element a stop
    cpu_s: float  #: CPU-seconds spent for the request outside the calling process (guardian and target)


class TargetMemory(Protocol):
    """One process whose memory can be tracked, read and merged.

    Requests to merge, drop and unmerge have at most ``REQUEST_PAGES`` pages each.
    """

    pid: int

    def alive(self) -> bool:
        """Whether the process still exists with the address space that was attached."""

    def regions(self) -> Regions:
        """Return the regions now, arming write tracking in those that are new. Cost: one read of the maps."""

    def written(self, start: U64, end: U64) -> PageRanges:
        """Return resident pages of the given ranges written since last asked, and start anew, atomically.

        A page not asked about the last time counts as written. Pages of the kernel's zero page and swapped pages are
        not returned. Reads no content.
        """

    def read_keys(self, addr: U64) -> tuple[U64, U8]:
        """Read pages and return a keyed 64-bit hash of each (a route, not an identity) and its :class:`ReadCode`.

        Pages that other processes share are not read.
        """

    def holds(self, addr: U64) -> U8:
        """Return the :class:`Hold` of each page. Reads no content."""

    def merge(self, addr: U64, pages: U32, frame: U32) -> Outcome:
        """Map runs to frames. Each page is compared with its frame, all bytes, while the target is stopped.

        Pages that other processes share are left alone, here and in :meth:`drop_zero`.
        """

    def drop_zero(self, addr: U64, pages: U32) -> Outcome:
        """Give runs of all-zero pages back to the kernel's zero page, verified while the target is stopped."""

    def unmerge(self, addr: U64, pages: U32, apart: bool = False) -> Outcome:
        """Give merged runs private anonymous memory of their own again, with the same bytes.

        ``apart``: out of reach of other processes that write this memory at the same moment; each run stays a mapping
        of its own. Otherwise it is joined with its neighbours again, and such a write may be lost.
        """

    def detach(self) -> None:
        """Stop tracking and release everything held of the target; what is left merged is guarded on."""

    def release(self) -> None:
        """Release what is held here for a target that has gone, or was detached; may be called more than once."""


class Backend(Protocol):
    """Where targets and frames come from. One backend is one pool of frames, one domain."""

    frames_max: int  #: number of frames that the pool can hold

    def attach(self, pid: int) -> TargetMemory:
        """Check everything first, then attach. Raises ``TargetError`` or ``UnsupportedError``, target untouched."""

    def fill(self, frame: U32, target: TargetMemory, addr: U64) -> tuple[U8, float]:
        """Copy pages into free frames; returns a :class:`ReadCode` for each (ZERO is not told apart).

        And the CPU-seconds that it took outside of the calling process.
        """

    def punch(self, frame: U32) -> None:
        """Give the memory of free frames back to the system."""

    def mapped_frames(self) -> tuple[U32, U32, bool]:
        """Look at every mapping of the pool in the system: ``(first frame, pages)`` a mapping, and completeness.

        The flag is False when some process could not be read: then nothing may be freed.
        """

    def inherited(self) -> list[Inherited]:
        """Return what processes map of the pool that are not attached: children of targets, and what was left merged.

        Those that cannot be read are missing.
        """

    def close(self) -> None:
        """Release the pool; merged targets go on with what they have mapped."""

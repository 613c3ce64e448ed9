"""Stubs of `pageone._native.mem`.

Addresses and offsets are bytes; a page is 4096 bytes unless ``page_size`` says otherwise. Arrays are
one-dimensional and contiguous; a ``ValueError`` says which is not, or is of the wrong length. Errors of the
system come as ``OSError`` with its number. Every call that reads releases the GIL.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

_U8 = npt.NDArray[np.uint8]
_U32 = npt.NDArray[np.uint32]
_U64 = npt.NDArray[np.uint64]
_Maps = tuple[_U64, _U64, _U8, _U64, _U64, _U64, _U32, Sequence[str]]

# --- the read side: maps, pagemap, reads and keys ---

PERM_READ: int
PERM_WRITE: int
PERM_EXEC: int
PERM_SHARED: int
PAGE_IS_WPALLOWED: int
PAGE_IS_WRITTEN: int
PAGE_IS_FILE: int
PAGE_IS_PRESENT: int
PAGE_IS_SWAPPED: int
PAGE_IS_PFNZERO: int
PAGE_IS_HUGE: int
SCAN_WP_MATCHING: int
ENTRY_PRESENT: int
ENTRY_SWAPPED: int
ENTRY_FILE: int
ENTRY_EXCLUSIVE: int
ENTRY_FRAME: int
SCAN_CHECK_WPASYNC: int

class Key:
    """The secret that the keys of pages depend on; making one costs about 0.1 ms, so keep it."""

    def __new__(cls, seed: bytes) -> Key:
        """Make the key of ``seed``, secret bytes of any number; the same bytes make the same key."""

def maps(pid: int) -> _Maps:
    """Return ``(start, end, perms, offset, dev, inode, name, names)`` of the mappings, ascending.

    ``perms`` holds ``PERM_*`` bits, ``dev`` is ``major << 32 | minor``, ``names[name[i]]`` is the name of
    mapping ``i``. ``FileNotFoundError`` or ``ProcessLookupError`` for no such process, ``PermissionError``
    where it may not be read. Cost: 1-2 µs a mapping, the kernel's.
    """

def parse_maps(text: bytes) -> _Maps:
    """Return what :func:`maps` does, of the text of a ``/proc/PID/maps``. ``OSError`` for other text."""

def pagemap_available() -> bool:
    """Whether the kernel has ``PAGEMAP_SCAN`` (Linux 6.7)."""

def pagemap_scan(
    fd: int,
    start: _U64,
    end: _U64,
    *,
    flags: int = 0,
    inverted: int = 0,
    mask: int = 0,
    anyof: int = 0,
    returned: int = 0,
) -> tuple[_U64, _U64, _U64]:
    """Scan the page tables behind an open ``/proc/PID/pagemap``: ``(start, end, categories)`` of matches.

    A page matches when, after inverting the categories ``inverted``, all of ``mask`` and one of ``anyof`` (if
    not 0) are set; ``PAGE_IS_*`` bits. With ``SCAN_WP_MATCHING`` in ``flags``, matches are write-protected,
    atomically. ``OSError``: ``ENOTTY`` before Linux 6.7, ``EPERM`` where ``SCAN_CHECK_WPASYNC`` meets a range
    that is not registered. A process that has exited has no pages. Cost: 5-20 ns a page, nothing read.
    """

def pagemap_entries(fd: int, start: _U64, end: _U64) -> _U64:
    """Return the 64-bit pagemap entry of each page of the ranges, in order; frame numbers only for root."""

def pagemap_holds(fd: int, addr: _U64) -> _U8:
    """Return the ``Hold`` of each page at ``addr``, of the process behind an open ``/proc/PID/pagemap``.

    Cost: 10-20 ns a page in runs, half a microsecond for one alone; as much again for those that are shared.
    """

def read_keys(
    pid: int,
    addr: _U64,
    key: Key,
    threads: int = 1,
    keep: _U8 | None = None,
) -> tuple[_U64, _U8]:
    """Read pages of a process: ``(keys, code)``, a keyed 64-bit hash and a ``ReadCode`` of each page.

    The key of a page that is zero or gone is 0. ``keep``, of ``4096 * len(addr)`` bytes, gets the pages
    themselves. Nothing is stopped: a page written meanwhile may be torn. ``PermissionError`` where the process
    may not be read; a process that is gone has only pages that are ``GONE``. Cost: 0.4-0.6 µs a page in runs, a
    third more for pages that are shared since a fork (or by KSM), which stay shared.
    """

def read_own_keys(pid: int, addr: _U64, key: Key) -> tuple[_U64, _U8]:
    """As :func:`read_keys`, but pages that other processes map too, since a fork, are ``SHARED`` and not read.

    Pages that hold no memory (discarded, or the kernel's zero page) are ``GONE``. Cost: as :func:`read_keys`; 0.05 µs
    for a page that is not read.
    """

def file_keys(
    fd: int, offset: _U64, page_size: int, key: Key, threads: int = 1, keep: _U8 | None = None
) -> tuple[_U64, _U8]:
    """As :func:`read_keys` for blocks of an open file; a block that is not wholly there is ``GONE``."""

def keys_of(buffer: _U8, page_size: int, key: Key, threads: int = 1) -> tuple[_U64, _U8]:
    """As :func:`read_keys` for the whole pages of a buffer; what is left behind the last is not read.

    For tests: not in a shipped wheel.
    """

def read_pages(pid: int, addr: _U64, out: _U8) -> _U8:
    """Read pages of a process into ``out``, of ``4096 * len(addr)`` bytes; return a ``ReadCode`` of each.

    Zero pages are not told apart: the code is ``OK`` or ``GONE``.
    """

def compare(a: tuple[bool, int], at_a: _U64, b: tuple[bool, int], at_b: _U64, page_size: int) -> _U8:
    """Read and compare pages of two sources, all bytes: 0 for the same, 1 for different, 2 where one is gone.

    A source is ``(True, pid)`` or ``(False, descriptor)``. Cost: that of reading both.
    """

def guardian(control: int, filling: int, frames: int) -> None:
    """Make a pool and serve the engine at ``control``, its frames at ``filling``; runs in a process of its own.

    Ends when the engine and the last guarded target have gone.
    """

_Done = tuple[_U8, npt.NDArray[np.float64], float, float]

class GuardianClient:
    """The engine's end of a guardian; calls of several threads are answered one after another.

    Calls raise ``OSError`` where the guardian refuses, with its number, and ``EOFError`` where it does not answer any
    more. Those about runs of pages (their first addresses, and how many each has) return ``(code, pauses_s,
    injected_s, cpu_s)``: one ``PageOutcome`` a page, the seconds that the target stood still at each stop, and the
    CPU-seconds that were spent in the target and in the guardian.
    """

    def __new__(cls, fd: int) -> GuardianClient:
        """Take over the descriptor of a socket whose other end a guardian serves."""
    @staticmethod
    def of_pool(device: int, inode: int, patience_s: float) -> tuple[GuardianClient, int, int]:
        """Connect to the guardian of a pool whose engine has gone: ``(client, pid, uid)`` of who listens.

        Nothing is waited for longer than ``patience_s``. ``OSError`` where there is none.
        """
    def close(self) -> None:
        """Leave; the guardian guards on what is still merged."""
    def set_limits(self, pause_s: float, stop_timeout_s: float) -> None:
        """Set what a stop aims not to exceed, and how long a target may take to stop."""
    def pool(self) -> tuple[int, int, bool]:
        """Return ``(device, inode, apart)`` of the pool's file, as :func:`maps` tells them."""
    def attach(self, pid: int, forks: bool) -> tuple[int, int]:
        """Attach to a process; return the addresses, first and one past the last, of what was planted in it."""
    def arm(self, pid: int, start: _U64, end: _U64) -> npt.NDArray[np.int32]:
        """Track writes in ranges; return an errno for each, 0 where it worked. ``end`` carries advice."""
    def merge(self, pid: int, addr: _U64, pages: _U32, frame: _U32) -> _Done:
        """Map runs to frames, from ``frame`` on for each."""
    def drop_zero(self, pid: int, addr: _U64, pages: _U32) -> _Done:
        """Give runs of pages of zeros back to the kernel's zero page."""
    def unmerge(self, pid: int, addr: _U64, pages: _U32, apart: bool) -> _Done:
        """Give merged runs memory of their own; ``apart``: out of reach of others, each a mapping of its own."""
    def close_ends(self, pid: int, addr: _U64, pages: _U32) -> _Done:
        """Keep merged memory from growing into runs that nothing is behind."""
    def detach(self, pid: int) -> None:
        """Remove what was planted and stop watching, unless memory is left merged."""
    def targets(self) -> list[int]:
        """Return the PIDs that are attached or, as children of such, guarded."""

class PoolClient:
    """The engine's end of a guardian's pool; calls of several threads are answered one after another.

    Calls raise ``OSError`` where something is refused, and ``EOFError`` where the guardian does not answer any more.
    """

    def __new__(cls, fd: int) -> PoolClient:
        """Take over the descriptor of a socket whose other end a guardian serves."""
    def close(self) -> None:
        """Leave; the frames stay for as long as somebody maps them."""
    def fill(self, pid: int, addr: _U64, frame: _U32) -> tuple[_U8, float]:
        """Copy pages of a process into free frames: a ``ReadCode`` for each, and the CPU-seconds it took."""
    def free(self, first: _U64, count: _U64) -> None:
        """Give the memory of ``count`` frames from ``first`` on back to the system, of each."""
    def bytes(self) -> int:
        """Return the memory that all frames together take."""

class Kinds:
    """Tells what lets the memory of a process be written behind its page tables; one for each process, asked again."""

    def __new__(cls) -> Kinds: ...
    def behind(self, pid: int) -> str | None:
        """Return what the process has open or mapped that lets a device write its memory, None if there is nothing.

        What is not known to be harmless counts. ``OSError`` where that cannot be told. Cost: some 3 µs a descriptor.
        """

def bare_stops(pid: int, times: int, apart_s: float) -> list[float]:
    """Stop and release all threads of a process ``times`` times, doing nothing; seconds it stood still each time.

    ``apart_s`` lie between two stops. ``OSError`` where the process has ended, may not be traced, or does not stop
    within a second. For benchmarks: not in a shipped wheel.
    """

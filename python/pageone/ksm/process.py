"""KSM's figures of one process, and asking KSM to look at one's own memory.

For: :mod:`pageone.ksm`. Calls ``/proc`` and ``prctl``/``madvise`` for the calling process only: the kernel has no
call that turns KSM on in another process.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pageone import procfs
from pageone.errors import TargetError, UnsupportedError

PR_SET_MEMORY_MERGE = 67
PR_GET_MEMORY_MERGE = 68
MADV_MERGEABLE = 12
MADV_UNMERGEABLE = 13

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class ProcessFigures:
    """``/proc/PID/ksm_stat`` and ``ksm_merging_pages``; ``None`` where this kernel does not have the figure."""

    pid: int
    merging_pages: int | None  #: pages of this process that map a frame of KSM
    zero_pages: int | None  #: pages of this process that KSM gave back to the kernel's zero page
    rmap_items: int | None  #: pages of this process that KSM keeps a record of, 64 bytes each
    profit_bytes: int | None  #: bytes saved in this process less its records; may be negative
    merge_any: bool | None  #: PR_SET_MEMORY_MERGE is on
    mergeable: bool | None  #: some mapping is mergeable (6.16)
    smaps_bytes: int | None  #: bytes of KSM pages by smaps, zero pages not counted; None without the right to read


@contextlib.contextmanager
def _told(pid: int) -> Iterator[None]:
    """Say what is in the way of reading a file of a process; one that this kernel does not have is passed over."""
    try:
        yield
    except ProcessLookupError:
        raise TargetError(f"process {pid} has ended: give the PID of a running process") from None
    except FileNotFoundError:
        if not Path(f"/proc/{pid}").exists():
            raise TargetError(f"no process {pid}: give the PID of a running process") from None
    except PermissionError:
        raise TargetError(f"process {pid} belongs to another user: run as that user or as root") from None


def process_figures(pid: int) -> ProcessFigures:
    """Return KSM's figures of a process.

    Raises ``TargetError`` when there is no such process or it may not be read. Cost: three small reads and
    one walk of the process's page tables (``smaps_rollup``).
    """
    stat: dict[str, str] = {}
    merging: int | None = None
    with _told(pid):
        stat = procfs.ksm_stat(pid)
    with _told(pid):
        merging = procfs.ksm_merging_pages(pid)

    def number(name: str) -> int | None:
        return int(stat[name]) if name in stat else None

    def yes(name: str) -> bool | None:
        return stat[name] == "yes" if name in stat else None

    try:
        smaps = procfs.memory_bytes(pid, "KSM")
    except OSError:
        smaps = None
    return ProcessFigures(
        pid=pid,
        merging_pages=merging,
        zero_pages=number("ksm_zero_pages"),
        rmap_items=number("ksm_rmap_items"),
        profit_bytes=number("ksm_process_profit"),
        merge_any=yes("ksm_merge_any"),
        mergeable=yes("ksm_mergeable"),
        smaps_bytes=smaps,
    )


def smaps_ksm_bytes(pid: int, start: int, end: int) -> int:
    """Return the bytes of KSM pages in the mappings of a process that overlap ``[start, end)``.

    Raises ``TargetError`` as :func:`process_figures`. Cost: a walk of the process's page tables.
    """
    with _told(pid):
        return sum(its.get("KSM", 0) for low, high, its in procfs.smaps(pid) if low < end and high > start)
    return 0


def memory_merge(enable: bool = True) -> None:
    """Let KSM merge all private anonymous memory of the calling process and of children made later (Linux 6.4).

    Raises ``UnsupportedError`` on an older kernel or without the right (``CAP_SYS_RESOURCE``).
    """
    # Longs, all five: the kernel refuses the call when an unused argument is not 0.
    if _libc.prctl(PR_SET_MEMORY_MERGE, *(ctypes.c_ulong(v) for v in (int(enable), 0, 0, 0))) == 0:
        return
    error = ctypes.get_errno()
    raise UnsupportedError(
        f"PR_SET_MEMORY_MERGE refused ({os.strerror(error)}): it needs Linux 6.4 with CONFIG_KSM and CAP_SYS_RESOURCE"
    )


def memory_merge_enabled() -> bool:
    """Whether ``PR_SET_MEMORY_MERGE`` is on for the calling process; False on kernels that do not have it."""
    return int(_libc.prctl(PR_GET_MEMORY_MERGE, *(ctypes.c_ulong(0) for _ in range(4)))) == 1


def madvise_mergeable(address: int, length: int, enable: bool = True) -> None:
    """Let KSM merge (or have it unmerge) ``length`` bytes at ``address`` of the calling process.

    Both are multiples of the page size. Raises ``UnsupportedError`` when the kernel refuses. Unmerging copies
    every merged page back at once.
    """
    advice = MADV_MERGEABLE if enable else MADV_UNMERGEABLE
    if _libc.madvise(ctypes.c_void_p(address), ctypes.c_size_t(length), advice) == 0:
        return
    error = ctypes.get_errno()
    raise UnsupportedError(f"madvise for KSM at {address:#x} refused ({os.strerror(error)}): it needs CONFIG_KSM")

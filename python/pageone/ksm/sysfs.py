"""KSM's knobs and counters in ``/sys/kernel/mm/ksm``, and what ``ksmd`` has used of the processors.

For: :mod:`pageone.ksm`. Reads only. A figure that this kernel does not have is ``None``, never 0. Names and meanings
follow the kernel's documentation, https://docs.kernel.org/admin-guide/mm/ksm.html.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

from pageone import procfs
from pageone.errors import UnsupportedError

KSM_DIR = Path("/sys/kernel/mm/ksm")

#: Bytes of one ``ksm_rmap_item``, one ``ksm_stable_node`` and one ``ksm_mm_slot`` on x86-64, for kernels
#: whose slab directory does not tell.
_SLAB_BYTES = {"ksm_rmap_item": 64, "ksm_stable_node": 64, "ksm_mm_slot": 48}


@dataclass(frozen=True)
class Knobs:
    """What can be set. One attribute a file; ``None`` where this kernel has no such file."""

    run: int | None  #: 0 stop, 1 run, 2 stop and unmerge everything
    pages_to_scan: int | None  #: pages scanned before ksmd sleeps
    sleep_millisecs: int | None  #: milliseconds that ksmd sleeps between batches; 0 is full speed
    merge_across_nodes: int | None  #: 1: one tree for all NUMA nodes; changed only while nothing is shared
    use_zero_pages: int | None  #: 1: empty pages become the kernel's zero page
    max_page_sharing: int | None  #: sharers of one frame at most, ≥ 2; changed only while nothing is shared
    stable_node_chains_prune_millisecs: int | None  #: how often chains of full frames are tidied
    smart_scan: int | None  #: 1: pages that never merged are skipped more and more often (6.7)
    advisor_mode: str | None  #: "none" or "scan-time": who sets pages_to_scan (6.8)
    advisor_max_cpu: int | None  #: per cent of one processor at most
    advisor_target_scan_time: int | None  #: seconds for one full scan
    advisor_min_pages_to_scan: int | None  #: lower bound of the advisor
    advisor_max_pages_to_scan: int | None  #: upper bound of the advisor


@dataclass(frozen=True)
class Counters:
    """What has happened. Pages unless named otherwise; ``None`` where this kernel has no such file."""

    pages_shared: int | None  #: frames of KSM in use
    pages_sharing: int | None  #: further pages that map those frames: what is saved
    pages_unshared: int | None  #: pages without a twin that were checked at least twice
    pages_volatile: int | None  #: pages that change too fast to be placed in a tree
    pages_scanned: int | None  #: pages scanned since boot
    pages_skipped: int | None  #: pages that smart scan passed over
    full_scans: int | None  #: how many times all mergeable areas were scanned
    stable_node_chains: int | None  #: contents that reached ``max_page_sharing``
    stable_node_dups: int | None  #: frames that hold the contents of those chains
    ksm_zero_pages: int | None  #: pages given back to the kernel's zero page
    general_profit: int | None  #: bytes saved less bytes of metadata, as the kernel estimates it; may be negative


@dataclass(frozen=True)
class Status:
    """Knobs, counters, and the figures of ``ksmd``."""

    knobs: Knobs
    counters: Counters
    ksmd_pid: int | None
    ksmd_cpu_s: float | None  #: CPU-seconds of ksmd since boot
    metadata_bytes: int | None  #: kernel memory of KSM's own records; None without the right to see it

    def to_dict(self) -> dict[str, Any]:
        """Return nested plain dictionaries, ready for JSON."""
        return asdict(self)


def supported(root: Path = KSM_DIR) -> bool:
    """Whether this kernel was built with KSM."""
    return (root / "run").exists()


def _require(root: Path) -> None:
    if not supported(root):
        raise UnsupportedError(f"no KSM in this kernel ({root} is missing): it needs CONFIG_KSM=y")


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except FileNotFoundError:
        return None


def _number(path: Path) -> int | None:
    text = _read(path)
    return None if text is None else int(text)


def read_knobs(root: Path = KSM_DIR) -> Knobs:
    """Return every knob as it is now. Raises ``UnsupportedError`` without KSM. Cost: 13 small reads."""
    _require(root)
    values: dict[str, Any] = {}
    for field in fields(Knobs):
        if field.name == "advisor_mode":
            text = _read(root / field.name)
            # The file lists all modes with the one in use in brackets: "[none] scan-time".
            values[field.name] = None if text is None else text[text.index("[") + 1 : text.index("]")]
        else:
            values[field.name] = _number(root / field.name)
    return Knobs(**values)


def read_counters(root: Path = KSM_DIR) -> Counters:
    """Return every counter as it is now. Raises ``UnsupportedError`` without KSM. Cost: 11 small reads."""
    _require(root)
    return Counters(**{field.name: _number(root / field.name) for field in fields(Counters)})


@cache
def ksmd_pid() -> int | None:
    """Return the process number of the kernel thread ``ksmd``, or None where it is not visible (a container)."""
    for pid in procfs.processes():
        try:
            its = procfs.stat(pid)
        except OSError:
            continue
        if its.name == "ksmd" and its.kernel:
            return pid
    return None


def ksmd_cpu_s() -> float:
    """Return the CPU-seconds that ``ksmd`` has used since boot.

    From ``/proc/PID/schedstat``, in nanoseconds; from ``stat`` in clock ticks on kernels without it. Raises
    ``UnsupportedError`` where ksmd is not visible.
    """
    pid = ksmd_pid()
    if pid is None:
        raise UnsupportedError("ksmd is not visible: no KSM in this kernel, or this is a PID namespace of its own")
    return procfs.cpu_s(pid)


def metadata_bytes() -> int | None:
    """Return the bytes of kernel memory that hold KSM's records now, or None without the right to see it.

    Counted from the slab caches ``ksm_rmap_item``, ``ksm_stable_node`` and ``ksm_mm_slot``, objects in use times
    the size of one. Needs root.
    """
    total = 0
    for name, size in _SLAB_BYTES.items():
        base = Path("/sys/kernel/slab") / name
        try:
            objects = int((base / "objects").read_text().split()[0])
            total += objects * int(_read(base / "slab_size") or str(size))
        except (OSError, ValueError):
            return None
    return total


def status(root: Path = KSM_DIR) -> Status:
    """Return knobs, counters and ksmd's figures. Raises ``UnsupportedError`` without KSM."""
    pid = ksmd_pid()
    return Status(
        knobs=read_knobs(root),
        counters=read_counters(root),
        ksmd_pid=pid,
        ksmd_cpu_s=None if pid is None else ksmd_cpu_s(),
        metadata_bytes=metadata_bytes(),
    )

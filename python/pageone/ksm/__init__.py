"""The kernel's KSM: read, drive, compare.

For: ``pageone ksm status``, the benchmarks, and programs that want the kernel's own merging. It may call ``/sys``,
``/proc`` and ``prctl``; it knows nothing of the engine. Everything that is read is typed; everything that is
changed goes through :func:`driven`, which puts back every knob however its user ends.

>>> from pageone import ksm
>>> ksm.supported()
True
>>> with ksm.driven(run=1, sleep_millisecs=0, pages_to_scan=1000):  # doctest: +SKIP
...     before = ksm.ksmd_cpu_s()
"""

from pageone.ksm.control import driven, set_knob
from pageone.ksm.process import (
    ProcessFigures,
    madvise_mergeable,
    memory_merge,
    memory_merge_enabled,
    process_figures,
    smaps_ksm_bytes,
)
from pageone.ksm.sysfs import (
    KSM_DIR,
    Counters,
    Knobs,
    Status,
    ksmd_cpu_s,
    ksmd_pid,
    metadata_bytes,
    read_counters,
    read_knobs,
    status,
    supported,
)

__all__ = [
    "KSM_DIR",
    "Counters",
    "Knobs",
    "ProcessFigures",
    "Status",
    "driven",
    "ksmd_cpu_s",
    "ksmd_pid",
    "madvise_mergeable",
    "memory_merge",
    "memory_merge_enabled",
    "metadata_bytes",
    "process_figures",
    "read_counters",
    "read_knobs",
    "set_knob",
    "smaps_ksm_bytes",
    "status",
    "supported",
]

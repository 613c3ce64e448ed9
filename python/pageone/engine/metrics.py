"""What the engine counts: dataclasses, JSON and the Prometheus text format.

For: everybody who looks at an engine from outside. Pure data; calls nothing.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]

__all__ = ["MergeReport", "Pauses", "Stats", "Tally", "TargetStats", "as_json", "as_prometheus"]

PHASES = ("look", "find", "plan", "merge", "free")


@dataclass
class Pauses:
    """How long targets stood still: all stops counted, percentiles over the last 4,096."""

    count: int = 0
    total_s: float = 0.0
    max_s: float = 0.0
    recent_s: list[float] = field(default_factory=list, repr=False)

    def add(self, pauses_s: F64) -> None:
        """Book stops, seconds each."""
        if len(pauses_s):
            self.count += len(pauses_s)
            self.total_s += float(pauses_s.sum())
            self.max_s = max(self.max_s, float(pauses_s.max()))
            self.recent_s = (self.recent_s + pauses_s.tolist())[-4096:]

    def percentile(self, share: float) -> float:
        """Return the given percentile (0–100) of the last stops, seconds; 0 without any."""
        return float(np.percentile(self.recent_s, share)) if self.recent_s else 0.0

    def as_dict(self) -> dict[str, float]:
        """Return what is reported: counts, and milliseconds."""
        return {
            "count": self.count,
            "total_ms": self.total_s * 1e3,
            "p50_ms": self.percentile(50) * 1e3,
            "p99_ms": self.percentile(99) * 1e3,
            "max_ms": self.max_s * 1e3,
        }


@dataclass
class Tally:
    """Counters of one pass; the engine adds them up."""

    regions: int = 0
    read: int = 0
    written: int = 0
    zero: int = 0
    dropped: int = 0
    duplicate: int = 0
    merged: int = 0
    frames: int = 0
    mappings_added: int = 0
    wasted: int = 0
    left_for_budget: int = 0
    left_huge: int = 0
    left_pool: int = 0
    left_short: int = 0
    huge_split: int = 0
    missed: int = 0
    let_go: int = 0
    forked: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    pauses: list[F64] = field(default_factory=list)
    cpu_s: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PHASES, 0.0))
    outside_cpu_s: float = 0.0  #: of ``cpu_s``, what the filling of frames took in another process


@dataclass(frozen=True)
class MergeReport:
    """What one pass or one period did."""

    targets: int  #: targets looked at
    regions: int  #: their mappings that are tracked
    pages: int  #: pages found at rest and read
    written_pages: int  #: pages found written since the look before
    zero_pages: int  #: pages read that were all zero
    forked_pages: int  #: pages left alone since other processes map them too, since a fork: nothing would be freed
    dropped_pages: int  #: of them, pages given back to the kernel's zero page
    duplicate_pages: int  #: pages with an equal page or frame, the first of each content included
    merged_pages: int  #: pages that map a frame now and did not before
    frames: int  #: frames filled for them
    mappings_added: int
    saved_bytes: int  #: memory given back by this pass, net of frames, mappings and index
    engine_cpu_s: float  #: CPU-seconds of the engine and of what it had done outside of it
    pauses_s: F64  #: seconds that a target stood still, one element a stop
    refused: dict[str, int]  #: pages not merged, by the name of the ``PageCode``
    left_for_budget: int  #: pages with an equal page left alone for lack of mappings
    left_huge: int  #: and those whose huge page is not worth splitting
    left_pool: int  #: and those for which the pool had no frame
    left_short: int  #: and those in runs shorter than is asked for
    huge_split: int  #: huge pages split


@dataclass(frozen=True)
class TargetStats:
    """One target."""

    pid: int
    states: dict[str, int]  #: pages in each state, adding up to ``tracked``
    tracked: int
    mappings: int  #: all mappings of the process
    mappings_left: int  #: how many the engine may still add
    mapped_pages: int  #: pages of its mappings of the pool
    saved_bytes: int  #: merged pages, each less its share of the frame, and zero pages given back
    merged_pages: int  #: pages merged so far
    wasted_merges: int  #: pages written after merging so far
    refused: dict[str, int]
    pauses: Pauses
    trouble: str = ""  #: why it could not be looked at the last time; it is tried again
    left_alone: str = ""  #: what it has open that lets a device write its memory, so that nothing of it is merged now


@dataclass(frozen=True)
class Stats:
    """All targets of an engine, and the engine itself."""

    period: int  #: periods done
    targets: int
    left_alone: int  #: of them, those left alone for what they have open
    tracked: int  #: pages tracked
    states: dict[str, int]  #: pages in each state, adding up to ``tracked``
    frames: int  #: frames in use
    frames_waiting: int  #: of them, those that nobody is known to map, awaiting proof
    frames_freed: int  #: given back so far
    sharers: int  #: pages that share a frame now
    saved_bytes: int  #: net of frames, mappings, index and status
    index_entries: int
    index_bytes: int
    metadata_bytes: int  #: index, status and books together
    pages_read: int  #: page contents read so far
    pages_written: int  #: pages found written so far
    pages_merged: int
    pages_dropped: int
    wasted_merges: int  #: pages written after merging so far
    let_go: int  #: pages unmerged because nobody read their frame any more
    incomplete_looks: int  #: looks for uses of frames in which a process may have been missed: nothing was freed
    missed_looks: int  #: looks at a target that failed because its mappings were changing; repeated a period later
    mappings_added: int
    left_for_budget: int
    left_huge: int
    huge_split: int
    refused: dict[str, int]
    queue_batches: int  #: batches waiting
    cpu_s: dict[str, float]  #: CPU-seconds by phase
    cpu_budget_left_s: float | None  #: CPU-seconds that may be spent at once; None without a budget
    pauses: Pauses
    trouble: str = ""  #: why the last period of :meth:`Engine.run` could not be done


def _plain(value: Any) -> Any:
    if isinstance(value, Pauses):
        return value.as_dict()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value


def as_json(record: Stats | TargetStats | MergeReport, indent: int | None = None) -> str:
    """Return a record as one JSON object with the fields of its class; pauses in milliseconds."""
    return json.dumps(_plain(record), indent=indent)


#: name, type, help, field of :class:`Stats`
_SCALARS = (
    ("pageone_periods_total", "counter", "Periods done.", "period"),
    ("pageone_targets", "gauge", "Processes attached.", "targets"),
    ("pageone_targets_left_alone", "gauge", "Of them, left alone for what they have open.", "left_alone"),
    ("pageone_tracked_pages", "gauge", "Pages of address space tracked.", "tracked"),
    ("pageone_frames", "gauge", "Frames of the pool in use.", "frames"),
    (
        "pageone_frames_waiting",
        "gauge",
        "Frames out of use that await proof before they are freed.",
        "frames_waiting",
    ),
    ("pageone_frames_freed_total", "counter", "Frames freed.", "frames_freed"),
    ("pageone_sharers", "gauge", "Pages that share a frame.", "sharers"),
    ("pageone_saved_bytes", "gauge", "Memory saved, net of frames, mappings and index.", "saved_bytes"),
    ("pageone_index_entries", "gauge", "Contents in the index.", "index_entries"),
    ("pageone_index_bytes", "gauge", "Memory of the index.", "index_bytes"),
    ("pageone_metadata_bytes", "gauge", "Memory of index, page status and books.", "metadata_bytes"),
    ("pageone_pages_read_total", "counter", "Page contents read.", "pages_read"),
    ("pageone_pages_written_total", "counter", "Pages found written.", "pages_written"),
    ("pageone_pages_merged_total", "counter", "Pages merged.", "pages_merged"),
    ("pageone_pages_dropped_total", "counter", "Zero pages given back.", "pages_dropped"),
    ("pageone_wasted_merges_total", "counter", "Pages written after merging.", "wasted_merges"),
    ("pageone_let_go_pages_total", "counter", "Pages unmerged because nobody read their frame.", "let_go"),
    (
        "pageone_incomplete_looks_total",
        "counter",
        "Looks for uses of frames that were not complete: nothing was freed.",
        "incomplete_looks",
    ),
    ("pageone_missed_looks_total", "counter", "Looks that failed and were repeated a period later.", "missed_looks"),
    ("pageone_mappings_added_total", "counter", "Mappings added to targets.", "mappings_added"),
    ("pageone_left_for_budget_total", "counter", "Pages left alone for lack of mappings.", "left_for_budget"),
    ("pageone_left_huge_total", "counter", "Pages left alone to keep a huge page whole.", "left_huge"),
    ("pageone_huge_split_total", "counter", "Huge pages split.", "huge_split"),
    ("pageone_queue_batches", "gauge", "Batches waiting in the queue.", "queue_batches"),
)


def as_prometheus(stats: Stats, targets: list[TargetStats]) -> str:
    """Return the statistics in the Prometheus text exposition format (version 0.0.4)."""
    lines: list[str] = []

    def family(name: str, kind: str, text: str, samples: list[tuple[str, float]]) -> None:
        lines.append(f"# HELP {name} {text}")
        lines.append(f"# TYPE {name} {kind}")
        lines.extend(f"{name}{labels} {value:.10g}" for labels, value in samples)

    for name, kind, text, attribute in _SCALARS:
        family(name, kind, text, [("", getattr(stats, attribute))])
    if stats.cpu_budget_left_s is not None:
        family("pageone_cpu_budget_left_seconds", "gauge", "CPU time to spend.", [("", stats.cpu_budget_left_s)])
    samples = [(f'{{state="{k}"}}', float(v)) for k, v in stats.states.items()]
    family("pageone_pages", "gauge", "Pages in each state.", samples)
    samples = [(f'{{phase="{k}"}}', v) for k, v in stats.cpu_s.items()]
    family("pageone_cpu_seconds_total", "counter", "CPU time spent.", samples)
    samples = [(f'{{code="{k}"}}', float(v)) for k, v in stats.refused.items()]
    family("pageone_refused_pages_total", "counter", "Pages that were not merged when asked for.", samples)
    pauses = stats.pauses
    lines.append("# HELP pageone_pause_seconds How long targets stood still.")
    lines.append("# TYPE pageone_pause_seconds summary")
    for share in (50, 99):
        lines.append(f'pageone_pause_seconds{{quantile="{share / 100:g}"}} {pauses.percentile(share):.10g}')
    lines.append(f"pageone_pause_seconds_sum {pauses.total_s:.10g}")
    lines.append(f"pageone_pause_seconds_count {pauses.count}")
    family("pageone_pause_seconds_max", "gauge", "The longest stop.", [("", pauses.max_s)])
    for name, kind, text, attribute in (
        (
            "pageone_target_saved_bytes",
            "gauge",
            "Memory that a target saves, before mappings and index.",
            "saved_bytes",
        ),
        ("pageone_target_mappings", "gauge", "Mappings of a target.", "mappings"),
        ("pageone_target_mappings_left", "gauge", "Mappings that may still be added.", "mappings_left"),
        (
            "pageone_target_wasted_merges_total",
            "counter",
            "Pages of a target written after merging.",
            "wasted_merges",
        ),
    ):
        family(name, kind, text, [(f'{{pid="{t.pid}"}}', float(getattr(t, attribute))) for t in targets])
    return "\n".join(lines) + "\n"

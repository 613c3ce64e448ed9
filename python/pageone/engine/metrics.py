"""What the engine counts: one table of counters, and what is made of it: statistics, reports, JSON, Prometheus.

For: everybody who watches an engine from outside. Pure data; calls nothing. :data:`METRICS` and
:data:`TARGET_METRICS` name every counter and gauge once; ``docs/engine.md`` has the table that :func:`as_markdown`
makes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import operator
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pageone.engine.clock import cpu_s

F64 = npt.NDArray[np.float64]

__all__ = ["METRICS", "PHASES", "TARGET_METRICS", "MergeReport", "Metric", "Pauses", "Stats", "Tally", "TargetStats"]
__all__ += ["as_dict", "as_json", "as_markdown", "as_prometheus", "pause_ms", "totals"]

PHASES = ("scan", "find", "plan", "merge", "free")


@dataclass
class Pauses:
    """How long targets stood still: all stops counted, percentiles over the last 4,096."""

    count: int = 0
    total_s: float = 0.0
    max_s: float = 0.0
    recent_s: list[float] = field(default_factory=list, repr=False)

    def add(self, pauses_s: F64) -> None:
        """Record stops, seconds each."""
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
    """Counters of one pass, by the names of :class:`MergeReport`; the engine adds them up."""

    regions: int = 0
    pages: int = 0
    written_pages: int = 0
    zero_pages: int = 0
    forked_pages: int = 0
    dropped_pages: int = 0
    duplicate_pages: int = 0
    merged_pages: int = 0
    frames: int = 0
    mappings_added: int = 0
    left_for_budget: int = 0
    left_huge: int = 0
    left_pool: int = 0
    left_short: int = 0
    huge_split: int = 0
    wasted_merges: int = 0
    missed_scans: int = 0
    unmerged_unread: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    pauses: list[F64] = field(default_factory=list)
    cpu_s: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PHASES, 0.0))
    outside_cpu_s: float = 0.0  #: of ``cpu_s``, what the filling of frames took in another process

    def add(self, other: Tally) -> None:
        """Add the counters of a pass; pauses are kept apart (:class:`Pauses`)."""
        for name in COUNTED:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.refused.update(other.refused)
        for phase, seconds in other.cpu_s.items():
            self.cpu_s[phase] += seconds

    @contextlib.contextmanager
    def phase(self, name: str, pay: Callable[[float], object]) -> Iterator[None]:
        """Count the CPU time of a block, of this thread and of filling frames, for a phase; ``pay`` is told, too."""
        began, outside = cpu_s(), self.outside_cpu_s
        try:
            yield
        finally:
            spent = cpu_s() - began + self.outside_cpu_s - outside
            self.cpu_s[name] += spent
            pay(spent)


#: The counters of a pass that are plain numbers.
COUNTED = tuple(f.name for f in dataclasses.fields(Tally) if f.type == "int")


@dataclass(frozen=True)
class MergeReport:
    """What one pass or one period did."""

    targets: int  #: targets scanned
    regions: int  #: their mappings that are tracked
    pages: int  #: pages found at rest and read
    written_pages: int  #: pages found written since the scan before
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
    refused: dict[str, int]  #: pages not merged, by the name of the ``PageOutcome``
    left_for_budget: int  #: pages with an equal page left alone for lack of mappings
    left_huge: int  #: and those whose huge page is not worth splitting
    left_pool: int  #: and those for which there was no frame: the pool is full, or a control group near its limit
    left_short: int  #: and those in runs shorter than is asked for
    huge_split: int  #: huge pages split

    @classmethod
    def of(cls, tally: Tally, *, targets: int, saved_bytes: int) -> MergeReport:
        """Return the report of a pass."""
        names = {f.name for f in dataclasses.fields(cls)} & set(COUNTED)
        return cls(
            targets=targets,
            saved_bytes=saved_bytes,
            engine_cpu_s=sum(tally.cpu_s.values()),
            pauses_s=np.concatenate([np.empty(0), *tally.pauses]),
            refused=dict(tally.refused),
            **{name: getattr(tally, name) for name in names},
        )


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
    trouble: str = ""  #: why it could not be scanned the last time; it is tried again
    left_alone: str = ""  #: what it has open that lets a device write its memory, so that nothing of it is merged now


@dataclass(frozen=True)
class Stats:
    """All targets of an engine, and the engine itself; what each number counts is said in :data:`METRICS`."""

    period: int
    targets: int
    left_alone: int
    tracked: int
    states: dict[str, int]  #: adding up to ``tracked``
    frames: int
    frames_waiting: int
    frames_freed: int
    sharers: int
    saved_bytes: int
    index_entries: int
    index_bytes: int
    metadata_bytes: int
    pages_read: int
    pages_written: int
    pages_merged: int
    pages_dropped: int
    wasted_merges: int
    unmerged_unread: int
    incomplete_use_scans: int
    missed_scans: int
    mappings_added: int
    left_for_budget: int
    left_huge: int
    huge_split: int
    refused: dict[str, int]
    queue_batches: int
    cpu_s: dict[str, float]
    cpu_budget_left_s: float | None  #: None without a budget
    pauses: Pauses
    trouble: str = ""  #: why the last period of :meth:`Engine.run` could not be done


class Metric(NamedTuple):
    """One counter or gauge."""

    name: str  #: in Prometheus, without ``pageone_``
    kind: str  #: ``counter`` or ``gauge``; ``summary`` for pauses
    text: str  #: what it counts
    field: str  #: of :class:`Stats` or :class:`TargetStats`
    label: str = ""  #: what tells the samples of a field that is a dictionary apart
    passes: str = ""  #: the counter of a pass, of :class:`Tally`, that adds up to it

    @property
    def full_name(self) -> str:
        """Its name in Prometheus."""
        return f"pageone_{self.name}"


#: Of an engine.
METRICS = (
    Metric("periods_total", "counter", "Periods done.", "period"),
    Metric("targets", "gauge", "Processes attached.", "targets"),
    Metric("targets_left_alone", "gauge", "Of them, left alone because of what they have open.", "left_alone"),
    Metric("tracked_pages", "gauge", "Pages of address space tracked.", "tracked"),
    Metric("pages", "gauge", "Pages in each state.", "states", "state"),
    Metric("frames", "gauge", "Frames of the pool in use.", "frames"),
    Metric("frames_waiting", "gauge", "Frames out of use that await proof before they are freed.", "frames_waiting"),
    Metric("frames_freed_total", "counter", "Frames freed.", "frames_freed"),
    Metric("sharers", "gauge", "Pages that share a frame.", "sharers"),
    Metric(
        "saved_bytes",
        "gauge",
        "Pages merged or zero and given back, less frames, mappings (256 bytes each, two a run) and metadata.",
        "saved_bytes",
    ),
    Metric("index_entries", "gauge", "Contents in the index.", "index_entries"),
    Metric("index_bytes", "gauge", "Memory of the index.", "index_bytes"),
    Metric("metadata_bytes", "gauge", "Memory of index, page status and accounting.", "metadata_bytes"),
    Metric("pages_read_total", "counter", "Page contents read.", "pages_read", passes="pages"),
    Metric("pages_written_total", "counter", "Pages found written.", "pages_written", passes="written_pages"),
    Metric("pages_merged_total", "counter", "Pages merged.", "pages_merged", passes="merged_pages"),
    Metric("pages_dropped_total", "counter", "Zero pages given back.", "pages_dropped", passes="dropped_pages"),
    Metric("wasted_merges_total", "counter", "Pages written after merging.", "wasted_merges", passes="wasted_merges"),
    Metric(
        "pages_unmerged_unread_total",
        "counter",
        "Pages unmerged because nobody read their frame any more.",
        "unmerged_unread",
        passes="unmerged_unread",
    ),
    Metric(
        "incomplete_use_scans_total",
        "counter",
        "Scans for uses of frames that may have missed a process: nothing was freed.",
        "incomplete_use_scans",
    ),
    Metric(
        "missed_scans_total",
        "counter",
        "Scans of a target that failed because its mappings were changing; repeated a period later.",
        "missed_scans",
        passes="missed_scans",
    ),
    Metric("mappings_added_total", "counter", "Mappings added.", "mappings_added", passes="mappings_added"),
    Metric(
        "left_for_budget_total",
        "counter",
        "Pages left alone for lack of mappings.",
        "left_for_budget",
        passes="left_for_budget",
    ),
    Metric(
        "left_huge_total", "counter", "Pages left alone to keep a huge page whole.", "left_huge", passes="left_huge"
    ),
    Metric("huge_split_total", "counter", "Huge pages split.", "huge_split", passes="huge_split"),
    Metric(
        "refused_pages_total", "counter", "Pages not merged when asked for, by reason.", "refused", "code", "refused"
    ),
    Metric("queue_batches", "gauge", "Batches waiting in the queue.", "queue_batches"),
    Metric(
        "cpu_seconds_total",
        "counter",
        "CPU time: scan, find, plan (with the copying into frames), merge, free.",
        "cpu_s",
        "phase",
        "cpu_s",
    ),
    Metric(
        "cpu_budget_left_seconds", "gauge", "CPU time to spend at once; none without a budget.", "cpu_budget_left_s"
    ),
    Metric("pause_seconds", "summary", "How long targets stood still.", "pauses"),
    Metric("pause_seconds_max", "gauge", "The longest stop.", "pauses.max_s"),
)

#: Of each target, told apart by its PID.
TARGET_METRICS = (
    Metric("target_saved_bytes", "gauge", "Memory that a target saves, before mappings and index.", "saved_bytes"),
    Metric("target_mappings", "gauge", "Mappings of a target.", "mappings"),
    Metric("target_mappings_left", "gauge", "Mappings that may still be added.", "mappings_left"),
    Metric("target_wasted_merges_total", "counter", "Pages of a target written after merging.", "wasted_merges"),
)


def totals(tally: Tally) -> dict[str, Any]:
    """Return the fields of :class:`Stats` that add up over passes; dictionaries are copies."""
    values = {m.field: getattr(tally, m.passes) for m in METRICS if m.passes}
    return {name: dict(value) if isinstance(value, dict) else value for name, value in values.items()}


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


def as_dict(record: Stats | TargetStats | MergeReport) -> dict[str, Any]:
    """Return a record as plain objects, by the fields of its class; pauses in milliseconds.

    The pauses of a report are told as ``pause_ms``: p50, p99 and max.
    """
    plain: dict[str, Any] = _plain(record)
    if isinstance(record, MergeReport):
        del plain["pauses_s"]
        plain["pause_ms"] = pause_ms(record.pauses_s)
    return plain


def as_json(record: Stats | TargetStats | MergeReport, indent: int | None = None) -> str:
    """Return :func:`as_dict` of a record as one JSON object."""
    return json.dumps(as_dict(record), indent=indent)


def pause_ms(pauses_s: F64) -> dict[str, float]:
    """Return p50, p99 and max of pauses given in seconds (any number of them), in milliseconds; 0 for none."""
    if not len(pauses_s):
        return {"p50": 0.0, "p99": 0.0, "max": 0.0}
    p50, p99 = np.percentile(pauses_s, [50, 99]) * 1000
    return {"p50": float(p50), "p99": float(p99), "max": float(pauses_s.max() * 1000)}


def _samples(metric: Metric, value: object) -> list[tuple[str, float]]:
    """Return what follows the name of a metric, and the number, of each of its samples."""
    if value is None:
        return []
    if isinstance(value, Pauses):
        shares = [(f'{{quantile="{share / 100:g}"}}', value.percentile(share)) for share in (50, 99)]
        return [*shares, ("_sum", value.total_s), ("_count", value.count)]
    if isinstance(value, Mapping):
        return [(f'{{{metric.label}="{name}"}}', float(number)) for name, number in value.items()]
    assert isinstance(value, (int, float))
    return [("", value)]


def as_prometheus(stats: Stats, targets: list[TargetStats]) -> str:
    """Return the statistics in the Prometheus text exposition format (version 0.0.4)."""
    families = [(m, _samples(m, operator.attrgetter(m.field)(stats))) for m in METRICS]
    families += [(m, [(f'{{pid="{t.pid}"}}', float(getattr(t, m.field))) for t in targets]) for m in TARGET_METRICS]
    lines: list[str] = []
    for metric, samples in families:
        if samples or metric.label or metric in TARGET_METRICS:
            lines.append(f"# HELP {metric.full_name} {metric.text}")
            lines.append(f"# TYPE {metric.full_name} {metric.kind}")
            lines.extend(f"{metric.full_name}{suffix} {value:.10g}" for suffix, value in samples)
    return "\n".join(lines) + "\n"


def as_markdown() -> str:
    """Return the table of the documents: name, field and meaning of every metric."""
    rows = ["| name | field | what |", "|---|---|---|"]
    for metric in (*METRICS, *TARGET_METRICS):
        label = "pid" if metric in TARGET_METRICS else "quantile" if metric.kind == "summary" else metric.label
        name = f"{metric.full_name}{{{label}}}" if label else metric.full_name
        owner = "target.stats" if metric in TARGET_METRICS else "stats"
        rows.append(f"| `{name}` | `{owner}.{metric.field}` | {metric.text} |")
    return "\n".join(rows) + "\n"

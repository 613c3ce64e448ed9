"""The plan of ``pageone bench ksm``: rounds, what is measured in each, medians and spread.

For: the command in :mod:`pageone.bench.ksm` and the report. Starts processes of its own only; the kernel's KSM is
driven inside :func:`pageone.ksm.driven`, which puts it back.
"""

from __future__ import annotations

import contextlib
import gc
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil

from pageone import ksm
from pageone.bench.data import KINDS, DataSet
from pageone.bench.floor import floor
from pageone.bench.ksm import baselines as c
from pageone.bench.ksm import machine, memory
from pageone.bench.ksm.model import Model
from pageone.bench.processes import Image, Workers
from pageone.demo.measure import settled_available_bytes
from pageone.errors import PageOneError, UsageError

U8 = npt.NDArray[np.uint8]
U32 = npt.NDArray[np.uint32]

PAGE_SIZE = 4096

DATA = (*KINDS, "memory")

#: Baselines that take more threads than one; the model's checksums differ in speed, not in how they scale.
WITH_THREADS = ("ksm-model-xxh64", "pageone")
#: The set on which compaction is timed: one content, as many sharers as there are pages.
COMPACTED = "equal"

#: Seconds for which the victim is watched alone, for comparison.
IDLE_S = 0.3
#: Periods over which the cost of staying there is averaged, and the share of pages written before each.
STAY_PERIODS, CHANGED_SHARE = 3, 0.01
#: Merged pages that are written one by one, timed.
BREAKS = 400
#: Pages on which it is measured what the kernel alone takes.
FLOOR_PAGES = 1 << 16


@dataclass(frozen=True)
class Settings:
    """What to run."""

    data: Sequence[str] = DATA
    baselines: Sequence[str] = c.NAMES
    pages: int = 65536
    threads: Sequence[int] = (1, 2)
    rounds: int = 3
    processes: int = 4
    seed: int = 2017
    #: Seconds between two periods of the engine as its user gets it; only reported as waiting, never waited for.
    period_s: float = 20.0
    pages_to_scan: int = 1000


@dataclass
class _Case:
    """The pages of one set, and what there is to find."""

    name: str
    image: Image
    bounds: list[int] | None
    expected: int
    zero: int
    notes: dict[str, Any] = field(default_factory=dict)


def check(settings: Settings) -> list[str]:
    """Raise ``UsageError`` for settings that cannot be run; return why some baselines are left out."""
    for kind, names, known in (("data set", settings.data, DATA), ("baseline", settings.baselines, c.NAMES)):
        for name in names:
            if name not in known:
                raise UsageError(f"no {kind} {name!r}: choose from {', '.join(known)}")
    if settings.pages < 64 * settings.processes:
        raise UsageError(f"pages: {settings.pages} is too few: give {64 * settings.processes} or more")
    if settings.rounds < 1 or min(settings.threads, default=0) < 1 or settings.processes < 1:
        raise UsageError("rounds, threads and processes must be 1 or more")
    reasons = {name: c.missing(name) for name in settings.baselines}
    return [f"{name} left out: {reason}" for name, reason in reasons.items() if reason]


def _expected(pages: U8) -> tuple[int, int]:
    """Return how many pages need no memory of their own, and how many are empty, by comparing all bytes."""
    model = Model(len(pages), smart_scan=False, max_page_sharing=1 << 31)
    for _ in range(2):
        model.scan(pages)
    return model.counts().pages_sharing, int((~pages.any(axis=1)).sum())


def _case(name: str, settings: Settings) -> _Case:
    if name != "memory":
        data = DataSet(name, settings.pages, settings.seed)
        expected = data.expected()
        return _Case(name, Image(data.pages()), None, expected.duplicates, expected.zero)
    dumps, libraries = memory.dump(settings.processes)
    bounds = [0, *np.cumsum([len(dump) for dump in dumps]).tolist()]
    pages = np.concatenate(dumps)
    duplicates, zero = _expected(pages)
    return _Case(name, Image(pages), bounds, duplicates, zero, {"libraries": libraries})


def _median(values: Sequence[float]) -> float:
    real = [value for value in values if not math.isnan(value)]
    return float(np.median(real)) if real else math.nan


def _compact_s() -> float:
    """Have the kernel compact all memory, which moves shared frames and so walks their sharers; return the seconds.

    Not a number without the right to.
    """
    start = time.monotonic()
    try:
        with open("/proc/sys/vm/compact_memory", "w") as file:
            file.write("1")
    except OSError:
        return math.nan
    return time.monotonic() - start


def _in_processes(name: str, threads: int, case: _Case, settings: Settings) -> dict[str, Any]:
    """Measure a baseline that works on processes: the kernel's KSM or PageONE."""
    kernel = name == "ksm-kernel"
    with contextlib.ExitStack() as stack:
        if kernel:
            stack.enter_context(ksm.driven(run=0, sleep_millisecs=0, pages_to_scan=settings.pages_to_scan))
        workers = stack.enter_context(Workers(case.image, settings.processes, merge=kernel, bounds=case.bounds))
        workers.ask("touch")
        digests = [answer["digest"] for answer in workers.ask("digest")]
        baseline: c.Baseline = (
            c.KernelKsm(workers, case.image.count) if kernel else c.PageOne(workers, threads, settings.period_s)
        )
        stack.callback(baseline.close)
        compact_before_s = _compact_s() if case.name == COMPACTED else math.nan
        available = settled_available_bytes()
        victim = workers[0]
        victim.start_victim()
        psutil.cpu_percent(IDLE_S)
        idle = victim.victim_figures()
        victim.start_victim()
        settled = baseline.settle()
        figures = victim.victim_figures()
        before = sum(worker.cpu_s() for worker in workers)
        workers.ask("touch")
        touch_cpu_s = sum(worker.cpu_s() for worker in workers) - before
        freed = settled_available_bytes() - available
        frames = workers.frames()
        distinct = len(np.unique(frames))
        exact = [answer["digest"] for answer in workers.ask("digest")] == digests
        row: dict[str, Any] = {
            "cpu_s": settled.cpu_s,
            "wall_s": settled.wall_s,
            "observe_s": settled.observe_s,
            "touch_cpu_s": touch_cpu_s,
            "freed_bytes": freed,
            "metadata_bytes": settled.metadata_bytes,
            # What the page tables say; without root they do not tell, and the baseline's own account must do.
            "found_pages": len(frames) - distinct if frames.any() else settled.found_pages,
            "exact": exact,
            **{f"victim_{key}": value for key, value in figures.items()},
            **{f"victim_idle_{key}": value for key, value in idle.items()},
            **settled.extra,
        }
        if case.name == COMPACTED:
            row |= {"compact_before_s": compact_before_s, "compact_s": _compact_s()}
        rng = np.random.default_rng(settings.seed)
        if not exact:
            raise PageOneError(f"{name} changed the pages of {case.name}: this must never be")
        row["stay_cpu_s"] = baseline.stay(settings.period_s, STAY_PERIODS, None)
        baseline.pause()
        _, inverse, sharers = np.unique(frames, return_inverse=True, return_counts=True)
        first = workers[0]
        merged = np.flatnonzero(sharers[inverse][: first.count] > 1)
        chosen = rng.permutation(merged)[:BREAKS].tolist()
        if chosen:
            row["break_us"] = _median(first.ask("timed_write", pages=chosen)["ns"]) / 1e3
            row["plain_write_us"] = _median(first.ask("timed_write", pages=chosen)["ns"]) / 1e3
        count = max(1, int(CHANGED_SHARE * case.image.count))
        changed = [rng.choice(case.image.count, count, replace=False).astype(np.uint32) for _ in range(STAY_PERIODS)]
        row["stay_changing_cpu_s"] = baseline.stay(settings.period_s, STAY_PERIODS, changed)
        digests = [answer["digest"] for answer in workers.ask("digest")]
        row["unmerge_s"], row["unmerge_cpu_s"] = baseline.unmerge()
        frames = workers.frames()
        # Empty pages may stay with the kernel's zero page, which is nobody's.
        row["unmerged_all"] = len(frames) - len(np.unique(frames)) <= max(0, case.zero - 1) if frames.any() else True
        if [answer["digest"] for answer in workers.ask("digest")] != digests:
            raise PageOneError(f"{name} changed the pages of {case.name} when it unmerged: this must never be")
        return row


def _in_model(name: str, threads: int, case: _Case, settings: Settings) -> dict[str, Any]:
    baseline = c.KsmModel(name.removeprefix("ksm-model-"), threads, case.image)
    settled = baseline.settle()
    rng = np.random.default_rng(settings.seed)
    count = max(1, int(CHANGED_SHARE * case.image.count))
    changed = [rng.choice(case.image.count, count, replace=False).astype(np.uint32) for _ in range(STAY_PERIODS)]
    return {
        "cpu_s": settled.cpu_s,
        "wall_s": settled.wall_s,
        "observe_s": 0.0,
        "metadata_bytes": settled.metadata_bytes,
        "found_pages": settled.found_pages,
        "exact": True,
        "stay_cpu_s": baseline.stay(settings.period_s, STAY_PERIODS, None),
        "stay_changing_cpu_s": baseline.stay(settings.period_s, STAY_PERIODS, changed),
        **settled.extra,
    }


#: Figures of a row that are medians over the rounds; their least and most are kept as NAME_min and NAME_max.
SPREAD = ("cpu_s", "wall_s", "freed_bytes", "victim_p99_us", "victim_max_us", "stay_cpu_s", "stay_changing_cpu_s")


def _merged(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return one row of the medians of several rounds."""
    merged: dict[str, Any] = {}
    for key in dict.fromkeys(key for row in rows for key in row):
        values = [row[key] for row in rows if key in row]
        value = values[0]
        if isinstance(value, bool):
            merged[key] = all(values)
        elif isinstance(value, (int, float)):
            middle = _median(values)
            merged[key] = int(middle) if isinstance(value, int) and not math.isnan(middle) else middle
            if key in SPREAD:
                merged[f"{key}_min"], merged[f"{key}_max"] = min(values), max(values)
        else:
            merged[key] = value
    return {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in merged.items()}


def run(settings: Settings, progress: Callable[[str], None] | None = None) -> dict[str, Any]:
    """Run everything; return ``{"machine", "settings", "rows", "notes", "floor"}``.

    One row a data set, baseline and number of threads: medians over the rounds, in which the baselines take turns.
    ``stay_…`` are CPU-seconds for a minute. Raises ``UsageError`` before anything is started, ``PageOneError`` when
    a baseline gets stuck or changes a byte. Cost: some ten seconds a round and data set of 65,536 pages.
    """
    notes = check(settings)
    able = [name for name in settings.baselines if not c.missing(name)]
    turns = [(name, n) for name in able for n in (settings.threads if name in WITH_THREADS else [1])]
    rows: list[dict[str, Any]] = []
    tell = progress or (lambda text: None)
    about = machine.describe()
    beneath = None
    if "pageone" in able:
        tell("what the kernel alone takes")
        beneath = floor(FLOOR_PAGES)
    for name in settings.data:
        tell(f"{name}: making the pages")
        case = _case(name, settings)
        results: dict[tuple[str, int], list[dict[str, Any]]] = {turn: [] for turn in turns}
        try:
            for number in range(settings.rounds):
                shift = number % max(1, len(turns))
                for turn in turns[shift:] + turns[:shift]:
                    tell(f"{name}: round {number + 1} of {settings.rounds}, {turn[0]}, {turn[1]} thread(s)")
                    measure = _in_model if turn[0].startswith("ksm-model-") else _in_processes
                    results[turn].append(measure(turn[0], turn[1], case, settings))
                    gc.collect()
        finally:
            case.image.close()
        # A minute has so many periods; KSM does one full scan in each, to find a new duplicate as soon.
        per_minute = 60 / settings.period_s
        for (baseline, threads), measured in results.items():
            row = _merged(measured)
            for key in [key for key in row if key.startswith("stay_") and row[key] is not None]:
                row[key] *= per_minute
            head = {
                "data": name,
                "baseline": baseline,
                "threads": threads,
                "pages": case.image.count,
                "expected_pages": case.expected,
                "zero_pages": case.zero,
                "rounds": settings.rounds,
            }
            rows.append({**head, **row, **case.notes})
    return {"machine": about, "settings": vars(settings), "rows": rows, "notes": notes, "floor": beneath}

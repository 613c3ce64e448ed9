"""``pageone bench engine``: what the engine costs on real processes, in CPU-seconds of all that take part.

For: the command line. Starts processes with known memory, runs a real engine on them and reads CPU time from outside:
this process (engine), the guardian that works in the targets, and the targets themselves.
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from pageone.bench._victims import VictimProcess

__all__ = ["measure", "register"]

PAGE = 4096
ALONE_S, MERGED_S = 4.0, 32.0  #: how long the victim runs without, and at the most with, an engine at work
VICTIM_ROUNDS = 3
MERGED_ENOUGH = 0.9  #: the victim keeps writing, so that some of its pages never rest
FLOOR_PAGES = 1 << 17  #: on how many pages the kernel alone is measured
QUIET_STEPS = 3  #: periods until what was just attached has been read (two quiet ones), and merged


def measure(size_bytes: int, scaling_gib: list[float], tell: Any = print) -> dict[str, Any]:
    """Run all measurements with ``size_bytes`` of tracked memory and return the figures by name."""
    import numpy as np

    from pageone.bench._victims import GIB_PAGES, machine, victims
    from pageone.bench.floor import floor
    from pageone.engine import Engine

    pages = size_bytes // PAGE
    gib = pages / GIB_PAGES
    result: dict[str, Any] = {}

    class Meter:
        """CPU-seconds of engine, guardian and targets between two moments."""

        def __init__(self, engine: Any, targets: list[VictimProcess]) -> None:
            self.backend, self.targets = engine.backend, targets
            self.began = self.now()

        def now(self) -> float:
            return float(time.process_time() + self.backend.cpu_s() + sum(t.cpu_s() for t in self.targets))

        def spent(self) -> float:
            return self.now() - self.began

    def attach(engine: Engine, targets: list[VictimProcess]) -> None:
        for t in targets:
            engine.attach(t.pid)

    def sound(targets: list[VictimProcess]) -> None:
        for t in targets:
            assert t.ask("check") == {"wrong": 0}, "a byte has changed"

    tell("what the kernel alone takes for it")
    result["floor"] = floor(min(pages, FLOOR_PAGES))

    pauses: list[float] = []
    for kind in ("runs", "scattered", "unique"):
        tell(f"{kind}: {gib:g} GiB in two processes")
        with victims(kind, pages // 2, 2) as targets, Engine(domain="bench") as engine:
            attach(engine, targets)
            meter = Meter(engine, targets)
            merged = 0
            for _ in range(QUIET_STEPS):
                merged += engine.step().merged_pages
            cpu = meter.spent()
            name = "unique_cpu_s_per_gib" if kind == "unique" else f"merge_{kind}_cpu_s_per_gib"
            result[name] = cpu / gib
            stats = engine.stats
            result[f"{kind}_phases_cpu_s_per_gib"] = {k: v / gib for k, v in stats.cpu_s.items()}
            result[f"{kind}_merged_pages"] = merged
            result[f"{kind}_left_for_budget"] = stats.left_for_budget
            result[f"{kind}_reads_per_page"] = stats.pages_read / max(1, stats.tracked - stats.states["absent"])
            known = stats.metadata_bytes
            if kind == "unique":
                result["metadata_bytes_per_unmerged_page"] = known / max(1, stats.states["unique"])
            if kind == "runs":
                result["metadata_bytes_per_merged_page"] = known / max(1, stats.sharers)
                pauses.extend(stats.pauses.recent_s)
                read = stats.pages_read
                meter = Meter(engine, targets)
                rounds = 20
                for _ in range(rounds):
                    engine.step()
                result["steady_merged_cpu_ms_per_gib_period"] = meter.spent() * 1e3 / gib / rounds
                sound(targets)
                result["steady_content_reads"] = engine.stats.pages_read - read
            assert engine.stats.states["queued"] == 0

    tell("four processes with the same memory: metadata of a page shared by four")
    with victims("runs", pages // 4, 4) as targets, Engine(domain="bench") as engine:
        attach(engine, targets)
        for _ in range(QUIET_STEPS):
            engine.step()
        stats = engine.stats
        result["metadata_bytes_per_merged_page_of_four"] = stats.metadata_bytes / max(1, stats.sharers)

    result["written_scaling"] = []
    result["steady_scaling"] = []
    for size in scaling_gib:
        tell(f"{size:g} GiB tracked: nothing written, then 1 %")
        n = int(size * GIB_PAGES)
        with victims("unique", n) as targets, Engine(domain="bench") as engine:
            attach(engine, targets)
            for _ in range(QUIET_STEPS):
                engine.step()
            read = engine.stats.pages_read
            rounds = 10
            meter = Meter(engine, targets)
            for _ in range(rounds):
                engine.step()
            steady = meter.spent() * 1e3 / rounds
            result["steady_scaling"].append([size, steady])
            result["steady_content_reads"] += engine.stats.pages_read - read
            costs = []
            for seed in range(5):
                targets[0].ask("write", share=0.01, seed=seed)
                meter = Meter(engine, targets)
                engine.step()
                costs.append(meter.spent() * 1e3)
            result["written_scaling"].append([size, float(np.median(costs))])
            result["steady_cpu_ms_per_gib_period"] = steady / size

    tell("64 threads: pauses")
    with victims("runs", min(pages, GIB_PAGES) // 2, 2, threads=64) as targets, Engine(domain="bench") as engine:
        attach(engine, targets)
        for _ in range(QUIET_STEPS):
            engine.step()
        found = engine.stats.pauses
        result["pause_ms"] = {
            "p50": found.percentile(50) * 1e3,
            "p99": found.percentile(99) * 1e3,
            "max": found.max_s * 1e3,
            "stops": found.count,
        }
        sound(targets)

    rounds_of_victim = []
    for number in range(VICTIM_ROUNDS):
        tell(f"a victim that reads and writes at random while it is merged: round {number + 1} of {VICTIM_ROUNDS}")
        with victims("runs", pages // 2, 2) as targets:
            rounds_of_victim.append(_victim(targets, pages))
            sound(targets)
    for key in rounds_of_victim[0]:
        result[key] = float(np.median([found[key] for found in rounds_of_victim]))
    result["victim_loss_percent_of_rounds"] = [found["victim_loss_percent"] for found in rounds_of_victim]
    result["machine"] = machine()
    result["size_gib"] = gib
    return result


def _victim(targets: list[VictimProcess], pages: int) -> dict[str, float]:
    """Merge the targets at the default budget while the first works; compare with its work before and after that."""
    import numpy as np

    from pageone.engine import Engine
    from pageone.engine.queue import BACKGROUND_CPU

    victim = targets[0]

    def work(seconds: float) -> float:
        return float(np.mean(victim.ask("churn", seconds=seconds, write_share=0.02, seed=1)["bursts"]))

    work(1.0)
    before = work(ALONE_S)
    with Engine(domain="bench", period=1.0, cpu=BACKGROUND_CPU) as engine:
        followed = [engine.attach(t.pid) for t in targets]
        victim.tell("churn", seconds=MERGED_S, write_share=0.02, seed=2)
        began = time.monotonic()
        done = MERGED_S
        while (now := time.monotonic() - began) < MERGED_S - 1 and done == MERGED_S:
            engine.step()
            if engine.stats.pages_merged >= MERGED_ENOUGH * pages:
                done = time.monotonic() - began
            time.sleep(max(0.0, 1 - (time.monotonic() - began - now)))
        paused = followed[0].stats.pauses.total_s
        merged = engine.stats.pages_merged
        bursts = victim.answer()["bursts"]
        during = float(np.mean(bursts[: max(1, round(done * 10))]))
        after = work(ALONE_S)
    return {
        # From the first scan until nearly all is merged: mostly in the third period.
        "victim_loss_percent": 100 * (1 - during / ((before + after) / 2)),
        "victim_paused_percent": 100 * paused / done,
        "victim_merged_pages": float(merged),
        "victim_merged_in_s": done,
    }


def register(app: typer.Typer) -> None:
    """Add ``engine``."""

    @app.command("engine")
    def engine(
        size: Annotated[str, typer.Option(help="Memory to merge, such as 1GiB or 512MiB.")] = "1GiB",
        scaling: Annotated[str, typer.Option(help="GiB tracked, for the cost of a period.")] = "1,2,4",
        as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    ) -> None:
        """Measure what merging, finding nothing to merge, and staying merged cost, on processes made for it."""
        from pageone.bench._victims import parse_size
        from pageone.errors import UsageError

        try:
            sizes = [float(s) for s in scaling.split(",") if s]
        except ValueError:
            raise UsageError(f"scaling {scaling!r}: give sizes in GiB, such as 1,2,4") from None
        figures = measure(parse_size(size), sizes, (lambda text: typer.echo(text, err=True)))
        if as_json:
            typer.echo(json.dumps(figures))
            return
        for name, value in figures.items():
            typer.echo(f"{name:44} {json.dumps(value)}")

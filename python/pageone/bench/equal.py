"""``pageone bench equal``: a million equal pages, and whether the kernel still moves their frames at once.

For: the command line. The question of 2017: does one frame with a million sharers lock up the reverse mapping? Equal
pages are spread over processes and merged, once with the cap on sharers and once with it lifted as far as the limit on
mappings allows. Then, with a process writing all the while, the kernel compacts all memory and pages the frames out to
swap in compressed memory, set up for this (as root); how long it takes, and how long the slowest writes take, is
measured.
"""

from __future__ import annotations

import json
import os
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer

from pageone import procfs

__all__ = ["measure", "register"]

WRITE_S = 4.0  #: seconds for which a sharer writes in each phase
SWAP_BYTES = 4 << 30


def _timed(action: Any) -> float:
    began = time.monotonic()
    action()
    return time.monotonic() - began


def _compact() -> None:
    Path("/proc/sys/vm/compact_memory").write_text("1")


def _one(pages: int, processes: int, max_sharing: int, tell: Any) -> dict[str, Any]:
    """Merge ``pages`` equal pages of ``processes`` with a cap, and measure the kernel on their frames."""
    import numpy as np

    from pageone.bench._victims import victims
    from pageone.bench.swap import in_memory_group, reclaim, zram_missing, zram_swap
    from pageone.engine import Engine

    result: dict[str, Any] = {"max_sharing": max_sharing}
    with ExitStack() as stack:
        group: Path | None = None
        if zram_missing() is None:
            stack.enter_context(zram_swap(SWAP_BYTES))
            # The frames are charged to the group that this process is in when it fills them.
            group = stack.enter_context(in_memory_group([os.getpid()], f"pageone-bench-{os.getpid()}"))
        targets = stack.enter_context(victims("equal", pages // processes, processes))
        engine = stack.enter_context(Engine(domain="bench", max_sharing=max_sharing, repeat_share=0, map_share=0.9))
        for t in targets:
            engine.attach(t.pid)
        began, cpu = time.monotonic(), time.process_time() + engine.backend.cpu_s()  # type: ignore[attr-defined]
        for _ in range(3):
            engine.step()
        stats = engine.stats
        used = time.process_time() + engine.backend.cpu_s() - cpu  # type: ignore[attr-defined]
        first, behind = engine.accounting.contents.rows(engine.accounting.contents.keys)
        block = int((behind - first).max(initial=1))
        result |= {
            "pages": pages,
            "processes": processes,
            "merged_pages": stats.sharers,
            "frames": stats.frames,
            "frames_of_the_content": block,
            "sharers_of_a_frame_max": int(engine.accounting.frames.mapped[: stats.frames + 65536].max()),
            "mappings_max": max(t.stats.mappings for t in engine.targets),
            "left_for_budget": stats.left_for_budget,
            "merge_wall_s": time.monotonic() - began,
            "merge_cpu_s": used,
        }
        tell(f"  merged {stats.sharers:,} pages into {block:,} frames; measuring the kernel")
        writer = targets[0]

        def churn(share: float, action: Any = None) -> tuple[float, float]:
            """Return the 99.9th percentile of a write by a sharer (µs), and the time of the action (s)."""
            writer.tell("churn", seconds=WRITE_S, write_share=share, seed=3)
            time.sleep(0.5)
            seconds = _timed(action) if action is not None else 0.0
            slow = writer.answer()["write_s"]
            return float(np.percentile(slow, 99.9)) * 1e6 if slow else 0.0, seconds

        result["write_p999_us_alone"], _ = churn(0.05)
        moved = procfs.vmstat("pgmigrate_success")
        try:
            result["write_p999_us_compacting"], result["compact_s"] = churn(0.05, _compact)
            result["migrated_pages"] = procfs.vmstat("pgmigrate_success") - moved
        except PermissionError:
            result["compact_s"] = None  # needs root
        result["reclaim_s"] = None  # needs root and zram
        if group is not None:
            paged = procfs.vmstat("pswpout")
            result["write_p999_us_reclaiming"], result["reclaim_s"] = churn(0.05, lambda: reclaim(group))
            result["paged_out"] = procfs.vmstat("pswpout") - paged
        wrong = sum(int(t.ask("check")["wrong"]) for t in targets)
        result["wrong_pages"] = wrong
        assert wrong == 0, "a byte has changed"
    return result


def measure(pages: int, max_sharing: int, processes: int, tell: Any = print) -> dict[str, Any]:
    """Measure with the cap and with it lifted as far as mappings allow; returns both and their ratios."""
    from pageone.bench._victims import machine

    # With k frames a run of equal pages needs a mapping for every k pages: half of the limit, for all processes.
    lifted = max(max_sharing * 2, 20_000 * processes)
    tell(f"{pages:,} equal pages, at most {max_sharing} sharers a frame")
    capped = _one(pages, processes, max_sharing, tell)
    tell(f"{pages:,} equal pages, at most {lifted} sharers a frame")
    free = _one(pages, processes, lifted, tell)
    return {"capped": capped, "lifted": free, "machine": machine()}


def register(app: typer.Typer) -> None:
    """Add ``equal``."""

    @app.command("equal")
    def equal(
        pages: Annotated[int, typer.Option(min=8192, help="Equal pages in all; 4 GiB are 1,048,576.")] = 1 << 20,
        max_sharing: Annotated[int, typer.Option(min=2, help="Most sharers of one frame.")] = 256,
        processes: Annotated[int, typer.Option(min=2, help="Processes that have them.")] = 4,
        as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    ) -> None:
        """Merge very many equal pages, with and without the cap on sharers, and time the kernel on their frames."""
        figures = measure(pages, max_sharing, processes, lambda text: typer.echo(text, err=True))
        if as_json:
            typer.echo(json.dumps(figures))
            return
        typer.echo(f"{'':28} {'capped':>14} {'lifted':>14}")
        for name, value in figures["capped"].items():
            other = figures["lifted"].get(name)
            show = [f"{v:14,.3f}" if isinstance(v, float) else f"{v!s:>14}" for v in (value, other)]
            typer.echo(f"{name:28} {' '.join(show)}")

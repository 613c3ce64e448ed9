"""One pass of merging at a terminal: its progress, its report.

For: the commands ``demo`` and ``merge``. It prints what the engine says and decides nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from pageone.cli.units import size_text

if TYPE_CHECKING:
    from pageone.engine import MergeReport

__all__ = ["pass_progress", "report_rows", "show_rows"]

_PHASES = {"find": "reading pages at rest", "merge": "merging"}

#: Answers of the memory below, in words.
_REFUSALS = {
    "DIFFERS": "changed between reading and merging",
    "WRITTEN": "written between reading and merging",
    "GONE": "unmapped meanwhile",
    "REFUSED": "locked, pinned, or out of mappings",
    "TIMEOUT": "process did not stop in time",
}

Tell = Callable[[str, int, int], None]


@contextlib.contextmanager
def pass_progress(console: Console) -> Iterator[Tell]:
    """Show a bar for each phase of a pass; yields what the engine is to call. Silent without a terminal."""
    columns = (TextColumn("{task.description:<24}"), BarColumn(), MofNCompleteColumn(), TextColumn("pages"))
    with Progress(*columns, TimeElapsedColumn(), console=console, disable=not console.is_terminal) as progress:
        tasks = {}

        def tell(phase: str, done: int, total: int) -> None:
            if phase not in tasks:
                tasks[phase] = progress.add_task(_PHASES.get(phase, phase), total=total)
            progress.update(tasks[phase], completed=done, total=total)

        yield tell


def report_rows(report: MergeReport) -> list[tuple[str, str]]:
    """Return the rows of a pass's table: what, and how much."""
    from pageone.engine.metrics import pause_ms

    pauses = pause_ms(report.pauses_s)
    rows = [
        ("processes", f"{report.targets:,}"),
        ("pages at rest, read", f"{report.pages:,} ({size_text(report.pages * 4096)})"),
        ("zero pages, given back", f"{report.dropped_pages:,}"),
        ("duplicate pages", f"{report.duplicate_pages:,}"),
        ("merged pages", f"{report.merged_pages:,}"),
        ("mappings added", f"{report.mappings_added:,}"),
        ("memory saved", size_text(report.saved_bytes)),
        ("CPU", f"{report.engine_cpu_s:.2f} s"),
        (
            "pauses of a process",
            f"median {pauses['p50']:.2f} ms, 99 % below {pauses['p99']:.2f} ms, longest {pauses['max']:.2f} ms",
        ),
    ]
    if report.forked_pages:
        rows.append(("left alone: shared since a fork", f"{report.forked_pages:,}"))
    rows += [
        (f"left alone: {_REFUSALS.get(name, name.lower())}", f"{pages:,}")
        for name, pages in report.refused.items()
        if pages and name != "SHARED"  # counted with those shared since a fork
    ]
    return rows


def show_rows(console: Console, title: str, rows: list[tuple[str, str]]) -> None:
    """Print rows as a table with two columns."""
    table = Table(title=title, title_justify="left", title_style="bold", show_header=False, box=None, pad_edge=False)
    table.add_column(style="cyan")
    table.add_column()
    for row in rows:
        table.add_row(*row)
    console.print(table)

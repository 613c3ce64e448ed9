"""``pageone bench ksm``: the kernel's KSM, a model of it with other checksums, and PageONE, on the same pages in turn.

For: the command line. It may call :mod:`pageone.ksm`, the engine (in a process of its own) and the sets of
:mod:`pageone.bench.data`. What is measured, and how, is said in ``docs/benchmarks.md``.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer


def register(app: typer.Typer) -> None:
    """Add ``ksm`` to the benchmarks."""
    app.command("ksm")(_command)


def _command(
    data: Annotated[
        list[str] | None, typer.Option("--data", "-d", help="Data set; may be repeated. Default: all.", metavar="NAME")
    ] = None,
    baseline: Annotated[
        list[str] | None,
        typer.Option("--baseline", "-b", help="Baseline; may be repeated. Default: all.", metavar="NAME"),
    ] = None,
    pages: Annotated[int, typer.Option("--pages", "-n", help="Pages of 4 KiB in each set (not: memory).")] = 65536,
    threads: Annotated[
        list[int] | None,
        typer.Option("--threads", "-t", help="Threads; may be repeated. Default: 1, 2 … all processors.", metavar="T"),
    ] = None,
    rounds: Annotated[int, typer.Option("--rounds", "-r", help="Rounds; medians are shown.")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    report: Annotated[
        Path | None,
        typer.Option("--report", help="Write a self-contained HTML report there.", metavar="DIR"),
    ] = None,
) -> None:
    """Compare PageONE with the kernel's KSM and with a model of it, on the same pages, in the same run.

    As root the kernel's KSM takes part, and is left as it was found; without root the model stands in for it.
    """
    from rich.console import Console

    from pageone.bench.ksm import baselines, run
    from pageone.bench.ksm import report as reporting

    settings = run.Settings(
        data=data or run.DATA,
        baselines=baseline or baselines.NAMES,
        pages=pages,
        threads=threads or default_threads(),
        rounds=rounds,
    )
    run.check(settings)
    if report is not None:
        reporting.require()
    console = Console(stderr=True)
    with console.status("starting") as status:
        result = run.run(settings, lambda text: status.update(text))
    if report is not None:
        console.print(f"report: {reporting.write(result, report)}")
    if as_json:
        print(json.dumps({**result, "aims": reporting.aims(result["rows"])}, indent=1, allow_nan=False))
    else:
        for line in reporting.verdict(result):
            print(line)
        _show(result)


def default_threads() -> list[int]:
    """Return 1, 2, 4 … up to the processors that this process may use."""
    most = len(os.sched_getaffinity(0))
    counts = [1]
    while counts[-1] * 2 <= most:
        counts.append(counts[-1] * 2)
    return counts


def _show(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="KSM and PageONE on the same pages (medians)", title_justify="left")
    columns = ("data", "baseline", "threads", "CPU s", "µs/page", "wall s", "+ waiting s", "found", "victim p99 µs",
               "stay CPU s/min", "with 1 %")  # fmt: skip
    for column in columns:
        table.add_column(column, justify="left" if column in ("data", "baseline") else "right")

    def number(value: float | None, digits: int = 3) -> str:
        return "–" if value is None else f"{value:.{digits}f}"

    last = ""
    for row in result["rows"]:
        if last and row["data"] != last:
            table.add_section()
        found = 100 * row["found_pages"] / row["expected_pages"] if row["expected_pages"] else 100.0
        table.add_row(
            "" if row["data"] == last else row["data"],
            row["baseline"],
            str(row["threads"]),
            number(row["cpu_s"]),
            number(row["cpu_s"] / row["pages"] * 1e6, 2),
            number(row["wall_s"]),
            number(row["observe_s"], 0),
            f"{found:.1f} %",
            number(row.get("victim_p99_us"), 1),
            number(row["stay_cpu_s"]),
            number(row["stay_changing_cpu_s"]),
        )
        last = row["data"]
    console = Console()
    console.print(table)
    for note in result["notes"]:
        console.print(f"note: {note}")

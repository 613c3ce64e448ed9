"""``pageone ksm …``: the kernel's own same-page merging, as it is on this machine."""

from __future__ import annotations

import dataclasses
import json
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add ``ksm`` with its subcommands."""
    sub = typer.Typer(no_args_is_help=True, help="Look at the kernel's own same-page merging, KSM.")

    @sub.callback()
    def _group() -> None:
        """Look at the kernel's own same-page merging, KSM."""

    sub.command("status")(_status)
    app.add_typer(sub, name="ksm")


def _status(
    pids: Annotated[
        list[int] | None, typer.Option("--pid", "-p", help="Also show this process; may be repeated.", metavar="PID")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show KSM's knobs and counters, what ksmd has cost, and its figures of chosen processes."""
    from rich.console import Console
    from rich.table import Table

    from pageone import ksm

    state = ksm.status()
    processes = [ksm.process_figures(pid) for pid in pids or []]
    if as_json:
        print(json.dumps({**state.to_dict(), "processes": [dataclasses.asdict(p) for p in processes]}, indent=2))
        return
    console = Console()

    def table(title: str, rows: list[tuple[str, object]]) -> None:
        view = Table(title=title, title_justify="left", box=None, show_header=False, padding=(0, 2, 0, 0))
        view.add_column()
        view.add_column(justify="right")
        for name, value in rows:
            view.add_row(
                name, "not on this kernel" if value is None else f"{value:,}" if _number(value) else str(value)
            )
        console.print(view)

    def _number(value: object) -> bool:
        return isinstance(value, (int, float)) and not isinstance(value, bool)

    running = {0: "stopped", 1: "running", 2: "stopped, everything unmerged"}.get(state.knobs.run or 0, "unknown")
    console.print(f"KSM is {running}.")
    table("Knobs", list(dataclasses.asdict(state.knobs).items()))
    table("Counters (pages)", list(dataclasses.asdict(state.counters).items()))
    cpu = "not visible" if state.ksmd_cpu_s is None else f"{state.ksmd_cpu_s:.2f} s"
    size = "needs root" if state.metadata_bytes is None else f"{state.metadata_bytes:,} bytes"
    table("ksmd", [("process", state.ksmd_pid or "not visible"), ("CPU since boot", cpu), ("records", size)])
    for figures in processes:
        rows = [(k, v) for k, v in dataclasses.asdict(figures).items() if k != "pid"]
        table(f"Process {figures.pid}", rows)

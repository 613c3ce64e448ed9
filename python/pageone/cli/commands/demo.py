"""``pageone demo``: the main job, shown on processes that start with it, measured and proved."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from pageone.cli.passes import pass_progress, report_rows, show_rows
from pageone.cli.units import parse_size, size_text
from pageone.errors import UsageError

if TYPE_CHECKING:
    from pageone.demo import DemoResult

_PAGE = 4096


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""

    @app.command()
    def demo(
        workers: Annotated[int, typer.Option(help="Number of processes to start.")] = 4,
        size: Annotated[str, typer.Option(help="Size of the array that each process builds.")] = "256MiB",
        as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    ) -> None:
        """Start processes with equal memory, merge it, and prove that no byte has changed.

        Each process builds the same incompressible array (--size) by itself, a quarter as much of its own, and a
        sixteenth of zeros. After merging, each checks every byte, writes into 1,000 random pages, and checks again: it
        must see its own writes and nobody else's. A wrong byte ends the command with 1 and the page.
        """
        from pageone.demo import WorkerSpec, run_demo  # late: other commands need neither numpy nor the native core
        from pageone.live import preflight

        if workers < 1:
            raise UsageError(f"--workers {workers}: give at least 1")
        common = parse_size(size, multiple=_PAGE)
        spec = WorkerSpec(common=common, own=_pages(common / 4), zeros=_pages(common / 16))
        preflight.check_system()
        console = Console(stderr=as_json, quiet=as_json, highlight=False)
        with pass_progress(console) as tell:
            result = run_demo(spec, workers, step=lambda name: console.print(f"· {name}"), progress=tell)
        if as_json:
            print(json.dumps(result.as_dict()))
        else:
            show_rows(console, "\nMerged, every byte checked, copy-on-write shown", _rows(result))


def _pages(size: float) -> int:
    return -(-int(size) // _PAGE) * _PAGE


def _rows(result: DemoResult) -> list[tuple[str, str]]:
    gain = result.available_after - result.available_before
    return [
        *report_rows(result.report),
        ("CPU for each GiB read", f"{result.cpu_s_per_gib:.2f} s"),
        ("PSS of the processes", f"{size_text(result.pss_before)} → {size_text(result.pss_after)}"),
        (
            "MemAvailable",
            f"{size_text(result.available_before)} → {size_text(result.available_after)} ({size_text(gain)} gained)",
        ),
    ]

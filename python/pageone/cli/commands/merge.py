"""``pageone merge PID…``: one pass over running processes."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import psutil
import typer
from rich.console import Console

from pageone.cli.passes import pass_progress, report_rows, show_rows
from pageone.errors import UsageError

_INTERRUPTED = 130  # 128 + SIGINT, as a shell has it


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""

    @app.command()
    def merge(
        pids: Annotated[list[int], typer.Argument(metavar="PID…", help="Processes of yours (of anyone's, as root).")],
        quiet: Annotated[
            float, typer.Option(metavar="SECONDS", help="Leave alone pages written within so many seconds.")
        ] = 1.0,
        descendants: Annotated[bool, typer.Option("--descendants", help="Merge their descendants, too.")] = False,
        domain: Annotated[
            str | None, typer.Option(help="Let processes of different users share, as this domain.")
        ] = None,
        as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    ) -> None:
        """Make one pass over running processes: equal pages share a frame from then on, copy-on-write.

        If one process cannot be merged, none is touched. The pass scans twice, --quiet seconds apart, and merges only
        pages that were not written in between. Each process stops for some milliseconds at a time, and runs on if you
        interrupt the command. Pages stay merged until they are written or the process ends.
        """
        from pageone.engine import Engine, as_dict  # late: other commands need neither numpy nor the native core
        from pageone.live import preflight

        if quiet < 0:
            raise UsageError(f"--quiet {quiet:g}: give a number of seconds, 0 or more")
        preflight.check_system()
        chosen = list(dict.fromkeys(pids))
        for pid in chosen:
            preflight.check(pid)
        if descendants:
            chosen = with_descendants(chosen)
        console = Console(stderr=as_json, quiet=as_json, highlight=False)
        try:
            with pass_progress(console) as tell, Engine(domain=domain) as engine:
                for pid in chosen:
                    engine.attach(pid)
                report = engine.merge_once(quiet_s=quiet, progress=tell)
        except KeyboardInterrupt:
            print("pageone: interrupted; what is merged stays merged, every process runs on", file=sys.stderr)
            raise typer.Exit(_INTERRUPTED) from None
        if as_json:
            print(json.dumps(as_dict(report)))
        else:
            show_rows(console, "One pass", report_rows(report))


def with_descendants(pids: list[int]) -> list[int]:
    """Return the processes and all descendants that they have now; those that have gone meanwhile are left out."""
    found = dict.fromkeys(pids)
    for pid in pids:
        try:
            found |= dict.fromkeys(child.pid for child in psutil.Process(pid).children(recursive=True))
        except psutil.NoSuchProcess:
            continue
    return list(found)

"""``pageone doctor``: what this kernel and user can do, and how to enable the rest."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pageone.doctor import Diagnosis, diagnose

_MARKS = {"ok": ("✓", "green"), "limited": ("!", "yellow"), "missing": ("✗", "red")}


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""

    @app.command()
    def doctor(
        as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    ) -> None:
        """Show what this kernel and user can do, what follows from it, and how to enable it.

        It tries everything and changes nothing. The exit code is 0 when your processes can be merged, else 1.
        """
        diagnosis = diagnose()
        if as_json:
            print(json.dumps(diagnosis.as_dict(), indent=2))
        else:
            _show(diagnosis, Console(highlight=False))
        raise typer.Exit(0 if diagnosis.merge_own else 1)


def _show(diagnosis: Diagnosis, console: Console) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("", "what", "found", "what follows"):
        table.add_column(heading, overflow="fold")
    for finding in diagnosis.findings:
        mark, colour = _MARKS[finding.state]
        follows = Text(finding.follows)
        if finding.enable:
            follows.append(
                f"\nto enable: {finding.enable}" if finding.state != "ok" else f"\n{finding.enable}",
                style="dim",
            )
        table.add_row(Text(mark, style=colour), finding.name, Text(finding.value), follows)
    who = "root" if diagnosis.uid == 0 else f"user {diagnosis.uid}"
    console.print(f"Linux {diagnosis.kernel}, {diagnosis.machine}, {who}\n")
    console.print(table)
    if diagnosis.merge_any:
        verdict = Text("\nProcesses of every user can be merged.", style="green")
    elif diagnosis.merge_own:
        verdict = Text("\nProcesses of this user can be merged.", style="green")
    else:
        verdict = Text("\nMerging is not possible here: see what is marked ✗.", style="red")
    console.print(verdict)

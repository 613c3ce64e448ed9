"""``pageone status``: the engines of this user, their processes and what they save."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.console import Console

from pageone.cli.engines import targets_table, title

HELP = """Show the engines of this user, their processes and what they save.

Saved bytes of a process are its shared and zero pages; of an engine, these less frames, mappings and accounting.

Examples:

- `pageone status`
- `pageone status --json | jq '.engines[].stats.saved_bytes'`
"""


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""

    @app.command(help=HELP)
    def status(
        domain: Annotated[str | None, typer.Option(metavar="NAME", help="Only the engine of this name.")] = None,
        as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    ) -> None:
        from pageone.service.client import states

        found = states(domain)
        if as_json:
            print(json.dumps({"engines": found}, indent=2))
            return
        console = Console(highlight=False)
        if not found:
            console.print("No engine of yours runs. Start one with: pageone run -- COMMAND, or pageone attach PID")
        for state in found:
            console.print(title(state), soft_wrap=True)
            console.print(targets_table(state))
            for error in state["errors"]:
                console.print(f"error: {error}", style="yellow", markup=False, soft_wrap=True)

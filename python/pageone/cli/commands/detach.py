"""``pageone detach PID…``: give processes memory of their own again and let them go."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from pageone.errors import UsageError

HELP = """Give processes memory of their own again and follow them no more.

It needs the memory that merging has saved: with too little of it the process stays as it is and the error says so.

Examples:

- `pageone detach 4711`
- `pageone detach 4711 --children`
"""


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""

    @app.command(help=HELP)
    def detach(
        pids: Annotated[list[int], typer.Argument(metavar="PID…", help="Processes that an engine follows.")],
        children: Annotated[bool, typer.Option("--children", help="Their descendants as well.")] = False,
    ) -> None:
        from pageone.service.client import detach as detach_from

        detached, failed, unknown = detach_from(pids, children=children)
        if unknown:
            names = ", ".join(map(str, unknown))
            raise UsageError(f"detach: PID {names}: attached to no engine of yours; see: pageone status")
        for pid, reason in failed.items():
            print(f"pageone: PID {pid}: {reason}", file=sys.stderr)
        print(f"detached {detached} processes" if detached != 1 else "detached 1 process")
        if failed:
            raise typer.Exit(1)

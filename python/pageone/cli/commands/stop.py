"""``pageone stop``: detach everything and end the engines."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

HELP = """Give all processes memory of their own again and end the engines of this user.

With too little memory for that an engine goes on and the error says so. With --leave processes keep what is merged:
they run on with the right bytes, guarded by the small guardian process until the last of them has ended.

Examples:

- `pageone stop`
- `pageone stop --domain guests --leave`
"""


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""

    @app.command(help=HELP)
    def stop(
        domain: Annotated[str | None, typer.Option(metavar="NAME", help="Only the engine of this name.")] = None,
        leave: Annotated[bool, typer.Option("--leave", help="End at once; processes keep what is merged.")] = False,
    ) -> None:
        from pageone.service.client import stop as stop_engines

        ended, failed = stop_engines(domain, leave=leave)
        for pid, reason in failed.items():
            print(f"pageone: PID {pid}: {reason}", file=sys.stderr)
        print(f"ended {ended} engines" if ended != 1 else "ended 1 engine")
        if failed:
            raise typer.Exit(1)

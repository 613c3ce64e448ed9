"""``pageone stop``: detach everything and end the engines."""

from __future__ import annotations

from typing import Annotated

import typer

HELP = """Give all processes memory of their own again and end the engines of this user.

With too little memory available, the engine goes on and the error says so. Pages that forked relatives share stay
merged, because each relative would need a copy; the command says how many. With --leave, processes stay merged and
run on with the right bytes: the small guardian process guards them until the last one ends.

Examples:

- `pageone stop`
- `pageone stop --domain guests --leave`
"""


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""

    @app.command(help=HELP)
    def stop(
        domain: Annotated[str | None, typer.Option(metavar="NAME", help="Only the engine of this name.")] = None,
        leave: Annotated[bool, typer.Option("--leave", help="End at once; processes stay merged.")] = False,
        as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    ) -> None:
        from pageone.cli.engines import print_detached
        from pageone.service.client import stop as stop_engines

        print_detached(stop_engines(domain, leave=leave), "ended", ("engine", "engines"), as_json=as_json)

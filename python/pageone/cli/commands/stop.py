"""``pageone stop``: detach everything and end the engines."""

from __future__ import annotations

from typing import Annotated

import typer

HELP = """Give all processes memory of their own again and end the engines of this user.

With too little memory for that an engine goes on and the error says so. Pages that forked relatives share are left
merged, since each would need a copy of its own; it says how many. With --leave processes keep what is merged:
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
        as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
    ) -> None:
        from pageone.cli.engines import print_let_go
        from pageone.service.client import stop as stop_engines

        print_let_go(stop_engines(domain, leave=leave), "ended", ("engine", "engines"), as_json=as_json)

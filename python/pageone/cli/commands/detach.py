"""``pageone detach PID…``: give processes memory of their own again and detach them."""

from __future__ import annotations

from typing import Annotated

import typer

from pageone.errors import UsageError

HELP = """Give processes memory of their own again and follow them no more.

This needs the memory that merging saved. With too little available, the process stays as it is and the error says so.
Pages that forked relatives share stay merged, because each relative would need a copy; the command says how many.

Examples:

- `pageone detach 4711`
- `pageone detach 4711 --descendants`
- `pageone detach 4711 --json | jq .left_pages`
"""


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""

    @app.command(help=HELP)
    def detach(
        pids: Annotated[list[int], typer.Argument(metavar="PID…", help="Processes that an engine follows.")],
        descendants: Annotated[bool, typer.Option("--descendants", help="Detach their descendants, too.")] = False,
        as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    ) -> None:
        from pageone.cli.engines import print_detached
        from pageone.service.client import detach as detach_from

        detached, unknown = detach_from(pids, descendants=descendants)
        if unknown:
            names = ", ".join(map(str, unknown))
            raise UsageError(f"detach: PID {names}: attached to no engine of yours; see: pageone status")
        print_detached(detached, "detached", ("process", "processes"), as_json=as_json)

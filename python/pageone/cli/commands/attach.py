"""``pageone attach PID… | --match REGEX | --user NAME``: keep running processes merged until they end."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from pageone.cli.engines import Cpu, Domain, Period, choose
from pageone.errors import TargetError

HELP = """Keep running processes merged until they end or are detached.

Name processes by PID: then all must be fit to be merged, or none is touched. Or choose them by --match and --user:
then each unfit process is left alone and named. As root, the processes of each user go to an engine for that user,
unless you name a domain.

Examples:

- `pageone attach 4711 4712`
- `pageone attach --match 'gunicorn: worker'`
- `sudo pageone attach --user www-data --descendants`
"""


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""

    @app.command(help=HELP)
    def attach(
        pids: Annotated[
            list[int] | None, typer.Argument(metavar="[PID…]", help="Processes.", show_default=False)
        ] = None,
        match: Annotated[
            str | None, typer.Option(metavar="REGEX", help="Processes whose command line contains this.")
        ] = None,
        user: Annotated[str | None, typer.Option(metavar="NAME", help="Processes of this user (name or id).")] = None,
        descendants: Annotated[bool, typer.Option("--descendants", help="Follow their descendants, too.")] = False,
        period: Period = None,
        cpu: Cpu = None,
        domain: Domain = None,
    ) -> None:
        from pageone.service.client import ask
        from pageone.service.select import by_user, find

        chosen, strict = find(pids or [], match=match, user=user)
        attached = 0
        refused: dict[str, str] = {}
        groups = {None: chosen} if domain is not None else by_user(chosen)
        for uid, members in groups.items():
            reply = ask(
                choose(domain=domain, uid=uid, period=period, cpu=cpu),
                lambda connection, members=members: connection.request(  # type: ignore[misc]
                    "attach", pids=members, descendants=descendants, strict=strict, period=period, cpu=cpu
                ),
            )
            attached += len(reply["attached"])
            refused |= reply["refused"]
        for reason in refused.values():
            print(f"pageone: {reason}", file=sys.stderr)
        if not attached:
            raise TargetError("attach: no process could be attached")
        print(f"attached {attached} processes" if attached != 1 else "attached 1 process")
        if strict and refused:
            raise typer.Exit(1)

"""``pageone run -- COMMAND…``: run a command with its memory, and that of its descendants, merged until they end."""

from __future__ import annotations

from typing import Annotated

import typer

from pageone.cli.engines import Cpu, Domain, Period, choose

HELP = """Run a command; keep it and all its descendants merged until they end.

The command takes the place of this process: same PID, terminal, job control, signals, standard streams and exit
status. Commands started apart share with each other through one engine per user, which starts on demand and ends with
its last process.

Examples:

- `pageone run -- python worker.py`
- `pageone run --period 2 -- gunicorn -w 8 app:app`
- `pageone run --private -- make -j8`
- `pageone run --domain guests -- qemu-system-x86_64 …`
"""


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""

    @app.command(help=HELP, context_settings={"allow_interspersed_args": False})
    def run(
        command: Annotated[list[str], typer.Argument(metavar="COMMAND…", help="The command and its arguments.")],
        period: Period = None,
        cpu: Cpu = None,
        domain: Domain = None,
        private: Annotated[
            bool, typer.Option("--private", help="Share only among the command and its descendants.")
        ] = False,
    ) -> None:
        from pageone.service.launch import become

        become(choose(domain=domain, private=private, period=period, cpu=cpu), command)

"""``pageone run -- COMMAND…``: run a command with its memory, and that of its descendants, merged until they end."""

from __future__ import annotations

from typing import Annotated

import typer

from pageone.cli.engines import Cpu, Domain, Period, choose
from pageone.errors import UsageError

HELP = """Run a command; it and all its descendants are kept merged until they end.

The command takes the place of this process: same PID, terminal, job control, signals, standard streams and exit
status as without PageONE. Commands started apart share with each other through one engine a user, which is started
on demand and ends with its last process.

With --once: start the command, --after seconds later make one pass over it and its descendants, wait for its end;
the report goes to stderr.

Examples:

- `pageone run -- python worker.py`
- `pageone run --period 2 -- gunicorn -w 8 app:app`
- `pageone run --private -- make -j8`
- `pageone run --domain guests -- qemu-system-x86_64 …`
- `pageone run --once --after 30 -- ./server`
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
            bool, typer.Option("--private", help="Share among the command and its descendants only.")
        ] = False,
        once: Annotated[bool, typer.Option("--once", help="Make one pass only, with an engine of its own.")] = False,
        after: Annotated[
            float, typer.Option(metavar="SECONDS", help="With --once: how long the command may settle before the pass.")
        ] = 10.0,
        quiet: Annotated[
            float, typer.Option(metavar="SECONDS", help="With --once: leave alone what is written within so long.")
        ] = 1.0,
        as_json: Annotated[
            bool, typer.Option("--json", help="With --once: report on stderr as one JSON object.")
        ] = False,
    ) -> None:
        if not once:
            from pageone.service.launch import become

            become(choose(domain=domain, private=private, period=period, cpu=cpu), command)
            return
        from pageone.cli.once import run_once  # late: following a command needs none of it
        from pageone.live import preflight

        if period is not None or cpu is not None or domain is not None or private:
            raise UsageError("run: --once takes none of --period, --cpu, --domain and --private")
        for name, value in (("--after", after), ("--quiet", quiet)):
            if value < 0:
                raise UsageError(f"{name} {value:g}: give a number of seconds, 0 or more")
        preflight.check_system()
        raise typer.Exit(run_once(command, after, quiet, as_json))

"""``pageone top``: the state of the engines, live."""

from __future__ import annotations

import contextlib
import time
from typing import Annotated

import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from pageone.cli.engines import targets_table, title
from pageone.errors import UsageError

HELP = """Show the engines of this user and their processes, live. Ctrl-C ends it.

Examples:

- `pageone top`
- `pageone top --every 0.5`
"""


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""

    @app.command(help=HELP)
    def top(
        every: Annotated[float, typer.Option(metavar="SECONDS", help="Seconds between two updates.")] = 1.0,
        count: Annotated[int, typer.Option(metavar="N", help="End after so many updates; 0: never.")] = 0,
    ) -> None:
        if not 0.05 <= every <= 3600:
            raise UsageError(f"--every {every:g}: give seconds, 0.05 to 3600")
        if count < 0:
            raise UsageError(f"--count {count}: give 0 or more")
        console = Console(highlight=False)
        updates = 0
        with (
            contextlib.suppress(KeyboardInterrupt),
            Live(_view(), console=console, screen=console.is_terminal, auto_refresh=False) as live,
        ):
            while True:
                updates += 1
                if updates == count:
                    break
                time.sleep(every)
                live.update(_view(), refresh=True)


def _view() -> RenderableType:
    from pageone.service.client import states

    parts: list[RenderableType] = []
    for state in states():
        parts += [Text(title(state), style="bold"), targets_table(state), Text()]
    return Group(*parts) if parts else Text("No engine of yours runs.")

"""The command line: one module a command in ``pageone.cli.commands``, found by name.

For: people at a terminal. It parses, calls the package's public Python functions and prints; it holds no logic
of the engine. A command module defines ``register(app: typer.Typer) -> None``.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from typing import Annotated

import typer

from pageone.errors import PageOneError

__all__ = ["build_app", "main"]


def build_app(only: str | None = None) -> typer.Typer:
    """Return the Typer application with every command of ``pageone.cli.commands`` registered, or ``only`` one.

    A name that no command has registers all.
    """
    from pageone.cli import commands

    app = typer.Typer(
        name="pageone",
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode="markdown",
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
        help="Find equal memory pages in running processes and let them share one frame, copy-on-write.",
    )

    # A callback keeps the name of a command needed when there is only one, and has the options of no command.
    @app.callback()
    def options(
        version: Annotated[
            bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
        ] = False,
    ) -> None:
        pass

    names = sorted(info.name for info in pkgutil.iter_modules(commands.__path__))
    for name in [only] if only in names else names:
        importlib.import_module(f"{commands.__name__}.{name}").register(app)
    return app


def _print_version(wanted: bool) -> None:
    if wanted:
        from pageone import __version__  # late: it comes from the native core, which not every command needs

        print(f"pageone {__version__}")
        raise typer.Exit


def main() -> None:
    """Run the command line; a :class:`PageOneError` becomes one line on stderr and its exit code."""
    try:
        # The others need not be loaded for it: `pageone run` is in the way of the command.
        build_app(only=sys.argv[1] if len(sys.argv) > 1 else None)()
    except PageOneError as error:
        print(f"pageone: {error}", file=sys.stderr)
        sys.exit(error.exit_code)

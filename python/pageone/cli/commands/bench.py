"""``pageone bench …``: every benchmark of :mod:`pageone.bench`, one subcommand a module.

A module of ``pageone.bench`` that defines ``register(app: typer.Typer) -> None`` adds its commands to ``app``
here; one without it is a helper of the others. Modules import what is heavy inside their functions, since all
of them are imported whenever the command line starts.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from pathlib import Path

import typer

from pageone import bench


def register(app: typer.Typer) -> None:
    """Add ``bench`` with a subcommand for each benchmark found."""
    sub = typer.Typer(no_args_is_help=True, help="Measure PageONE against its peers on this machine.")

    @sub.callback()
    def _group() -> None:
        """Measure PageONE against its peers on this machine."""

    for info in sorted(pkgutil.iter_modules(bench.__path__), key=lambda i: i.name):
        name = f"{bench.__name__}.{info.name}"
        # Helpers import numpy, which takes longer than all the rest of the command line: they are not imported here.
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None or "\ndef register(" not in "\n" + Path(spec.origin).read_text():
            continue
        importlib.import_module(name).register(sub)
    app.add_typer(sub, name="bench")

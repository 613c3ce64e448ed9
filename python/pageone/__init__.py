"""PageONE: exact deduplication of binary objects and of memory pages in running processes.

``pageone.one`` finds equal objects; ``pageone.engine`` and ``pageone.live`` merge equal pages of live processes;
``pageone.scan`` reports what merging would save; ``pageone.ksm`` reads and drives the kernel's own merging.
"""

import importlib
from typing import TYPE_CHECKING

from pageone.errors import PageOneError

if TYPE_CHECKING:
    from pageone import engine as engine
    from pageone import ksm as ksm
    from pageone import live as live
    from pageone import one as one
    from pageone import scan as scan
    from pageone._native import __version__
    from pageone.engine import Engine
    from pageone.one import Interner, KeyTree, SDTree, unique_rows
    from pageone.service.own import merge_self

__all__ = [
    "Engine",
    "Interner",
    "KeyTree",
    "PageOneError",
    "SDTree",
    "__version__",
    "merge_self",
    "unique_rows",
]

#: What is heavy, and where it is defined.
_LAZY = {
    "Engine": "pageone.engine",
    "Interner": "pageone.one",
    "KeyTree": "pageone.one",
    "SDTree": "pageone.one",
    "__version__": "pageone._native",
    "merge_self": "pageone.service.own",
    "unique_rows": "pageone.one",
}
#: Rooms that are there as attributes without an import of their own.
_ROOMS = ("engine", "ksm", "live", "one", "scan")


def __getattr__(name: str) -> object:
    """Import what is heavy when it is first asked for."""
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    if name in _ROOMS:
        return importlib.import_module(f"pageone.{name}")
    raise AttributeError(f"module 'pageone' has no attribute {name!r}")

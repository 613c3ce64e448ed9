"""PageONE: exact deduplication of binary objects and of memory pages in running processes.

``pageone.one`` finds equal objects; ``pageone.engine`` and ``pageone.live`` merge equal pages of live processes;
``pageone.scan`` reports what merging would save; ``pageone.ksm`` reads and drives the kernel's own merging.
"""

from typing import TYPE_CHECKING, Any

from pageone.errors import PageOneError

if TYPE_CHECKING:
    from pageone.engine import Engine, merge_self

__all__ = ["Engine", "PageOneError", "__version__", "merge_self"]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import what is heavy when it is first asked for."""
    if name in ("Engine", "merge_self"):
        import pageone.engine

        return getattr(pageone.engine, name)
    raise AttributeError(f"module 'pageone' has no attribute {name!r}")

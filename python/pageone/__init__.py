"""PageONE: exact deduplication of binary objects and of memory pages in running processes.

``pageone.one`` finds equal objects; ``pageone.engine`` and ``pageone.live`` merge equal pages of live processes;
``pageone.scan`` reports what merging would save; ``pageone.ksm`` reads and drives the kernel's own merging.
"""

from pageone.errors import PageOneError

__all__ = ["PageOneError", "__version__"]

__version__ = "0.1.0"

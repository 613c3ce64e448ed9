"""Equal files and equal blocks of files, exactly, and sharing their extents.

For: ``pageone files``. :func:`scan` reads and reports, :func:`share` asks the kernel to share what a scan has found.
What runs per block is in the native core; which files may share with which is decided here.
"""

from pageone.files.places import Place, open_places
from pageone.files.report import FilesReport
from pageone.files.scan import Budget, Job, scan
from pageone.files.sharing import share

__all__ = ["Budget", "FilesReport", "Job", "Place", "open_places", "scan", "share"]

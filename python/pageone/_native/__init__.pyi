"""The native core. Private: use the public packages ``pageone.one``, ``pageone.live``."""

from pageone._native import baselines as baselines
from pageone._native import duplicates as duplicates
from pageone._native import files as files
from pageone._native import ksm as ksm
from pageone._native import mem as mem
from pageone._native import one as one

#: The version of the workspace (``Cargo.toml``), which is that of the package.
__version__: str

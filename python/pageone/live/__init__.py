"""Live processes: attach, merge, detach; the only package that touches targets.

For: the engine, through ``pageone.engine.backend``. It may call ``pageone._native.mem``; it decides nothing about
which pages to merge.
"""

from pageone.live.backend import LiveBackend, LiveTarget

__all__ = ["LiveBackend", "LiveTarget"]

"""The engine's logic: which pages are watched, read, merged, unmerged and freed. Policy only, numpy only.

For: users (:class:`Engine`) and the command line. May call ``pageone.one`` for the index and, through the contract
:mod:`pageone.engine.backend`, ``pageone.live``. Touches no process itself.
"""

from pageone.engine.engine import Engine, Progress
from pageone.engine.metrics import MergeReport, Pauses, Stats, TargetStats, as_dict, as_json, as_prometheus
from pageone.engine.target import Target

__all__ = [
    "Engine",
    "MergeReport",
    "Pauses",
    "Progress",
    "Stats",
    "Target",
    "TargetStats",
    "as_dict",
    "as_json",
    "as_prometheus",
]

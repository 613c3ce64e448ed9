"""The main job, shown and proved: processes that built equal memory by themselves share it, and no byte changes.

For: ``pageone demo``, and tests that need processes with known memory. It calls ``pageone.engine`` and measures
with /proc; the command line calls it. ``program`` is what a worker runs, ``workers`` starts workers and talks with
them, ``measure`` reads /proc, ``show`` does the job.
"""

from pageone.demo.show import DemoResult, run_demo
from pageone.demo.workers import Mismatch, Worker, WorkerSpec, start_workers

__all__ = ["DemoResult", "Mismatch", "Worker", "WorkerSpec", "run_demo", "start_workers"]

"""The process in which the engine of the baseline ``pageone`` runs, apart from the benchmark that measures it.

For: :mod:`pageone.bench.ksm.baselines`, which runs this file as a program. One JSON order a line in, one answer out.
All CPU time is read from outside, so nothing here measures but what each step did and how long it took.
"""

from __future__ import annotations

import ctypes
import json
import sys
import time
from typing import Any

PR_SET_PDEATHSIG, SIGKILL = 1, 9

#: A target that does not stop in time is asked again: on a busy machine a stop can take longer than is waited for.
DETACH_TRIES = 50


def detach(engine: Any, target: Any) -> int:
    """Detach a target, again if it did not stop in time; return how often it took more."""
    from pageone.errors import TargetError

    for tries in range(DETACH_TRIES):
        try:
            engine.detach(target)
            return tries
        except TargetError:
            if tries == DETACH_TRIES - 1 or not target.attached:
                raise
    return DETACH_TRIES


def main() -> None:
    """Serve until the input closes."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0)
    from pageone.engine import Engine

    spec = json.loads(sys.stdin.readline())
    with Engine(period=spec["period"], workers=spec["workers"], domain="benchmark") as engine:
        print(json.dumps({"quiet_periods": engine.accounting.quiet_periods}), flush=True)
        for line in sys.stdin:
            order = json.loads(line)
            answer: dict[str, Any] = {}
            start = time.monotonic()
            match order["do"]:
                case "attach":
                    for pid in order["pids"]:
                        engine.attach(pid)
                case "step":
                    report = engine.step()
                    answer = {
                        "changed": report.merged_pages + report.dropped_pages,
                        "pages": report.pages,
                        "pauses_s": [float(pause) for pause in report.pauses_s],
                        "refused": report.refused,
                        "left_for_budget": report.left_for_budget,
                    }
                case "stats":
                    stats = engine.stats
                    answer = {"metadata_bytes": stats.metadata_bytes, "mappings_added": stats.mappings_added}
                case "detach":
                    answer["retries"] = sum(detach(engine, target) for target in engine.targets)
            answer["wall_s"] = time.monotonic() - start
            print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()

"""A Python worker as services run them: libraries imported, a table read, a model trained. Then it waits.

For: :mod:`pageone.bench.ksm.memory`, which runs this file as a program and reads its memory. Prints the names of the
libraries that it found, one line of JSON.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys
from typing import Any

ROWS, COLUMNS, OWN_ROWS = 100_000, 12, 20_000


def main() -> None:
    """Load, make some data, wait until the input closes."""
    os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"
    found: dict[str, Any] = {}
    for name in ("numpy", "pandas", "sklearn.ensemble"):
        with contextlib.suppress(ImportError):
            found[name] = importlib.import_module(name)
    numpy: Any = found["numpy"]
    # The same table in every worker, as if read from one file; and some rows that only this one has.
    table: Any = numpy.random.default_rng(1).standard_normal((ROWS, COLUMNS))
    own = numpy.random.default_rng().standard_normal((OWN_ROWS, COLUMNS))
    kept: list[Any] = [table, own]
    if "pandas" in found:
        frame = found["pandas"].DataFrame(table, columns=[f"column {i}" for i in range(COLUMNS)])
        frame["label"] = [f"label {i % 97}" for i in range(ROWS)]
        kept += [frame, frame.groupby("label").mean()]
    if "sklearn.ensemble" in found:
        target = table[:4000, 0] + table[:4000, 1] > 0
        kept.append(found["sklearn.ensemble"].RandomForestClassifier(10, random_state=0).fit(table[:4000], target))
    print(json.dumps(sorted(name.partition(".")[0] for name in found)), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()

"""Print the closing line of ``make test``: how many tests passed, failed and were skipped, and why skipped.

Usage: ``count_tests.py RUST_LOG PYTEST_JUNIT_XML``. Exits 1 when anything failed or when nothing ran at all.
"""

from __future__ import annotations

import re
import sys
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path

ANSI = re.compile(r"\x1b\[[0-9;]*m")


def count_rust(log: str) -> Counter[str]:
    """Count outcomes in the output of ``cargo nextest run`` and ``cargo test`` (one or both, any number of runs)."""
    counts: Counter[str] = Counter()
    for line in ANSI.sub("", log).splitlines():
        if re.match(r"\s*Summary \[", line):  # nextest
            for number, word in re.findall(r"(\d+) (passed|failed|skipped|timed out)", line):
                counts["failed" if word == "timed out" else word] += int(number)
        elif line.startswith("test result:"):  # cargo test, doc tests
            for number, word in re.findall(r"(\d+) (passed|failed|ignored)", line):
                counts["skipped" if word == "ignored" else word] += int(number)
    return counts


def count_pytest(xml: str) -> tuple[Counter[str], Counter[str]]:
    """Count outcomes and the reasons of skips in a JUnit file of pytest."""
    counts: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    for case in ET.fromstring(xml).iter("testcase"):
        skipped = case.find("skipped")
        if case.find("failure") is not None or case.find("error") is not None:
            counts["failed"] += 1
        elif skipped is not None:
            counts["skipped"] += 1
            reasons[skipped.get("message") or "no reason given"] += 1
        else:
            counts["passed"] += 1
    return counts, reasons


def main(rust_log: str, junit: str) -> int:
    """Print reasons and the closing line; return the exit code."""
    rust = count_rust(Path(rust_log).read_text())
    python, reasons = count_pytest(Path(junit).read_text())
    print(f"\nRust: {rust['passed']} passed; Python: {python['passed']} passed")
    for reason, number in reasons.most_common():
        print(f"skipped {number}: {reason}")
    total = rust + python
    print(f"{total['passed']} passed, {total['failed']} failed, {total['skipped']} skipped")
    return 1 if total["failed"] or not total["passed"] else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:3]))

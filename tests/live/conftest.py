"""What tests of live processes share: asking a program of the test's own that answers line by line."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable

import pytest

from pageone.engine import Engine


@pytest.fixture
def ask() -> Callable[[subprocess.Popen[str], str], str]:
    """Send a program a line and return the line that it answers; empty when it has ended."""

    def go(program: subprocess.Popen[str], what: str) -> str:
        assert program.stdin
        assert program.stdout
        print(what, file=program.stdin, flush=True)
        return program.stdout.readline().strip()

    return go


@pytest.fixture
def merge_at_least() -> Callable[[Engine, int], None]:
    """Merge until so many pages were merged in all: on a busy machine not every program stops in time at once."""

    def go(engine: Engine, pages: int) -> None:
        merged, refused = 0, []
        deadline = time.monotonic() + 40
        while merged < pages:
            assert time.monotonic() < deadline, f"only {merged} of {pages} pages were merged: refused {refused}"
            report = engine.merge_once(0.2)
            merged += report.merged_pages
            refused.append(report.refused)

    return go

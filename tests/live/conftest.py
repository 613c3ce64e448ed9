"""What tests of live processes share: asking a program of the test's own that answers line by line."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

import pytest


@pytest.fixture
def ask() -> Callable[[subprocess.Popen[str], str], str]:
    """Send a program a line and return the line that it answers; empty when it has ended."""

    def go(program: subprocess.Popen[str], what: str) -> str:
        assert program.stdin
        assert program.stdout
        print(what, file=program.stdin, flush=True)
        return program.stdout.readline().strip()

    return go

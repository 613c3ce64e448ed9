"""What tests under stress share: the program, compiled once, and running programs of it."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def stress(compiled: Callable[..., Path]) -> Path:
    return compiled(Path(__file__).with_name("stress.c"))


class Program:
    """One running program of ``stress.c``, which begins when it is told to."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.pid = process.pid
        assert process.stdout is not None
        assert process.stdout.readline().startswith("READY")

    def begin(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("x")
        self.process.stdin.flush()

    def stopped_threads(self) -> list[str]:
        """Return the threads that are held by a tracer."""
        held = []
        for thread in os.listdir(f"/proc/{self.pid}/task"):
            stat = Path(f"/proc/{self.pid}/task/{thread}/stat").read_text()
            if stat[stat.rindex(")") + 2] == "t":
                held.append(thread)
        return held

    def finish(self, within_s: float) -> str:
        """Return the last line of its output; raises AssertionError for a wrong byte, a hang or an unexpected end."""
        last = self.verdict(within_s)
        if last.startswith("SKIP"):
            pytest.skip(last)
        return last

    def verdict(self, within_s: float) -> str:
        """The same, but where this machine cannot run the scenario the line begins with SKIP."""
        try:
            out, err = self.process.communicate(timeout=within_s)
        except subprocess.TimeoutExpired as late:
            if self.process.poll() is None:
                raise AssertionError(f"process {self.pid} hangs: {self._states()}") from None
            # It has ended, and a child of it has its output open still.
            out, err = ((said or b"").decode() for said in (late.stdout, late.stderr))
        last = out.strip().splitlines()[-1] if out.strip() else ""
        # Children tell what was wrong before their parent tells that one did.
        assert self.process.returncode == 0, f"status {self.process.returncode}: {out.strip()} {err}"
        assert last.startswith(("OK", "SKIP")), last
        return last

    def _states(self) -> list[str]:
        """Return what its threads are at; some may end meanwhile."""
        states = []
        for thread in os.listdir(f"/proc/{self.pid}/task"):
            for file in ("stat", "wchan", "syscall"):
                with contextlib.suppress(OSError):
                    states.append(Path(f"/proc/{self.pid}/task/{thread}/{file}").read_text()[:120].strip())
        return states


@pytest.fixture
def start(spawn: Any, stress: Path) -> Callable[..., Program]:
    """Start a scenario of ``stress.c``: ``start(scenario, seconds, seed)``, at a niceness if that is given."""

    def go(scenario: str, seconds: float, seed: int = 2, *, nice: int = 0, **options: Any) -> Program:
        argv = [stress, scenario, str(seconds), str(seed)]
        return Program(spawn(["nice", "-n", str(nice), *argv] if nice else argv, **options))

    return go

"""A user who runs programs as ``pageone run`` does it, in an engine of the test's own that ends with it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

COMMAND = (sys.executable, "-c", "from pageone.cli import main; main()")
PERIOD_S = 0.2

MIB = 1 << 20

#: For numerical libraries.
ONE_THREAD = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")


def figures(stats: dict[str, Any]) -> dict[str, Any]:
    """Return what a test prints of an engine's figures, which are as users see them."""
    return {
        "merged_pages": stats["pages_merged"],
        "dropped_zero_pages": stats["pages_dropped"],
        "wasted_merges": stats["wasted_merges"],
        "saved_mib": round(stats["saved_bytes"] / MIB, 1),
        "pause_p99_ms": round(stats["pauses"]["p99_ms"], 2),
        "pause_max_ms": round(stats["pauses"]["max_ms"], 2),
        "cpu_s": round(sum(stats["cpu_s"].values()), 2),
    }


class Domain:
    """The engine of a test. Programs are started under it with ``run``; all figures are those that users see."""

    def __init__(self, runtime: Path) -> None:
        self.environment = dict(os.environ) | ONE_THREAD | {"XDG_RUNTIME_DIR": str(runtime), "COLUMNS": "200"}

    def run(self, *argv: str, period: float = PERIOD_S) -> list[str]:
        """Return the command line that runs ``argv`` under the engine, at a period of ``PERIOD_S`` and a whole CPU."""
        return [*COMMAND, "run", "--period", f"{period:g}", "--cpu", "100%", "--", *argv]

    def ask(self, *args: str, timeout: float = 120) -> str:
        """Run ``pageone ARGS`` and return what it printed; it must succeed."""
        done = subprocess.run(
            [*COMMAND, *args], env=self.environment, capture_output=True, text=True, timeout=timeout, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def state(self) -> dict[str, Any]:
        """Return what ``pageone status`` says of the engine; empty when there is none."""
        engines: list[dict[str, Any]] = json.loads(self.ask("status", "--json"))["engines"]
        return engines[0] if engines else {}

    def merged(self) -> int:
        """Return how many pages have been merged until now."""
        return int(self.state().get("stats", {}).get("pages_merged", 0))

    def wait_merged(self, pages: int, seconds: float = 60.0) -> int:
        """Wait until so many pages have been merged; return how many were."""
        self.until(lambda: self.merged() >= pages, f"{pages} pages merged", seconds)
        return self.merged()

    def detach(self, *pids: int) -> None:
        """Give processes memory of their own again; nothing of the pool is left in them."""
        self.ask("detach", *map(str, pids))
        for pid in pids:
            assert "/memfd:pageone" not in Path(f"/proc/{pid}/maps").read_text()

    def tell(self, name: str, **more: Any) -> None:
        """Print one line of figures; ``pytest -s`` shows it."""
        state = self.state()
        print(json.dumps({"test": name} | figures(state["stats"]) | {"errors": state["errors"]} | more), flush=True)

    @staticmethod
    def until(true: Callable[[], Any], what: str, seconds: float = 60.0) -> Any:
        """Wait for something to become true, and return it; fails the test when it does not."""
        end = time.monotonic() + seconds
        while not (found := true()):
            assert time.monotonic() < end, f"not after {seconds:g} seconds: {what}"
            time.sleep(0.1)
        return found


def tell_job(worker: subprocess.Popen[str], path: Path | str) -> None:
    """Have a worker of ``job.py`` do one more round; its results are at ``path`` when it says that it has done it."""
    assert worker.stdin
    worker.stdin.write(f"{path}\n")
    worker.stdin.flush()


def wait_job(worker: subprocess.Popen[str], answer: str) -> None:
    """Wait for a worker of ``job.py`` to say it: ``ready``, or ``done`` for each round."""
    assert worker.stdout
    line = worker.stdout.readline()
    assert line == f"{answer}\n", line or worker.communicate()[1]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_port(port: int, process: subprocess.Popen[str], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert process.poll() is None, process.stderr and process.stderr.read()
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.05)
    pytest.fail(f"nobody listens on port {port}")


@pytest.fixture
def domain() -> Iterator[Domain]:
    folder = Path(tempfile.mkdtemp(prefix="pageone-real-"))  # short: the path of a socket must be
    made = Domain(folder)
    try:
        yield made
    finally:
        made.ask("stop", "--leave")
        shutil.rmtree(folder, ignore_errors=True)

"""A pre-forking server under requests: what is said to be saved is saved, and all that is given back is as without us.

A twin server, which nobody follows, gets the same requests; what it uses is what the other would use alone. What is
claimed is held against the kernel's account (Pss) of anonymous and shared memory. Pages of files are in the page cache
whoever maps them, and a process that is attached maps some more of its libraries' code: calls that the engine has it
make need one instruction there, which is looked for. The account of all, files too, is held against the twin's after
detaching.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

import psutil
import pytest

from pageone.engine import Engine
from pageone.policy import MAPPING_BYTES, MAPPINGS_PER_RUN

from . import preloaded
from .conftest import MIB, ONE_THREAD, Domain, free_port, wait_port

pytestmark = [pytest.mark.realworld, pytest.mark.needs("merge", "module:gunicorn")]

WORKERS = 8
CLIENTS = 12
SLACK = 2 * MIB
#: Rounds that every worker has done before it is attached, and at each reading afterwards.
BEFORE, READINGS = 8, (12, 16, 20, 24)


class Server:
    """A running ``gunicorn --preload``, and what it answers."""

    def __init__(self, spawn: Any) -> None:
        self.port = free_port()
        command = [sys.executable, "-m", "gunicorn", "--preload", "-w", str(WORKERS), "-b", f"127.0.0.1:{self.port}"]
        here = str(Path(__file__).parent)
        environment = dict(psutil.Process().environ()) | ONE_THREAD
        self.process: subprocess.Popen[str] = spawn(
            [*command, "--timeout", "300", "--chdir", here, "preloaded:app"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environment,
        )
        wait_port(self.port, self.process, 60)
        self.results: dict[tuple[int, int], str] = {}
        Domain.until(lambda: len(self.pids) == WORKERS + 1, "all workers run")

    @property
    def pids(self) -> list[int]:
        """The process that loaded the application, and its workers."""
        return [self.process.pid, *(child.pid for child in psutil.Process(self.process.pid).children())]

    def serve(self, rounds: int) -> None:
        """Ask until each worker has done so many rounds."""
        done: set[int] = set()
        failed: list[BaseException] = []
        deadline = time.monotonic() + 240

        def ask() -> None:
            try:
                while len(done) < WORKERS and not failed:
                    assert time.monotonic() < deadline, f"{len(done)} workers have done {rounds} rounds"
                    with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/?{rounds}", timeout=120) as reply:
                        pid, number, result = reply.read().decode().split()
                    if result == "enough":
                        done.add(int(pid))
                    else:
                        self.results[int(pid), int(number)] = result
            except BaseException as error:
                failed.append(error)

        threads = [threading.Thread(target=ask) for _ in range(CLIENTS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failed, failed

    def pss(self, kinds: tuple[str, ...] = ("Pss",)) -> int:
        """Return the memory that all its processes use, by the kernel's account: shared pages count once."""
        total = 0
        for pid in self.pids:
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                kind, _, size = line.partition(":")
                if kind in kinds:
                    total += int(size.split()[0]) * 1024
        return total

    def memory(self) -> int:
        """Return what they use but for the page cache, which is there whoever maps it."""
        return self.pss(("Pss_Anon", "Pss_Shmem"))

    def runs(self) -> int:
        """Return how many mappings of frames its processes have."""
        maps = [Path(f"/proc/{pid}/maps").read_text() for pid in self.pids]
        return sum(text.count("/memfd:pageone (deleted)\n") for text in maps)


def test_gunicorn_with_preload_saves_what_is_claimed_and_gets_back_what_it_had(spawn: Any) -> None:
    followed, twin = Server(spawn), Server(spawn)
    both = (followed, twin)

    def serve(rounds: int) -> None:
        threads = [threading.Thread(target=server.serve, args=(rounds,)) for server in both]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    serve(BEFORE)
    before = {"followed": followed.pss(), "twin": twin.pss()}
    apart, apart_pss = followed.memory() - twin.memory(), before["followed"] - before["twin"]
    readings: list[dict[str, float]] = []
    with Engine(period=0.2, quiet_periods=1) as engine:
        for pid in followed.pids:
            engine.attach(pid)
        for rounds in READINGS:
            engine.start()
            serve(rounds)
            engine.stop()
            for _ in range(4):  # the accounting is as old as the last scan of the pages
                engine.step()
            Domain.until(lambda: engine.step() and not engine.stats.frames_waiting, "frames out of use are freed")
            stats = engine.stats
            # Of mappings and of what the engine keeps, the processes' Pss shows nothing.
            unseen = stats.metadata_bytes + followed.runs() * MAPPINGS_PER_RUN * MAPPING_BYTES
            claimed, of_targets = stats.saved_bytes + unseen, sum(t.stats.saved_bytes for t in engine.targets)
            figures = {
                "net": stats.saved_bytes,
                "claimed": claimed,
                "of_targets": of_targets,
                "saved": twin.memory() + apart - followed.memory(),
                "saved_by_pss": twin.pss() + apart_pss - followed.pss(),
            }
            readings.append({name: round(value / MIB, 2) for name, value in figures.items()} | {"rounds": rounds})
        merged, dropped, wasted = stats.pages_merged, stats.pages_dropped, stats.wasted_merges
        for target in list(engine.targets):
            engine.detach(target)
        after = {"followed": followed.pss(), "twin": twin.pss()}
        left = followed.runs()
        serve(READINGS[-1] + 2)
    expected = before["followed"] + after["twin"] - before["twin"]
    print(
        json.dumps(
            {
                "test": "gunicorn --preload",
                "pss_before_mib": {name: round(value / MIB, 2) for name, value in before.items()},
                "readings_mib": readings,
                "pss_after_mib": {name: round(value / MIB, 2) for name, value in after.items()},
                "after_percent": round(100 * (after["followed"] / expected - 1), 2),
                "mappings_left": left,
                "pages": {"merged": merged, "dropped": dropped, "wasted": wasted},
            }
        ),
        flush=True,
    )
    right = {number: preloaded.answer(number) for number in range(READINGS[-1] + 2)}
    for server in both:
        assert len(server.results) == WORKERS * len(right)
        assert all(result == right[number] for (_, number), result in server.results.items())
    assert readings[-1]["saved"] > 50, "nothing to speak of was merged"
    for reading in readings:
        assert abs(reading["claimed"] - reading["saved"]) * MIB <= SLACK, reading
        assert abs(reading["of_targets"] - reading["saved"]) * MIB <= SLACK, reading
    assert after["followed"] <= 1.02 * expected

"""Programs of the distribution under PageONE, each judged by a check of its own: ``make realworld``.

Each test starts an unmodified program, has an engine of the shortest sensible period follow it and its descendants, and
asks the program's own integrity check for the verdict. What was merged is asserted too: a test in which nothing was
merged shows nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

import psutil
import pytest

from pageone.engine import Engine, Stats, as_json
from pageone.errors import PageOneError

from .conftest import figures, free_port, wait_port

pytestmark = [pytest.mark.realworld, pytest.mark.needs("merge")]

PERIOD_S = 0.2
FIND_CHILDREN_S = 0.1


class Follower:
    """An engine that follows processes and their descendants until the end of a test."""

    def __init__(self, *pids: int) -> None:
        self.engine = Engine(period=PERIOD_S, quiet_periods=1)
        self._roots = pids
        self._seen: set[int] = set()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._follow)

    def _find_children(self) -> None:
        for root in self._roots:
            with contextlib.suppress(psutil.NoSuchProcess):
                process = psutil.Process(root)
                for pid in [root, *(child.pid for child in process.children(recursive=True))]:
                    if pid not in self._seen:
                        self._seen.add(pid)
                        with contextlib.suppress(PageOneError):  # ended meanwhile, or not to be merged
                            self.engine.attach(pid)

    def _follow(self) -> None:
        while not self._end.wait(FIND_CHILDREN_S):
            self._find_children()

    def __enter__(self) -> Follower:
        self._find_children()
        self._thread.start()
        self.engine.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()
        self.engine.close()

    @property
    def stats(self) -> Stats:
        return self.engine.stats

    def wait_merged(self, pages: int, seconds: float = 60.0) -> int:
        """Wait until so many pages have been merged; return how many were."""
        deadline = time.monotonic() + seconds
        while self.stats.pages_merged < pages and time.monotonic() < deadline:
            time.sleep(0.05)
        return self.stats.pages_merged


def tell(name: str, follower: Follower, **more: Any) -> None:
    """Print one line of figures; ``pytest -s`` shows it."""
    stats = json.loads(as_json(follower.stats))
    print(json.dumps({"test": name} | figures(stats) | more), flush=True)


# --- stress-ng ------------------------------------------------------------------------------------------------


@pytest.mark.needs("program:stress-ng")
def test_stress_ng_verifies_every_method_of_its_memory_stressors(spawn: Any) -> None:
    seconds = int(os.environ.get("PAGEONE_REALWORLD_SECONDS", "30"))
    process = spawn(
        [
            *(
                "stress-ng",
                "--vm",
                "4",
                "--vm-bytes",
                "256M",
                "--vm-method",
                "all",
                "--verify",
                "--vm-keep",
                "--vm-hang",
                "1",
            ),
            *("-t", f"{seconds}s", "--metrics-brief"),
        ],
        stdin=subprocess.DEVNULL,
    )
    with Follower(process.pid) as follower:
        out, errors = process.communicate(timeout=seconds + 120)
        tell("stress-ng", follower)
        assert process.returncode == 0, out + errors
        assert "fail" not in (out + errors).lower(), out + errors
        assert follower.stats.pages_merged + follower.stats.pages_dropped > 0


# --- SQLite ---------------------------------------------------------------------------------------------------

SQLITE = """
import hashlib, random, sqlite3, sys
database = sqlite3.connect(":memory:")
database.execute("PRAGMA cache_size = -200000")
database.execute("create table t (id integer primary key, body blob, sum text)")
random.seed(7)
def row(i):
    body = random.randbytes(600)
    return i, body, hashlib.sha256(body).hexdigest()
database.executemany("insert into t values (?, ?, ?)", (row(i) for i in range(60000)))
database.execute("create index by_sum on t (sum)")
database.commit()
print("ready", flush=True)
for line in sys.stdin:
    for _ in range(2000):
        database.execute("update t set body = body, id = id where id = ?", (random.randrange(60000),))
        i = random.randrange(60000)
        body = random.randbytes(600)
        database.execute("update t set body = ?, sum = ? where id = ?", (body, hashlib.sha256(body).hexdigest(), i))
    database.commit()
    verdict = database.execute("PRAGMA integrity_check").fetchone()[0]
    wrong = sum(hashlib.sha256(body).hexdigest() != sum_ for body, sum_ in database.execute("select body, sum from t"))
    print(verdict, wrong, flush=True)
"""


def test_sqlite_databases_in_memory_pass_their_integrity_check(spawn: Any) -> None:
    processes = [spawn.python(SQLITE) for _ in range(2)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    with Follower(*(process.pid for process in processes)) as follower:
        # Few pages are equal: SQLite keeps pointers beside each page of its cache.
        assert follower.wait_merged(100) >= 100
        for _ in range(4):
            for process in processes:
                process.stdin.write("go\n")
                process.stdin.flush()
            for process in processes:
                assert process.stdout.readline() == "ok 0\n"
        tell("sqlite", follower)


# --- gunicorn -------------------------------------------------------------------------------------------------

APPLICATION = """
import hashlib, os, random
random.seed(11)
TABLE = [random.randbytes(4000) for _ in range(8000)]
CACHE = {}
def app(environ, start_response):
    number = int(environ["QUERY_STRING"] or 0)
    CACHE[number % 512] = os.urandom(2000)
    body = hashlib.sha256(b"".join(TABLE[number % 8000 : number % 8000 + 50])).hexdigest() + " " + str(os.getpid())
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [body.encode()]
"""


@pytest.mark.needs("program:gunicorn")
def test_workers_of_gunicorn_answer_right_under_load(spawn: Any, tmp_path: Path) -> None:
    (tmp_path / "application.py").write_text(APPLICATION)
    port = free_port()
    process = spawn(
        ["gunicorn", "-w", "4", "-b", f"127.0.0.1:{port}", "--chdir", str(tmp_path), "application:app"],
        stderr=subprocess.DEVNULL,
    )
    wait_port(port, process)
    namespace: dict[str, Any] = {}
    exec(APPLICATION, namespace)
    table = namespace["TABLE"]
    right = {n: hashlib.sha256(b"".join(table[n : n + 50])).hexdigest() for n in range(0, 7900, 37)}
    seen: set[str] = set()
    wrong: list[str] = []

    def load() -> None:
        for _ in range(3):
            for number, expected in right.items():
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/?{number}", timeout=30) as answer:
                    told, pid = answer.read().decode().split()
                seen.add(pid)
                if told != expected:
                    wrong.append(f"{number}: {told}")

    with Follower(process.pid) as follower:
        assert follower.wait_merged(10_000) >= 10_000
        threads = [threading.Thread(target=load) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong
        assert len(seen) > 1
        tell("gunicorn", follower, workers=len(seen))

"""Run by the tests of this folder, as root or as an ordinary user: families of ``family.c`` under one engine."""

import json
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from pageone.engine import Engine, Target

PAGE = 4096
HUGE_PAGES, NO_HUGE_PAGES = 14, 15


class Family:
    """A running program of ``family.c`` and the children that it is told to fork; number 0 is the first process."""

    def __init__(self, pages: int, advice: int = NO_HUGE_PAGES) -> None:
        argv = [sys.argv[1], str(pages), str(advice)]
        self.process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"
        self.pids = [self.process.pid]

    def do(self, who: int, what: str, first: int = 0, pages: int = 0, seed: int = 0) -> int:
        """Have process ``who`` do what it can do; return its answer."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(who, what, first, pages, seed, file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline().strip()
        assert answer or what == "exit", f"{what}: no answer"
        return 0 if answer in ("", "gone") else int(answer)

    def fork(self, who: int = 0) -> int:
        """Return the number of a new child of the first process."""
        self.pids.append(self.do(who, "fork"))
        return len(self.pids) - 1

    def leave(self, who: int) -> None:
        """End a child."""
        self.do(who, "exit")

    def end(self) -> None:
        """End all of them."""
        for who in range(len(self.pids) - 1, 0, -1):
            self.do(who, "exit")
        self.process.kill()
        self.process.wait()


def account(pid: int, what: str) -> int:
    """Return what the kernel's account of a process's memory says under a name: bytes; 0 where it has ended."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return 1024 * sum(int(line.split()[1]) for line in text.splitlines() if line.startswith(what + ":"))


def pss(families: Iterable[Family]) -> int:
    """Return the memory that processes use, by the kernel's account, shared pages in parts: bytes."""
    return sum(account(pid, "Pss") for family in families for pid in family.pids)


def huge_bytes(pid: int) -> int:
    """Return how much of a process's memory huge pages map."""
    return account(pid, "AnonHugePages")


def merged(pid: int) -> int:
    """Return how many pages of a process lie in mappings of frames."""
    pages = 0
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        if line.endswith("/memfd:pageone (deleted)"):
            low, high = (int(x, 16) for x in line.split()[0].split("-"))
            pages += (high - low) // PAGE
    return pages


def attach(engine: Engine, family: Family) -> list[Target]:
    """Attach a whole family."""
    return [engine.attach(pid) for pid in family.pids]


def merge(engine: Engine, pages: int) -> None:
    """Merge or give back so many pages; on a busy machine a program may not stop in time, and is asked again."""
    deadline = time.monotonic() + 60
    while engine.stats.pages_merged + engine.stats.pages_dropped < pages and time.monotonic() < deadline:
        engine.merge_once(0.2)


def detach_all(engine: Engine) -> None:
    """Detach everything."""
    for target in list(engine.targets):
        engine.detach(target)


def tell(**what: object) -> None:
    """Print what was found, for the test."""
    print(json.dumps(what))

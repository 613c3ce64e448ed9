"""A process whose memory the engine's benchmarks merge: known contents, told by lines on stdin, checked on demand.

For: :mod:`pageone.bench.engine` and :mod:`pageone.bench.equal`, which run it as ``python -m pageone.bench._victim
SPEC``. Uses numpy and the standard library only. One JSON object a line, in and out.
"""

from __future__ import annotations

import json
import mmap
import sys
import threading
import time
from typing import Any

import numpy as np
import numpy.typing as npt

U64 = npt.NDArray[np.uint64]

PAGE = 4096
WORDS = PAGE // 8
CHUNK = 4096  #: pages made and compared at a time
MADV_NOHUGEPAGE, MADV_HUGEPAGE, MADV_PAGEOUT = 15, 14, 21


class Victim:
    """``pages`` pages of a kind, in one anonymous mapping.

    ``runs``: the same in every victim; ``scattered``: every other page the same, the rest its own; ``unique``: all its
    own; ``equal``: every page the same one.
    """

    def __init__(self, spec: dict[str, Any]) -> None:
        self.kind, self.pages, self.number = spec["kind"], int(spec["pages"]), int(spec["number"])
        self.map = mmap.mmap(-1, self.pages * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.map.madvise(MADV_HUGEPAGE if spec.get("huge") else MADV_NOHUGEPAGE)
        self.words: U64 = np.frombuffer(self.map, np.uint64).reshape(self.pages, WORDS)
        self.first: U64 = np.empty(self.pages, np.uint64)  # what the first word of each page must be
        for start, chunk in self.made():
            self.words[start : start + len(chunk)] = chunk
            self.first[start : start + len(chunk)] = chunk[:, 0]
        for _ in range(int(spec.get("threads", 1)) - 1):
            threading.Thread(target=threading.Event().wait, daemon=True).start()

    def made(self) -> Any:
        """Yield ``(first page, contents)`` as first written."""
        common, own = np.random.PCG64(1), np.random.PCG64(1000 + self.number)
        for start in range(0, self.pages, CHUNK):
            n = min(CHUNK, self.pages - start)
            if self.kind == "equal":
                yield start, np.broadcast_to(np.random.PCG64(1).random_raw(WORDS), (n, WORDS))
                continue
            source = own if self.kind == "unique" else common
            chunk = source.random_raw(n * WORDS).reshape(n, WORDS)
            if self.kind == "scattered":
                chunk[1::2] = own.random_raw(n // 2 * WORDS).reshape(n // 2, WORDS)
            yield start, chunk

    def write(self, share: float, seed: int) -> int:
        """Write the first word of a share of the pages, at random; return how many."""
        random = np.random.default_rng(seed)
        pages = random.choice(self.pages, max(1, int(self.pages * share)), replace=False)
        self.first[pages] = random.integers(0, 1 << 63, len(pages), dtype=np.uint64)
        self.words[pages, 0] = self.first[pages]
        return len(pages)

    def check(self) -> int:
        """Compare every byte; return the number of wrong pages."""
        wrong = 0
        for start, chunk in self.made():
            expected = np.array(chunk)
            expected[:, 0] = self.first[start : start + len(chunk)]
            wrong += int((self.words[start : start + len(chunk)] != expected).any(axis=1).sum())
        return wrong

    def churn(self, seconds: float, write_share: float, seed: int) -> dict[str, Any]:
        """Read and write single words at random, in bursts of 256 pages; return bursts done in each tenth of a second.

        Also the time of each burst of writes (seconds), for percentiles: such a burst takes the page faults.
        """
        random = np.random.default_rng(seed)
        done: list[int] = []
        slow: list[float] = []
        end = time.monotonic() + seconds
        plans = random.integers(0, self.pages, (64, 256))
        i = 0
        while (now := time.monotonic()) < end:
            count, until = 0, now + 0.1
            while time.monotonic() < until:
                pages = plans[i % 64]
                i += 1
                self.words[pages, 1].sum()
                if write_share and i % int(1 / write_share) == 0:
                    some = pages[:4]
                    began = time.perf_counter()
                    self.words[some, 0] = self.first[some]
                    slow.append((time.perf_counter() - began) / len(some))
                count += 1
            done.append(count)
        return {"bursts": done, "write_s": slow[-20000:]}


def main() -> None:
    """Serve until stdin closes."""
    victim = Victim(json.loads(sys.argv[1]))
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        what = order.pop("do")
        answer: dict[str, Any] = {}
        if what == "write":
            answer["pages"] = victim.write(**order)
        elif what == "check":
            answer["wrong"] = victim.check()
        elif what == "churn":
            answer = victim.churn(**order)
        elif what == "pageout":
            began = time.monotonic()
            victim.map.madvise(MADV_PAGEOUT)
            answer["seconds"] = time.monotonic() - began
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()

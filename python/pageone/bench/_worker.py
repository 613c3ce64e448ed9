"""A process that holds pages and does what it is told: the target of :mod:`pageone.bench.ksm`.

For: :mod:`pageone.bench.processes`, which runs this file as a program. Standard library only and no import of the
package, so that next to nothing is in its memory but the data. One JSON object a line comes in, one goes out.

The first says where to copy the data from: ``{"fd": memfd, "offset": bytes, "bytes": length, "merge": bool,
"scratch": bytes}``; it is answered with ``{"address": ...}``. ``merge`` asks the kernel's KSM for the data
(``MADV_MERGEABLE``). Transparent huge pages are off for the data: splitting one looks like a saving and is none.
"""

from __future__ import annotations

import array
import ctypes
import hashlib
import json
import mmap
import os
import random
import sys
import threading
import time

PAGE = 4096
MADV_MERGEABLE, MADV_UNMERGEABLE, MADV_NOHUGEPAGE = 12, 13, 15
PR_SET_PDEATHSIG, SIGKILL = 1, 9

#: One request of the victim: so many reads all over the data, so many writes to a hot area of its own.
READS, WRITES = 32, 8
#: The victim works for BURST_S and sleeps REST_S: a quarter of one processor, as a service that waits for requests.
BURST_S, REST_S = 0.002, 0.006

libc = ctypes.CDLL(None, use_errno=True)


class Memory:
    """A private anonymous mapping, small pages only."""

    def __init__(self, length: int) -> None:
        self.map = mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.view = memoryview(self.map)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.map))
        self.length = length
        self.advise(MADV_NOHUGEPAGE)

    def advise(self, advice: int) -> None:
        result = libc.madvise(ctypes.c_void_p(self.address), ctypes.c_size_t(self.length), advice)
        # A kernel without huge pages, or without KSM, answers EINVAL; only KSM's absence matters, and is seen.
        if result != 0 and advice != MADV_NOHUGEPAGE:
            raise OSError(ctypes.get_errno(), "madvise")


class Victim(threading.Thread):
    """Reads and writes at random, and notes how long each request took (nanoseconds)."""

    def __init__(self, data: Memory, scratch: Memory) -> None:
        super().__init__(daemon=True)
        self.data, self.scratch = data.view, scratch.view
        self.begun, self.ended = threading.Event(), threading.Event()
        self.took = array.array("Q")

    def run(self) -> None:
        rng = random.Random(2017)
        reads = [rng.randrange(len(self.data)) for _ in range(READS * 997)]
        writes = [rng.randrange(len(self.scratch)) for _ in range(WRITES * 499)]
        data, scratch, took, now = self.data, self.scratch, self.took, time.perf_counter_ns
        r = w = total = 0
        self.begun.set()
        while True:
            before = now()
            end = before + int(BURST_S * 1e9)
            while before < end:
                for at in reads[r : r + READS]:
                    total += data[at]
                for at in writes[w : w + WRITES]:
                    scratch[at] = total & 255
                r = (r + READS) % len(reads)
                w = (w + WRITES) % len(writes)
                after = now()
                took.append(after - before)
                before = after
            # Asked after the burst: what is measured may be over before the first one, and still there are figures.
            if self.ended.wait(REST_S):
                return

    def figures(self) -> dict[str, float]:
        self.ended.set()
        self.join()
        took = sorted(self.took)

        def share(part: float) -> float:
            return took[min(len(took) - 1, int(part * len(took)))] / 1e3

        return {"requests": len(took), "p50_us": share(0.5), "p99_us": share(0.99), "p999_us": share(0.999),
                "max_us": took[-1] / 1e3}  # fmt: skip


def main() -> None:
    """Serve until told to quit, or until the parent is gone."""
    libc.prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0)
    spec = json.loads(sys.stdin.readline())
    data = Memory(spec["bytes"])
    if spec["merge"]:
        data.advise(MADV_MERGEABLE)
    done = 0
    while done < data.length:
        done += os.preadv(spec["fd"], [data.view[done:]], spec["offset"] + done)
    os.close(spec["fd"])
    scratch = Memory(spec["scratch"])
    scratch.view[:] = os.urandom(spec["scratch"])
    victim: Victim | None = None
    print(json.dumps({"address": data.address}), flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        answer: dict[str, object] = {}
        match order["do"]:
            case "touch":
                # One byte of every page: pages that were mapped anew get their page-table entry.
                answer["sum"] = sum(data.view[::PAGE].tobytes()) if data.length else 0
            case "digest":
                answer["digest"] = hashlib.blake2b(data.view).hexdigest()
            case "write":
                for page, byte in zip(order["pages"], bytes.fromhex(order["bytes"]), strict=True):
                    data.view[page * PAGE + order["at"]] = byte
            case "timed_write":
                # The same byte again: the content stays, the sharing does not.
                took = []
                for page in order["pages"]:
                    at = page * PAGE
                    byte = data.view[at]
                    before = time.perf_counter_ns()
                    data.view[at] = byte
                    took.append(time.perf_counter_ns() - before)
                answer["ns"] = took
            case "victim":
                victim = Victim(data, scratch)
                victim.start()
                victim.begun.wait()
                answer["tid"] = victim.native_id
            case "victim_figures":
                answer = dict(victim.figures()) if victim else {}
                victim = None
            case "unmerge":
                data.advise(MADV_UNMERGEABLE)
            case "quit":
                return
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()

"""``pageone bench scan``: how fast a scan is, against reading the same bytes alone, and what memory it needs.

For: people at a terminal. Every ratio is of figures of the same run, taken in turn. What it does not show: cold files
(the image is in the page cache), and pages shared since a fork, which cost about a third more to read.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Callable

#: The target: as many pages of its own, all different or a third of them equal to others, then it waits.
_TARGET = """
import mmap, sys
import numpy as np
pages, repeated = int(sys.argv[1]), float(sys.argv[2])
m = mmap.mmap(-1, pages * 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
m.madvise(15)
v = np.frombuffer(m, dtype=np.uint8).reshape(pages, 4096)
rng = np.random.default_rng(1)
for low in range(0, pages, 4096):
    high = min(low + 4096, pages)
    v[low:high] = rng.integers(0, 256, (high - low, 4096), dtype=np.uint8)
same = int(pages * repeated)
if same:
    v[pages - same:] = v[:same]
print(v.ctypes.data, flush=True)
sys.stdin.read()
"""

#: Peak memory of counting a file, above that of the same process before it: bytes a page.
_MEMORY = """
import sys
from pageone.scan.duplicates import DuplicateCount
from pageone.scan import sources, account
import pageone.one
def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:"))
def count_duplicates(path, threads):
    source = sources.file(path)
    c = DuplicateCount([source], threads)
    c.run()
    account.account(c)
    return len(source)
count_duplicates(sys.argv[2], 1)
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # the peak starts anew from what is resident
before = peak()
pages = count_duplicates(sys.argv[1], 1)
print((peak() - before) / pages)
"""


def _median(values: list[float]) -> float:
    ordered = sorted(values)
    return ordered[len(ordered) // 2]


def _spread(values: list[float]) -> dict[str, float]:
    return {"median": _median(values), "least": min(values), "most": max(values)}


def _read_alone(pid: int, at: int, pages: int) -> None:
    """Read the pages with process_vm_readv and nothing else, 64 pages a call.

    Into a buffer on a page boundary: elsewhere the kernel's copy may take four times as long (Zen 3).
    """
    import ctypes
    import mmap

    class Vector(ctypes.Structure):
        _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]

    call = ctypes.CDLL(None).process_vm_readv
    call.restype = ctypes.c_ssize_t
    call.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_ulong]
    size = 64 * 4096
    buffer = mmap.mmap(-1, size)
    here = ctypes.c_char.from_buffer(buffer)
    local, remote = Vector(ctypes.addressof(here), size), Vector(at, size)
    for low in range(0, pages * 4096, size):
        remote.base = at + low
        remote.length = local.length = min(size, pages * 4096 - low)
        done = call(pid, ctypes.byref(local), 1, ctypes.byref(remote), 1, 0)
        if done != local.length:
            raise RuntimeError(f"process_vm_readv returned {done}")


def _read_file_alone(path: str, size: int, threads: int) -> None:
    """Read a file, half a MiB a call, and do nothing with it: what two threads can gain at most."""
    import mmap
    import os
    import threading

    step = 512 << 10
    fd = os.open(path, os.O_RDONLY)

    def part(low: int, high: int) -> None:
        buffer = memoryview(mmap.mmap(-1, step))
        for at in range(low, high, step):
            os.preadv(fd, [buffer], at)

    parts = [threading.Thread(target=part, args=(size * i // threads, size * (i + 1) // threads))
             for i in range(threads)]  # fmt: skip
    for thread in parts:
        thread.start()
    for thread in parts:
        thread.join()
    os.close(fd)


def measure(mebibytes: int, repeats: int) -> dict[str, Any]:
    """Return all figures. Writes an image of ``mebibytes`` into a temporary file and starts targets as large."""
    import tempfile
    import time

    import numpy as np

    from pageone._native import mem
    from pageone.scan import sources
    from pageone.scan.duplicates import DuplicateCount

    def timed(work: Callable[[], None]) -> tuple[float, float]:
        wall, cpu = time.perf_counter(), time.process_time()
        work()
        return time.perf_counter() - wall, time.process_time() - cpu

    def count_duplicates(open_source: Callable[[], sources.Source], threads: int) -> Callable[[], None]:
        def work() -> None:
            source = open_source()
            DuplicateCount([source], threads).run()
            source.close()

        return work

    size = mebibytes << 20
    result: dict[str, Any] = {"schema": "pageone.bench.scan/1", "mebibytes": mebibytes, "repeats": repeats}
    with tempfile.TemporaryDirectory(prefix="pageone-bench-") as folder:
        path, small = f"{folder}/image", f"{folder}/small"
        rng = np.random.default_rng(1)
        with open(path, "wb") as file:
            for _ in range(mebibytes // 16):
                file.write(rng.bytes(16 << 20))
        with open(small, "wb") as file:
            file.write(rng.bytes(16 << 20))
        one, two, ratio, cpu_rate, alone_ratio = [], [], [], [], []
        count_duplicates(lambda: sources.file(path), 1)()
        for _ in range(repeats):
            wall, cpu = timed(count_duplicates(lambda: sources.file(path), 1))
            wall_two, _ = timed(count_duplicates(lambda: sources.file(path), 2))
            one.append(size / wall / 1e9)
            cpu_rate.append(size / cpu / 1e9)
            two.append(size / wall_two / 1e9)
            ratio.append(wall / wall_two)
            read, _ = timed(lambda: _read_file_alone(path, size, 1))
            read_two, _ = timed(lambda: _read_file_alone(path, size, 2))
            alone_ratio.append(read / read_two)
        result["file_gb_per_second"] = _spread(one)
        result["file_gb_per_cpu_second"] = _spread(cpu_rate)
        result["file_two_threads_gb_per_second"] = _spread(two)
        result["file_two_threads_speedup"] = _spread(ratio)
        result["file_read_alone_two_threads_speedup"] = _spread(alone_ratio)
        done = subprocess.run([sys.executable, "-c", _MEMORY, path, small], capture_output=True, text=True, check=True)
        result["bytes_per_page"] = float(done.stdout)

    pages = size // 4096
    for name, repeated in (("unique", 0.0), ("third_repeated", 1 / 3)):
        command = [sys.executable, "-c", _TARGET, str(pages), str(repeated)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as target:
            assert target.stdout is not None
            assert target.stdin is not None
            at = int(target.stdout.readline())
            start, end = np.array([at], np.uint64), np.array([at + size], np.uint64)

            def live(pid: int = target.pid, start: Any = start, end: Any = end) -> sources.Source:
                # Only the pages that the baseline reads, not the interpreter's own.
                source = sources.process(pid)
                whole = (source.start < end[0]) & (source.start + source.pages.astype(np.uint64) * 4096 > start[0])
                for column in ("start", "pages", "region", "huge"):
                    setattr(source, column, getattr(source, column)[whole])
                low = np.maximum(source.start, start[0])
                high = np.minimum(source.start + source.pages.astype(np.uint64) * np.uint64(4096), end[0])
                source.start, source.pages = low, ((high - low) // np.uint64(4096)).astype(np.int64)
                source.__post_init__()
                if len(source) != pages:
                    raise RuntimeError(f"{len(source)} of {pages} pages are resident")
                return source

            alone, counted, against, against_cpu = [], [], [], []
            timed(lambda pid=target.pid, at=at: _read_alone(pid, at, pages))  # type: ignore[misc]
            for _ in range(repeats):
                base, base_cpu = timed(lambda pid=target.pid, at=at: _read_alone(pid, at, pages))  # type: ignore[misc]
                wall, cpu = timed(count_duplicates(live, 1))
                alone.append(base / pages * 1e9)
                counted.append(wall / pages * 1e9)
                against.append(wall / base)
                against_cpu.append(cpu / base_cpu)
            result[f"live_{name}_read_alone_ns"] = _spread(alone)
            result[f"live_{name}_scan_ns"] = _spread(counted)
            result[f"live_{name}_ratio"] = _spread(against)
            result[f"live_{name}_cpu_ratio"] = _spread(against_cpu)
            target.stdin.close()
    assert mem.pagemap_available()
    return result


def register(app: typer.Typer) -> None:
    """Add ``bench scan``."""

    @app.command("scan")
    def run(
        mebibytes: Annotated[int, typer.Option("--mib", min=16, help="Size of the image and of each target.")] = 1024,
        repeats: Annotated[int, typer.Option(min=1, help="Measurements of each.")] = 5,
        as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    ) -> None:
        """Measure a scan of a file and of a process against reading the same bytes alone."""
        result = measure(mebibytes, repeats)
        if as_json:
            print(json.dumps(result, indent=1))
            return
        print(f"{mebibytes} MiB, {repeats} measurements each: median (least to most)")
        for name, value in result.items():
            if isinstance(value, dict):
                figures = f"{value['median']:.2f}  ({value['least']:.2f} to {value['most']:.2f})"
                print(f"  {name:36} {figures}")
            elif isinstance(value, float):
                print(f"  {name:36} {value:.1f}")

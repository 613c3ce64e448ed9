"""``pageone bench tree`` and ``pageone bench one``: the SD tree against its peers, on the same rows in one run.

For: users and developers. It calls the native core (the peers are there in a checkout only), ``pageone.one`` and
numpy.
"""

from __future__ import annotations

import json
import mmap
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import typer

from pageone import procfs
from pageone._native import mem
from pageone.bench import _checkout
from pageone.errors import UsageError

U8 = npt.NDArray[np.uint8]

PAGE_SIZE = 4096
#: Rows that are in no tree, looked for to measure misses; more would only take memory.
MISSES = 65536
OPERATIONS = ("insert", "hit", "miss", "remove")
#: Kinds made of what is on this machine, besides the made-up ones of the core.
REAL = ("files", "processes")


def _core() -> Any:
    """Return the native module of the peers, or raise :class:`UnsupportedError` in an installed wheel."""
    return _checkout.native("baselines")


def _pages(count: int) -> U8:
    """Return memory for ``count`` pages that begins at a page, as pages do; numpy's own begins 16 bytes past one."""
    return np.frombuffer(mmap.mmap(-1, max(count, 1) * PAGE_SIZE), np.uint8)[: count * PAGE_SIZE]


def file_blocks(limit: int, root: str = "/usr") -> U8:
    """Return up to ``limit`` 4 KiB blocks of the regular files below ``root``, end to end; the tails are left out."""
    blocks = _pages(limit)
    n = 0
    for folder, folders, names in os.walk(root):
        folders.sort()
        for name in sorted(names):
            path = Path(folder, name)
            try:
                if path.is_symlink() or not path.is_file():
                    continue
                whole = min(path.stat().st_size // PAGE_SIZE, limit - n) * PAGE_SIZE
                part = np.fromfile(path, np.uint8, whole)
            except OSError:
                continue
            part = part[: part.size // PAGE_SIZE * PAGE_SIZE]
            blocks[n * PAGE_SIZE : n * PAGE_SIZE + part.size] = part
            n += part.size // PAGE_SIZE
            if n >= limit:
                return blocks
    return blocks[: n * PAGE_SIZE]


#: What the processes do whose memory is a real set: ordinary libraries and some data of their own.
_WORKER = "import sys, json, decimal, email.message, numpy as np, numpy.linalg\n\
data = [{'n': i, 's': str(i)} for i in range(50000)]; a = np.random.default_rng().random(500000)\n\
print(flush=True); sys.stdin.read()"


def process_pages(limit: int, workers: int = 4) -> U8:
    """Return up to ``limit`` pages of the writable private memory of Python processes started for it."""
    import subprocess

    children = [
        subprocess.Popen([sys.executable, "-c", _WORKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(workers)
    ]
    parts: list[U8] = []
    n = 0
    try:
        for child in children:
            assert child.stdout is not None
            child.stdout.readline()
            with open(f"/proc/{child.pid}/mem", "rb", buffering=0) as memory:
                starts, ends, perms, *_ = mem.maps(child.pid)
                private = (perms & (mem.PERM_EXEC | mem.PERM_SHARED)) == 0
                writable = private & ((perms & mem.PERM_WRITE) != 0) & ((perms & mem.PERM_READ) != 0)
                for start, end in zip(starts[writable].tolist(), ends[writable].tolist(), strict=True):
                    if n >= limit:
                        break
                    memory.seek(start)
                    part = np.frombuffer(memory.read(min(end - start, (limit - n) * PAGE_SIZE)), np.uint8)
                    parts.append(part[: part.size // PAGE_SIZE * PAGE_SIZE])
                    n += part.size // PAGE_SIZE
    finally:
        for child in children:
            child.communicate()
    return np.concatenate(parts, out=_pages(n))


def make_rows(kind: str, pages: int, copies: int) -> U8:
    """Return the rows of a kind, end to end. Raises :class:`UsageError` for a kind that there is not."""
    core = _core()
    if kind == "files":
        return file_blocks(pages)
    if kind == "processes":
        return process_pages(pages)
    if kind not in core.kinds():
        raise UsageError(f"no kind {kind!r}; there are {', '.join([*core.kinds(), *REAL])}")
    rows = _pages(pages)
    core.fill(kind, rows, copies, PAGE_SIZE, 7)
    return rows


def measure(rows: U8, baselines: list[str], threads: int, rounds: int) -> tuple[dict[str, dict[str, Any]], int]:
    """Run each baseline ``rounds`` times, in turns, and return its best round for each operation, and the distinct.

    Of each operation ``ns`` (wall clock) and ``cpu_ns`` (of all threads) a row, and ``ns_max``, the worst round.
    """
    core = _core()
    n = rows.size // PAGE_SIZE
    misses = _pages(min(n, MISSES))
    core.fill("random", misses, 1, PAGE_SIZE, 99)
    counts = {"insert": n, "hit": n, "miss": min(n, MISSES), "remove": n}
    best: dict[str, dict[str, Any]] = {}
    distinct = 0
    for _ in range(rounds):
        for name in baselines:
            got = core.measure(name, rows, misses, PAGE_SIZE, threads)
            mine = best.setdefault(name, {"bytes": got["bytes"], "depth": None})
            if got["depth_max"] is not None:
                mine["depth"] = {"mean": got["depth_mean"], "max": got["depth_max"]}
            for operation in OPERATIONS:
                if operation not in got:
                    continue
                wall, cpu, counted = got[operation]
                figures = mine.setdefault(operation, {"ns": np.inf, "cpu_ns": np.inf, "ns_max": 0.0})
                figures["ns"] = min(figures["ns"], wall / counts[operation])
                figures["cpu_ns"] = min(figures["cpu_ns"], cpu / counts[operation])
                figures["ns_max"] = max(figures["ns_max"], wall / counts[operation])
                if operation == "insert" and name not in core.floors():
                    if distinct not in (0, counted):
                        raise AssertionError(f"{name} found {counted} distinct rows, others {distinct}")
                    distinct = counted
    return best, distinct


def machine() -> dict[str, Any]:
    """Return what a figure depends on: processor, cores, load, kernel."""
    model = procfs.cpuinfo("model name") or platform.processor()
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "load": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
    }


def run_tree(
    pages: int,
    kind: str = "random",
    copies: int = 1,
    threads: int = 1,
    rounds: int = 3,
    baselines: list[str] | None = None,
) -> dict[str, Any]:
    """Measure the baselines on ``pages`` rows of ``kind`` and return the report that ``--json`` prints.

    Raises :class:`UsageError` for numbers or names that cannot be, :class:`UnsupportedError` without the peers.
    """
    core = _core()
    if min(pages, copies, threads, rounds) < 1:
        raise UsageError("pages, copies, threads and rounds must be at least 1")
    single = ("xxh3_table", "xxh3_table_scalar", "rbtree")
    possible = [n for n in core.names() if n != "mutex_table"] if threads == 1 else core.names()
    names = [n for n in (baselines or possible) if threads == 1 or n not in single]
    for name in names:
        if name not in core.names():
            raise UsageError(f"no baseline {name!r}; there are {', '.join(core.names())}")
    rows = make_rows(kind, pages, copies)
    figures, distinct = measure(rows, names, threads, rounds)
    tree = figures.get("sdtree")
    return {
        "kind": kind,
        "pages": rows.size // PAGE_SIZE,
        "distinct": distinct,
        "copies": copies,
        "threads": threads,
        "rounds": rounds,
        "ns_per_page": {n: f["insert"]["ns"] for n, f in figures.items()},
        "cpu_ns_per_page": {n: f["insert"]["cpu_ns"] for n, f in figures.items()},
        "operations": {n: {o: f[o] for o in OPERATIONS if o in f} for n, f in figures.items()},
        "bytes_per_object": {n: f["bytes"] / distinct for n, f in figures.items() if f["bytes"] and distinct},
        "depth": tree["depth"] if tree else None,
        "machine": machine(),
    }


def _print(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    title = (
        f"{report['pages']:,} pages, {report['kind']}, {report['distinct']:,} distinct, "
        f"{report['threads']} thread(s): ns a page, best (worst) of {report['rounds']}"
    )
    table = Table(title=title)
    table.add_column("baseline")
    for operation in OPERATIONS:
        table.add_column(operation, justify="right")
    for column in ("insert, CPU", "of sdtree's", "bytes/object"):
        table.add_column(column, justify="right")
    base = report["cpu_ns_per_page"].get("sdtree")
    for name, operations in report["operations"].items():
        cells = [
            f"{operations[o]['ns']:.0f} ({operations[o]['ns_max']:.0f})" if o in operations else "–" for o in OPERATIONS
        ]
        cpu = report["cpu_ns_per_page"][name]
        size = report["bytes_per_object"].get(name)
        ratio = f"{cpu / base:.2f} ×" if base else "–"
        table.add_row(name, *cells, f"{cpu:.0f}", ratio, f"{size:.1f}" if size is not None else "–")
    console = Console()
    console.print(table)
    if report["depth"]:
        console.print(f"depth of sdtree: mean {report['depth']['mean']:.2f}, max {report['depth']['max']}")
    console.print(f"machine: {report['machine']}")


# --- pageone bench one: Python's own ways ---


def _python_peers(rows: U8) -> dict[str, Callable[[], Any]]:
    """Return what finds the distinct rows of an ``(n, size)`` array, by name; libraries not installed are left out."""
    from pageone.one import SDTree, unique_rows

    def with_dict() -> int:
        seen: dict[bytes, int] = {}
        for row in rows:
            seen.setdefault(row.tobytes(), len(seen))
        return len(seen)

    peers: dict[str, Callable[[], Any]] = {
        "pageone.unique_rows": lambda: len(unique_rows(rows, return_inverse=True)[0]),
        "pageone.SDTree.intern": lambda: int(SDTree(rows.shape[1]).intern(rows)[1].sum()),
        "dict of bytes": with_dict,
        "numpy.unique(axis=0)": lambda: len(np.unique(rows, axis=0, return_inverse=True)[0]),
    }
    try:
        import pandas as pd  # type: ignore[import-untyped,import-not-found,unused-ignore]

        def with_pandas() -> int:
            return len(pd.factorize(np.array([r.tobytes() for r in rows], object))[1])

        peers["pandas.factorize"] = with_pandas
    except ImportError:
        pass
    try:
        import polars as pl  # type: ignore[import-not-found,unused-ignore]

        def with_polars() -> int:
            return int(pl.Series([r.tobytes() for r in rows], dtype=pl.Binary).unique().len())

        peers["polars unique"] = with_polars
    except ImportError:
        pass
    return peers


def run_one(rows_count: int, size: int, copies: int = 2, rounds: int = 3) -> dict[str, Any]:
    """Measure ``pageone.one`` against Python's own ways to find distinct rows; returns a report.

    ``ns_per_row``: the best round of each, wall clock. All must find the same number of distinct rows.
    """
    if min(rows_count, size, copies, rounds) < 1:
        raise UsageError("rows, size, copies and rounds must be at least 1")
    rng = np.random.default_rng(7)
    distinct = max(1, rows_count // copies)
    rows = rng.integers(0, 256, (distinct, size), np.uint8)[np.arange(rows_count) % distinct]
    best: dict[str, float] = {}
    found: set[int] = set()
    for _ in range(rounds):
        for name, run in _python_peers(rows).items():
            start = time.perf_counter_ns()
            found.add(run())
            best[name] = min(best.get(name, np.inf), (time.perf_counter_ns() - start) / rows_count)
    if len(found) != 1:
        raise AssertionError(f"the peers disagree on the number of distinct rows: {found}")
    return {
        "rows": rows_count,
        "size": size,
        "copies": copies,
        "distinct": found.pop(),
        "ns_per_row": best,
        "machine": machine(),
    }


def register(app: typer.Typer) -> None:
    """Add ``pageone bench tree`` and ``pageone bench one``."""

    @app.command("tree")
    def tree(
        pages: Annotated[int, typer.Option(help="number of 4 KiB pages")] = 100_000,
        kind: Annotated[str, typer.Option(help="random, head, zerohead, tail, near, … files, processes")] = "random",
        copies: Annotated[int, typer.Option(help="copies of each page")] = 1,
        threads: Annotated[int, typer.Option(help="threads")] = 1,
        rounds: Annotated[int, typer.Option(help="rounds, the baselines in turns; the best counts")] = 3,
        baselines: Annotated[str, typer.Option(help="comma-separated; all if not given")] = "",
        as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
    ) -> None:
        """Measure the SD tree against hash tables, a red-black tree and concurrent maps on the same pages."""
        names = [n for n in baselines.split(",") if n] or None
        report = run_tree(pages, kind, copies, threads, rounds, names)
        if as_json:
            print(json.dumps(report))
        else:
            _print(report)

    @app.command("one")
    def one(
        rows: Annotated[int, typer.Option(help="number of rows")] = 100_000,
        size: Annotated[int, typer.Option(help="bytes of a row")] = 4096,
        copies: Annotated[int, typer.Option(help="copies of each row")] = 2,
        rounds: Annotated[int, typer.Option(help="rounds; the best counts")] = 3,
        as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
    ) -> None:
        """Measure pageone.unique_rows against numpy, pandas, polars and a dict."""
        report = run_one(rows, size, copies, rounds)
        if as_json:
            print(json.dumps(report))
            return
        base = report["ns_per_row"]["pageone.unique_rows"]
        print(f"{rows:,} rows of {size} bytes, each {copies} times; ns a row, best of {rounds}")
        for name, ns in report["ns_per_row"].items():
            print(f"{name:24} {ns:10.0f}  {ns / base:6.2f} x")

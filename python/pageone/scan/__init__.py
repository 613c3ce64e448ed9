"""Read-only reports of what merging would save, for processes, dumps and images.

For: people who decide about merging, and programs that watch it. It calls the native memory functions and the SD tree
(``pageone.one``), reads targets and changes nothing: no process is stopped, no shared page is unshared by reading it.

``pageone.scan`` is a package that can be called: ``pageone.scan(pids=[1234], files=["image.raw"])``.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable
from datetime import datetime, timezone
from types import ModuleType
from typing import TYPE_CHECKING

from pageone.errors import PageOneError, UsageError
from pageone.scan.report import SCHEMA, ScanReport

if TYPE_CHECKING:
    from pageone.scan.sources import Source

__all__ = ["SCHEMA", "ScanReport", "scan"]


def scan(
    pids: Iterable[int] = (),
    files: Iterable[str | os.PathLike[str]] = (),
    *,
    page_size: int = 4096,
    threads: int = 1,
    watch: float = 0.0,
    min_run: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> ScanReport:
    """Count equal pages of processes and blocks of files, exactly, and tell what merging them would save.

    Args:
        pids: processes; their resident private pages are read. Needs the rights to read them (own, or root).
        files: memory images, core dumps, disk images (qcow2 with ``qemu-img``), any files; holes are not read.
        page_size: bytes of a block of a file; 4096 with processes.
        threads: threads that read and count.
        watch: seconds until a second scan that tells which pages have changed; 0 for none.
        min_run: promise nothing of PageONE for equal pages in runs shorter than this, the engine's option of that name.
        progress: called with ``(pages done, pages in all)`` after each batch, from any thread.

    A target that cannot be used, or goes meanwhile, is named in ``report.problems``, and the rest goes on. Raises
    :class:`UsageError` for bad arguments and when not one target could be used. Cost: see ``docs/scan.md``.

    """
    from pageone.scan import patient, sources

    pids, files = list(dict.fromkeys(pids)), list(files)
    if not pids and not files:
        raise UsageError("nothing to scan: give processes or files")
    if not 64 <= page_size <= 1 << 20:
        raise UsageError(f"page size {page_size}: must be between 64 and 1048576 bytes")
    if pids and page_size != sources.PAGE_SIZE:
        raise UsageError(f"page size {page_size}: the pages of processes have {sources.PAGE_SIZE} bytes")
    if threads < 1:
        raise UsageError(f"threads {threads}: at least one is needed")
    if min_run < 1:
        raise UsageError(f"min_run {min_run}: a run has at least one page")
    if not 0 <= watch < 1e9:
        raise UsageError(f"watch {watch}: a number of seconds, 0 for no second scan")

    started, cpu = time.perf_counter(), time.process_time()
    problems: list[str] = []
    found: list[sources.Source] = []
    try:
        for pid in pids:
            try:
                found.append(patient.process(pid))
            except PageOneError as error:
                problems.append(str(error))
        for path in files:
            try:
                found.append(sources.file(path, page_size))
            except PageOneError as error:
                problems.append(str(error))
        report, read_seconds = None, 0.0
        while report is None:
            if not found:
                raise UsageError("; ".join(problems))
            try:
                report, read_seconds = _count(found, threads, watch, min_run, progress)
            except patient.HeldUp as left:
                problems.append(str(left))
                found = [source for source in found if source is not left.source]
        for source in found:
            if source.pid is not None and not os.path.exists(f"/proc/{source.pid}"):
                problems.append(f"{source.name}: ended while it was scanned")
    finally:
        for source in found:
            source.close()
    if report.watch is not None:
        report.watch["seconds"] = watch
    report.problems = problems + report.problems
    report.threads = threads
    report.seconds = time.perf_counter() - started
    report.cpu_seconds = time.process_time() - cpu
    report.bytes_per_second = report.pages * report.page_size / read_seconds if read_seconds > 0 else 0.0
    report.created = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return report


def _count(
    found: list[Source], threads: int, watch: float, min_run: int, progress: Callable[[int, int], None] | None
) -> tuple[ScanReport, float]:
    """Return the report of these sources, and how long reading took; raises where one of them holds it up."""
    from pageone.scan.account import account
    from pageone.scan.duplicates import DuplicateCount
    from pageone.scan.patient import Once

    total, done = sum(len(source) for source in found), 0
    if total >= 2**32 - 2**16:
        raise UsageError(f"{total} pages are more than one scan can number; scan fewer targets at once")

    def advance(pages: int) -> None:
        nonlocal done
        done += pages
        if progress:
            progress(done, total)

    once = Once(found, advance)

    def work() -> tuple[ScanReport, float]:
        started = time.perf_counter()
        counted = DuplicateCount(found, threads, once.advance, remember=watch > 0)
        counted.run()
        seconds = time.perf_counter() - started
        changed = None
        if watch > 0:
            time.sleep(watch)
            changed = counted.scan_again()
        return account(counted, changed, min_run), seconds

    return once.run(work)


class _CallablePackage(ModuleType):
    """Lets ``pageone.scan(...)`` be the call and ``pageone.scan.ScanReport`` the type."""

    def __call__(self, *args: object, **options: object) -> ScanReport:
        return scan(*args, **options)  # type: ignore[arg-type]


sys.modules[__name__].__class__ = _CallablePackage

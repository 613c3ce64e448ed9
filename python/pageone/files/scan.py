"""Scanning files: from paths to a report, by the native core."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from pageone._native import files as core
from pageone.errors import UsageError
from pageone.files import places
from pageone.files.report import FilesReport

__all__ = ["Budget", "Interrupted", "Job", "Progress", "scan"]

#: Called now and then with the step, what is done of it, and all of it (0: not known).
Progress = Callable[[str, int, int], None]

_MAGIC = b"P1FILES1"
#: Seconds between two looks at how far the work is.
_LOOK_S = 0.1
_COUNTED = ("hard_links", "symbolic_links", "special_files", "empty_files", "small_files", "other_mounts")
_LOST = ("gone_files", "changed_files", "denied", "failed")
#: What names a problem of files, by the counter.
_PROBLEMS = {"denied": "could not be opened by this user", "failed": "could not be read"}
_CANCELED = 125


class Interrupted(KeyboardInterrupt):
    """Somebody ended the work; what was read is in the index, what was shared is shared."""


@dataclass(frozen=True)
class Budget:
    """What the work may take: a share of one CPU (0.2 is 20 %), bytes read a second; 0 is no limit."""

    cpu_share: float = 0.0
    rate: int = 0


class Job:
    """One scan with what it has opened, until :meth:`close`."""

    def __init__(self, native: core.FileScan, opened: list[places.Place], report: FilesReport) -> None:
        self.native = native
        self.places = opened
        self.report = report

    def path(self, file: int) -> str:
        """Return the path of a file by its number."""
        root, below = self.native.path(file)
        top = self.places[root].path
        return os.path.join(top, os.fsdecode(below)) if below else top

    def close(self) -> None:
        """Close the paths."""
        places.close(self.places)
        self.places = []


@contextlib.contextmanager
def _keys(index: str | None) -> Iterator[int]:
    """Yield the descriptor of a file for keys: the index, or one without a name that goes with its last user."""
    if index is None:
        folder = os.environ.get("TMPDIR") or "/var/tmp"
        with tempfile.TemporaryFile(dir=folder if os.path.isdir(folder) else None) as file:
            yield file.fileno()
        return
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        descriptor = os.open(index, flags, 0o600)
    except OSError as error:
        raise UsageError(f"--index {index}: {error.strerror}") from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or (status.st_size and os.pread(descriptor, 8, 0) != _MAGIC):
            raise UsageError(f"--index {index}: not an index of pageone files; name another file")
        if status.st_uid != os.geteuid() or status.st_mode & 0o077:
            raise UsageError(f"--index {index}: must be yours and closed to others (chmod 600): it tells of contents")
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"--index {index}: another scan uses it") from None
        yield descriptor
    finally:
        os.close(descriptor)


def watch(native: core.FileScan, work: Callable[[], object], progress: Progress | None) -> None:
    """Run native work in a thread, so that Ctrl-C is heard; raises what it raises, or :class:`Interrupted`."""
    failed: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    stopped = False
    while thread.is_alive():
        try:
            thread.join(_LOOK_S)
            if progress is not None:
                progress(*native.progress())
        except KeyboardInterrupt:
            stopped = True
            native.stop()
    if stopped:
        raise Interrupted
    if failed:
        raise failed[0]


def scan(
    paths: list[str],
    *,
    whole_files: bool = False,
    min_size: int = 1,
    min_run: int = 16 << 10,
    across_users: bool = False,
    index: str | None = None,
    memory: int = 1 << 30,
    threads: int = 1,
    budget: Budget | None = None,
    progress: Progress | None = None,
    key_mask: int = (1 << 64) - 1,
) -> Job:
    """Find equal files, and unless ``whole_files`` equal blocks, under ``paths``; nothing is changed.

    ``min_run``: bytes of a range that may be shared, at least. ``memory``: bytes for one pass over the keys of blocks.
    Raises :class:`UsageError` if no path can be scanned or the index cannot be used, :class:`Interrupted`, ``OSError``
    where keys cannot be kept. ``key_mask`` is for tests. The caller closes the job.
    """
    began, cpu = time.monotonic(), time.process_time()
    budget = budget or Budget()
    opened, problems = places.open_places(paths)
    try:
        if not opened:
            raise UsageError("; ".join(problems) or "nothing to scan: give files or folders")
        unit = max([4096, *(place.block_size for place in opened)])
        numbers = {device: number for number, device in enumerate(dict.fromkeys(place.device for place in opened))}
        native = core.FileScan(
            smallest=max(1, min_size),
            whole=whole_files,
            unit=unit,
            shortest=max(1, -(-min_run // unit)),
            threads=threads,
            memory=memory,
            across=across_users,
            seed=secrets.token_bytes(32),
            mask=key_mask,
            cpu_share=budget.cpu_share,
            rate=budget.rate,
        )
        roots = [(place.descriptor, numbers[place.device], place.sharing) for place in opened]
        with _keys(index) as keys:
            own = os.fstat(keys)
            leave = [(own.st_dev, own.st_ino)] if index is not None else []
            watch(native, lambda: native.run(roots, leave, keys), progress)
        report = FilesReport(paths=list(paths), whole_files=whole_files, block_size=unit, problems=problems)
        job = Job(native, opened, report)
        _fill(job)
    except BaseException:
        places.close(opened)
        raise
    report.seconds, report.cpu_seconds = time.monotonic() - began, time.process_time() - cpu
    return job


def _fill(job: Job) -> None:
    """Write what was found into the report."""
    report = job.report
    counts = dict(job.native.counts())
    size, allocated, _, _ = job.native.files()
    members, ends = job.native.classes()
    starts = np.concatenate([[0], ends[:-1]]).astype(np.int64) if len(ends) else np.empty(0, np.int64)
    copies = ends.astype(np.int64) - starts - 1
    each = size[members[starts]].astype(np.int64)
    report.file_systems = [
        {"device": place.device, "kind": place.kind, "can_share": place.sharing != places.CANNOT_SHARE}
        for place in {place.device: place for place in job.places}.values()
    ]
    report.file_bytes, report.allocated_bytes = int(size.sum()), int(allocated.sum())
    report.equal_groups, report.equal_files = len(ends), int(copies.sum())
    report.equal_file_bytes = int((each * copies).sum())
    report.zero_bytes = counts["zero_blocks"] * report.block_size
    lengths = job.native.to_share()[4]
    report.to_share_bytes, report.to_share_ranges = int(lengths.sum()), len(lengths)
    for name, count in counts.items():
        if hasattr(report, name):
            setattr(report, name, count)
    report.left = {name: counts[name] for name in (*_COUNTED, *_LOST) if counts[name]}
    for name, text in _PROBLEMS.items():
        if counts[name]:
            report.problems.append(f"{counts[name]:,} files or folders {text}")


def list_groups(job: Job, most: int | None = None) -> None:
    """List the groups of equal files in the report, those that take most first; all, or ``most``."""
    size, _, _, _ = job.native.files()
    members, ends = job.native.classes()
    parts = np.split(members, ends[:-1].astype(np.int64)) if len(ends) else []
    parts.sort(key=lambda part: -int(size[part[0]]) * (len(part) - 1))
    job.report.groups = [
        {"bytes": int(size[part[0]]), "files": [job.path(int(file)) for file in part]} for part in parts[:most]
    ]


def list_ranges(job: Job) -> None:
    """List the equal ranges that are long enough in the report, by file."""
    names: dict[int, str] = {}

    def name(file: int) -> str:
        return names.setdefault(file, job.path(file)) if file not in names else names[file]

    src, src_at, dst, dst_at, length, long = (column.tolist() for column in job.native.ranges())
    job.report.ranges = [
        {"file": name(d), "at": da, "equals": name(s), "equals_at": sa, "bytes": n}
        for s, sa, d, da, n, is_long in zip(src, src_at, dst, dst_at, length, long, strict=True)
        if is_long
    ]

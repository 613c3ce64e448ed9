"""Sharing what a scan has found: the order, and what became of it."""

from __future__ import annotations

import contextlib
import errno
import os
from typing import Any

import numpy as np

from pageone.files.places import CANNOT_SHARE
from pageone.files.scan import Interrupted, Job, Progress, watch

__all__ = ["REASONS", "share"]

#: Why the kernel did not share, by its error number.
REASONS = {
    errno.EPERM: "files that cannot be changed (chattr +i or +a), or not yours",
    errno.EACCES: "not allowed for this user",
    errno.ETXTBSY: "in use as swap",
    errno.EROFS: "mounted read-only",
    errno.EOPNOTSUPP: "the file system cannot share",
    errno.ENOTTY: "the file system cannot share",
    errno.EXDEV: "on another file system",
    errno.ESTALE: "replaced, or given to another user, since the scan",
    errno.ENOENT: "gone since the scan",
    errno.EINVAL: "cut off since the scan, or one of two without copy-on-write (chattr +C)",
    errno.ENOSPC: "no room for the file system's own notes",
    errno.EDQUOT: "over a quota",
}


def _free(job: Job) -> int:
    """Return the free bytes of all file systems, once what was freed has been counted."""
    free = 0
    for place in {place.device: place for place in job.places if place.sharing != CANNOT_SHARE}.values():
        with contextlib.suppress(OSError):
            opened = os.open(f"/proc/self/fd/{place.descriptor}", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            try:
                os.fsync(opened)
                told = os.fstatvfs(opened)
            finally:
                os.close(opened)
            free += told.f_bfree * told.f_frsize
    return free


def share(job: Job, progress: Progress | None = None) -> None:
    """Share what the scan found, the longest ranges first, and write what became of it into the report.

    The kernel compares all bytes itself, with both files locked. Raises :class:`Interrupted` when stopped: the report
    tells what was shared until then.
    """
    lengths = job.native.to_share()[4]
    order = np.argsort(-lengths.astype(np.int64), kind="stable").astype(np.uint64)
    before = _free(job)
    try:
        watch(job.native, lambda: job.native.share(order), progress)
    except Interrupted:
        job.report.shared = _outcome(job, before, stopped=True)
        raise
    job.report.shared = _outcome(job, before, stopped=False)


def _outcome(job: Job, before: int, *, stopped: bool) -> dict[str, Any]:
    shared, calls, differs, refused = job.native.outcome()
    reasons: dict[str, int] = {}
    if differs:
        reasons["changed since the scan"] = differs
    for number, size in refused:
        text = REASONS.get(number, os.strerror(number))
        reasons[text] = reasons.get(text, 0) + size
    return {
        "bytes": shared,
        "calls": calls,
        "not_shared": reasons,
        "free_bytes_gained": _free(job) - before,
        "stopped": stopped,
    }

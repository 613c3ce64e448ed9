"""Setting KSM's knobs, and putting them back whatever happens.

For: :mod:`pageone.ksm`. Writes ``/sys/kernel/mm/ksm``; starts one small child process for as long as knobs are changed.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path

from pageone.errors import PageOneError, UnsupportedError, UsageError
from pageone.ksm import _watch
from pageone.ksm.sysfs import KSM_DIR, Knobs, read_counters, read_knobs

#: Seconds between two tries to get the lock that another user of KSM holds.
_LOCK_POLL_S = 0.1


def set_knob(name: str, value: int | str, root: Path = KSM_DIR) -> None:
    """Write one knob.

    Raises ``UsageError`` for a name or a value that the kernel does not know, ``UnsupportedError`` without root
    or where this kernel lacks the knob, ``PageOneError`` when the kernel is busy with it.
    """
    if name not in {field.name for field in fields(Knobs)}:
        known = ", ".join(field.name for field in fields(Knobs))
        raise UsageError(f"KSM has no knob {name!r}: choose one of {known}")
    path = root / name
    try:
        _watch.write(str(root), name, str(value))
    except FileNotFoundError:
        raise UnsupportedError(f"this kernel's KSM has no {name}: leave it out") from None
    except PermissionError:
        raise UnsupportedError(f"{path} may be written only by root: run as root") from None
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise PageOneError(
                f"{name} cannot change while pages are merged: write 2 to {root / 'run'} first"
            ) from None
        raise UsageError(f"the kernel refused {name}={value}: {os.strerror(error.errno or 0)}") from None


def _lock(root: Path, wait_s: float) -> int:
    """Lock KSM's own directory: one driver at a time on a machine, and no file of ours is left behind."""
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    deadline = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return fd
        except BlockingIOError:
            if time.monotonic() >= deadline:
                os.close(fd)
                raise PageOneError(f"another process drives KSM (it holds the lock on {root}): wait for it") from None
            time.sleep(_LOCK_POLL_S)


@contextmanager
def driven(*, root: Path = KSM_DIR, wait_s: float = 600.0, **knobs: int | str) -> Iterator[Knobs]:
    """Set knobs for the time of a ``with`` block; every knob of KSM is put back when it ends, however it ends.

    ``knobs``: any attribute of :class:`Knobs`. Yields the knobs as they were found. A child process with a session
    of its own holds what was found and restores it when this process leaves the block, raises, is interrupted or
    is killed (SIGKILL too); should that child be killed, this process restores. When nothing was merged before,
    everything merged meanwhile is unmerged. ``full_scans`` and the other counters cannot be put back.

    One user at a time: others wait up to ``wait_s`` seconds for the lock on KSM's directory, which is held until
    the knobs are back. Raises as :func:`set_knob`, and ``PageOneError`` naming each knob that could not be restored.
    Cost: about 30 ms for the child.
    """
    found = read_knobs(root)
    if not os.access(root / "run", os.W_OK):
        raise UnsupportedError(f"{root} may be written only by root: run as root")
    lock = _lock(root, wait_s)
    watcher: subprocess.Popen[str] | None = None
    try:
        found = read_knobs(root)
        texts = {name: str(value) for name, value in asdict(found).items() if value is not None}
        if found.advisor_mode not in (None, "none"):
            # A running advisor sets pages_to_scan itself, before us and after us.
            del texts["pages_to_scan"]
        nothing_merged = read_counters(root).pages_shared == 0
        order = {"root": str(root), "parent": os.getpid(), "knobs": texts, "unmerge": nothing_merged}
        watcher = subprocess.Popen(
            [sys.executable, "-I", "-S", _watch.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
            pass_fds=(lock,),
        )
        assert watcher.stdin is not None
        assert watcher.stdout is not None
        watcher.stdin.write(json.dumps(order) + "\n")
        watcher.stdin.flush()
        if watcher.stdout.readline().strip() != "ready":
            raise PageOneError("the process that puts KSM's knobs back did not start; nothing was changed")
        wanted = dict(knobs)
        if "pages_to_scan" in wanted and found.advisor_mode not in (None, "none"):
            wanted.setdefault("advisor_mode", "none")
        rank = {"advisor_mode": 0, "run": 2}
        for name in sorted(wanted, key=lambda name: rank.get(name, 1)):
            set_knob(name, wanted[name], root)
        yield found
    finally:
        try:
            if watcher is not None:
                _finish(watcher, root, texts, nothing_merged)
        finally:
            os.close(lock)


def _finish(watcher: subprocess.Popen[str], root: Path, texts: dict[str, str], unmerge: bool) -> None:
    """Have the watcher restore, or restore in its place; raise if a knob could not be put back."""
    answer = ""
    interrupted: KeyboardInterrupt | None = None
    while True:
        try:
            if watcher.stdin is not None and not watcher.stdin.closed:
                watcher.stdin.close()
            answer += watcher.stdout.read() if watcher.stdout is not None else ""
            watcher.wait()
            break
        except BrokenPipeError:
            continue
        except KeyboardInterrupt as error:  # a second Ctrl-C must not leave the machine changed
            interrupted = error
    try:
        failed: dict[str, str] = json.loads(answer.strip().splitlines()[-1])["failed"]
    except (IndexError, ValueError, KeyError, TypeError):
        failed = _watch.restore(str(root), texts, unmerge)
    if watcher.stdout is not None:
        watcher.stdout.close()
    if failed:
        what = "; ".join(f"{name}: {reason}" for name, reason in failed.items())
        raise PageOneError(f"KSM could not be put back as it was found ({what}): set it by hand in {root}")
    if interrupted is not None:
        raise interrupted

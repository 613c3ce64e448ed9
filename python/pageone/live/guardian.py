"""The engine's guardian: when it is started, how long it is waited for, and what its refusals mean.

The guardian is the only process that stops targets. It outlives the engine as long as merged memory is in use. What is
said to it, and how, is native: ``crates/pagemem/src/guard/client.rs``.
"""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import psutil

import pageone._native as native
from pageone import procfs
from pageone._native import mem
from pageone.engine.backend import U32, U64, Outcome
from pageone.errors import TargetError
from pageone.live import patience
from pageone.live.pool import GuardianError, Pool

__all__ = ["Guardian", "GuardianError", "is_guardian"]

T = TypeVar("T")

#: An orphaned guardian that does not answer for so long, seconds, is left alone.
_ORPHAN_S = 10.0
#: What a stop for giving back aims not to exceed, and how long a target may take to stop for it, seconds.
_ORPHAN_PAUSE_S, _ORPHAN_STOP_S = 0.005, 0.5

#: What a guardian process runs.
_SCRIPT = Path(__file__).with_name("_guardian.py")


class Guardian:
    """A running guardian and the pool that it made. Thread-safe: requests are answered one after another."""

    def __init__(self, frames: int, *, pause_s: float, stop_timeout_s: float) -> None:
        ours, theirs = socket.socketpair()
        filling, filler = socket.socketpair()
        library = str(native.__file__)
        passed = theirs.fileno(), filler.fileno()
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(_SCRIPT), library, *map(str, (*passed, frames))],
                pass_fds=passed,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,  # it outlives the engine: it must not hold the caller's pipe open
                start_new_session=True,
                cwd="/",
            )
        except OSError as error:
            raise GuardianError(f"cannot start the guardian process: {error}") from error
        finally:
            theirs.close()
            filler.close()
        self._client = mem.GuardianClient(ours.detach())
        self.pid = self.process.pid
        self._ask(self._client.set_limits, pause_s, stop_timeout_s)
        device, inode, apart = self._ask(self._client.pool)
        #: Its frames.
        self.pool = Pool(filling, frames=frames, device=device, inode=inode, apart=apart)

    @classmethod
    def orphaned(cls, device: int, inode: int) -> Guardian:
        """Connect to the guardian of a pool whose engine has gone, to have it give up targets.

        Raises :class:`GuardianError` when there is none, its engine still lives, or it is another user's.
        """
        made = cls.__new__(cls)
        try:
            made._client, made.pid, uid = mem.GuardianClient.of_pool(device, inode, _ORPHAN_S)
            if uid not in (os.geteuid(), 0):
                raise GuardianError(f"the guardian process {made.pid} is of user {uid}")
            made._ask(made._client.set_limits, _ORPHAN_PAUSE_S, _ORPHAN_STOP_S)
        except (OSError, GuardianError) as error:
            raise GuardianError(f"no guardian of this pool answers: {error}") from error
        return made

    def leave(self) -> None:
        """Close the connection; the guardian guards on what is still merged."""
        self._client.close()

    def _ask(self, request: Callable[..., T], *args: Any) -> T:
        try:
            return request(*args)
        except EOFError as error:
            raise GuardianError(f"the guardian process {self.pid} has ended: {error}") from error

    def attach(self, pid: int, *, follow_forks: bool) -> tuple[int, int]:
        """Attach to ``pid``; returns the address range of what was planted in it."""
        try:
            return self._ask(self._client.attach, pid, follow_forks)
        except OSError as error:
            raise TargetError(f"cannot attach to process {pid}: {_reason(error)}") from error

    def arm(self, pid: int, start: U64, end: U64) -> npt.NDArray[np.int32]:
        """Track writes in ranges; returns an errno for each, 0 where it worked.

        The low 12 bits of ``end`` carry advice to repeat on new mappings: 1 don't fork, 2 don't dump, 4 huge
        pages, 8 no huge pages.
        """
        try:
            return self._ask(self._client.arm, pid, _column(start, np.uint64), _column(end, np.uint64))
        except OSError as error:
            raise TargetError(f"cannot track process {pid}: {_reason(error)}") from error

    def _runs(self, request: Callable[..., Any], pid: int, addr: U64, pages: U32, *more: Any) -> Outcome:
        code, pauses, injected, cpu = self._ask(
            request, pid, _column(addr, np.uint64), _column(pages, np.uint32), *more
        )
        return Outcome(code=code, pauses_s=pauses, cpu_s=injected + cpu)

    def merge(self, pid: int, addr: U64, pages: U32, frame: U32) -> Outcome:
        """See ``TargetMemory.merge``."""
        return self._runs(self._client.merge, pid, addr, pages, _column(frame, np.uint32))

    def drop_zero(self, pid: int, addr: U64, pages: U32) -> Outcome:
        """See ``TargetMemory.drop_zero``."""
        return self._runs(self._client.drop_zero, pid, addr, pages)

    def unmerge(self, pid: int, addr: U64, pages: U32, apart: bool = False) -> Outcome:
        """See ``TargetMemory.unmerge``."""
        return self._runs(self._client.unmerge, pid, addr, pages, apart)

    def close_ends(self, pid: int, addr: U64) -> Outcome:
        """Keep merged memory from growing where it is; ``addr``: pages with nothing behind them, ``(n,)``."""
        return self._runs(self._client.close_ends, pid, addr, np.ones(len(addr), np.uint32))

    def detach(self, pid: int) -> None:
        """Remove what was planted and stop watching; nothing happens if the process has gone."""
        try:
            self._ask(self._client.detach, pid)
        except OSError as error:
            if error.errno != errno.ESRCH:
                raise TargetError(f"cannot detach from process {pid}: {_reason(error)}") from error

    def targets(self) -> Sequence[int]:
        """PIDs that are attached or, as children of such, guarded."""
        return self._ask(self._client.targets)

    def cpu_s(self) -> float:
        """CPU-seconds that the guardian has used so far."""
        try:
            times = psutil.Process(self.pid).cpu_times()
        except psutil.Error:
            return 0.0
        return float(times.user + times.system)

    def close(self) -> None:
        """Leave the guardian to itself: it guards on until its last merged target has ended."""
        self._client.close()
        self.pool.close()
        try:
            self.process.wait(timeout=0.2)
        except subprocess.TimeoutExpired:
            # It goes on on purpose; forget it, so that no warning about a running child is printed at exit.
            self.process.returncode = 0


def _column(values: npt.NDArray[Any], kind: type[np.generic]) -> npt.NDArray[Any]:
    """Return values as the native core takes them: of one type, one behind the other."""
    return np.ascontiguousarray(values, dtype=kind)


def _reason(error: OSError) -> str:
    reasons = {
        errno.ESRCH: "it has ended",
        errno.EPERM: "the kernel refuses (another tracer, other rights or ptrace_scope; try as root)",
        errno.EACCES: "the kernel refuses (other rights)",
        errno.EEXIST: "it is attached already",
        errno.ETIMEDOUT: "it did not stop in time",
        errno.ENOSYS: "its kernel or seccomp filter has no userfaultfd",
        errno.EBUSY: "another process runs in its memory (clone with CLONE_VM)",
        errno.EUSERS: "another process has its descriptors (clone with CLONE_FILES) and could take that of the frames",
        errno.EOPNOTSUPP: "the kernel, or a seccomp filter of ours, has no kcmp: who shares its memory cannot be told",
    }
    if error.errno in reasons:
        return reasons[error.errno]
    return str(error.strerror or os.strerror(error.errno or errno.EIO))


def is_guardian(pid: int) -> bool:
    """Return whether a process is a guardian, this engine's or another's."""
    try:
        words = patience.read(pid, procfs.arguments, pid)
    except (OSError, patience.HeldUpError):
        return False
    return len(words) > 3 and words[1:3] == [b"-I", b"-S"] and words[3].endswith(b"/" + _SCRIPT.name.encode())

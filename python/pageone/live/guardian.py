"""The engine's end of the guardian: starts the process, sends requests, reads replies.

The guardian is the only process that stops targets. It outlives the engine as long as merged memory is in use.
Protocol: ``crates/pagemem/src/guard.rs``.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import psutil

import pageone._native as native
from pageone import procfs
from pageone.engine.backend import U32, U64, Outcome
from pageone.errors import PageOneError, TargetError
from pageone.live import patience
from pageone.live.pool import Pool, receive

_HEADER = struct.Struct("<IiII")
_REPLY = struct.Struct("<iI")
_OUTCOME = struct.Struct("<IIIIdd")

_ATTACH, _ARM, _MERGE, _ZERO, _UNMERGE, _DETACH, _STATUS, _LIMITS, _FENCE, _POOL = range(1, 11)
_FLAG_FORKS = 1
_FLAG_APART = 1  #: of a request to unmerge
_CREDENTIALS = struct.Struct("iII")
#: An orphaned guardian that does not answer for so long, seconds, is left alone.
_ORPHAN_S = 10.0
#: What a stop for giving back aims not to exceed, and how long a target may take to stop for it, microseconds.
_ORPHAN_LIMITS_US = (5_000, 500_000)


#: What a guardian process runs.
_SCRIPT = Path(__file__).with_name("_guardian.py")


class GuardianError(PageOneError):
    """The guardian could not be started or has ended."""


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
        self._socket = ours
        self._lock = threading.Lock()
        self.pid = self.process.pid
        limits = np.array([round(pause_s * 1e6), round(stop_timeout_s * 1e6)], dtype="<u8")
        self._request(_LIMITS, 0, limits)
        device, inode, apart = struct.unpack("<QQQ", self._request(_POOL, 0))
        #: Its frames.
        self.pool = Pool(filling, frames=frames, device=device, inode=inode, apart=bool(apart))

    @classmethod
    def orphaned(cls, device: int, inode: int) -> Guardian:
        """Connect to the guardian of a pool whose engine has gone, to have it give up targets.

        Raises :class:`GuardianError` when there is none, its engine still lives, or it is another user's.
        """
        made = cls.__new__(cls)
        made._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        made._lock = threading.Lock()
        made._socket.settimeout(_ORPHAN_S)
        try:
            made._socket.connect(f"\0pageone-guardian-{device}-{inode}")
            raw = made._socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
            made.pid, uid, _ = _CREDENTIALS.unpack(raw)
            if uid not in (os.geteuid(), 0):
                raise GuardianError(f"the guardian process {made.pid} is of user {uid}")
            made._request(_LIMITS, 0, np.array(_ORPHAN_LIMITS_US, dtype="<u8"))
        except (OSError, GuardianError) as error:
            made._socket.close()
            raise GuardianError(f"no guardian of this pool answers: {error}") from error
        return made

    def leave(self) -> None:
        """Close the connection; the guardian guards on what is still merged."""
        self._socket.close()

    def _request(self, op: int, pid: int, records: npt.NDArray[np.uint64] | None = None, flags: int = 0) -> bytes:
        body = b"" if records is None else records.astype("<u8", copy=False).tobytes()
        with self._lock:
            try:
                self._socket.sendall(_HEADER.pack(op, pid, len(body) // 16, flags) + body)
                status, length = _REPLY.unpack(receive(self._socket, _REPLY.size))
                payload = receive(self._socket, length)
            except OSError as error:
                raise GuardianError(f"the guardian process {self.pid} has ended: {error}") from error
            except EOFError:
                raise GuardianError(f"the guardian process {self.pid} has ended unexpectedly") from None
        if status:
            raise OSError(status, payload.decode(errors="replace"))
        return payload

    def attach(self, pid: int, *, follow_forks: bool) -> tuple[int, int]:
        """Attach to ``pid``; returns the address range of what was planted in it."""
        try:
            start, end = struct.unpack("<QQ", self._request(_ATTACH, pid, None, _FLAG_FORKS if follow_forks else 0))
        except OSError as error:
            raise TargetError(f"cannot attach to process {pid}: {_reason(error)}") from error
        return start, end

    def arm(self, pid: int, start: U64, end: U64) -> npt.NDArray[np.int32]:
        """Track writes in ranges; returns an errno for each, 0 where it worked.

        The low 12 bits of ``end`` carry advice to repeat on new mappings: 1 don't fork, 2 don't dump, 4 huge
        pages, 8 no huge pages.
        """
        records = np.stack((start, end), axis=1).ravel()
        try:
            return np.frombuffer(self._request(_ARM, pid, records), dtype="<i4")
        except OSError as error:
            raise TargetError(f"cannot track process {pid}: {_reason(error)}") from error

    def _runs(self, op: int, pid: int, addr: U64, pages: U32, frame: U32 | None, flags: int = 0) -> Outcome:
        second = pages.astype(np.uint64)
        if frame is not None:
            second |= frame.astype(np.uint64) << np.uint64(32)
        reply = self._request(op, pid, np.stack((addr, second), axis=1).ravel(), flags)
        codes, pauses, _, _, injected, cpu = _OUTCOME.unpack_from(reply)
        code = np.frombuffer(reply, np.uint8, codes, _OUTCOME.size)
        pause = np.frombuffer(reply, "<f8", pauses, _OUTCOME.size + codes)
        return Outcome(code=code, pauses_s=pause, cpu_s=injected + cpu)

    def merge(self, pid: int, addr: U64, pages: U32, frame: U32) -> Outcome:
        """See ``TargetMemory.merge``."""
        return self._runs(_MERGE, pid, addr, pages, frame)

    def drop_zero(self, pid: int, addr: U64, pages: U32) -> Outcome:
        """See ``TargetMemory.drop_zero``."""
        return self._runs(_ZERO, pid, addr, pages, None)

    def unmerge(self, pid: int, addr: U64, pages: U32, apart: bool = False) -> Outcome:
        """See ``TargetMemory.unmerge``."""
        return self._runs(_UNMERGE, pid, addr, pages, None, _FLAG_APART if apart else 0)

    def close_ends(self, pid: int, addr: U64) -> Outcome:
        """Keep merged memory from growing where it is; ``addr``: pages with nothing behind them, ``(n,)``."""
        return self._runs(_FENCE, pid, addr, np.ones(len(addr), np.uint32), None)

    def detach(self, pid: int) -> None:
        """Remove what was planted and stop watching; nothing happens if the process has gone."""
        try:
            self._request(_DETACH, pid)
        except OSError as error:
            if error.errno != errno.ESRCH:
                raise TargetError(f"cannot detach from process {pid}: {_reason(error)}") from error

    def targets(self) -> Sequence[int]:
        """PIDs that are attached or, as children of such, guarded."""
        return [int(p) for p in np.frombuffer(self._request(_STATUS, 0), dtype="<i4")]

    def cpu_s(self) -> float:
        """CPU-seconds that the guardian has used so far."""
        try:
            times = psutil.Process(self.pid).cpu_times()
        except psutil.Error:
            return 0.0
        return float(times.user + times.system)

    def close(self) -> None:
        """Leave the guardian to itself: it guards on until its last merged target has ended."""
        self._socket.close()
        self.pool.close()
        try:
            self.process.wait(timeout=0.2)
        except subprocess.TimeoutExpired:
            # It goes on on purpose; forget it, so that no warning about a running child is printed at exit.
            self.process.returncode = 0


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
        words = patience.look(pid, procfs.arguments, pid)
    except (OSError, patience.HeldUpError):
        return False
    return len(words) > 3 and words[1:3] == [b"-I", b"-S"] and words[3].endswith(b"/" + _SCRIPT.name.encode())

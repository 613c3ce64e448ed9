"""Whether a process can be a target, found out from /proc before anything of it is touched.

For: everything that attaches (``pageone.live``, the command line), and people who want to know why not. It reads
/proc and stops, traces and changes nothing. Each refusal names the process, the cause and the remedy in one line.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

from pageone import procfs
from pageone._native import mem
from pageone.doctor import diagnose
from pageone.errors import BadTargetError, TargetError, UnsupportedError
from pageone.live import groups, patience

__all__ = ["Facts", "TracedError", "check", "check_system"]

#: Mappings of frames, of this engine's pool or another's.
POOL_NAME = "/memfd:pageone (deleted)"
_ELF_CLASS_64 = 2
_ELF_MACHINES = {"x86_64": 62, "aarch64": 183}


#: Rings of asynchronous reads and writes: a program that has some is attached, and left as it is while it has.
_RINGS = ("anon_inode:[io_uring]", "a mapping of anon_inode:[io_uring]", "a mapping of /[aio]")


@dataclass(frozen=True)
class Facts:
    """What was read of a process that can be a target."""

    pid: int
    name: str
    uid: int  #: real user id: processes of one user are one domain
    threads: int
    start_ticks: int  #: with the PID it names the process for good: a PID comes again, this pair does not


class TracedError(TargetError):
    """Another process, ``tracer``, traces the target or a thread of it."""

    def __init__(self, message: str, tracer: int) -> None:
        super().__init__(message)
        self.tracer = tracer


def check_system() -> None:
    """Raise ``UnsupportedError`` where this kernel, machine or user cannot merge any process. Takes some 50 ms."""
    lacking = [f for f in diagnose().findings if f.needed and f.state == "missing"]
    if lacking:
        first = lacking[0]
        remedy = f"; to enable: {first.enable}" if first.enable else ""
        raise UnsupportedError(f"{first.name}: {first.value}; {first.follows}{remedy} (see: pageone doctor)")


def check(
    pid: int,
    *,
    ours: Collection[int] = (),
    declared: bool = False,
    pool: tuple[int, int] | None = None,
    charged: int | None = None,
) -> Facts:
    """Return the facts of a process that can be a target, or raise the reason why it cannot.

    ``ours`` are processes of the engine besides the calling one; those may trace it. ``declared``: the process has
    named this one with ``PR_SET_PTRACER`` or is a child of it, so that ptrace scope 1 does not forbid. ``pool``: device
    and inode of the caller's pool; a process that shares frames of another one is refused. ``charged``: the process
    whose memory control group pays for frames, by default the calling one. Cost: a few reads of /proc, and one for each
    thread.

    Raises ``BadTargetError`` for what can be no target at all (no such process, zombie, kernel thread, PageONE
    itself), ``TargetError`` for what this user or moment forbids (another user's, traced, under seccomp, pinned
    memory), ``UnsupportedError`` for another architecture.
    """
    if pid <= 0:
        raise BadTargetError(f"PID {pid}: not a process id; give a positive number")
    return patience.read(pid, _check, pid, ours, declared, pool, charged or os.getpid())


def _check(pid: int, ours: Collection[int], declared: bool, pool: tuple[int, int] | None, charged: int) -> Facts:
    status = _status(pid)
    name = status["Name"]
    who = f"PID {pid} ({name})"
    if int(status["Tgid"]) != pid:
        raise BadTargetError(f"{who}: is a thread of process {status['Tgid']}; give that PID")
    if status["State"].startswith(("Z", "X")):
        raise BadTargetError(f"{who}: is a zombie: it has ended and waits for its parent {status['PPid']}")
    stat = _stat(pid)
    if stat.kernel:
        raise BadTargetError(f"{who}: is a thread of the kernel, which has no memory of its own")
    if pid == os.getpid() or pid in ours:
        raise BadTargetError(f"{who}: is PageONE itself, which cannot stop itself")
    _check_rights(pid, who, status, declared=declared)
    _check_architecture(pid, who)
    if pool is not None:
        _check_pool(pid, who, pool)
    tracer = _tracer(status)
    if tracer and tracer not in ours:
        raise TracedError(f"{who}: is traced by {_named(tracer)}; try again when it has detached", tracer)
    _check_threads(pid, who, ours)
    _check_pinned(pid, who)
    _check_group(pid, who, charged)
    return Facts(
        pid=pid,
        name=name,
        uid=int(status["Uid"].split()[0]),
        threads=int(status["Threads"]),
        start_ticks=stat.start_ticks,
    )


def _gone(pid: int) -> BadTargetError:
    return BadTargetError(f"PID {pid}: there is no such process")


def _status(pid: int) -> dict[str, str]:
    try:
        return procfs.status(pid)
    except (FileNotFoundError, ProcessLookupError):
        raise _gone(pid) from None
    except PermissionError:
        raise TargetError(f"PID {pid}: may not be read by this user; run as its user or as root") from None


def _stat(pid: int) -> procfs.Stat:
    try:
        return procfs.stat(pid)
    except (FileNotFoundError, ProcessLookupError):
        raise _gone(pid) from None


def _tracer(status: Mapping[str, str]) -> int:
    """Return the process that traces, of which the kernel names the thread; 0 for none."""
    thread = int(status["TracerPid"])
    try:
        return int(_status(thread)["Tgid"]) if thread else 0
    except TargetError:
        return thread


def _named(pid: int) -> str:
    return f"PID {pid} ({procfs.name(pid) or 'gone'})"


def _check_rights(pid: int, who: str, status: Mapping[str, str], *, declared: bool) -> None:
    """As the kernel's ptrace check: same user through and through, or the capability; then Yama."""
    privileged = procfs.capable(procfs.CAP_SYS_PTRACE)
    scope = procfs.ptrace_scope()
    if not privileged:
        uids, gids = set(status["Uid"].split()[:3]), set(status["Gid"].split()[:3])
        if uids != {str(os.geteuid())} or gids != {str(os.getegid())}:
            raise TargetError(
                f"{who}: belongs to another user or group (user {'/'.join(sorted(uids))}, "
                f"group {'/'.join(sorted(gids))}); run as that user, or as root"
            )
        if procfs.held_by(pid) != os.geteuid():
            raise TargetError(f"{who}: protects itself from being traced (it is not dumpable); run as root")
        if scope == 1 and not declared and os.getpid() not in _ancestors(pid):
            raise TargetError(
                f"{who}: ptrace scope is 1, so only programs started by `pageone run` can be merged; "
                "sysctl kernel.yama.ptrace_scope=0, or run as root"
            )
        if scope == 2:
            raise TargetError(f"{who}: ptrace scope is 2; sysctl kernel.yama.ptrace_scope=0, or run as root")
    if scope == 3:
        raise UnsupportedError(f"{who}: ptrace scope is 3, which forbids everybody until the next boot")


def _ancestors(pid: int) -> set[int]:
    found: set[int] = set()
    while pid > 1:
        pid = int(_status(pid)["PPid"])
        found.add(pid)
    return found


def _check_architecture(pid: int, who: str) -> None:
    try:
        with open(f"/proc/{pid}/exe", "rb") as program:
            head = program.read(20)
    except OSError:
        return  # the file cannot be read; the machine code of the target is looked at again when it is stopped
    if len(head) < 20 or head[:4] != b"\x7fELF":
        return
    bits = 64 if head[4] == _ELF_CLASS_64 else 32
    number = int.from_bytes(head[18:20], "little")
    if bits != 64 or number != _ELF_MACHINES.get(platform.machine(), number):
        raise UnsupportedError(f"{who}: is a {bits}-bit program (ELF machine {number}); only native 64-bit ones can be")


def _check_pool(pid: int, who: str, pool: tuple[int, int]) -> None:
    """Frames of another engine, also of one that was killed, are guarded by that one's guardian."""
    try:
        _, _, _, _, device, inode, which, names = mem.maps(pid)
    except OSError:
        return  # what else is in the way says so below
    frames = np.array([its == POOL_NAME for its in names] or [False])[which]
    if (frames & ((device != np.uint64(pool[0])) | (inode != np.uint64(pool[1])))).any():
        raise TargetError(
            f"{who}: shares memory of another engine, which may have been killed: it goes on unharmed and can be "
            "merged by this one when it has been started anew"
        )


def _check_threads(pid: int, who: str, ours: Collection[int]) -> None:
    """Seccomp and tracers belong to threads, not to processes."""
    try:
        threads = procfs.threads(pid)
    except FileNotFoundError:
        raise _gone(pid) from None
    for thread in threads:
        try:
            status = procfs.thread_status(pid, thread)
        except (FileNotFoundError, ProcessLookupError):
            continue  # a thread that has ended meanwhile
        tracer = _tracer(status)
        if tracer and tracer not in ours:
            raise TracedError(f"{who}: thread {thread} is traced by {_named(tracer)}", tracer)
        if "shstk" in status.get("x86_Thread_features", "").split():
            raise UnsupportedError(f"{who}: has a shadow stack, past which calls made in it could not return")
        mode = status.get("Seccomp", "0")
        if mode != "0":
            kind = {"1": "strict", "2": "filter"}.get(mode, mode)
            raise TargetError(
                f"{who}: is under seccomp ({kind} mode): calls made in it could kill it; start it without the filter"
            )


def _check_group(pid: int, who: str, charged: int) -> None:
    """Frames are charged to the group of the process that fills them: a target's own limit would not hold for them."""
    limit = groups.difference(pid, charged)
    if limit is not None:
        raise TargetError(
            f"{who}: {limit}; memory that it shared would count against other limits: start the engine under the same"
        )


def _check_pinned(pid: int, who: str) -> None:
    """Memory that a device may write needs no page table: such a process is left alone."""
    reason = _pinned(pid)
    if reason is not None:
        raise TargetError(f"{who}: {reason}")


def _pinned(pid: int) -> str | None:
    try:
        what = mem.Kinds().behind(pid)
    except (FileNotFoundError, ProcessLookupError):
        raise _gone(pid) from None
    except OSError as error:
        return f"what it has open cannot be told: {error.strerror}"
    if what is None or (what in _RINGS and not _registered_buffers(pid)):
        return None
    if what in _RINGS:
        return "has buffers registered with io_uring, which the kernel writes at any time"
    return f"has {what} open, through which a device or the kernel may write its memory past page tables"


def _registered_buffers(pid: int) -> bool:
    """Whether a ring of the process says that it has registered buffers."""
    return any(found.get("UserBufs", "0") not in ("", "0") for found in procfs.descriptor_fields(pid))

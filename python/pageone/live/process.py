"""Small facts about processes, read from /proc.

For: ``pageone.live``. Reads only; whether a process can be a target is decided in ``preflight``.
"""

from __future__ import annotations

import contextlib
import os
import pwd
from pathlib import Path

_CAP_SYS_PTRACE = 19
_STAT_START = 19  # after the name
_STAT_STATE = 0
_STAT_FLAGS = 6
_PF_KTHREAD = 0x00200000


def identity(pid: int) -> int | None:
    """Start time of a process in clock ticks since boot; None if it has ended or is a zombie.

    With the PID it names a process for good. It stays the same over ``exec``.
    """
    fields = _stat(pid)
    if fields is None or fields[_STAT_STATE] in b"ZX":
        return None
    return int(fields[_STAT_START])


def _stat(pid: int) -> list[bytes] | None:
    """Return the fields behind the name in ``/proc/PID/stat``; None where there is no such process, or it is hidden."""
    try:
        # Not by Path: this is asked of every process of the machine at each look for uses of frames.
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
            text = file.read()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None  # any other error is this process's own, and says nothing of that one
    return text[text.rindex(b")") + 2 :].split()


def is_kernel_thread(pid: int) -> bool:
    """Whether a process is a thread of the kernel, which has no memory of its own."""
    fields = _stat(pid)
    return fields is not None and bool(int(fields[_STAT_FLAGS]) & _PF_KTHREAD)


def last_id() -> int:
    """Return the id that was given to a new thread or process last: they ascend until they begin from the start."""
    with open("/proc/loadavg", "rb", buffering=0) as file:
        return int(file.read().split()[-1])


def memory_thread(pid: int) -> int:
    """Return the id of a thread through which the memory of a process can be looked at.

    It is ``pid``, unless the first thread has ended before the others: then ``/proc/PID/maps`` is empty though they
    run on, with all that they have mapped.
    """
    if identity(pid) is not None:
        return pid
    try:
        threads = [int(t) for t in os.listdir(f"/proc/{pid}/task")]
    except OSError:
        return pid
    return next((t for t in threads if identity(t) is not None), pid)


def may_follow_forks() -> bool:
    """Whether this process holds CAP_SYS_PTRACE, which userfaultfd asks for to tell of forks."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> _CAP_SYS_PTRACE & 1)
    return False


def cannot_map_pool(pid: int, pool_created_ticks: int) -> bool:
    """Whether an unreadable process, never merged itself, surely has no mapping of a pool that this user made.

    True for a process older than the pool and for one of another user: a mapping is inherited by fork only, and an
    ordinary user's process keeps its user until ``exec``, which drops the mapping, but for the ids that the user may
    take in a namespace (``/etc/subuid``). As root nothing is unreadable.
    """
    started = identity(pid)
    if started is None:
        return memory_thread(pid) == pid
    if started < pool_created_ticks:
        return True
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("Uid:"):
                its = {int(uid) for uid in line.split()[1:]}
                return not any(uid in ids for uid in its for ids in ids_of_user(os.getuid()))
    except OSError:
        return True
    return False


def lives(pid: int, since: int | None) -> bool:
    """Whether a process that began at ``since`` may live on, also where ``/proc`` tells nothing of it any more.

    A process that makes itself undumpable is not even shown to its user where ``/proc`` hides processes (``hidepid``).
    """
    now = identity(pid)
    if now is not None:
        return now == since
    if memory_thread(pid) != pid:
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return not os.path.exists(f"/proc/{pid}/stat")


def ids_of_user(uid: int, table: Path = Path("/etc/subuid")) -> list[range]:
    """Return the ids that processes of a user may have, in user namespaces too."""
    ids = [range(uid, uid + 1)]
    names = {str(uid)}
    with contextlib.suppress(KeyError):
        names.add(pwd.getpwuid(uid).pw_name)
    with contextlib.suppress(OSError):
        for line in table.read_text(errors="replace").splitlines():
            name, *numbers = line.strip().split(":")
            if name in names and len(numbers) == 2 and all(n.isdecimal() for n in numbers):
                first, count = map(int, numbers)
                ids.append(range(first, first + count))
    return ids

"""What follows from facts about processes (``pageone.procfs``) for the frames that they may map.

For: ``pageone.live``. Reads only; whether a process can be a target is decided in ``preflight``.
"""

from __future__ import annotations

import contextlib
import os
import pwd
from pathlib import Path

from pageone import procfs


def memory_thread(pid: int) -> int:
    """Return the id of a thread through which the memory of a process can be read.

    It is ``pid``, unless the first thread has left the memory before the others, and ends or has ended: then
    ``/proc/PID/maps`` is empty though they run on, with all that they have mapped.
    """
    if procfs.has_memory(pid, pid):
        return pid
    return next((t for t in procfs.threads_left(pid) if procfs.has_memory(pid, t)), pid)


def cannot_map_pool(pid: int, pool_created_ticks: int) -> bool:
    """Whether an unreadable process, never merged itself, surely has no mapping of a pool that this user made.

    True for a process older than the pool and for one of another user: a mapping is inherited by fork only, and an
    ordinary user's process keeps its user until ``exec``, which drops the mapping, but for the ids that the user may
    take in a namespace (``/etc/subuid``). As root nothing is unreadable.
    """
    started = procfs.identity(pid)
    if started is None:
        return memory_thread(pid) == pid
    if started < pool_created_ticks:
        return True
    try:
        its = procfs.users(pid)
    except OSError:
        return True
    except KeyError:  # just ending
        return False
    return not any(uid in ids for uid in its for ids in ids_of_user(os.getuid()))


def lives(pid: int, since: int | None) -> bool:
    """Whether a process that began at ``since`` may live on, also where ``/proc`` tells nothing of it any more.

    A process that makes itself undumpable is not even shown to its user where ``/proc`` hides processes (``hidepid``).
    """
    now = procfs.identity(pid)
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
    return not procfs.shown(pid)


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

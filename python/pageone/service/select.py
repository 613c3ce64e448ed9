"""Which running processes are meant: by PID, by command line, by user.

For: ``pageone attach``. Reads /proc and the user database; checks no fitness, which is the engine's.
"""

from __future__ import annotations

import os
import pwd
import re
from collections.abc import Sequence

from pageone import procfs
from pageone.errors import BadTargetError, TargetError, UsageError
from pageone.service.members import owner

__all__ = ["by_user", "find"]


def find(pids: Sequence[int], *, match: str | None, user: str | None) -> tuple[list[int], bool]:
    """Return the processes meant, and whether they were named one by one, so that each of them must be fit.

    Without PIDs: those of this user (as root: of everybody), or of ``user``, whose command line contains ``match``;
    never this process, those it descends from, or kernel threads. Raises :class:`UsageError` and
    :class:`BadTargetError` for what means nobody.
    """
    if pids and (match is not None or user is not None):
        raise UsageError("attach: give PIDs or --match/--user, not both")
    if not pids and match is None and user is None:
        raise UsageError("attach: give PIDs, --match REGEX or --user NAME")
    if pids:
        for pid in pids:
            if pid <= 0 or not os.path.exists(f"/proc/{pid}"):
                raise BadTargetError(f"PID {pid}: there is no such process")
        return list(dict.fromkeys(pids)), True
    # It loads the engine, which takes its time: not for processes that are named.
    from pageone.live import patience

    try:
        pattern = re.compile(match or "")
    except re.error as error:
        raise UsageError(f"--match {match!r}: not a regular expression: {error}") from error
    uid = _uid(user) if user is not None else None if os.geteuid() == 0 else os.geteuid()
    mine = _lineage()
    found: list[int] = []
    for pid in procfs.processes():
        if pid in mine:
            continue
        try:
            words = patience.read(pid, procfs.arguments, pid)
            its = owner(pid)
        except (OSError, TargetError):
            continue  # ended meanwhile, acting for several users, or holding up who reads of it
        line = b" ".join(words).decode(errors="replace")
        if line and (uid is None or its == uid) and pattern.search(line) and "pageone.service.server" not in line:
            found.append(pid)
    if not found:
        raise UsageError("attach: no process matches")
    return sorted(found), False


def by_user(pids: Sequence[int]) -> dict[int | None, list[int]]:
    """Return the processes of each user."""
    groups: dict[int | None, list[int]] = {}
    for pid in pids:
        groups.setdefault(owner(pid), []).append(pid)
    return groups


def _uid(user: str) -> int:
    if user.isdigit():
        return int(user)
    try:
        return pwd.getpwnam(user).pw_uid
    except KeyError:
        raise UsageError(f"--user {user}: there is no such user") from None


def _lineage() -> set[int]:
    """Return this process and those it descends from."""
    found: set[int] = set()
    pid = os.getpid()
    while pid > 0 and pid not in found:
        found.add(pid)
        try:
            pid = procfs.stat(pid).parent
        except OSError:
            break
    return found

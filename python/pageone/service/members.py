"""The processes that an engine is to follow: who they are, whose children, and what became of attaching them.

For: ``server``. Reads /proc and nothing else; attaches nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pageone import procfs
from pageone.errors import BadTargetError, TargetError

if TYPE_CHECKING:
    from pageone.engine import Target

__all__ = ["RETRY_FIRST_S", "RETRY_MOST_S", "Member", "Members", "command_line", "owner"]

#: A process that cannot be attached is tried again after so many seconds, then twice that, up to the most.
RETRY_FIRST_S, RETRY_MOST_S = 1.0, 60.0


def owner(pid: int) -> int:
    """Return the one user whom a process belongs to through and through.

    Raises :class:`BadTargetError` when it has ended and :class:`TargetError` when its real, effective, saved and
    file system user differ: such a process holds secrets of more than one user.
    """
    try:
        uids = procfs.users(pid)
    except OSError:
        raise BadTargetError(f"PID {pid}: there is no such process") from None
    if len(uids) != 1:
        raise TargetError(f"PID {pid}: acts for several users ({', '.join(map(str, sorted(uids)))}): left alone")
    return uids.pop()


def command_line(pid: int) -> str:
    """Return the command line of a process in one line of at most 200 characters."""
    # It loads the engine, which only a server needs: whoever asks one has `owner` from here, and is to begin at once.
    from pageone.live import patience

    try:
        words = patience.read(pid, procfs.arguments, pid)
    except (OSError, patience.HeldUpError):
        return ""
    text = b" ".join(words).decode(errors="replace")
    return "".join(c if c.isprintable() else "?" for c in text)[:200]


@dataclass
class Member:
    """One process to be followed."""

    pid: int
    start: int  #: clock ticks since boot
    descendants: bool  #: whether its descendants are to be followed as well
    ready_at: float  #: not attached before (``time.monotonic``): most processes are gone within a moment
    command: str = ""
    target: Target | None = None
    reason: str = ""  #: why it could not be attached
    retry_s: float = RETRY_FIRST_S

    @property
    def state(self) -> str:
        """``merged`` (followed by the engine), ``left`` (alone, for a reason) or ``waiting`` to be attached."""
        return "merged" if self.target is not None else "left" if self.reason else "waiting"

    def refused(self, reason: str, now: float) -> None:
        """Record that it could not be attached; it is tried again later, ever more rarely."""
        self.reason = reason
        self.ready_at = now + self.retry_s
        self.retry_s = min(2 * self.retry_s, RETRY_MOST_S)

    def renewed(self, ready_at: float) -> None:
        """Record that the program that was attached has been replaced by another."""
        self.target = None
        self.reason = ""
        self.ready_at = ready_at
        self.retry_s = RETRY_FIRST_S
        self.command = command_line(self.pid)


@dataclass
class Members:
    """All processes to be followed, by PID; and those that are not to be, though an ancestor is."""

    settle_s: float  #: how long a process must have been known before it is attached
    by_pid: dict[int, Member] = field(default_factory=dict)
    _detached: dict[int, int] = field(default_factory=dict)  # PID -> start

    def add(self, pid: int, *, descendants: bool, now: float, at_once: bool = False) -> Member | None:
        """Add a process (or have its descendants followed from now on); None if it has ended."""
        start = procfs.identity(pid)
        if start is None:
            return None
        self._detached.pop(pid, None)
        known = self.by_pid.get(pid)
        if known is not None and known.start == start:
            known.descendants |= descendants
            return known
        member = Member(pid, start, descendants, now + (0.0 if at_once else self.settle_s), command_line(pid))
        self.by_pid[pid] = member
        return member

    def detach(self, pid: int) -> None:
        """Remove a process; it is not followed again for its ancestors' sake."""
        member = self.by_pid.pop(pid, None)
        if member is not None:
            self._detached[pid] = member.start

    def ended(self) -> list[Member]:
        """Remove and return the members that have ended."""
        self._detached = {pid: start for pid, start in self._detached.items() if procfs.identity(pid) == start}
        gone = [m for m in self.by_pid.values() if procfs.identity(m.pid) != m.start]
        for member in gone:
            del self.by_pid[member.pid]
        return gone

    def discover(self, guarded: Iterable[int], now: float) -> None:
        """Add the descendants of members that want them. Cost: two small reads of /proc a member and thread.

        ``guarded`` are processes known to be children of merged ones: among them those whose parent ended before it
        was looked at. They are added if all members want their descendants, so that it is clear whose they are.
        """
        if self.by_pid and all(m.descendants for m in self.by_pid.values()):
            for pid in guarded:
                self._found(pid, now)
        todo = [m.pid for m in self.by_pid.values() if m.descendants]
        seen = set(todo)
        while todo:
            for child in procfs.children(todo.pop()):
                if child not in seen:
                    seen.add(child)
                    self._found(child, now)
                    todo.append(child)

    def _found(self, pid: int, now: float) -> None:
        known = self.by_pid.get(pid)
        if known is not None:
            known.descendants = True
        elif pid not in self._detached or self._detached[pid] != procfs.identity(pid):
            self.add(pid, descendants=True, now=now)

    def descendants(self, pid: int) -> list[int]:
        """Return the members that descend from ``pid``."""
        found: list[int] = []
        todo = [pid]
        while todo:
            for child in procfs.children(todo.pop()):
                todo.append(child)
                if child in self.by_pid:
                    found.append(child)
        return found

"""Memory control groups: under whose limits a process is, and how much memory it may still have.

For: ``preflight``, ``backend`` and the server. Reads /proc and the control group file systems, of version 1 or 2,
wherever they are mounted. A frame is charged to the group of the guardian that fills it, which is the one that the
engine was started in. A target must therefore be under the same limits as the guardian: under a limit of its own it
could have any amount of memory beside that, and under one of the guardian's it would use up what others were given.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from pageone import procfs

__all__ = ["Groups", "Hierarchy", "available_bytes", "difference", "headroom"]

#: No limit in version 1: the largest number of bytes, a page less.
_NO_LIMIT = 1 << 62
#: The files of a group that limit its memory; what it uses; what of that can be dropped at once, in ``memory.stat``.
_FILES = {
    1: (("memory.limit_in_bytes", "memory.memsw.limit_in_bytes"), "memory.usage_in_bytes", "total_inactive_file"),
    2: (("memory.max", "memory.high"), "memory.current", "inactive_file"),
}


@dataclass(frozen=True)
class Hierarchy:
    """A control group hierarchy that has memory limits: its version, and where which part of it is mounted."""

    version: int
    root: str
    mount: Path

    def folder(self, group: str) -> Path | None:
        """Return where the files of a group are; None where it cannot be seen."""
        root = self.root.rstrip("/")
        if group != root and not group.startswith(root + "/"):
            return None
        inside = group[len(root) :].lstrip("/")
        return None if ".." in inside.split("/") else self.mount / inside

    def limit(self, group: str) -> int | None:
        """Return the limit of one group alone, bytes; None without one. Raises ``OSError`` if it cannot be seen."""
        folder = self.folder(group)
        if folder is None or not folder.is_dir():
            raise OSError(f"control group {group} cannot be seen")
        limits = []
        for name in _FILES[self.version][0]:
            try:
                text = (folder / name).read_text().strip()
            except FileNotFoundError:
                continue  # the root, or a part of the tree without memory control
            if text != "max" and int(text) < _NO_LIMIT:
                limits.append(int(text))
        return min(limits, default=None)

    def room(self, group: str, limit: int) -> int:
        """Return how much more a group with a limit may have, bytes, with what the kernel can drop at once."""
        _, usage, droppable = _FILES[self.version]
        folder = self.folder(group)
        assert folder is not None
        fields = (line.split() for line in (folder / "memory.stat").read_text().splitlines())
        dropped = next((int(f[1]) for f in fields if f[0] == droppable), 0)
        return max(0, limit - int((folder / usage).read_text()) + dropped)


class Groups:
    """The memory control groups of this system; ``proc`` is where processes are told of."""

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._proc = proc
        self._hierarchies = list(_mounted(proc))

    def of(self, pid: int) -> tuple[int, str]:
        """Return the version of the hierarchy that limits memory and the group of a process in it."""
        group = ""
        for its in procfs.groups(pid, self._proc):
            if "memory" in its.controllers:
                return 1, its.path
            if its.hierarchy == 0:
                group = its.path
        return 2, group

    def limits(self, pid: int, below: str | None = None) -> Iterator[tuple[Hierarchy, str, int]]:
        """Yield each group, of that of a process and those around it, that has a limit; all, or those inside ``below``.

        Raises ``OSError`` where one cannot be seen.
        """
        version, group = self.of(pid)
        # Of several mounts the one that shows most.
        seen = [h for h in self._hierarchies if h.version == version and h.folder(group) is not None]
        hierarchy = min(seen, key=lambda h: len(h.root), default=None)
        while below is None or group.strip("/") != below.strip("/"):
            if hierarchy is None:
                raise OSError(f"control group {group} cannot be seen")
            limit = hierarchy.limit(group)
            if limit is not None:
                yield hierarchy, group, limit
            if not group.strip("/") or hierarchy.folder(group.rpartition("/")[0]) is None:
                return  # what is around the part of the tree that is shown here is around all of it
            group = group.rpartition("/")[0]


def _mounted(proc: Path) -> Iterator[Hierarchy]:
    for kind, root, mount, options in procfs.mounts(proc):
        if kind == "cgroup2" or (kind == "cgroup" and "memory" in options):
            yield Hierarchy(2 if kind == "cgroup2" else 1, root, Path(mount))


@functools.lru_cache(1)
def _here() -> Groups:
    return Groups()


def difference(pid: int, other: int, groups: Groups | None = None) -> str | None:
    """Return which limit holds for one of two processes only, in words; None if the same limits hold for both."""
    try:
        groups = groups or _here()
        (_, a), (_, b) = groups.of(pid), groups.of(other)
        if a == b:
            return None
        around = os.path.commonpath((a, b))
        for one in (pid, other):
            for _, group, limit in groups.limits(one, below=around):
                return f"control group {group} limits the memory of process {one} to {limit >> 20} MiB"
    except (OSError, ValueError) as error:
        if not os.path.exists(f"/proc/{pid}"):
            return None  # it has ended
        return f"it cannot be told whether a control group limits its memory ({error})"
    return None


def headroom(pid: int, groups: Groups | None = None) -> int | None:
    """Return how much more memory the control groups of a process let it have, bytes; None where nothing limits it."""
    try:
        groups = groups or _here()
        rooms = [hierarchy.room(group, limit) for hierarchy, group, limit in groups.limits(pid)]
    except (OSError, ValueError):
        return None
    return min(rooms, default=None)


def available_bytes(pid: int) -> int:
    """Return how much more memory a process can have now: of the system's, and of what its control groups allow."""
    available: int = psutil.virtual_memory().available
    room = headroom(pid)
    return available if room is None else min(available, room)

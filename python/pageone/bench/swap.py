"""Swap space in compressed memory for the length of a ``with``: a zram device of our own, taken away again.

For: ``pageone bench equal`` and tests that want the kernel to reclaim. Needs root and a kernel with zram. The file is
also a program, run by :func:`zram_swap`: it waits for the end of its parent, however that comes about, and removes the
device. Standard library only.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

CONTROL = Path("/sys/class/zram-control")

__all__ = ["in_memory_group", "reclaim", "zram_missing", "zram_swap"]


def zram_missing() -> str | None:
    """Return why there can be no swap in zram here; None if there can."""
    if os.geteuid() != 0:
        return "swap space needs root"
    return None if (CONTROL / "hot_add").exists() else "needs a kernel with zram"


@contextlib.contextmanager
def zram_swap(size_bytes: int) -> Iterator[Path]:
    """Have ``size_bytes`` of swap in compressed memory; yields the device. Removed also if this process is killed.

    Raises ``OSError`` or ``CalledProcessError`` where it cannot be had (see :func:`zram_missing`).
    """
    number = int((CONTROL / "hot_add").read_text())
    watcher = subprocess.Popen(
        [sys.executable, __file__, str(number), str(os.getpid())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert watcher.stdin is not None
    assert watcher.stdout is not None
    try:
        watcher.stdout.readline()
        device = Path(f"/dev/zram{number}")
        Path(f"/sys/block/zram{number}/disksize").write_text(str(size_bytes))
        for command in (["mkswap", str(device)], ["swapon", "-p", "32000", str(device)]):
            subprocess.run(command, check=True, capture_output=True, env={**os.environ, "PATH": _PATH})
        yield device
    finally:
        watcher.stdin.close()
        watcher.wait()
        watcher.stdout.close()


_PATH = f"/usr/sbin:/sbin:{os.environ.get('PATH', '/usr/bin:/bin')}"


def _remove(number: int) -> None:
    # Everything that was paged out comes back first; fails where it was never swap.
    subprocess.run(
        ["swapoff", f"/dev/zram{number}"],
        capture_output=True,
        check=False,
        env={**os.environ, "PATH": _PATH},
    )
    for name, text in ((f"/sys/block/zram{number}/reset", "1"), (str(CONTROL / "hot_remove"), str(number))):
        with contextlib.suppress(OSError):
            Path(name).write_text(text)


@contextlib.contextmanager
def in_memory_group(pids: list[int], name: str) -> Iterator[Path]:
    """Put processes into a memory control group of their own; yields its directory; puts them back afterwards.

    Both versions of control groups; raises ``OSError`` where none can be made.
    """
    one = Path("/sys/fs/cgroup/memory")
    root = one if (one / "cgroup.procs").exists() else Path("/sys/fs/cgroup")
    group = root / name
    before = {pid: _group_of(pid, root, root == one) for pid in pids}
    group.mkdir()
    try:
        for pid in pids:
            (group / "cgroup.procs").write_text(str(pid))
        yield group
    finally:
        for pid, old in before.items():
            with contextlib.suppress(OSError):
                (old / "cgroup.procs").write_text(str(pid))
        for _ in range(100):  # busy until the last process that was started in it has ended
            try:
                group.rmdir()
                break
            except OSError:
                time.sleep(0.05)


def reclaim(group: Path) -> None:
    """Have the kernel page out what it can of the memory that a group (:func:`in_memory_group`) is charged with."""
    second = group / "memory.reclaim"
    with contextlib.suppress(OSError):  # not all of it could be paged out
        if second.exists():
            second.write_text(str(1 << 40))
        else:
            (group / "memory.force_empty").write_text("0")


def _group_of(pid: int, root: Path, first: bool) -> Path:
    from pageone import procfs  # late: the watcher needs the standard library only

    for its in procfs.groups(pid):
        if ("memory" in its.controllers) if first else not its.controllers:
            return root / its.path.lstrip("/")
    return root


def main() -> None:
    """Wait for the end of the parent, then remove the device."""
    number, parent = int(sys.argv[1]), int(sys.argv[2])
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(name, signal.SIG_IGN)
    watched: list[int] = [sys.stdin.fileno()]
    with contextlib.suppress(OSError):
        watched.append(os.pidfd_open(parent))
    print("ready", flush=True)
    select.select(watched, [], [])
    _remove(number)


if __name__ == "__main__":
    main()

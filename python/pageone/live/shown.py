"""What a process maps that may not be looked into: shown by itself, in a way that cannot deceive.

For: ``uses``. Guardians are closed to other processes of their user, who yet must know that they map no
frames before one is freed. They hand out a descriptor of their own ``/proc/PID/maps``, opened before they closed
themselves (``crates/pagemem/src/hidden.rs``). Whose memory it shows was settled when it was opened, and its path names
the process: one that has inherited frames by ``fork`` could only show them, for who replaces its program has none.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from pageone._native import mem
from pageone.engine.backend import U64

#: How long an answer is waited for, seconds.
_PATIENCE_S = 0.1


def maps_none(pid: int, is_file: Callable[[U64, U64], npt.NDArray[np.bool_]]) -> bool:
    """Whether a process shows what it maps, and nothing of the file that ``is_file(device, inode)`` tells."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as door:
        door.settimeout(_PATIENCE_S)
        try:
            door.connect(f"\0pageone-maps-{pid}")
            _, descriptors, _, _ = socket.recv_fds(door, 1, 1)
        except OSError:
            return False
    for descriptor in descriptors:
        try:
            with open(descriptor, "rb") as maps:
                genuine = os.readlink(f"/proc/self/fd/{maps.fileno()}") == f"/proc/{pid}/maps"
                genuine &= os.fstat(maps.fileno()).st_dev == os.stat("/proc").st_dev
                _, _, _, _, device, inode, _, _ = mem.parse_maps(maps.read() if genuine else b"")
                # Memory that is gone shows nothing: the process that had it has another now.
                return genuine and len(device) > 0 and not is_file(device, inode).any()
        except OSError:
            return False
    return False


__all__ = ["maps_none"]

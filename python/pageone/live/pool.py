"""The engine's end of the pool: has frames filled and freed by the one who alone can write them.

That is a thread of the guardian's process; this process holds no descriptor of the pool and no mapping of it. So nobody
gets at frames by way of a program that runs an engine. What is said to it is native: ``crates/pagemem/src/filling``.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from pageone._native import mem
from pageone.engine.backend import U8, U32, U64
from pageone.errors import PageOneError

__all__ = ["GuardianError", "Pool"]

T = TypeVar("T")


class GuardianError(PageOneError):
    """The guardian could not be started or has ended."""


class Pool:
    """Frames of a guardian: what tells their file from all others, and the way to fill them. Thread-safe."""

    def __init__(self, connection: socket.socket, *, frames: int, device: int, inode: int, apart: bool) -> None:
        self.frames = frames  #: number of frames that it can hold
        #: Of the file, as ``maps`` tells devices: major number in the upper, minor in the lower half.
        self.device = device
        self.inode = inode
        #: Whether it lies on a file system of its own, so that no descriptor of it can come to write.
        self.apart = apart
        self._client = mem.PoolClient(connection.detach())

    def _ask(self, request: Callable[..., T], *args: Any) -> T:
        try:
            return request(*args)
        except EOFError as error:
            raise GuardianError("the guardian process, which fills the frames, has ended") from error

    def fill(self, pid: int, addr: U64, frame: U32) -> tuple[U8, float]:
        """Copy the pages at ``addr`` of a process into free frames.

        Returns a ``ReadCode`` for each, and the CPU-seconds that it took outside of this process.
        """
        addr, frame = np.ascontiguousarray(addr, np.uint64), np.ascontiguousarray(frame, np.uint32)
        return self._ask(self._client.fill, pid, addr, frame)

    def free(self, first: U64, count: U64) -> None:
        """Give the memory of ``count`` frames from ``first`` on back to the system, of each; nothing may map them."""
        first, count = np.ascontiguousarray(first, np.uint64), np.ascontiguousarray(count, np.uint64)
        self._ask(self._client.free, first, count)

    def bytes(self) -> int:
        """Return the memory that all frames together take, as the kernel has it."""
        return self._ask(self._client.bytes)

    def close(self) -> None:
        """Leave; the frames stay for as long as somebody maps them."""
        self._client.close()

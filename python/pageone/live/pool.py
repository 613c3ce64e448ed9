"""The engine's end of the pool: has frames filled and freed by the one who alone can write them.

That is a thread of the guardian's process; this process holds no descriptor of the pool and no mapping of it. So nobody
gets at frames by way of a program that runs an engine. Protocol: ``crates/pagemem/src/filling.rs``.
"""

from __future__ import annotations

import os
import socket
import struct
import threading

import numpy as np

from pageone.engine.backend import U8, U32, U64

_HEADER = struct.Struct("<IiII")
_REPLY = struct.Struct("<iI")
_SPENT = struct.Struct("<d")
_FILL, _FREE, _SIZE = 1, 2, 3
#: Records of a request.
_RECORDS_MAX = 1 << 16


def receive(connection: socket.socket, length: int) -> bytes:
    """Return the next ``length`` bytes; ``EOFError`` where the other end has closed before."""
    parts = bytearray()
    while len(parts) < length:
        part = connection.recv(length - len(parts))
        if not part:
            raise EOFError
        parts += part
    return bytes(parts)


class Pool:
    """Frames of a guardian: what tells their file from all others, and the way to fill them. Thread-safe."""

    def __init__(self, connection: socket.socket, *, frames: int, device: int, inode: int, apart: bool) -> None:
        self.frames = frames  #: number of frames that it can hold
        #: Of the file, as ``maps`` tells devices: major number in the upper, minor in the lower half.
        self.device = device
        self.inode = inode
        #: Whether it lies on a file system of its own, so that no descriptor of it can come to write.
        self.apart = apart
        self._socket = connection
        self._lock = threading.Lock()

    def _request(self, op: int, pid: int, first: U64, second: U64) -> bytes:
        records = np.stack((first, second), axis=1).astype("<u8", copy=False).tobytes()
        with self._lock:
            try:
                self._socket.sendall(_HEADER.pack(op, pid, len(first), threading.get_native_id()) + records)
                status, length = _REPLY.unpack(receive(self._socket, _REPLY.size))
                answer = receive(self._socket, length)
            except (OSError, EOFError) as error:
                from pageone.live.guardian import GuardianError

                raise GuardianError("the guardian process, which fills the frames, has ended") from error
        if status:
            raise OSError(status, os.strerror(status))
        return answer

    def fill(self, pid: int, addr: U64, frame: U32) -> tuple[U8, float]:
        """Copy the pages at ``addr`` of a process into free frames.

        Returns a ``ReadCode`` for each, and the CPU-seconds that it took outside of this process.
        """
        answer = self._request(_FILL, pid, addr, frame.astype(np.uint64))
        return np.frombuffer(answer, np.uint8, len(frame), _SPENT.size), float(_SPENT.unpack_from(answer)[0])

    def free(self, first: U64, count: U64) -> None:
        """Give the memory of ``count`` frames from ``first`` on back to the system, of each; nothing may map them."""
        for at in range(0, len(first), _RECORDS_MAX):
            self._request(_FREE, 0, first[at : at + _RECORDS_MAX], count[at : at + _RECORDS_MAX])

    def bytes(self) -> int:
        """Return the memory that all frames together take, as the kernel has it."""
        none = np.empty(0, np.uint64)
        return int.from_bytes(self._request(_SIZE, 0, none, none)[_SPENT.size :], "little")

    def close(self) -> None:
        """Leave; the frames stay for as long as somebody maps them."""
        self._socket.close()


__all__ = ["Pool", "receive"]

"""Messages between an engine's server and those who ask it: four bytes of length, then one JSON object.

For: ``client`` and ``server``. Standard library only. Whoever sends anything else is refused and cut off: a length
of nothing or beyond the limit (before a byte of it is read), broken UTF-8 or JSON, anything but an object.
"""

from __future__ import annotations

import json
import os
import socket
import struct
from typing import Any, NamedTuple

from pageone.errors import PageOneError

__all__ = ["REPLY_MAX", "REQUEST_MAX", "Credentials", "ProtocolError", "may_talk", "peer", "receive", "send"]

#: A request is at most this long, bytes: 4,000 PIDs fit many times over.
REQUEST_MAX = 64 * 1024
#: A reply is at most this long, bytes: the state of tens of thousands of targets.
REPLY_MAX = 64 * 1024 * 1024

_LENGTH = struct.Struct(">I")
_CREDENTIALS = struct.Struct("3i")


class ProtocolError(PageOneError):
    """The other end does not keep to the protocol."""


class Credentials(NamedTuple):
    """Who is at the other end of a socket, as the kernel says: not what the peer says of itself."""

    pid: int
    uid: int
    gid: int


def peer(connection: socket.socket) -> Credentials:
    """Return who connected (on a server's connection) or who listens (on a client's)."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return Credentials(*_CREDENTIALS.unpack(raw))


def may_talk(credentials: Credentials) -> bool:
    """Whether the peer is this user or root."""
    return credentials.uid in (os.geteuid(), 0)


def send(connection: socket.socket, message: dict[str, Any]) -> None:
    """Send one message."""
    body = json.dumps(message).encode()
    connection.sendall(_LENGTH.pack(len(body)) + body)


def receive(connection: socket.socket, limit: int) -> dict[str, Any] | None:
    """Return the next message; None when the other end has closed in between messages.

    Raises :class:`ProtocolError` for what is no message of at most ``limit`` bytes, and ``OSError`` (``TimeoutError``)
    of the socket.
    """
    head = _exactly(connection, _LENGTH.size)
    if not head:
        return None
    if len(head) < _LENGTH.size:
        raise ProtocolError("message cut off in its length")
    (length,) = _LENGTH.unpack(head)
    if not 0 < length <= limit:
        raise ProtocolError(f"message of {length} bytes refused: 1 to {limit} are allowed")
    body = _exactly(connection, length)
    if len(body) < length:
        raise ProtocolError(f"message cut off after {len(body)} of {length} bytes")
    try:
        message = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"message is not JSON: {error}") from error
    if not isinstance(message, dict):
        raise ProtocolError("message is not a JSON object")
    return message


def _exactly(connection: socket.socket, length: int) -> bytes:
    """Return ``length`` bytes, fewer if the other end closes before."""
    parts = bytearray()
    while len(parts) < length:
        part = connection.recv(min(length - len(parts), 1 << 16))
        if not part:
            break
        parts += part
    return bytes(parts)

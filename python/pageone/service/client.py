"""Find the engine of a domain, start it if there is none, and ask it.

For: the command line and ``launch``. Standard library only: what the engine needs is loaded in its own process.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pageone
from pageone.errors import PageOneError, UsageError
from pageone.service import protocol
from pageone.service.place import Place, engines, runtime_folder, sweep

__all__ = ["Connection", "Detached", "EngineRequest", "ServiceError", "ask", "connect", "detach", "states", "stop"]

#: An engine that ends just while it is asked is started anew so many times.
ATTEMPTS = 3
#: An engine that was told to end is waited for so long, seconds.
END_S = 5.0

_START = "from pageone.service.server import main; main()"

Result = TypeVar("Result")


class ServiceError(PageOneError):
    """The engine said no, or cannot be reached; ``exit_code`` is that of the error it met."""

    def __init__(self, text: str, exit_code: int = 1) -> None:
        super().__init__(text)
        self.exit_code = exit_code


class EngineGone(ServiceError):
    """The engine ended before it answered."""


@dataclass(frozen=True)
class EngineRequest:
    """Which engine is meant, and how it is to work if it must be started."""

    name: str
    uid: int | None  #: whose processes it takes; None for a domain that was named
    period: float | None = None
    cpu: str | None = None


class Connection:
    """A connection to an engine's server."""

    def __init__(self, path: Path) -> None:
        """Connect. Raises ``OSError`` when nobody listens, :class:`PageOneError` when somebody else does."""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            self._socket.connect(os.fspath(path))
            who = protocol.peer(self._socket)
            if not protocol.may_talk(who):
                raise PageOneError(f"{path}: is served by user {who.uid}, not by you: remove it")
        except BaseException:
            self._socket.close()
            raise

    def request(self, do: str, **values: object) -> dict[str, Any]:
        """Ask, and return the reply. Raises :class:`ServiceError` when it is a refusal or none comes."""
        try:
            protocol.send(self._socket, {"do": do, "version": pageone.__version__, **values})
            reply = protocol.receive(self._socket, protocol.REPLY_MAX)
        except (OSError, protocol.ProtocolError) as error:
            raise EngineGone(f"the engine ended before it answered: {error}") from error
        if reply is None:
            raise EngineGone("the engine ended before it answered")
        if not reply.get("ok"):
            raise ServiceError(str(reply.get("error")), int(reply.get("exit_code", 1)))
        return reply

    def wait_for_end(self) -> None:
        """Wait until the engine has closed the connection, as it does when it ends; a few seconds at most."""
        self._socket.settimeout(END_S)
        with contextlib.suppress(OSError):
            self._socket.recv(1)

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()

    def __enter__(self) -> Connection:
        """Return the connection; it is closed at the end."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the connection."""
        self.close()


def connect(place: Place) -> Connection | None:
    """Connect to the engine at ``place``; None if there is none."""
    try:
        return Connection(place.socket)
    except (FileNotFoundError, ConnectionRefusedError):
        return None


def ask(request: EngineRequest, talk: Callable[[Connection], Result]) -> Result:
    """Have ``talk`` ask the engine, started if there is none, and return what it returns.

    The connection is left to ``talk``. An engine that ends just now, because its last target has, is started again.
    """
    place = Place(runtime_folder(), request.name)
    sweep(place.folder)
    for attempt in range(ATTEMPTS):
        with place.lock():
            connection = connect(place)
            if connection is None:
                place.socket.unlink(missing_ok=True)
                _start(place, request)
                connection = connect(place)
        if connection is None:
            raise ServiceError(f"engine {request.name}: started, but does not answer; see {place.log}")
        try:
            return talk(connection)
        except EngineGone:
            connection.close()
            if attempt == ATTEMPTS - 1:
                raise
    raise AssertionError


def _start(place: Place, request: EngineRequest) -> None:
    """Start a server and wait until it listens. Raises :class:`ServiceError` with its reason when it cannot."""
    options: dict[str, Any] = {"folder": str(place.folder), "name": place.name, "uid": request.uid}
    if request.period is not None:
        options["period"] = request.period
    if request.cpu is not None:
        options["cpu"] = request.cpu
    search = [os.path.abspath(p) for p in sys.path if p]
    reader, writer = os.pipe()
    log = os.open(place.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        with subprocess.Popen(
            [sys.executable, "-c", _START, json.dumps(options), str(writer)],
            pass_fds=(writer,),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            cwd="/",
            env={**os.environ, "PYTHONPATH": os.pathsep.join(search)},
        ):
            os.close(writer)
            writer = -1
            with open(reader, "rb") as pipe:
                answer = pipe.read()
    except OSError as error:
        raise ServiceError(f"cannot start an engine: {error}") from error
    finally:
        os.close(log)
        if writer >= 0:
            os.close(writer)
            os.close(reader)
    try:
        reply = json.loads(answer)
    except ValueError:
        raise ServiceError(f"the engine did not start; see {place.log}") from None
    if not reply["ok"]:
        raise ServiceError(str(reply["error"]), int(reply["exit_code"]))


def _connections(domain: str | None = None) -> list[Connection]:
    """Connect to this user's engines, or to the one named. Raises :class:`UsageError` for one that is not there."""
    found = []
    folder = runtime_folder()
    sweep(folder)
    for place in engines(folder):
        if domain is None or place.name == domain:
            connection = connect(place)
            if connection is not None:
                found.append(connection)
    if domain is not None and not found:
        raise UsageError(f"domain {domain}: no engine of this name runs; see: pageone status")
    return found


def states(domain: str | None = None) -> list[dict[str, Any]]:
    """Return what each of this user's engines says of itself (or the one of a domain); none runs: an empty list."""
    found = []
    for connection in _connections(domain):
        with connection, contextlib.suppress(EngineGone):
            found.append(connection.request("status"))
    return found


class Detached(NamedTuple):
    """What was detached or ended."""

    done: int  #: processes detached, or engines ended
    failed: dict[str, str]  #: why processes could not be detached, by PID
    left_pages: int  #: pages left merged: each is one for a whole family of processes, as before a fork


def detach(pids: Sequence[int], *, descendants: bool) -> tuple[Detached, list[int]]:
    """Have processes detached from whichever engines follow them.

    Returns what was done, and those that no engine follows; if there are such, none is touched.
    """
    connections = _connections()
    known: list[tuple[Connection, list[int]]] = []
    unknown = dict.fromkeys(pids)
    for connection in connections:
        with contextlib.suppress(EngineGone):
            its = {int(target["pid"]) for target in connection.request("status")["targets"]}
            mine = [pid for pid in dict.fromkeys(pids) if pid in its]
            if mine:
                known.append((connection, mine))
            for pid in mine:
                unknown.pop(pid, None)
    detached = left = 0
    failed: dict[str, str] = {}
    if not unknown:
        for connection, mine in known:
            reply = connection.request("detach", pids=mine, descendants=descendants)
            detached += len(reply["detached"])
            failed |= reply["failed"]
            left += reply["left_pages"]
    for connection in connections:
        connection.close()
    return Detached(detached, failed, left), list(unknown)


def stop(domain: str | None, *, leave: bool) -> Detached:
    """End this user's engines, or the one of a domain."""
    ended = left = 0
    failed: dict[str, str] = {}
    for connection in _connections(domain):
        with connection, contextlib.suppress(EngineGone):
            reply = connection.request("stop", leave=leave)
            ended += bool(reply["ended"])
            failed |= reply["failed"]
            left += reply.get("left_pages", 0)  # an engine of an older version does not say
            connection.wait_for_end()
    return Detached(ended, failed, left)

"""Become a command that an engine follows: everything of it, from its PID to its exit status, is its own.

For: ``pageone run``. Standard library only. The process that was started as ``pageone`` tells the engine its PID and
then executes the command in its own place. So there is nobody in between who would have to pass on signals, the
terminal, job control, exit status or streams. The engine learns that the command has begun from the connection,
which the kernel closes at ``exec``.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from pageone.errors import PageOneError
from pageone.service.client import Connection, EngineRequest, ask

__all__ = ["CommandError", "become", "find"]

_PR_SET_PTRACER = 0x59616D61

#: What a shell says of a command that is not there, or that cannot be run.
NOT_FOUND, NOT_EXECUTABLE = 127, 126


class CommandError(PageOneError):
    """The command cannot be run; ``exit_code`` is what a shell would end with."""

    def __init__(self, text: str, exit_code: int) -> None:
        super().__init__(text)
        self.exit_code = exit_code


def find(command: str) -> str:
    """Return the file to execute for a command, searched as a shell does. Raises :class:`CommandError`."""
    path = shutil.which(command)
    if path is None:
        there = os.path.exists(command) if "/" in command else shutil.which(command, mode=os.F_OK) is not None
        if there:
            raise CommandError(f"{command}: cannot be executed", NOT_EXECUTABLE)
        raise CommandError(f"{command}: command not found", NOT_FOUND)
    return path


def _first_environment() -> dict[bytes, bytes]:
    """Return the environment that this process was started with: Python may have added to it since (``LC_CTYPE``)."""
    found: dict[bytes, bytes] = {}
    for entry in Path("/proc/self/environ").read_bytes().split(b"\0"):
        name, equals, value = entry.partition(b"=")
        if equals and name:
            found.setdefault(name, value)
    return found


def allow_tracer(pid: int) -> bool:
    """Let a process and its descendants trace this one under ptrace scope 1; whether the kernel knows of scopes.

    It holds for this process, also over ``exec``, and not for its children.
    """
    return bool(ctypes.CDLL(None).prctl(_PR_SET_PTRACER, ctypes.c_ulong(pid), 0, 0, 0) == 0)


def become(request: EngineRequest, command: Sequence[str]) -> None:
    """Execute ``command`` in place of this process, with an engine following it. Returns never.

    Raises :class:`CommandError` and whatever the engine refuses with; then nothing has been started.
    """
    path = find(command[0])

    def introduce(connection: Connection) -> tuple[Connection, int]:
        return connection, int(connection.request("launch", period=request.period, cpu=request.cpu)["pid"])

    connection, engine = ask(request, introduce)
    allow_tracer(engine)
    sys.stdout.flush()
    sys.stderr.flush()
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # ignored by Python for itself only
        signal.signal(number, signal.SIG_DFL)
    environment = _first_environment()
    try:
        try:
            os.execve(path, list(command), environment)
        except OSError as error:
            if error.errno != errno.ENOEXEC:
                raise
            os.execve("/bin/sh", ["sh", path, *command[1:]], environment)  # a script without #!, as shells do it
    except OSError as error:
        raise CommandError(f"{command[0]}: {error.strerror}", NOT_EXECUTABLE) from error
    finally:
        connection.close()  # exec has not worked: nobody is to be followed

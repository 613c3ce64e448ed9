"""Where an engine's socket lies, and that nobody else can have put it there.

For: ``client`` and ``server``. Standard library only. A folder of the user's own, closed to others, holds for each
engine ``NAME.sock``, ``NAME.lock`` (held while one is started or ends) and ``NAME.log``. They go when the engine ends;
what one leaves that was killed goes with the next command, and the end of its log to ``ended.log``.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import socket
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pageone.errors import PageOneError, UsageError

__all__ = ["Place", "domain_name", "engines", "private_name", "runtime_folder", "sweep", "user_name"]

#: Longest path of a Unix socket (``sun_path``), without its final zero.
SOCKET_PATH_MAX = 107

#: What engines that ended unexpectedly said last: so much of each, and so much of all, bytes.
ENDED_LOG, LAST_WORDS_BYTES, ENDED_LOG_BYTES = "ended.log", 4096, 65536

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,47}")
_RESERVED = re.compile(r"(uid|private)-")


def user_name(uid: int) -> str:
    """Return the name of the engine that serves processes of one user: the default domain."""
    return f"uid-{uid}"


def domain_name(domain: str) -> str:
    """Return the name of the engine of a domain that was named. Raises :class:`UsageError` for no usable name."""
    if not _NAME.fullmatch(domain) or _RESERVED.match(domain):
        raise UsageError(
            f"domain {domain!r}: give up to 48 letters, digits, '.', '_' or '-', "
            "the first a letter or digit, and not beginning with uid- or private-"
        )
    return domain


def private_name() -> str:
    """Return a name that no other engine has."""
    return f"private-{os.getpid()}-{secrets.token_hex(4)}"


def _is_own(folder: Path, forbidden: int) -> bool:
    """Whether ``folder`` is a real folder of this user without any of the ``forbidden`` bits."""
    try:
        info = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(info.st_mode) and info.st_uid == os.geteuid() and not info.st_mode & forbidden


def runtime_folder() -> Path:
    """Return the folder for the sockets of this user's engines; makes it.

    ``$XDG_RUNTIME_DIR/pageone``, else ``/run/user/UID/pageone``, else ``/tmp/pageone-UID``. A folder above that
    belongs to somebody else (as after ``sudo -E``) is passed over. Raises :class:`PageOneError` when what is there
    is not this user's or open to others: somebody may want to be taken for the engine.
    """
    uid = os.geteuid()
    folder = Path("/tmp") / f"pageone-{uid}"
    for above in (os.environ.get("XDG_RUNTIME_DIR", ""), f"/run/user/{uid}"):
        if above.startswith("/") and _is_own(Path(above), stat.S_IWGRP | stat.S_IWOTH):
            folder = Path(above) / "pageone"
            break
    with contextlib.suppress(FileExistsError):
        try:
            folder.mkdir(mode=0o700)
        except FileExistsError:
            raise
        except OSError as error:
            raise PageOneError(f"{folder}: cannot be made: {error.strerror}; set XDG_RUNTIME_DIR") from error
    if not _is_own(folder, stat.S_IRWXG | stat.S_IRWXO):
        raise PageOneError(
            f"{folder}: is not a folder of user {uid} alone (mode 0700); remove it, or set XDG_RUNTIME_DIR"
        )
    return folder


@dataclass(frozen=True)
class Place:
    """The files of one engine."""

    folder: Path
    name: str

    @property
    def socket(self) -> Path:
        """The socket. Raises :class:`PageOneError` when its path is too long for one."""
        path = self.folder / f"{self.name}.sock"
        if len(os.fsencode(path)) > SOCKET_PATH_MAX:
            raise PageOneError(f"{path}: longer than {SOCKET_PATH_MAX} bytes; set XDG_RUNTIME_DIR to a shorter path")
        return path

    @property
    def log(self) -> Path:
        """What the server says of errors that nobody asked for."""
        return self.folder / f"{self.name}.log"

    @contextlib.contextmanager
    def lock(self, *, wait: bool = True) -> Iterator[bool]:
        """Hold the lock under which an engine is started and ends; yields whether it could be had."""
        descriptor = self._take_lock(wait)
        try:
            yield descriptor is not None
        finally:
            if descriptor is not None:
                os.close(descriptor)

    def _take_lock(self, wait: bool) -> int | None:
        while True:
            descriptor = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
                if os.path.samestat(os.stat(self._lock), os.fstat(descriptor)):
                    return descriptor
            except BlockingIOError:
                os.close(descriptor)
                return None
            except FileNotFoundError:
                pass
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)  # an engine has ended meanwhile and removed it

    @property
    def _lock(self) -> Path:
        return self.folder / f"{self.name}.lock"

    def answers(self) -> bool:
        """Whether somebody listens at the socket."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as connection:
            connection.setblocking(False)
            try:
                connection.connect(os.fspath(self.socket))
            except (FileNotFoundError, ConnectionRefusedError):
                return False
            except OSError:
                return True  # it has much to do
        return True

    def remove(self, *, keep_log: bool = False) -> None:
        """Remove the files of an engine that has ended. The lock must be held; it goes last."""
        for path in (self.socket, *(() if keep_log else (self.log,)), self._lock):
            path.unlink(missing_ok=True)


def engines(folder: Path) -> list[Place]:
    """Return the engines that have a socket in ``folder``; not all of them need to live."""
    return [Place(folder, path.name.removesuffix(".sock")) for path in sorted(folder.glob("*.sock"))]


def sweep(folder: Path) -> None:
    """Remove what engines have left that ended without doing so themselves, as those that were killed."""
    names = {path.stem for kind in ("sock", "lock", "log") for path in folder.glob(f"*.{kind}")} - {
        Path(ENDED_LOG).stem
    }
    for name in sorted(names):
        place = Place(folder, name)
        with contextlib.suppress(OSError, PageOneError), place.lock(wait=False) as had:
            if had and not place.answers():
                _keep_last_words(place)
                place.remove()


def _keep_last_words(place: Place) -> None:
    """Append the end of a log to that of all engines that ended unexpectedly."""
    with contextlib.suppress(OSError):
        words = place.log.read_bytes()[-LAST_WORDS_BYTES:]
        if not words:
            return
        ended = place.folder / ENDED_LOG
        before = ended.read_bytes() if ended.exists() else b""
        text = before + f"engine {place.name}:\n".encode() + words
        ended.write_bytes(text[-ENDED_LOG_BYTES:])

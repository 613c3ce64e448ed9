"""Where sockets lie, who may talk to an engine, and what is refused."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import stat
import struct
import subprocess
import threading
from pathlib import Path

import pytest

from pageone.errors import PageOneError, UsageError
from pageone.service import protocol
from pageone.service.place import Place, domain_name, runtime_folder

from .conftest import MIB, User, right, until


def test_the_folder_is_the_users_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.chmod(0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
    made = runtime_folder()
    assert made == folder / "pageone"
    assert stat.S_IMODE(made.stat().st_mode) == 0o700
    made.chmod(0o755)
    with pytest.raises(PageOneError, match="0700"):
        runtime_folder()


def test_a_link_in_place_of_the_folder_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.chmod(0o700)
    (folder / "elsewhere").mkdir(mode=0o700)
    (folder / "pageone").symlink_to(folder / "elsewhere")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
    with pytest.raises(PageOneError, match="not a folder of user"):
        runtime_folder()


@pytest.mark.root
def test_a_folder_of_somebody_else_is_refused_or_passed_over(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "pageone").mkdir(mode=0o700)
    os.chown(folder / "pageone", 12345, -1)
    folder.chmod(0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
    with pytest.raises(PageOneError, match="not a folder of user"):
        runtime_folder()
    os.chown(folder, 12345, -1)  # the session of another user, as after sudo -E
    assert not runtime_folder().is_relative_to(folder)


def test_names_of_domains_cannot_lead_elsewhere() -> None:
    assert domain_name("guests-1") == "guests-1"
    for name in ("", "../x", "a/b", "uid-0", "private-1", "-x", ".x", "x" * 49, "a b", "a\n"):
        with pytest.raises(UsageError):
            domain_name(name)


def test_a_path_too_long_for_a_socket_says_so() -> None:
    with pytest.raises(PageOneError, match="shorter"):
        _ = Place(Path("/tmp") / ("x" * 120), "uid-0").socket


@pytest.mark.parametrize(
    "raw",
    [
        b"\0\0\0\0",
        struct.pack(">I", protocol.REQUEST_MAX + 1),
        b"\xff\xff\xff\xff" + b"x" * 100,
        struct.pack(">I", 3) + b"\xff{}",
        struct.pack(">I", 2) + b"[]",
        struct.pack(">I", 60000) + b"[" * 60000,
        struct.pack(">I", 9) + b"{}",
        b"\0\0",
    ],
)
def test_what_is_no_message_is_refused(raw: bytes) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(raw)
        theirs.shutdown(socket.SHUT_WR)
        with pytest.raises(protocol.ProtocolError):
            protocol.receive(ours, protocol.REQUEST_MAX)


def test_messages_arrive_as_sent_and_an_end_in_between_is_no_error() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        protocol.send(theirs, {"do": "status", "text": "ü\n" * 1000})
        theirs.close()
        assert protocol.receive(ours, protocol.REQUEST_MAX) == {"do": "status", "text": "ü\n" * 1000}
        assert protocol.receive(ours, protocol.REQUEST_MAX) is None


def talk(path: Path, raw: bytes) -> dict[str, object] | None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(20)
        client.connect(str(path))
        client.sendall(raw)
        return protocol.receive(client, protocol.REPLY_MAX)


def message(**values: object) -> bytes:
    body = json.dumps(values).encode()
    return struct.pack(">I", len(body)) + body


@pytest.mark.needs("merge")
def test_an_engine_survives_whatever_it_is_sent(user: User) -> None:
    worker = user.work(MIB, 1, user.pageone, "run", "--")
    (path,) = user.runtime.glob("pageone/*.sock")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    for raw in (
        b"\xff\xff\xff\xffGET / HTTP/1.0\r\n\r\n",
        struct.pack(">I", 5) + b"{]}{[",
        message(do="attach", pids=[-1]),
        message(do="attach", pids=["1"], version="0"),
        message(do="nothing"),
        message(do={}, pids=None),
        message(),
    ):
        reply = talk(path, raw)
        assert reply is not None
        assert reply["ok"] is False
        assert reply["error"]
    assert right(worker)
    assert len(user.status()) == 1


@pytest.mark.root
@pytest.mark.needs("merge")
def test_other_users_are_turned_away_by_their_credentials_even_if_they_reach_the_socket(user: User) -> None:
    worker = user.work(MIB, 1, user.pageone, "run", "--")
    (path,) = user.runtime.glob("pageone/*.sock")
    for place in (path.parent.parent, path.parent):
        place.chmod(0o755)
    path.chmod(0o666)
    code = (
        "import socket, sys\n"
        "s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1])\n"
        "try:\n    s.sendall(bytes.fromhex(sys.argv[2])); print('answer', s.recv(65536))\n"
        "except OSError as error:\n    print('answer', b'')"
    )
    ask = ["/usr/bin/python3", "-c", code, str(path), message(do="stop").hex()]
    refused = subprocess.run(ask, user=12345, group=12345, extra_groups=[], capture_output=True, text=True, cwd="/")
    assert refused.stdout == "answer b''\n", refused.stderr  # cut off without one
    assert right(worker)
    path.parent.chmod(0o700)
    assert len(user.status()) == 1


@pytest.mark.root
@pytest.mark.needs("merge")
def test_somebody_elses_server_in_place_of_the_engine_is_not_trusted(user: User) -> None:
    (user.runtime / "pageone").mkdir(mode=0o700)
    path = user.runtime / "pageone" / "uid-0.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as impostor:
        impostor.bind(str(path))
        pid = os.fork()
        if pid == 0:
            os.setresuid(12345, 12345, 12345)
            impostor.listen(1)  # the credentials of a listener are those at this moment
            os.read(0, 0)
            import time

            time.sleep(30)
            os._exit(0)
        try:
            until(lambda: b"12345" in user.run("run", "--", "true").stderr)
        finally:
            os.kill(pid, 9)
            os.waitpid(pid, 0)


def test_a_lock_whose_file_is_removed_while_it_is_waited_for_is_taken_anew(folder: Path) -> None:
    place = Place(folder, "x")
    held: list[bool] = []

    def wait() -> None:
        with place.lock() as had:
            held.append(had and os.path.exists(folder / "x.lock"))

    waiting = threading.Thread(target=wait)
    with place.lock() as had:
        assert had
        with place.lock(wait=False) as again:
            assert not again
        waiting.start()
        inode = os.stat(folder / "x.lock").st_ino
        until(
            lambda: any("->" in line and f":{inode} " in line for line in Path("/proc/locks").read_text().splitlines())
        )
        place.remove()
    waiting.join(20)
    assert held == [True]
    with pytest.raises(FileNotFoundError), place.lock():
        raise FileNotFoundError  # what happens under the lock is its holder's


@pytest.mark.needs("merge")
def test_engines_leave_nothing_behind_and_what_killed_ones_left_is_removed(user: User) -> None:
    place = user.runtime / "pageone"
    worker = user.work(MIB, 1, user.pageone, "run", "--private", "--")
    (engine,) = user.status()
    assert user.run("stop").returncode == 0
    until(lambda: not os.path.exists(f"/proc/{engine['pid']}"))
    assert list(place.iterdir()) == []
    assert right(worker)
    kept = user.work(MIB, 2, user.pageone, "run", "--private", "--")
    (engine,) = user.status()
    (log,) = place.glob("*.log")
    log.write_text("what it said last\n")
    os.kill(engine["pid"], signal.SIGKILL)
    until(lambda: not os.path.exists(f"/proc/{engine['pid']}"))
    assert {path.suffix for path in place.iterdir()} == {".sock", ".lock", ".log"}
    another = user.work(MIB, 3, user.pageone, "run", "--")
    (engine,) = user.status()
    assert {path.name for path in place.iterdir()} == {
        "ended.log",
        *(f"{engine['name']}.{kind}" for kind in ("sock", "lock", "log")),
    }
    assert "what it said last" in (place / "ended.log").read_text()
    assert right(kept)
    assert right(another)


@pytest.mark.needs("merge")
def test_an_engine_goes_on_when_its_log_cannot_be_written_or_descriptors_run_out(user: User) -> None:
    worker = user.work(MIB, 1, user.pageone, "run", "--period", "0.1", "--")
    (engine,) = user.status()
    pid = engine["pid"]
    soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (4, hard))
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
    path = next(user.runtime.glob("pageone/*.sock"))
    user.status()  # the descriptor for one connection had been set aside
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(1.0)
        client.connect(str(path))
        client.sendall(message(do="status"))
        with pytest.raises(TimeoutError):
            client.recv(1)  # it waits to be accepted
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))
        client.settimeout(20)
        reply = protocol.receive(client, protocol.REPLY_MAX)
    assert reply is not None
    assert any("left out" in str(error) for error in reply["errors"]), reply["errors"]  # type: ignore[attr-defined]
    assert [t["pid"] for t in user.status()[0]["targets"]] == [worker.pid]
    until(lambda: user.status()[0]["stats"]["period"] > engine["stats"]["period"])
    assert right(worker)

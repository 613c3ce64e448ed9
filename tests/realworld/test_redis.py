"""A Redis server under ``pageone run``: every value is compared with what was written, merged and detached again.

The data come from a seed, with many equal values of sizes that fill whole pages. Keys are overwritten and deleted, and
saved to disk by a forked child, while ``redis-benchmark`` writes other keys beside them.
"""

from __future__ import annotations

import random
import socket
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from .conftest import Domain, free_port, wait_port

pytestmark = [
    pytest.mark.realworld,
    pytest.mark.needs("merge", "program:redis-server", "program:redis-benchmark"),
]

SEED = 20261123
KEYS = 24_000
CONTENTS = 3_000  #: different values; each key has one of them, so that most pages have several twins
#: Bytes of values. With its header of 5 and the zero behind, a value of 4,090 or 8,186 fills the allocator's pages.
SIZES = (4090, 8186, 8186, 600, 20_000)
BATCH = 200  #: requests that are under way at a time
REQUESTS = 40_000  #: of each kind that redis-benchmark sends in one run


class Client:
    """As much of Redis' protocol as sets, gets and deletes keys, many requests at a time."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=60)
        self._in = self._socket.makefile("rb")

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._in.close()
        self._socket.close()

    def ask(self, requests: Iterable[tuple[bytes, ...]]) -> list[Any]:
        """Send requests, and return the replies: bytes, numbers, or None for what is not there."""
        out = bytearray()
        count = 0
        for request in requests:
            out += b"*%d\r\n" % len(request) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in request)
            count += 1
        self._socket.sendall(out)
        return [self._reply() for _ in range(count)]

    def files(self) -> bytes:
        """Return what the server tells of its files: a line each."""
        told: bytes = self.ask([(b"INFO", b"persistence")])[0]
        return told

    def wait_for(self, line: bytes) -> None:
        Domain.until(lambda: line in self.files(), line.decode().strip())

    def wait_saved(self) -> None:
        self.wait_for(b"rdb_bgsave_in_progress:0\r\n")
        assert b"rdb_last_bgsave_status:ok" in self.files()

    def _reply(self) -> Any:
        kind, text = (line := self._in.readline())[:1], line[1:].rstrip()
        if kind == b"+":
            return text
        if kind == b":":
            return int(text)
        if kind == b"$":
            size = int(text)
            return None if size < 0 else self._in.read(size + 2)[:size]
        raise AssertionError(line)


class Data:
    """What the server must hold: made from a seed, and changed only together with the server."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._contents = [self._random.randbytes(self._random.choice(SIZES)) for _ in range(CONTENTS)]
        self._held: dict[bytes, bytes] = {}

    def _set(self, client: Client, keys: list[bytes]) -> None:
        for low in range(0, len(keys), BATCH):
            part = {key: self._random.choice(self._contents) for key in keys[low : low + BATCH]}
            assert set(client.ask((b"SET", key, value) for key, value in part.items())) == {b"OK"}
            self._held |= part

    def fill(self, client: Client) -> None:
        self._set(client, [b"own:%d" % number for number in range(KEYS)])

    def change(self, client: Client, count: int) -> None:
        """Overwrite some keys with other values of the same lot, delete as many, and set half of those again."""
        keys = self._random.sample(sorted(self._held), 2 * count)
        self._set(client, keys[:count])
        for key in keys[count:]:
            assert client.ask([(b"DEL", key)]) == [1]
            del self._held[key]
        self._set(client, keys[count::2])

    def wrong(self, client: Client) -> list[bytes]:
        """Compare every byte of every key; return the keys whose values are not what was written."""
        keys = sorted(self._held)
        found: list[bytes] = []
        for low in range(0, len(keys), BATCH):
            part = keys[low : low + BATCH]
            replies = client.ask((b"GET", key) for key in part)
            found += [key for key, reply in zip(part, replies, strict=True) if reply != self._held[key]]
        return found

    @property
    def bytes(self) -> int:
        return sum(map(len, self._held.values()))


def _server(folder: Path, port: int) -> list[str]:
    settings = {
        "port": str(port),
        "bind": "127.0.0.1",
        "dir": str(folder),
        "dbfilename": "saved.rdb",
        "save": "",
        "appendonly": "no",
    }
    return ["redis-server", *(word for name, value in settings.items() for word in (f"--{name}", value))]


def _benchmark(port: int) -> subprocess.Popen[str]:
    """Start Redis' own benchmark: sets, gets, counters, lists and hashes on keys of its own."""
    words = ["redis-benchmark", "-p", str(port), "-q", "-n", str(REQUESTS), "-r", "20000", "-d", "500", "-c", "20"]
    kinds = "set,get,incr,lpush,lpop,sadd,hset,mset"
    return subprocess.Popen([*words, "-t", kinds], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_redis_keeps_every_value_merged_saved_and_detached_again(spawn: Any, domain: Domain, tmp_path: Path) -> None:
    port = free_port()
    server = spawn(
        domain.run(*_server(tmp_path, port)), env=domain.environment, cwd=tmp_path, stderr=subprocess.DEVNULL
    )
    wait_port(port, server)
    data = Data(SEED)
    with Client(port) as client:
        data.fill(client)
        domain.wait_merged(10_000)
        assert data.wrong(client) == []
        rounds = 0
        benchmark = _benchmark(port)
        try:
            assert client.ask([(b"BGSAVE",)]) == [b"Background saving started"]
            while benchmark.poll() is None or rounds < 3:
                data.change(client, 500)
                assert data.wrong(client) == []
                rounds += 1
            told = benchmark.communicate(timeout=60)[0]
            assert benchmark.returncode == 0, told
        finally:
            benchmark.kill()
            benchmark.communicate()
        client.wait_saved()
        domain.tell("redis", rounds_of_changes=rounds, data_mib=data.bytes >> 20)
        domain.detach(server.pid)
        assert data.wrong(client) == []
        data.change(client, 500)
        assert data.wrong(client) == []


def test_what_a_merged_redis_saves_is_what_it_was_given(spawn: Any, domain: Domain, tmp_path: Path) -> None:
    port = free_port()
    server = spawn(
        domain.run(*_server(tmp_path, port)), env=domain.environment, cwd=tmp_path, stderr=subprocess.DEVNULL
    )
    wait_port(port, server)
    data = Data(SEED + 1)
    with Client(port) as client:
        data.fill(client)
        domain.wait_merged(10_000)
        data.change(client, 500)
        assert client.ask([(b"BGSAVE",)]) == [b"Background saving started"]
        client.wait_saved()
        domain.tell("redis, saved")
    server.kill()
    server.wait(20)
    again = free_port()
    fresh = spawn(_server(tmp_path, again), cwd=tmp_path, stderr=subprocess.DEVNULL)
    wait_port(again, fresh)
    with Client(again) as client:
        client.wait_for(b"\r\nloading:0\r\n")
        assert data.wrong(client) == []

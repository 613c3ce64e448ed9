"""Sharing on real file systems: no byte and no time changes, what was promised is freed, it may end at any instant."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pageone.files import FilesReport, Job, share

UNIT = 4096
MIB = 1 << 20
Scanned = Callable[..., tuple[Job, FilesReport]]
#: Rounds of what comes at random instants, and seconds of a writer, in `make soak`.
SOAK_KILLS, SOAK_WRITING_S = 200, 600


def state(folder: Path) -> dict[str, tuple[Any, ...]]:
    """Return what must not change: content, times, permissions, size of every file."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink():
            s = path.stat()
            times = (s.st_mtime_ns, s.st_ctime_ns, s.st_atime_ns)
            with open(os.open(path, os.O_RDONLY | os.O_NOATIME), "rb") as file:
                digest = hashlib.sha256(file.read()).hexdigest()
            found[str(path)] = (digest, s.st_mode, s.st_uid, s.st_size, s.st_ino, *times)
    return found


def free(folder: Path) -> int:
    """Return the bytes free by the file system's own account, once all has been written."""
    subprocess.run(["sync", "-f", str(folder)], check=True)
    # What was given up is freed when the log is (XFS), or by the cleaner (btrfs).
    told = os.statvfs(folder)
    return told.f_bfree * told.f_frsize


def settled(folder: Path) -> int:
    """Return the free bytes once they have stopped growing."""
    last = free(folder)
    for _ in range(40):
        time.sleep(0.05)
        now = free(folder)
        if now == last:
            return now
        last = now
    return last


def images(folder: Path, rng: random.Random, scale: int = 1) -> None:
    """Files as those of virtual machines are: one base, copies, copies in which something was written, sparse ones."""
    base = bytearray(rng.randbytes(4 * MIB * scale))
    base[MIB // 2 : MIB] = bytes(MIB // 2)
    (folder / "base").write_bytes(base)
    (folder / "copy").write_bytes(base)
    changed = bytearray(base)
    for _ in range(6):
        at = rng.randrange(len(base) // UNIT) * UNIT
        changed[at : at + UNIT] = rng.randbytes(UNIT)
    (folder / "changed").write_bytes(changed)
    (folder / "moved").write_bytes(rng.randbytes(16 * UNIT) + base[MIB : 3 * MIB] + rng.randbytes(5000))
    with (folder / "sparse").open("wb") as file:
        file.truncate(16 * MIB)
        file.seek(8 * MIB)
        file.write(base[2 * MIB : 3 * MIB])
    (folder / "odd").write_bytes(base[: 2 * MIB + 1234])
    (folder / "odd-copy").write_bytes(base[: 2 * MIB + 1234])
    (folder / "other").write_bytes(rng.randbytes(MIB))
    subprocess.run(["sync", "-f", str(folder)], check=True)


def test_what_was_promised_is_freed_and_nothing_else_changes(sharing: Path, scanned: Scanned) -> None:
    seed = random.randrange(1 << 32)
    print("seed", seed)
    images(sharing, random.Random(seed))
    before, room = state(sharing), settled(sharing)
    job, report = scanned(sharing)
    assert settled(sharing) == room, "a scan changes nothing"
    # btrfs keeps an extent of which any part is in use.
    assert report.frees_bytes + report.kept_bytes > 9 * MIB
    assert report.frees_bytes > 5 * MIB
    share(job)
    shared = report.shared or {}
    assert state(sharing) == before
    assert shared["not_shared"] == {}
    assert shared["bytes"] == report.to_share_bytes
    gained = settled(sharing) - room
    print("promised", report.frees_bytes, "kept", report.kept_bytes, "gained", gained)
    # Metadata: a block here and there.
    assert abs(gained - report.frees_bytes) <= report.frees_bytes / 100 + 64 * 1024
    job, again = scanned(sharing)
    assert again.to_share_bytes == 0
    assert again.already_shared_bytes > 9 * MIB


def test_without_yes_nothing_is_shared(sharing: Path, pageone: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    data = os.urandom(1_200_000)
    for name in "ab":
        (sharing / name).write_bytes(data)
    room = settled(sharing)
    done = pageone("files", "share", str(sharing), "--json")
    report = json.loads(done.stdout)
    assert (done.returncode, report["shared"]) == (0, None)
    assert report["to_share_bytes"] == 1_200_000
    assert settled(sharing) == room
    done = pageone("files", "share", str(sharing), "--json", "--yes")
    assert json.loads(done.stdout)["shared"]["bytes"] >= 1_200_000, done.stderr
    assert settled(sharing) >= room + 1_150_000


def test_files_that_cannot_be_changed_are_left_and_named(sharing: Path, scanned: Scanned) -> None:
    data = os.urandom(270_000)
    for name in "abc":
        (sharing / name).write_bytes(data)
        os.utime(sharing / name, ns=(ord(name), ord(name)))
    (sharing / "c").chmod(0o400)
    subprocess.run(["sync", "-f", str(sharing)], check=True)
    subprocess.run(["chattr", "+i", str(sharing / "b")], check=True)
    before = state(sharing)
    job, report = scanned(sharing)
    share(job)
    assert report.shared is not None
    assert report.shared["not_shared"] == {"files that cannot be changed (chattr +i or +a), or not yours": 270_000}
    assert report.shared["bytes"] >= 270_000
    assert state(sharing) == before


def test_an_ordinary_user_shares_his_own_files_alone(sharing: Path, as_user: Any) -> None:
    if not as_user.is_other:
        pytest.skip("needs root to be two users")
    data = os.urandom(220_000)
    for name, owner in (("a", as_user.uid), ("b", as_user.uid), ("c", 0), ("d", 0)):
        (sharing / name).write_bytes(data)
        os.chown(sharing / name, owner, -1)
        (sharing / name).chmod(0o444)
    subprocess.run(["sync", "-f", str(sharing)], check=True)
    before = state(sharing)
    done = as_user.pageone("files", "share", str(sharing), "--yes", "--json")
    report = json.loads(done.stdout)
    assert report["shared"]["bytes"] >= 220_000, done.stderr
    assert list(report["shared"]["not_shared"].values()) == [220_000]
    assert {path: it[:5] for path, it in state(sharing).items()} == {path: it[:5] for path, it in before.items()}


def test_what_has_taken_a_files_place_since_the_scan_is_left_alone(sharing: Path, scanned: Scanned) -> None:
    outside = sharing.parent / f"{sharing.name}-outside"
    outside.write_bytes(b"outside" * 100_000)
    try:
        data = os.urandom(500_000)
        for name in "abcd":
            (sharing / name).write_bytes(data)
            os.utime(sharing / name, ns=(ord(name), ord(name)))
        subprocess.run(["sync", "-f", str(sharing)], check=True)
        job, report = scanned(sharing)
        os.unlink(sharing / "b")
        os.symlink(outside, sharing / "b")
        os.unlink(sharing / "c")
        os.mkfifo(sharing / "c")
        with (sharing / "d").open("r+b") as file:
            file.seek(300_000)
            file.write(b"written since")
        before = state(sharing)
        share(job)
        assert report.shared is not None
        reasons = report.shared["not_shared"]
        assert reasons.pop("changed since the scan") <= 256 * 1024
        assert sum(reasons.values()) == 1_000_000
        assert state(sharing) == before
    finally:
        outside.unlink()


def test_shared_with_something_outside_is_not_promised(sharing: Path, scanned: Scanned) -> None:
    data = os.urandom(2 * MIB)
    (sharing / "data").mkdir()
    (sharing / "data" / "a").write_bytes(data)
    (sharing / "data" / "b").write_bytes(data)
    subprocess.run(["cp", "--reflink=always", str(sharing / "data" / "b"), str(sharing / "outside")], check=True)
    subprocess.run(["sync", "-f", str(sharing)], check=True)
    room = settled(sharing)
    job, report = scanned(sharing / "data")
    assert (report.frees_bytes, report.shared_elsewhere_bytes) == (0, 2 * MIB)
    share(job)
    assert settled(sharing) - room < MIB


def test_an_extent_that_is_used_in_part_is_not_promised_where_it_is_kept(
    make_file_system: Callable[..., Path], scanned: Scanned
) -> None:
    top = make_file_system("btrfs")
    data = os.urandom(2 * MIB)
    (top / "a").write_bytes(data)
    subprocess.run(["sync", "-f", str(top)], check=True)
    (top / "b").write_bytes(data[:MIB] + os.urandom(MIB))
    room = settled(top)
    job, report = scanned(top)
    assert (report.frees_bytes, report.kept_bytes) == (0, MIB)
    share(job)
    assert abs(settled(top) - room) < 64 * 1024


def test_compressed_data_is_shared_and_nothing_certain_promised(
    make_file_system: Callable[..., Path], scanned: Scanned
) -> None:
    top = make_file_system("btrfs", "compress-force=zstd")
    data = b"".join(str(number).encode() * 50 for number in range(20_000))
    for name in "ab":
        (top / name).write_bytes(data)
    subprocess.run(["sync", "-f", str(top)], check=True)
    before = state(top)
    job, report = scanned(top)
    assert report.frees_bytes == 0
    assert report.compressed_bytes >= len(data)
    share(job)
    assert state(top) == before
    _, again = scanned(top)
    assert (again.to_share_bytes, again.already_shared_bytes >= len(data)) == (0, True)


_WRITER = """
import os, random, sys, time
path, seed, ends = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
rng = random.Random(seed)
base = open(path, "rb").read()
model = bytearray(base)
file = os.open(path, os.O_RDWR)
rounds = 0
print("writing", flush=True)
while time.monotonic() < ends:
    at = rng.randrange(len(model) // 512) * 512
    # Now what differs, now what is equal to the other files again.
    data = base[at:at + 512] if rng.random() < 0.6 else rng.randbytes(512)
    assert os.pwrite(file, data, at) == 512
    model[at:at + 512] = data
    rounds += 1
    if rounds % 64 == 0:
        low = rng.randrange(len(model) // 4096) * 4096
        assert os.pread(file, 65536, low) == model[low:low + 65536], low
        if rng.random() < 0.1:
            os.fsync(file)
os.fsync(file)
assert os.pread(file, len(model), 0) == model
print(rounds)
"""


def _write_beside(sharing: Path, seconds: float, seed: int) -> None:
    """Share again and again while two files are written, each by a process that knows what must be in it."""
    images(sharing, random.Random(seed))
    names = ("copy", "changed")
    before = {path: it for path, it in state(sharing).items() if Path(path).name not in names}
    ends = time.monotonic() + seconds
    command = [sys.executable, "-c", _WRITER]
    writers = [
        subprocess.Popen([*command, str(sharing / name), str(seed), str(ends)], stdout=subprocess.PIPE, text=True)
        for name in names
    ]
    try:
        for writer in writers:
            assert writer.stdout is not None
            assert writer.stdout.readline() == "writing\n"
        shared = rounds = 0
        while time.monotonic() < ends:
            from pageone.files import scan

            job = scan([str(sharing)])
            share(job)
            shared += (job.report.shared or {})["bytes"]
            rounds += 1
            job.close()
        for writer in writers:
            told, _ = writer.communicate()
            assert writer.returncode == 0
            assert int(told) > 0
    finally:
        for writer in writers:
            writer.kill()
            writer.wait()
    print("seed", seed, "rounds", rounds, "shared", shared)
    assert shared > 0
    after = {path: it for path, it in state(sharing).items() if Path(path).name not in names}
    assert after == before


def test_a_writer_beside_it_loses_nothing(sharing: Path) -> None:
    _write_beside(sharing, 1.0, random.randrange(1 << 32))


@pytest.mark.soak
def test_a_writer_beside_it_loses_nothing_for_long(sharing: Path) -> None:
    _write_beside(sharing, SOAK_WRITING_S, random.randrange(1 << 32))


_SHARER = """
import sys
from pageone.files import scan, share
job = scan([sys.argv[1]], min_run=4096)
print("scanned", flush=True)
share(job)
print("shared", flush=True)
"""


def _kill(sharing: Path, rounds: int, number: int, seed: int) -> None:
    rng = random.Random(seed)
    print("seed", seed)
    ended = 0
    for _ in range(rounds):
        for path in sharing.iterdir():
            path.unlink()
        images(sharing, rng)
        before = state(sharing)
        running = subprocess.Popen([sys.executable, "-c", _SHARER, str(sharing)], stdout=subprocess.PIPE, text=True)
        assert running.stdout is not None
        assert running.stdout.readline() == "scanned\n"
        time.sleep(rng.random() * 0.02)  # a random instant of what takes about as long
        running.send_signal(number)
        running.communicate()
        ended += running.returncode != 0
        assert state(sharing) == before
    print("killed in the middle", ended, "of", rounds)
    assert ended
    # What is left is shared by the next one.
    done = subprocess.run([sys.executable, "-c", _SHARER, str(sharing)], check=True, capture_output=True)
    assert done.stdout.endswith(b"shared\n")
    assert state(sharing) == before


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_it_may_end_at_any_instant(sharing: Path, number: int) -> None:
    _kill(sharing, 2, number, random.randrange(1 << 32))


@pytest.mark.soak
def test_it_may_be_killed_at_any_instant_many_times(sharing: Path) -> None:
    _kill(sharing, SOAK_KILLS, signal.SIGKILL, random.randrange(1 << 32))


@pytest.mark.root
def test_a_file_system_that_cannot_share_is_named(
    mount_folder: Path, pageone: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "none", str(mount_folder)], check=True)
    for name in "ab":
        (mount_folder / name).write_bytes(bytes(range(250)) * 200)
    report = json.loads(pageone("files", "share", str(mount_folder), "--yes", "--json").stdout)
    assert (report["file_systems"][0]["kind"], report["file_systems"][0]["can_share"]) == ("tmpfs", False)
    assert (report["to_share_bytes"], report["cannot_share_bytes"], report["shared"]["bytes"]) == (0, 50_000, 0)


def test_a_budget_of_reading_is_kept(tmp_path: Path, scanned: Scanned) -> None:
    from pageone.files import Budget

    (tmp_path / "a").write_bytes(os.urandom(MIB))
    _, report = scanned(tmp_path, budget=Budget(rate=2 * MIB))
    assert report.seconds >= 0.4

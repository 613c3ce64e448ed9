"""What a scan says of files: every equal block and file, and nothing else; nothing is changed, nothing else opened."""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pageone.errors import UsageError
from pageone.files import Budget, FilesReport, Job, share
from pageone.files.scan import list_groups, list_ranges

UNIT = 4096
Scanned = Callable[..., tuple[Job, FilesReport]]


def contents(job: Job) -> list[tuple[str, bytes]]:
    """Return path and bytes of every file of a scan, by its number."""
    size = job.native.files()[0]
    paths = [job.path(number) for number in range(len(size))]
    return [(path, Path(path).read_bytes()) for path in paths]


def check(job: Job, *, blocks: bool = True) -> None:
    """Check a scan against dictionaries: of whole files, and of blocks that are not zeros."""
    files = contents(job)
    same: dict[bytes, set[int]] = defaultdict(set)
    for number, (_, data) in enumerate(files):
        same[data].add(number)
    members, ends = (column.tolist() for column in job.native.classes())
    classes = [members[low:high] for low, high in zip([0, *ends][:-1], ends, strict=True)]
    assert sorted(map(sorted, classes)) == sorted(sorted(group) for group in same.values() if len(group) > 1)
    if not blocks:
        return

    parent: dict[tuple[int, int], tuple[int, int]] = {}

    def root(block: tuple[int, int]) -> tuple[int, int]:
        while parent.get(block, block) != block:
            block = parent[block]
        return block

    for first, *others in classes:
        for other in others:
            for at in range(0, len(files[first][1]), UNIT):
                parent[root((other, at))] = root((first, at))
    taken: set[tuple[int, int]] = set()
    sources: set[tuple[int, int]] = set()
    count = 0
    for src, src_at, dst, dst_at, length, long in zip(*(c.tolist() for c in job.native.ranges()), strict=True):
        a, b = files[src][1], files[dst][1]
        assert src_at % UNIT == dst_at % UNIT == 0
        assert a[src_at : src_at + length] == b[dst_at : dst_at + length], "called equal, and is not"
        assert length % UNIT == 0 or (dst_at + length == len(b) and src_at + length == len(a))
        for at in range(0, length, UNIT):
            assert (dst, dst_at + at) not in taken, "counted twice"
            taken.add((dst, dst_at + at))
            if long:
                sources.add((src, src_at + at))
            count += any(b[dst_at + at : dst_at + min(at + UNIT, length)])
            parent[root((dst, dst_at + at))] = root((src, src_at + at))
    long_ones = zip(*(c.tolist() for c in job.native.ranges()), strict=True)
    moved = {(d, da + at) for _, _, d, da, n, long in long_ones if long for at in range(0, n, UNIT)}
    assert not sources & moved, "shared with what is itself to be shared with something else"

    wanted: dict[bytes, set[tuple[int, int]]] = defaultdict(set)
    for number, (_, data) in enumerate(files):
        for at in range(0, len(data), UNIT):
            block = data[at : at + UNIT]
            if any(block):
                wanted[block].add((number, at))
    for group in wanted.values():
        assert len({root(block) for block in group}) == 1, "an equal block was missed"
    copies = {copy for _, *others in classes for copy in others}
    expected = sum(len({b for b in group if b[0] not in copies}) - 1 for group in wanted.values())
    assert job.report.equal_blocks == count == expected


def make_files(folder: Path, rng: random.Random, count: int) -> None:
    """Files of blocks of few contents, with runs taken from each other, zeros, holes, and ends of any length."""
    alphabet = [rng.randbytes(UNIT) for _ in range(12)]
    made: list[bytes] = []
    for number in range(count):
        parts: list[bytes] = []
        for _ in range(rng.randrange(1, 12)):
            kind = rng.randrange(6)
            if kind == 0 and made:
                other = rng.choice(made)
                low = rng.randrange(len(other) // UNIT + 1) * UNIT
                parts.append(other[low : low + rng.randrange(1, 40) * UNIT])
                parts[-1] = parts[-1][: len(parts[-1]) // UNIT * UNIT]
            elif kind == 1:
                parts.append(bytes(UNIT * rng.randrange(1, 6)))
            elif kind == 2:
                parts.append(rng.choice(alphabet) * rng.randrange(1, 5))
            else:
                parts.append(rng.randbytes(UNIT * rng.randrange(1, 4)))
        tail = rng.choice([b"", b"", rng.choice(alphabet)[: rng.choice([1, 100, 4000])], bytes(77)])
        data = b"".join(parts) + tail
        if made and rng.random() < 0.25:
            data = rng.choice(made)
        made.append(data)
        with (folder / f"{number:03}").open("wb") as file:
            if rng.random() < 0.5:
                file.truncate(len(data))  # blocks of zeros are holes
                for at in range(0, len(data), UNIT):
                    if any(data[at : at + UNIT]):
                        file.seek(at)
                        file.write(data[at : at + UNIT])
            else:
                file.write(data)


@pytest.mark.parametrize(
    ("mask", "memory", "threads", "min_run"),
    [
        ((1 << 64) - 1, 1 << 30, 1, UNIT),
        ((1 << 64) - 1, 20_000, 3, 4 * UNIT),
        (0b1011, 1 << 30, 2, UNIT),  # nearly all keys meet: bytes alone decide
        (0, 4000, 1, 2 * UNIT),
    ],
)
def test_every_equal_block_and_file_is_found_and_no_other(
    tmp_path: Path, scanned: Scanned, mask: int, memory: int, threads: int, min_run: int
) -> None:
    seed = random.randrange(1 << 32)
    print("seed", seed)
    rng = random.Random(seed)
    for turn in range(4):
        folder = tmp_path / str(turn)
        folder.mkdir()
        make_files(folder, rng, 25)
        job, _ = scanned(folder, key_mask=mask, memory=memory, threads=threads, min_run=min_run)
        check(job)
        job, _ = scanned(folder, whole_files=True, threads=threads)
        check(job, blocks=False)


def test_equal_files_are_told_apart_at_any_byte(tmp_path: Path, scanned: Scanned) -> None:
    base = random.Random(5).randbytes(3_000_000)
    for number, at in enumerate([None, 0, 20_000, 900_000, 2_999_999, None, 900_000, None]):
        data = bytearray(base)
        if at is not None:
            data[at] ^= 1
        (tmp_path / str(number)).write_bytes(data)
    for number in range(300):  # more than are kept open at a time
        (tmp_path / f"many-{number}").write_bytes(bytes([number % 3]) * 50_000)
    for options in ({"whole_files": True}, {"whole_files": True, "threads": 3}, {}):
        job, report = scanned(tmp_path, **options)
        check(job, blocks=False)
        assert report.equal_groups == 5


def test_long_equal_ranges_stay_whole_over_blocks_that_others_have_too(tmp_path: Path, scanned: Scanned) -> None:
    rng = random.Random(6)
    common = rng.randbytes(UNIT)
    body = [common if i % 10 == 5 else bytes(UNIT) if i % 10 == 8 else rng.randbytes(UNIT) for i in range(200)]
    (tmp_path / "a").write_bytes(common + rng.randbytes(UNIT))
    (tmp_path / "b").write_bytes(b"".join(body))
    (tmp_path / "c").write_bytes(rng.randbytes(3 * UNIT) + b"".join(body) + rng.randbytes(UNIT))
    for at, name in enumerate("abc"):
        os.utime(tmp_path / name, ns=(at, at))
    job, _ = scanned(tmp_path, min_run=4 * UNIT)
    list_ranges(job)
    assert [(Path(it["file"]).name, Path(it["equals"]).name, it["at"], it["bytes"]) for it in job.report.ranges] == [
        ("c", "b", 3 * UNIT, 200 * UNIT)
    ]
    check(job)


def test_what_is_no_file_of_its_own_is_counted_and_never_opened(tmp_path: Path, scanned: Scanned) -> None:
    data = os.urandom(9000)
    (tmp_path / "a").write_bytes(data)
    os.link(tmp_path / "a", tmp_path / "b")
    os.symlink(tmp_path / "a", tmp_path / "c")
    os.symlink(tmp_path, tmp_path / "again")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "empty").touch()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        _, report = scanned(tmp_path, tmp_path / "b")
    assert (report.files, report.equal_files) == (1, 0)
    wanted = {"hard_links": 2, "symbolic_links": 2, "special_files": 2, "empty_files": 1}
    assert report.left == wanted


def test_a_pipe_that_takes_the_place_of_a_file_is_not_opened(tmp_path: Path, scanned: Scanned) -> None:
    (tmp_path / "a").write_bytes(bytes(range(256)) * 4000)
    (tmp_path / "b").write_bytes(bytes(range(256)) * 4000)
    job, _ = scanned(tmp_path)
    os.unlink(tmp_path / "b")
    os.mkfifo(tmp_path / "b")
    # A writer's open returns once somebody has opened it for reading.
    writer = subprocess.Popen(["sh", "-c", 'exec > "$0"', str(tmp_path / "b")])
    try:
        share(job)
        assert job.report.shared is not None
        assert job.report.shared["bytes"] == 0
        assert writer.poll() is None
    finally:
        writer.kill()
        writer.wait()


def test_a_folder_that_becomes_a_link_leads_nowhere(tmp_path: Path, scanned: Scanned) -> None:
    inside, outside, spare = tmp_path / "inside", tmp_path / "outside", tmp_path / "spare"
    for folder in (inside / "d", outside):
        folder.mkdir(parents=True)
        for number in range(20):
            (folder / str(number)).write_bytes(b"equal" * 2000)
    os.symlink(outside, tmp_path / "link")
    ended = threading.Event()

    def swap() -> None:
        while not ended.is_set():
            os.rename(inside / "d", spare)
            os.rename(tmp_path / "link", inside / "d")
            os.rename(inside / "d", tmp_path / "link")
            os.rename(spare, inside / "d")

    own = {os.stat(inside / "d" / str(number)).st_ino for number in range(20)}
    thread = threading.Thread(target=swap)
    thread.start()
    try:
        for _ in range(60):
            job, report = scanned(inside)
            assert report.files <= len(own)
            assert sum(report.left.get(name, 0) for name in ("gone_files", "symbolic_links", "changed_files")) >= 0
            job.close()
    finally:
        ended.set()
        thread.join()
    job, report = scanned(inside)
    list_groups(job)
    assert {os.stat(path).st_ino for path in job.report.groups[0]["files"]} == own


def test_an_index_saves_reading_and_changes_no_result(tmp_path: Path, scanned: Scanned) -> None:
    rng = random.Random(7)
    folder, index = tmp_path / "data", tmp_path / "index"
    folder.mkdir()
    make_files(folder, rng, 30)
    job, first = scanned(folder, index=str(index))
    check(job)
    assert (first.files_from_index, index.stat().st_mode & 0o777) == (0, 0o600)
    job, second = scanned(folder, index=str(index))
    check(job)
    assert second.files_from_index == second.files == first.files
    assert second.bytes_read < first.bytes_read
    names = ("equal_files", "equal_blocks", "equal_block_bytes", "zero_bytes", "to_share_bytes")
    assert [getattr(first, name) for name in names] == [getattr(second, name) for name in names]
    # A file that was written is read again, also if its size and time of writing are as before.
    path = folder / "004"
    status = path.stat()
    path.write_bytes(rng.randbytes(status.st_size))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    job, third = scanned(folder, index=str(index))
    check(job)
    assert third.files_from_index == third.files - 1
    # A torn end is cut off; what is whole before it counts.
    whole = index.read_bytes()
    index.write_bytes(whole[:-5])
    job, fourth = scanned(folder, index=str(index))
    check(job)
    assert 0 < fourth.files_from_index < fourth.files
    # A wrong byte is noticed: nothing from there on counts.
    index.write_bytes(whole[:2000] + bytes([whole[2000] ^ 1]) + whole[2001:])
    job, fifth = scanned(folder, index=str(index))
    check(job)
    assert fifth.files_from_index < fifth.files


def test_a_scan_that_is_killed_leaves_an_index_to_go_on_from(tmp_path: Path, scanned: Scanned) -> None:
    folder, index = tmp_path / "data", tmp_path / "index"
    folder.mkdir()
    for number in range(60):
        (folder / str(number)).write_bytes(os.urandom(64 << 10) * 2)
    code = "import sys; from pageone.files import *\n"
    code += "scan([sys.argv[1]], index=sys.argv[2], budget=Budget(rate=1 << 20))"
    running = subprocess.Popen([sys.executable, "-c", code, str(folder), str(index)])
    try:
        while not index.exists() or index.stat().st_size < 1000:
            assert running.poll() is None
            # Records are written in batches: a signal that stops the scan writes what there is.
            if index.exists():
                running.send_signal(2)
                running.wait()
                break
    finally:
        running.kill()
        running.wait()
    job, report = scanned(folder, index=str(index))
    check(job)
    job, report = scanned(folder, index=str(index))
    assert report.files_from_index == 60
    check(job)


def test_only_an_index_of_ones_own_is_used(tmp_path: Path, scanned: Scanned) -> None:
    (tmp_path / "a").write_bytes(b"a")
    other = tmp_path / "letter"
    other.write_text("dear reader")
    other.chmod(0o600)
    with pytest.raises(UsageError, match="not an index"):
        scanned(tmp_path, index=str(other))
    assert other.read_text() == "dear reader"
    os.symlink(other, tmp_path / "link")
    with pytest.raises(UsageError, match="--index"):
        scanned(tmp_path, index=str(tmp_path / "link"))
    index = tmp_path / "index"
    scanned(tmp_path, index=str(index))
    index.chmod(0o644)
    with pytest.raises(UsageError, match="closed to others"):
        scanned(tmp_path, index=str(index))


def test_a_file_written_while_it_is_scanned_is_left_out(tmp_path: Path, scanned: Scanned) -> None:
    for name in "abc":
        (tmp_path / name).write_bytes(b"same" * 500_000)
    told: list[str] = []

    def write(step: str, done: int, total: int) -> None:
        if step == "reading" and not told:
            told.append(step)
            with (tmp_path / "c").open("r+b") as file:
                file.write(b"else")

    _, report = scanned(tmp_path, budget=Budget(rate=4 << 20), progress=write)
    assert told
    assert (report.equal_files, report.left.get("changed_files", 0)) in [(1, 1), (1, 0)]


@pytest.mark.root
def test_files_of_different_owners_are_compared_only_when_asked_for(tmp_path: Path, scanned: Scanned) -> None:
    data = os.urandom(40_000)
    for name, owner in (("a", 1001), ("b", 1002), ("c", 1002)):
        (tmp_path / name).write_bytes(data)
        os.chown(tmp_path / name, owner, -1)
    (tmp_path / "d").write_bytes(b"x" * UNIT + data[:36864] + b"end")
    for whole in (True, False):
        _, report = scanned(tmp_path, whole_files=whole)
        assert (report.equal_groups, report.equal_files, report.equal_blocks) == (1, 1, 0)
        _, report = scanned(tmp_path, whole_files=whole, across_users=True)
        assert (report.equal_groups, report.equal_files) == (1, 2)
        assert report.equal_blocks == (0 if whole else 9)


@pytest.mark.root
def test_another_mount_is_not_entered(mount_folder: Path, tmp_path: Path, scanned: Scanned) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "none", str(mount_folder)], check=True)
    (mount_folder / "below").mkdir()
    (mount_folder / "a").write_bytes(b"a" * 5000)
    subprocess.run(["mount", "-t", "tmpfs", "none", str(mount_folder / "below")], check=True)
    try:
        (mount_folder / "below" / "b").write_bytes(b"a" * 5000)
        _, report = scanned(mount_folder)
        assert (report.files, report.left["other_mounts"]) == (1, 1)
        # Two file systems that are named are scanned, each by itself.
        _, report = scanned(mount_folder, mount_folder / "below")
        assert (report.files, report.equal_files, len(report.file_systems)) == (2, 0, 2)
    finally:
        subprocess.run(["umount", "-l", str(mount_folder / "below")], check=True)


def test_reading_leaves_no_trace_in_times_or_the_page_cache(tmp_path: Path, scanned: Scanned) -> None:
    import ctypes

    paths = [tmp_path / name for name in "ab"]
    for path in paths:
        path.write_bytes(b"cold" * 300_000)
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        os.utime(path, ns=(1, 1))

    def cached(path: Path) -> int:
        told = (ctypes.c_uint64 * 5)()
        with path.open("rb") as file:
            whole = (ctypes.c_uint64 * 2)()
            if ctypes.CDLL(None).syscall(451, file.fileno(), ctypes.byref(whole), ctypes.byref(told), 0):
                pytest.skip("needs cachestat (Linux 6.5)")
        return int(told[0])

    if any(map(cached, paths)):
        pytest.skip("this file system keeps its pages")
    for whole in (True, False):
        _, report = scanned(tmp_path, whole_files=whole)
        assert report.equal_files == 1
        assert [cached(path) for path in paths] == [0, 0]
        assert [path.stat().st_atime_ns for path in paths] == [1, 1]


def test_an_ordinary_user_is_told_what_he_may_not_read(
    as_user: Any, make_folder_for_all: Callable[[str], Path]
) -> None:
    folder = make_folder_for_all("pageone-files-")
    try:
        for name in "abc":
            (folder / name).write_bytes(b"data" * 2000)
        (folder / "c").chmod(0)
        (folder / "closed").mkdir(mode=0)
        if as_user.is_other:
            done = as_user.pageone("files", "scan", str(folder), "--json")
            report = json.loads(done.stdout)
            assert (done.returncode, report["equal_files"], report["left"]["denied"]) == (1, 1, 2)
            assert "2 files or folders could not be opened" in done.stderr
        else:
            pytest.skip("needs root to be two users")
    finally:
        subprocess.run(["rm", "-rf", str(folder)], check=True)


def test_the_command_says_what_it_found_and_ends_as_others_do(
    tmp_path: Path, pageone: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    data = os.urandom(100_000)
    (tmp_path / "a").write_bytes(data)
    (tmp_path / b"b\xff<b>".decode(errors="surrogateescape")).write_bytes(data)
    done = pageone("files", "scan", str(tmp_path), "--json", "--html", str(tmp_path / "page"))
    report = json.loads(done.stdout)
    assert (done.returncode, done.stderr) == (0, "")
    assert (report["schema"], report["equal_files"], report["equal_file_bytes"]) == ("pageone.files/1", 1, 100_000)
    assert len(report["groups"][0]["files"]) == 2
    page = (tmp_path / "page").read_text()
    assert "&lt;b&gt;" in page
    assert "<b>" not in page
    done = pageone("files", "scan", str(tmp_path))
    assert done.returncode == 0
    assert "files that equal an older one" in done.stdout
    assert pageone("files", "scan", str(tmp_path / "none")).returncode == 2
    done = pageone("files", "scan", str(tmp_path), str(tmp_path / "none"))
    assert (done.returncode, "No such file" in done.stderr) == (1, True)
    done = pageone("files", "scan", "/proc")
    assert (done.returncode, "on proc, which is not looked into" in done.stderr) == (2, True)
    assert pageone("files", "scan", str(tmp_path), "--min-size", "0").returncode == 2
    assert pageone("files", "scan").returncode == 2

"""Reading another process: maps, pagemap, keys, as root and not. Nothing is changed."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from pageone._native import mem

if TYPE_CHECKING:
    from conftest import OrdinaryUser

PAGE = 4096
MADV_NOHUGEPAGE = 15
NOBODY = 2**22 + 1  #: no process can have this number


@contextlib.contextmanager
def child(pages: int) -> Iterator[tuple[int, int]]:
    """Fork a child with pages of its own, and yield its PID and where they are.

    Page ``i % 8 == 0`` is untouched, 1 was only read (the zero page), 2 written with zeros; the others
    hold ``1 + i % 251`` in all bytes.
    """
    memory = mmap.mmap(-1, pages * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(MADV_NOHUGEPAGE)
    view = np.frombuffer(memory, dtype=np.uint8).reshape(pages, PAGE)
    ready, told = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            os.close(told[1])
            for i in range(pages):
                if i % 8 == 1:
                    view[i, 0].item()
                elif i % 8 == 2:
                    view[i] = 0
                elif i % 8:
                    view[i] = 1 + i % 251
            os.write(ready[1], b"r")
            os.read(told[0], 1)
        os._exit(0)
    os.close(ready[1])
    os.close(told[0])
    try:
        assert os.read(ready[0], 1) == b"r"
        yield pid, view.ctypes.data
    finally:
        os.close(told[1])
        os.waitpid(pid, 0)
        os.close(ready[0])


def array(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.uint64)


def expected(pages: int) -> np.ndarray:
    content = np.zeros((pages, PAGE), dtype=np.uint8)
    number = np.arange(pages)
    content[number % 8 > 2] = (1 + number[number % 8 > 2] % 251)[:, None]
    return content


def test_keys_of_a_child_are_those_of_the_same_bytes_here() -> None:
    key = mem.Key(b"0123456789abcdef")
    pages = 1000
    content = expected(pages)
    here, here_code = mem.keys_of(content.reshape(-1), PAGE, key)
    with child(pages) as (pid, base):
        addr = np.uint64(base) + np.arange(pages, dtype=np.uint64) * np.uint64(PAGE)
        keep = np.empty(pages * PAGE, dtype=np.uint8)
        for threads in (1, 2):
            keys, code = mem.read_keys(pid, addr, key, threads, keep)
            assert np.array_equal(keys, here)
            assert np.array_equal(code, here_code)
            assert np.array_equal(keep, content.reshape(-1))
        assert set(np.flatnonzero(code == 1) % 8) == {0, 1, 2}
        with tempfile.TemporaryFile() as file:
            keep[77 * PAGE + 4095] ^= 1
            file.write(keep[: 900 * PAGE].tobytes())
            file.flush()
            offset = np.arange(pages, dtype=np.uint64) * np.uint64(PAGE)
            backwards = addr[::-1].copy(), offset[::-1].copy()
            verdict = mem.compare((True, pid), backwards[0], (False, file.fileno()), backwards[1], PAGE)
            assert np.flatnonzero(verdict[::-1] == 1).tolist() == [77]
            assert np.flatnonzero(verdict[::-1] == 2).tolist() == list(range(900, 1000))
            assert not mem.compare((True, pid), addr, (True, pid), addr, PAGE).any()


def test_pages_beside_the_mapping_are_gone_and_the_rest_is_read() -> None:
    key = mem.Key(b"x")
    with child(16) as (pid, base):
        addr = array(8 * PAGE, base + 3 * PAGE, 2**63, base + 4 * PAGE, 2**64 - PAGE)
        _, code = mem.read_keys(pid, addr, key)
        assert code.tolist() == [2, 0, 2, 0, 2]
    _, code = mem.read_keys(pid, addr, key)
    assert code.tolist() == [2] * 5, "the child has ended"


def test_present_zero_and_absent_pages_of_a_child_are_told_apart() -> None:
    if not mem.pagemap_available():
        pytest.skip("this kernel has no PAGEMAP_SCAN (Linux 6.7)")
    with child(64) as (pid, base):
        with open(f"/proc/{pid}/pagemap", "rb") as pagemap:
            start, end, categories = mem.pagemap_scan(
                pagemap.fileno(),
                array(base),
                array(base + 64 * PAGE),
                mask=mem.PAGE_IS_PRESENT,
                returned=mem.PAGE_IS_PRESENT | mem.PAGE_IS_PFNZERO,
            )
            entries = mem.pagemap_entries(pagemap.fileno(), array(base), array(base + 64 * PAGE))
        zero = categories & mem.PAGE_IS_PFNZERO != 0
        assert ((start[zero] - base) // PAGE).tolist() == list(range(1, 64, 8))
        assert ((start[~zero] - base) // PAGE).tolist() == list(range(2, 64, 8))
        assert ((end - start) // PAGE).tolist() == [1, 6] * 8
        assert ((entries >> 63).reshape(8, 8) == [0, 1, 1, 1, 1, 1, 1, 1]).all()


def test_maps_of_a_child_are_those_of_proc() -> None:
    with child(16) as (pid, base):
        start, end, perms, offset, _dev, inode, name, names = mem.maps(pid)
        text = Path(f"/proc/{pid}/maps").read_text().splitlines()
    assert len(text) == len(start)
    for i, line in enumerate(text):
        fields = line.split(maxsplit=5)
        assert fields[0] == f"{start[i]:08x}-{end[i]:08x}"
        letters = [c if perms[i] & bit else "-" for c, bit in zip("rwx", (1, 2, 4), strict=True)]
        assert fields[1] == "".join(letters) + ("s" if perms[i] & mem.PERM_SHARED else "p")
        assert int(fields[2], 16) == offset[i]
        assert int(fields[4]) == inode[i]
        assert (fields[5] if len(fields) > 5 else "") == names[name[i]]
    assert ((start <= base) & (base < end)).any()


def test_arguments_that_do_not_fit_are_errors_not_crashes() -> None:
    key = mem.Key(b"x")
    with pytest.raises(ValueError, match="one length"):
        mem.pagemap_scan(0, array(1), array())
    with pytest.raises(ValueError, match="page_size"):
        mem.keys_of(np.zeros(10, dtype=np.uint8), 0, key)
    with pytest.raises(ValueError, match="one length"):
        mem.compare((True, os.getpid()), array(0), (False, 0), array(), PAGE)
    with pytest.raises(ValueError, match="page_size"):
        mem.compare((True, os.getpid()), array(0), (False, 0), array(0), 512)
    with pytest.raises(ValueError, match="keep"):
        mem.read_keys(os.getpid(), array(0), key, 1, np.zeros(1, dtype=np.uint8))
    with pytest.raises(FileNotFoundError):
        mem.maps(2**22 + 1)
    with pytest.raises(OSError, match="not a line"):
        mem.parse_maps(b"nonsense\n")


def test_a_file_is_read_by_blocks_of_any_size(tmp_path: Path) -> None:
    key = mem.Key(b"x")
    data = np.random.default_rng(1).integers(0, 256, 10 * 512 + 100, dtype=np.uint8)
    path = tmp_path / "blocks"
    path.write_bytes(data.tobytes())
    with path.open("rb") as file:
        keys, code = mem.file_keys(file.fileno(), np.arange(11, dtype=np.uint64) * np.uint64(512), 512, key)
    whole, _ = mem.keys_of(data, 512, key)
    assert code.tolist() == [0] * 10 + [2]
    assert np.array_equal(keys[:10], whole)


USER = """
import mmap, os, sys
import numpy as np
from pageone._native import mem
memory = mmap.mmap(-1, 64 * 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
view = np.frombuffer(memory, dtype=np.uint8).reshape(64, 4096)
view[:] = np.arange(64)[:, None]
key = mem.Key(b"x")
ready, told = os.pipe(), os.pipe()
pid = os.fork()
if pid == 0:
    os.close(told[1])
    view[7] = 99
    os.write(ready[1], b"r")
    os.read(told[0], 1)
    os._exit(0)
os.read(ready[0], 1)
view[7] = 99
base = view.ctypes.data
here = mem.keys_of(view.reshape(-1), 4096, key)
there = mem.read_keys(pid, np.uint64(base) + np.arange(64, dtype=np.uint64) * np.uint64(4096), key)
assert np.array_equal(here[0], there[0]) and np.array_equal(here[1], there[1])
one = lambda value: np.array([value], dtype=np.uint64)
with open(f"/proc/{pid}/pagemap", "rb") as pagemap:
    entries = mem.pagemap_entries(pagemap.fileno(), one(base), one(base + 64 * 4096))
assert ((entries >> 63) == 1).all()
assert not (entries & ((1 << 55) - 1)).any(), "frame numbers are root's"
exclusive = np.flatnonzero(entries >> np.uint64(56) & np.uint64(1)).tolist()
assert exclusive == [7], f"the page written after the fork is its own: {exclusive}"
os.close(told[1])
os.waitpid(pid, 0)
try:
    mem.read_keys(int(sys.argv[1]), one(4096), key)
except PermissionError:
    print("refused")
"""


def test_an_ordinary_user_reads_a_child_of_its_own_but_not_roots(as_user: OrdinaryUser) -> None:
    done = as_user.run("-c", USER, "1")
    assert done.stdout == "refused\n", done.stderr
    assert done.returncode == 0, done.stderr


def test_a_child_of_huge_pages_is_told_so() -> None:
    size = 4 << 20
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(14)  # MADV_HUGEPAGE
    view = np.frombuffer(memory, dtype=np.uint8)
    view[:] = 1
    base = view.ctypes.data
    with open("/proc/self/pagemap", "rb") as pagemap:
        start, end, categories = mem.pagemap_scan(
            pagemap.fileno(),
            array(base),
            array(base + size),
            mask=mem.PAGE_IS_PRESENT,
            returned=mem.PAGE_IS_HUGE,
        )
    huge = int((end - start)[categories & mem.PAGE_IS_HUGE != 0].sum())
    with open("/proc/self/smaps") as smaps:
        inside, kernel = False, 0
        for line in smaps:
            if line[0] in "0123456789abcdef" and "-" in line.split()[0]:
                low, high = (int(part, 16) for part in line.split()[0].split("-"))
                inside = low < base + size and base < high
            elif inside and line.startswith("AnonHugePages:"):
                kernel += int(line.split()[1]) * 1024
    if kernel == 0:
        pytest.skip("no huge page was given (transparent huge pages off or memory fragmented)")
    assert huge <= kernel
    assert huge > 0


@pytest.mark.parametrize(
    ("ask", "number"),
    [
        (lambda: mem.maps(NOBODY), errno.ENOENT),
        (lambda: mem.pagemap_scan(-1, np.array([4096], np.uint64), np.array([8192], np.uint64)), errno.EBADF),
        (lambda: mem.pagemap_entries(-1, np.array([4096], np.uint64), np.array([8192], np.uint64)), errno.EBADF),
        (lambda: mem.file_keys(-1, np.array([0], np.uint64), 4096, mem.Key(b"seed")), errno.EBADF),
    ],
)
def test_errors_of_the_system_carry_their_number(ask: Callable[[], object], number: int) -> None:
    with pytest.raises(OSError, match=re.escape(os.strerror(number))) as raised:
        ask()
    assert raised.value.errno == number

"""What is scanned: the resident private pages of processes and the blocks of files, as extents of equal-sized pages.

For: :mod:`pageone.scan`. It calls the native memory functions, ``/proc`` and ``qemu-img``; it counts nothing.
Everything is opened read-only and no process is stopped. What cannot be used raises an error that names it; the
caller goes on with the rest.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from pageone import policy, procfs
from pageone._native import mem
from pageone.errors import PageOneError, TargetError, UnsupportedError, UsageError

U8 = npt.NDArray[np.uint8]
U32 = npt.NDArray[np.uint32]
U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

PAGE_SIZE = 4096
#: Anonymous mappings from this size on are called arrays: what numpy, malloc's mmap and arenas ask for.
ARRAY_BYTES = 1 << 20
#: Mappings from this size on may be the memory of a guest, in a process that runs one.
GUEST_BYTES = 16 << 20
#: Seconds that qemu-img may take to describe an image, and to unpack one.
QEMU_MAP_SECONDS, QEMU_CONVERT_SECONDS = 60, 3600

_QCOW = b"QFI\xfb"
_ELF = b"\x7fELF"
_SPECIAL = re.compile(r"^\[(vdso|vvar|vvar_vclock|vsyscall|uprobes)")
_GUESTS = re.compile(r"qemu|firecracker|cloud-hyperviso|crosvm|kvm")


@dataclass(frozen=True)
class Region:
    """A part of a target that is told apart in reports. ``mergeable``: PageONE may merge its pages."""

    kind: str
    name: str
    mergeable: bool


@dataclass
class Source:
    """Pages of one target, in extents: extent ``i`` has ``pages[i]`` pages from position ``start[i]`` on.

    Positions are addresses in a process, offsets in a file. ``region`` indexes ``regions``; ``huge`` says that a
    transparent huge page maps the extent. Pages of a source are numbered from 0 across its extents.
    """

    name: str
    kind: str
    page_size: int
    pid: int | None
    start: U64
    pages: I64
    region: U32
    huge: Bools
    regions: list[Region]
    #: For files mapped in processes: (device, inode) and page range of what is resident, one row a range.
    file_pages: npt.NDArray[np.uint64] = field(default_factory=lambda: np.empty((0, 4), np.uint64))
    zero_mapped: int = 0  #: pages that are the kernel's zero page already
    swapped: int = 0  #: private pages in swap; not read
    holes: int = 0  #: pages of a file that are holes; not read
    tail_bytes: int = 0  #: bytes behind the last whole page of a file
    mappings: int = 0
    notes: list[str] = field(default_factory=list)
    fd: int = -1
    _temporary: tempfile.TemporaryDirectory[str] | None = None

    def __post_init__(self) -> None:
        self.first = np.concatenate((np.zeros(1, np.int64), np.cumsum(self.pages)))

    def __len__(self) -> int:
        return int(self.first[-1])

    def extent_of(self, page: I64) -> I64:
        """Return the extent that each page is in."""
        return np.searchsorted(self.first, page, side="right") - 1

    def positions(self, page: I64) -> U64:
        """Return the position of each page."""
        extent = self.extent_of(page)
        within = (page - self.first[extent]).astype(np.uint64)
        return self.start[extent] + within * np.uint64(self.page_size)

    def keys(self, at: U64, key: mem.Key, keep: U8 | None = None) -> tuple[U64, U8]:
        """Read pages: their keys and read codes, the bytes in ``keep``."""
        if self.pid is None:
            return mem.file_keys(self.fd, at, self.page_size, key, 1, keep)
        return mem.read_keys(self.pid, at, key, 1, keep)

    @property
    def handle(self) -> tuple[bool, int]:
        """What the native comparison takes for this source."""
        return (True, self.pid) if self.pid is not None else (False, self.fd)

    def close(self) -> None:
        """Close what is open."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
        if self._temporary:
            self._temporary.cleanup()
            self._temporary = None


# --- processes ------------------------------------------------------------------------------------------------


def _runs_guests(pid: int, command: str) -> bool:
    if _GUESTS.search(command):
        return True
    return any("kvm-v" in link for link in procfs.descriptors(pid))


def _kind(name: str, size: int, guest: bool) -> str:
    if name == "[heap]":
        return "heap"
    if name.startswith("[stack"):
        return "stack"
    if name.startswith("[anon:"):
        return name[6:-1] or "anonymous"
    if name.startswith("/"):
        return "file copies (data of programs, libraries)"
    if name:
        return name
    if guest and size >= GUEST_BYTES:
        return "VM memory"
    return "arrays (anonymous, 1 MiB and more)" if size >= ARRAY_BYTES else "anonymous, small"


def process(pid: int) -> Source:
    """Return the resident private pages of a process; nothing of it is read yet.

    Raises :class:`TargetError` for a process that is not there or may not be read, :class:`UnsupportedError` before
    Linux 6.7. Cost: some 10 µs a mapping, 0.3 µs a resident page: the flags of mappings are in smaps only.
    """
    if not mem.pagemap_available():
        raise UnsupportedError("scanning processes needs Linux 6.7 or newer (PAGEMAP_SCAN); files can be scanned")
    command = procfs.name(pid) or "?"
    name = f"{command}[{pid}]"
    try:
        start, end, perms, offset, dev, inode, which, names = mem.maps(pid)
        fd = os.open(f"/proc/{pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, ProcessLookupError):
        raise TargetError(f"process {pid}: no such process") from None
    except PermissionError:
        raise TargetError(f"process {pid} ({command}): not permitted to read it; run as its user or as root") from None
    except OSError as error:
        raise TargetError(f"process {pid} ({command}): {error.strerror}") from None
    try:
        return _resident(pid, name, fd, (start, end, perms, offset, dev, inode, which), list(names))
    except OSError as error:
        raise TargetError(f"process {pid} ({command}): {error.strerror}") from None
    finally:
        # Not kept: a thousand processes would need more descriptors than a program may have.
        os.close(fd)


def _left_alone(pid: int, starts: U64) -> Bools:
    """Tell which mappings the engine leaves alone for their flags, or for a memory policy of their own."""
    left = policy.left_for_flags(policy.flags_at(procfs.mapping_flags(pid), starts))
    told = procfs.policies(pid) if procfs.memory_nodes() > 1 else None
    return left if told is None else left | policy.placed_apart(*told, starts)


def _resident(pid: int, name: str, fd: int, maps: tuple[U64, U64, U8, U64, U64, U64, U32], names: list[str]) -> Source:
    start, end, perms, offset, dev, inode, which = maps
    special = np.array([bool(_SPECIAL.match(n)) for n in names], bool)[which]
    left_alone = policy.left_for_name(names)[which]
    private = ((perms & mem.PERM_SHARED) == 0) & ((perms & mem.PERM_READ) != 0) & ~special
    mergeable = private & ((perms & mem.PERM_WRITE) != 0) & (inode == 0) & ~left_alone
    mergeable[mergeable] = ~_left_alone(pid, start[mergeable])

    # Whether a page is of a file is asked only where it may be: it costs a read of each page's own record.
    anonymous = inode == 0
    asked = mem.PAGE_IS_PRESENT | mem.PAGE_IS_SWAPPED
    told = asked | mem.PAGE_IS_PFNZERO | mem.PAGE_IS_HUGE
    walks = [
        mem.pagemap_scan(fd, start[which_maps], end[which_maps], anyof=asked, returned=told | more)
        for which_maps, more in ((private & anonymous, 0), (private & ~anonymous, mem.PAGE_IS_FILE))
    ]
    low, high, categories = (np.concatenate(column) for column in zip(*walks, strict=True))
    order = np.argsort(low, kind="stable")
    low, high, categories = low[order], high[order], categories[order]
    pages = ((high - low) // PAGE_SIZE).astype(np.int64)
    present = (categories & mem.PAGE_IS_PRESENT) != 0
    of_file = (categories & mem.PAGE_IS_FILE) != 0
    zero = present & ((categories & mem.PAGE_IS_PFNZERO) != 0)
    huge = (categories & mem.PAGE_IS_HUGE) != 0
    swapped = int(pages[~present & ~of_file].sum())
    keep = present & ~of_file & ~zero

    shared = (perms & mem.PERM_SHARED) != 0
    shared_low, shared_high, _ = mem.pagemap_scan(
        fd, start[shared], end[shared], mask=mem.PAGE_IS_PRESENT | mem.PAGE_IS_FILE, returned=mem.PAGE_IS_FILE
    )
    file_low = np.concatenate((low[present & of_file], shared_low))
    file_high = np.concatenate((high[present & of_file], shared_high))
    at = np.searchsorted(start, file_low, side="right") - 1
    first = (offset[at] + file_low - start[at]) // PAGE_SIZE
    count = (file_high - file_low) // PAGE_SIZE
    file_pages = np.stack((dev[at], inode[at], first, first + count), axis=1)

    guest = _runs_guests(pid, name)
    pointers = np.array(procfs.waiting_stack_pointers(pid), np.uint64)
    stacks = set((np.searchsorted(start, pointers, side="right") - 1).tolist())
    region = np.searchsorted(start, low[keep], side="right") - 1
    used, index = np.unique(region, return_inverse=True)
    regions = []
    for mapping in used.tolist():
        size = int(end[mapping] - start[mapping])
        label = names[which[mapping]]
        kind = "thread stack" if mapping in stacks and not label else _kind(label, size, guest)
        shown = label or f"{int(start[mapping]):x}-{int(end[mapping]):x}"
        regions.append(Region(kind, shown, bool(mergeable[mapping])))
    return Source(
        name=name,
        kind="process",
        page_size=PAGE_SIZE,
        pid=pid,
        start=low[keep],
        pages=pages[keep],
        region=index.astype(np.uint32).reshape(-1),
        huge=huge[keep],
        regions=regions,
        file_pages=file_pages,
        zero_mapped=int(pages[zero].sum()),
        swapped=swapped,
        mappings=len(start),
    )


# --- files ----------------------------------------------------------------------------------------------------


def file(path: str | os.PathLike[str], page_size: int = PAGE_SIZE) -> Source:
    """Return the blocks of a file: a memory image, ELF core dump, disk image (raw or qcow2), or any other.

    Holes of sparse files are counted, not read. Raises :class:`UsageError` for what is no file or block device,
    cannot be opened, or is corrupt. Cost: a system call a hole; for qcow2 a run of ``qemu-img``.
    """
    path = os.fspath(path)
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    for test, what in (
        (stat.S_ISDIR, "is a directory; give the files in it"),
        (stat.S_ISFIFO, "is a FIFO; only regular files and block devices can be scanned"),
        (stat.S_ISSOCK, "is a socket; only regular files and block devices can be scanned"),
        (stat.S_ISCHR, "is a character device; only regular files and block devices can be scanned"),
    ):
        if test(mode):
            raise UsageError(f"{path}: {what}")
    try:
        # Without O_NONBLOCK a path that became a FIFO meanwhile would hang.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    try:
        opened = os.fstat(fd).st_mode
        if not (stat.S_ISREG(opened) or stat.S_ISBLK(opened)):
            raise UsageError(f"{path}: only regular files and block devices can be scanned")
        size = os.lseek(fd, 0, os.SEEK_END)
        magic = os.pread(fd, 4, 0)
        if magic == _QCOW:
            return _qcow(path, fd, page_size)
        if magic == _ELF and _is_core(fd):
            return _core(path, fd, size, page_size)
        return _extents(path, "file", fd, _data(fd, 0, size), size, page_size)
    except OSError as error:
        os.close(fd)
        raise UsageError(f"{path}: {error.strerror}") from None
    except PageOneError:
        os.close(fd)
        raise


def _data(fd: int, low: int, high: int) -> Iterator[tuple[int, int, str]]:
    """Yield the parts of a file that are no holes."""
    at = low
    while at < high:
        try:
            at = os.lseek(fd, at, os.SEEK_DATA)
        except OSError:  # ENXIO: nothing but a hole up to the end
            return
        if at >= high:
            return
        end = min(os.lseek(fd, at, os.SEEK_HOLE), high)
        yield at, end, "data"
        at = end


def _extents(
    path: str,
    kind: str,
    fd: int,
    parts: Iterator[tuple[int, int, str]] | list[tuple[int, int, str]],
    size: int,
    page_size: int,
    base: int = 0,
) -> Source:
    """Make a source of parts ``(low, high, region)`` of a file: their whole pages, on a grid from ``base`` on."""
    regions: dict[str, int] = {}
    start: list[int] = []
    pages: list[int] = []
    region: list[int] = []
    reached = base
    whole = size - (size - base) % page_size
    for low, high, name in parts:
        # A part may begin within a page that the last one has.
        low = max(low - (low - base) % page_size, reached)
        high = min(high + (base - high) % page_size, whole)
        if high <= low:
            continue
        reached = high
        start.append(low)
        pages.append((high - low) // page_size)
        region.append(regions.setdefault(name, len(regions)))
    count = np.array(pages, np.int64)
    return Source(
        name=path,
        kind=kind,
        page_size=page_size,
        pid=None,
        start=np.array(start, np.uint64),
        pages=count,
        region=np.array(region, np.uint32),
        huge=np.zeros(len(start), bool),
        regions=[Region(name, name, True) for name in regions],
        holes=max(0, (whole - base) // page_size - int(count.sum())),
        tail_bytes=size - whole,
        fd=fd,
    )


# Fields of 64-bit little-endian ELF, each with its numpy type.
_HEADER_FIELDS = (
    "ident:S16 type:<u2 machine:<u2 version:<u4 entry:<u8 phoff:<u8 shoff:<u8 flags:<u4 ehsize:<u2 phentsize:<u2 "
    "phnum:<u2 shentsize:<u2 shnum:<u2 shstrndx:<u2"
)
_SEGMENT_FIELDS = "type:<u4 flags:<u4 offset:<u8 vaddr:<u8 paddr:<u8 filesz:<u8 memsz:<u8 align:<u8"


def _record(fields: str) -> np.dtype[np.void]:
    return np.dtype([(name, kind) for name, kind in (field.split(":") for field in fields.split())])


_ELF_HEADER, _ELF_SEGMENT = _record(_HEADER_FIELDS), _record(_SEGMENT_FIELDS)
_ET_CORE, _PT_LOAD, _PT_NOTE, _PN_XNUM = 4, 1, 4, 0xFFFF
_NT_FILE = 0x46494C45


def _is_core(fd: int) -> bool:
    head = os.pread(fd, 18, 0)
    return len(head) == 18 and head[4:6] == b"\x02\x01" and int.from_bytes(head[16:18], "little") == _ET_CORE


def _mapped_files(notes: bytes) -> list[tuple[int, int, str]]:
    """Return ``(start, end, path)`` of the mappings that the core's NT_FILE note names, ascending."""
    at = 0
    while at + 12 <= len(notes):
        name_size, size, kind = (int(v) for v in np.frombuffer(notes, "<u4", 3, at))
        body = at + 12 + -(-name_size // 4) * 4
        if kind == _NT_FILE and body + size <= len(notes) and size >= 16:
            count = int(np.frombuffer(notes, "<u8", 1, body)[0])
            if 16 + 24 * count > size:
                return []
            rows = np.frombuffer(notes, "<u8", 3 * count, body + 16).reshape(count, 3)
            paths = notes[body + 16 + 24 * count : body + size].split(b"\0")
            return [
                (int(low), int(high), os.fsdecode(path))
                for (low, high, _), path in zip(rows.tolist(), paths, strict=False)
            ]
        at = body + -(-size // 4) * 4
    return []


def _core(path: str, fd: int, size: int, page_size: int) -> Source:
    raw = os.pread(fd, _ELF_HEADER.itemsize, 0)
    if len(raw) < _ELF_HEADER.itemsize:
        raise UsageError(f"{path}: the core dump is cut off within its header")
    header = np.frombuffer(raw, _ELF_HEADER)[0]
    count = int(header["phnum"])
    if count == _PN_XNUM:  # more segments than 16 bits count: the number is in the first section header
        section = os.pread(fd, 64, int(header["shoff"]))
        count = int.from_bytes(section[44:48], "little") if len(section) == 64 else 0
    table = os.pread(fd, count * _ELF_SEGMENT.itemsize, int(header["phoff"]) & (2**63 - 1))
    if int(header["phentsize"]) != _ELF_SEGMENT.itemsize or not count:
        raise UsageError(f"{path}: a core dump without a valid table of segments")
    if len(table) < count * _ELF_SEGMENT.itemsize:
        raise UsageError(f"{path}: the core dump is cut off within its table of segments")
    segments = np.frombuffer(table, _ELF_SEGMENT)
    names: list[tuple[int, int, str]] = []
    for note in segments[segments["type"] == _PT_NOTE]:
        names += _mapped_files(os.pread(fd, min(int(note["filesz"]), 64 << 20), int(note["offset"]) & (2**63 - 1)))
    names.sort()
    low_of = np.array([low for low, _, _ in names], np.uint64)
    load = segments[(segments["type"] == _PT_LOAD) & (segments["filesz"] > 0)]
    load = load[np.argsort(load["offset"], kind="stable")]
    parts: list[tuple[int, int, str]] = []
    missing = 0
    grid = int(load["offset"][0]) % page_size if len(load) else 0
    for segment in load:
        low, high = int(segment["offset"]), int(segment["offset"]) + int(segment["filesz"])
        if high > size or high >= 2**63:
            missing += high - max(low, min(size, high))
            high = size
        at = int(np.searchsorted(low_of, segment["vaddr"], side="right")) - 1
        named = at >= 0 and int(segment["vaddr"]) < names[at][1]
        big = int(segment["memsz"]) >= ARRAY_BYTES
        kind = names[at][2] if named else ("anonymous, 1 MiB and more" if big else "anonymous, small")
        parts += [(a, b, kind) for a, b, _ in _data(fd, low, high)] if high > low else []
    source = _extents(path, "core", fd, parts, size, page_size, grid)
    source.holes = max(0, int(load["filesz"].sum()) // page_size - len(source) - missing // page_size)
    source.tail_bytes = 0
    if missing:
        source.notes.append(f"{path}: truncated: {missing} bytes of its segments are missing; the rest was scanned")
    return source


def _qcow(path: str, fd: int, page_size: int) -> Source:
    tool = shutil.which("qemu-img")
    if tool is None:
        raise UsageError(f"{path}: is a qcow2 image, which needs qemu-img (package qemu-utils)")
    name = f"./{path}" if not path.startswith(("/", "./")) else path

    def run(*args: str, seconds: int) -> str:
        try:
            done = subprocess.run([tool, *args], capture_output=True, text=True, timeout=seconds, errors="replace")
        except subprocess.TimeoutExpired:
            raise UsageError(f"{path}: qemu-img took more than {seconds} s") from None
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise UsageError(f"{path}: qemu-img cannot read it: {reason.removeprefix('qemu-img: ')}")
        return done.stdout

    guest = run("map", "-U", "--output=json", "-f", "qcow2", name, seconds=QEMU_MAP_SECONDS)
    rows = json.loads(guest)
    data = [row for row in rows if row["data"] and not row["zero"]]
    here = os.path.realpath(path)
    direct = all(
        "offset" in row
        and row.get("depth", 0) == 0
        and os.path.realpath(row.get("filename", path)) == here
        and row["start"] % page_size == 0
        and row["length"] % page_size == 0
        for row in data
    )
    total = max((row["start"] + row["length"] for row in rows), default=0)
    temporary = None
    if not direct:  # compressed clusters or a backing file: unpacked for the time of the scan
        temporary = tempfile.TemporaryDirectory(prefix="pageone-scan-")
        try:
            unpacked = os.path.join(temporary.name, "image.raw")
            run("convert", "-U", "-f", "qcow2", "-O", "raw", name, unpacked, seconds=QEMU_CONVERT_SECONDS)
            raw = os.open(unpacked, os.O_RDONLY | os.O_CLOEXEC)
        except BaseException:
            temporary.cleanup()
            raise
        os.close(fd)
        size = os.lseek(raw, 0, os.SEEK_END)
        source = _extents(path, "qcow2", raw, _data(raw, 0, size), size, page_size)
        source._temporary = temporary
        return source
    # Clusters lie in the file in another order than in the guest: pages are numbered in the guest's order.
    size = os.lseek(fd, 0, os.SEEK_END)
    lost = sum(row["length"] for row in data if row["offset"] + row["length"] > size)
    data = [row for row in data if row["offset"] + row["length"] <= size]
    count = np.array([row["length"] // page_size for row in data], np.int64)
    source = Source(
        name=path,
        kind="qcow2",
        page_size=page_size,
        pid=None,
        start=np.array([row["offset"] for row in data], np.uint64),
        pages=count,
        region=np.zeros(len(data), np.uint32),
        huge=np.zeros(len(data), bool),
        regions=[Region("data", "data", True)],
        holes=max(0, (total - lost) // page_size - int(count.sum())),
        fd=fd,
    )
    if lost:
        source.notes.append(f"{path}: truncated: {lost} bytes of its clusters are missing; the rest was scanned")
    return source

"""What this kernel, machine and user can do, found by trying it, and how to enable what is missing.

For: ``pageone doctor``, tests that must know what to expect, and people in front of an error. Each probe tries the
thing itself on this process or on a child of its own (a version number proves nothing in a container); none changes
anything. It calls the standard library only, so that it works where the native core does not load.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import platform
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pageone import procfs

__all__ = ["Diagnosis", "Finding", "diagnose"]

State = Literal["ok", "limited", "missing"]

_PAGE = mmap.PAGESIZE
_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_libc.ptrace.restype = ctypes.c_long

# System call numbers: the same on every architecture that has pidfd_getfd; userfaultfd differs.
_SYS_PIDFD_OPEN = 434
_SYS_PIDFD_GETFD = 438
_SYS_USERFAULTFD = {"x86_64": 323, "aarch64": 282}
_SYS_KCMP = {"x86_64": 312, "aarch64": 272}
_KCMP_VM = 1
_SYS_PROCESS_VM_READV = {"x86_64": 310, "aarch64": 270}

_PTRACE_SEIZE = 0x4206
_PTRACE_DETACH = 17
_PTRACE_INTERRUPT = 0x4207

_UFFD_USER_MODE_ONLY = 1
_UFFD_API = 0xAA
_UFFDIO_API = 0xC018AA3F
_UFFD_FEATURES = {
    "PAGEFAULT_FLAG_WP": 1 << 0,
    "EVENT_FORK": 1 << 1,
    "EVENT_REMAP": 1 << 2,
    "EVENT_REMOVE": 1 << 3,
    "EVENT_UNMAP": 1 << 6,
    "WP_HUGETLBFS_SHMEM": 1 << 12,
    "WP_UNPOPULATED": 1 << 13,
    "WP_ASYNC": 1 << 15,
}
_UFFD_NEEDED = ("PAGEFAULT_FLAG_WP", "EVENT_REMOVE", "WP_HUGETLBFS_SHMEM", "WP_UNPOPULATED", "WP_ASYNC")

_PAGEMAP_SCAN = 0xC0606610  # _IOWR('f', 16, struct pm_scan_arg), 12 words of 8 bytes
_PAGE_IS_PRESENT = 1 << 3

_CAP_SYS_ADMIN = 21

#: Below this many mappings a target soon runs out of them: merging splits mappings.
_FEW_MAPPINGS = 65530


@dataclass(frozen=True)
class Finding:
    """One thing looked at.

    ``state``: "ok"; "limited" (works, with what ``follows`` says); "missing" (what ``follows`` says cannot be done).
    ``enable`` says how to get it, and is empty where nothing need or can be done. ``needed`` tells whether merging
    is impossible without it.
    """

    name: str
    state: State
    value: str
    follows: str
    enable: str = ""
    needed: bool = False


@dataclass(frozen=True)
class Diagnosis:
    """All findings, and what they come to."""

    kernel: str
    machine: str
    uid: int
    merge_own: bool  #: this user can have processes of their own merged
    merge_any: bool  #: this user can have processes of any user merged
    findings: tuple[Finding, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return plain types, ready for JSON."""
        return asdict(self)

    def finding(self, name: str) -> Finding:
        """Return the finding of that name; ``KeyError`` if there is none."""
        for finding in self.findings:
            if finding.name == name:
                return finding
        raise KeyError(name)


def diagnose() -> Diagnosis:
    """Try everything and return what was found. Takes some 50 ms (it starts one child) and changes nothing."""
    probes: tuple[Callable[[], Finding], ...] = (
        _architecture,
        _kernel,
        _pagemap_scan,
        _userfaultfd,
        _ptrace_scope,
        _stop_and_read,
        _pool,
        _kcmp,
        _max_map_count,
        _huge_pages,
        _ksm,
        _overcommit,
        _proc_visible,
    )
    findings = tuple(probe() for probe in probes)
    own = all(f.state != "missing" for f in findings if f.needed)
    return Diagnosis(
        kernel=platform.release(),
        machine=platform.machine(),
        uid=os.geteuid(),
        merge_own=own,
        merge_any=own and procfs.capable(procfs.CAP_SYS_PTRACE),
        findings=findings,
    )


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None


def _syscall(number: int, *args: Any) -> int:
    """Make a system call; raise ``OSError`` on failure."""
    result = int(_libc.syscall(ctypes.c_long(number), *args))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def _architecture() -> Finding:
    machine = platform.machine()
    if machine == "x86_64" and _PAGE == 4096:
        return Finding("architecture", "ok", machine, "complete", needed=True)
    return Finding(
        "architecture",
        "missing",
        f"{machine}, pages of {_PAGE} bytes",
        "merging is complete on x86_64 with pages of 4096 bytes only; pageone.one works everywhere",
        needed=True,
    )


def _kernel() -> Finding:
    release = platform.release()
    try:
        major, minor = (int(part) for part in release.split(".")[:2])
    except ValueError:
        return Finding("kernel", "limited", release, "version not understood; the probes below decide")
    if (major, minor) >= (6, 7):
        return Finding("kernel", "ok", release, "has PAGEMAP_SCAN and WP_ASYNC")
    return Finding(
        "kernel",
        "missing",
        release,
        "written pages cannot be told without reading all contents: merging is refused",
        "Linux 6.7 or newer (Debian 12: the kernel of bookworm-backports)",
    )


def _pagemap_scan() -> Finding:
    name, value = "PAGEMAP_SCAN", "works"
    memory = mmap.mmap(-1, 4 * _PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    try:
        memory[2 * _PAGE] = 1
        start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        regions = ctypes.create_string_buffer(4 * 24)
        argument = bytearray(
            struct.pack(
                "12Q",
                *(96, 0, start, start + 4 * _PAGE, 0, ctypes.addressof(regions), 4),
                *(0, 0, _PAGE_IS_PRESENT, 0, _PAGE_IS_PRESENT),
            )
        )
        with open("/proc/self/pagemap", "rb") as pagemap:
            found = fcntl.ioctl(pagemap, _PAGEMAP_SCAN, argument)
        first = struct.unpack_from("3Q", regions)[:2]
        if found == 1 and first == (start + 2 * _PAGE, start + 3 * _PAGE):
            return Finding(name, "ok", value, "written pages are found without reading contents", needed=True)
        value = f"answered {found} ranges where one was right"
    except OSError as error:
        value = error.strerror or str(error)
    return Finding(
        name,
        "missing",
        value,
        "written pages cannot be told without reading all contents: merging is refused",
        "Linux 6.7 or newer, CONFIG_PROC_PAGE_MONITOR=y",
        needed=True,
    )


def _userfaultfd() -> Finding:
    name = "userfaultfd"
    number = _SYS_USERFAULTFD.get(platform.machine())
    if number is None:
        return Finding(name, "missing", "number of the system call not known here", "no merging", needed=True)

    def open_uffd(flags: int) -> int:
        return _syscall(number, ctypes.c_int(flags | os.O_CLOEXEC | os.O_NONBLOCK))

    mode, fd = "all modes", -1
    try:
        try:
            fd = open_uffd(0)
        except PermissionError:
            mode, fd = "user mode only", open_uffd(_UFFD_USER_MODE_ONLY)
        answer = bytearray(struct.pack("3Q", _UFFD_API, 0, 0))
        fcntl.ioctl(fd, _UFFDIO_API, answer)
        features = struct.unpack("3Q", answer)[1]
    except OSError as error:
        return Finding(
            name,
            "missing",
            error.strerror or str(error),
            "writes cannot be tracked: merging is refused",
            "a kernel with CONFIG_USERFAULTFD=y; in a container, a seccomp profile that allows userfaultfd",
            needed=True,
        )
    finally:
        if fd >= 0:
            os.close(fd)
    lacking = [f for f in _UFFD_NEEDED if not features & _UFFD_FEATURES[f]]
    if lacking:
        return Finding(
            name,
            "missing",
            f"{mode}, without {', '.join(lacking)}",
            "merged ranges cannot be tracked and guarded: merging is refused",
            "Linux 6.7 or newer, x86_64, CONFIG_PTE_MARKER_UFFD_WP=y",
            needed=True,
        )
    value = f"{mode}, WP_ASYNC, EVENT_REMOVE"
    if mode == "all modes":
        return Finding(name, "ok", value, "writes are tracked and merged ranges guarded", needed=True)
    return Finding(
        name,
        "ok",
        value,
        "enough for merging: WP_ASYNC never makes a fault wait for us",
        "nothing to do (sysctl vm.unprivileged_userfaultfd=1 would allow all modes)",
        needed=True,
    )


def _ptrace_scope() -> Finding:
    name = "ptrace scope"
    text = _read("/proc/sys/kernel/yama/ptrace_scope")
    privileged = procfs.capable(procfs.CAP_SYS_PTRACE)
    who = "processes of every user" if privileged else "processes of this user"
    if text is None:
        return Finding(name, "ok", "no Yama", f"{who} can be merged")
    meanings = {"0": "classic", "1": "descendants only", "2": "administrators only", "3": "nobody"}
    value = f"{text} ({meanings.get(text, 'unknown')})"
    enable = "sysctl kernel.yama.ptrace_scope=0, or run as root"
    if text == "0" or (privileged and text in ("1", "2")):
        return Finding(name, "ok", value, f"{who} can be merged")
    if text == "1":
        return Finding(
            name,
            "limited",
            value,
            "only programs started with `pageone run` can be merged, not running ones by PID",
            enable,
        )
    if text == "2":
        return Finding(name, "missing", value, "this user cannot merge any process", enable, needed=True)
    return Finding(
        name,
        "missing",
        value,
        "no process can be merged by anyone",
        "boot without it: the value 3 cannot be lowered while the system runs",
        needed=True,
    )


def _stop_and_read() -> Finding:
    """Seize a child, read its memory, take a descriptor of it: the calls that merging makes on a target."""
    name = "stop and read"
    child = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", "import sys; sys.stdin.read()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    step = ""
    try:
        step = "process_vm_readv"
        _read_remote(child.pid, procfs.first_mapping(child.pid))
        step = "ptrace"
        _ptrace(_PTRACE_SEIZE, child.pid)
        _ptrace(_PTRACE_INTERRUPT, child.pid)
        os.waitpid(child.pid, 0x40000000)  # __WALL
        _ptrace(_PTRACE_DETACH, child.pid)
        step = "pidfd_getfd"
        pidfd = _syscall(_SYS_PIDFD_OPEN, ctypes.c_int(child.pid), ctypes.c_uint(0))
        try:
            os.close(_syscall(_SYS_PIDFD_GETFD, ctypes.c_int(pidfd), ctypes.c_int(0), ctypes.c_uint(0)))
        finally:
            os.close(pidfd)
    except OSError as error:
        return Finding(
            name,
            "missing",
            f"{step}: {error.strerror}",
            "a target cannot be stopped and changed: merging is refused",
            "in a container, a seccomp profile that allows it (docker run --cap-add SYS_PTRACE)",
            needed=True,
        )
    finally:
        child.kill()
        child.communicate()
    return Finding(
        name,
        "ok",
        "ptrace, process_vm_readv, pidfd_getfd",
        "a target can be stopped, read, changed",
        needed=True,
    )


def _ptrace(request: int, pid: int) -> None:
    if _libc.ptrace(ctypes.c_long(request), ctypes.c_int(pid), None, None) < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def _read_remote(pid: int, address: int) -> None:
    number = _SYS_PROCESS_VM_READV.get(platform.machine())
    if number is None:
        raise OSError(errno.ENOSYS, "number of process_vm_readv not known here")
    buffer = ctypes.create_string_buffer(16)
    local = struct.pack("QQ", ctypes.addressof(buffer), 16)
    remote = struct.pack("QQ", address, 16)
    one, none = ctypes.c_ulong(1), ctypes.c_ulong(0)
    _syscall(number, ctypes.c_int(pid), local, one, remote, one, none)


#: Mounts a file system in a mount namespace of its own, by a user namespace where need be, as the guardian does.
_MOUNTING = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
NEWNS, NEWUSER = 0x20000, 0x10000000
ok = not libc.unshare(NEWNS) or not libc.unshare(NEWNS | NEWUSER)
context = libc.syscall(430, b"tmpfs", 1) if ok else -1
ok = context >= 0 and not libc.syscall(431, context, 6, None, None, 0) and libc.syscall(432, context, 1, 0) >= 0
raise SystemExit(0 if ok else ctypes.get_errno() or 1)
"""


def _pool() -> Finding:
    name = "pool"
    code = subprocess.run(
        [sys.executable, "-I", "-S", "-c", _MOUNTING], stdin=subprocess.DEVNULL, capture_output=True
    ).returncode
    if code:
        return Finding(
            name,
            "limited",
            f"a memory file: no file system can be mounted ({os.strerror(code)})",
            "who owns the engine and gets hold of a descriptor of the frames could write them (SECURITY.md)",
            "user namespaces for this user: sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone, "
            "kernel.apparmor_restrict_unprivileged_userns",
        )
    follows = "no descriptor of the frames, whoever gets hold of it, can come to write them"
    return Finding(name, "ok", "a file system of its own", follows)


def _kcmp() -> Finding:
    name = "kcmp"
    number, me = _SYS_KCMP.get(platform.machine()), os.getpid()
    lack = f"not known for {platform.machine()}" if number is None else None
    if number is not None:
        try:
            _syscall(number, *map(ctypes.c_long, (me, me, _KCMP_VM, 0, 0)))
        except OSError as error:
            lack = error.strerror or str(error)
    if lack:
        return Finding(
            name,
            "missing",
            lack,
            "another process might run on in memory that is being merged: merging is refused",
            "CONFIG_KCMP=y; in a container, a seccomp profile that allows kcmp",
            needed=True,
        )
    return Finding(name, "ok", "there", "processes that share memory are told from each other", needed=True)


def _max_map_count() -> Finding:
    name = "max_map_count"
    text = _read("/proc/sys/vm/max_map_count")
    if text is None:
        return Finding(name, "limited", "unknown", "the budget of mappings a target falls back to 65,530")
    value = int(text)
    follows = "each run of merged pages takes a mapping; a target's budget is a share of this"
    if value >= _FEW_MAPPINGS:
        return Finding(
            name,
            "ok",
            f"{value:,}",
            follows,
            "to merge more scattered pages: sysctl vm.max_map_count=1048576",
        )
    return Finding(name, "limited", f"{value:,}", follows, "sysctl vm.max_map_count=65530 or more")


def _selected(text: str | None) -> str | None:
    """Return the word in brackets of a sysfs choice such as ``always [madvise] never``."""
    if text is None or "[" not in text:
        return text
    return text[text.index("[") + 1 : text.index("]")]


def _huge_pages() -> Finding:
    name = "transparent huge pages"
    mode = _selected(_read("/sys/kernel/mm/transparent_hugepage/enabled"))
    if mode is None:
        return Finding(name, "ok", "not in this kernel", "every page can be merged by itself")
    if mode == "always":
        return Finding(
            name,
            "limited",
            mode,
            "a huge page is split only when enough of it is duplicate or zero; the rest stays unmerged",
            "to merge more: echo madvise > /sys/kernel/mm/transparent_hugepage/enabled (needs root)",
        )
    return Finding(name, "ok", mode, "only memory that asks for huge pages has them (numpy's large arrays do)")


def _ksm() -> Finding:
    name = "KSM"
    run = _read("/sys/kernel/mm/ksm/run")
    if run is None:
        return Finding(
            name,
            "limited",
            "not in this kernel",
            "no comparison with the kernel's own merging",
            "CONFIG_KSM=y",
        )
    if run == "1":
        shared = _read("/sys/kernel/mm/ksm/pages_sharing")
        return Finding(
            name,
            "limited",
            f"running, {shared} pages sharing",
            "both may merge the same memory; pages that KSM has merged are read but not merged again",
            "echo 0 > /sys/kernel/mm/ksm/run stops it (needs root)",
        )
    return Finding(name, "ok", "there, not running", "can be compared with; does not interfere")


def _overcommit() -> Finding:
    name = "overcommit"
    mode = _read("/proc/sys/vm/overcommit_memory")
    if mode == "2":
        return Finding(
            name,
            "limited",
            "2 (strict)",
            "merged private mappings still count against the commit limit: no room is gained in it",
            "sysctl vm.overcommit_memory=0",
        )
    return Finding(name, "ok", mode or "unknown", "merged memory is room for others")


def _proc_visible() -> Finding:
    """Whether every process's maps can be seen: the proof that a frame is free rests on it."""
    name = "processes visible"
    for kind, _, place, options in procfs.mounts():
        if place == "/proc" and kind == "proc":
            hidden = [o for o in options if o.startswith("hidepid=") and o not in ("hidepid=0", "hidepid=off")]
            if hidden and not procfs.capable(procfs.CAP_SYS_PTRACE):
                return Finding(
                    name,
                    "limited",
                    hidden[0],
                    "processes that cannot be read keep frames from being freed",
                    "mount -o remount,hidepid=0 /proc, or run as root",
                )
    return Finding(name, "ok", "all of /proc", "frames are freed as soon as nobody maps them")

"""What /proc tells: the one place in Python where its files are read and parsed.

For: everybody. Standard library only, so that starting a program under PageONE stays quick. Functions take a PID and
return facts; what follows from them is the caller's. They raise the ``OSError`` of the system (``FileNotFoundError`` or
``ProcessLookupError`` where there is no such process, ``PermissionError`` where it may not be read) unless they
say otherwise. Mappings and pages are read by the native core (``pageone._native.mem``).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

PROC = Path("/proc")
CAP_SYS_PTRACE = 19
_PF_KTHREAD = 0x00200000


class Stat(NamedTuple):
    """What ``/proc/PID/stat`` says that we want to know."""

    name: str
    state: str  #: one letter: ``Z`` and ``X`` have ended
    parent: int
    kernel: bool  #: a thread of the kernel, which has no memory of its own
    cpu_ticks: int  #: used so far, of ``SC_CLK_TCK`` a second
    start_ticks: int  #: since boot; with the PID it names a process for good


def _stat_text(pid: int) -> bytes:
    # Not by Path: this is asked of every process of the machine at each scan for uses of frames.
    with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
        return file.read()


def stat(pid: int) -> Stat:
    """Return the state of a process or thread."""
    text = _stat_text(pid)
    end = text.rindex(b")")  # the name may hold any byte, so also ") "
    rest = text[end + 2 :].split()
    return Stat(
        name=text[text.index(b"(") + 1 : end].decode(errors="replace"),
        state=rest[0].decode(),
        parent=int(rest[1]),
        kernel=bool(int(rest[6]) & _PF_KTHREAD),
        cpu_ticks=int(rest[11]) + int(rest[12]),
        start_ticks=int(rest[19]),
    )


def identity(pid: int) -> int | None:
    """Return the start time of a process in clock ticks since boot; None if it has ended, is a zombie, or is hidden.

    With the PID it names a process for good. It stays the same over ``exec``.
    """
    try:
        text = _stat_text(pid)
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None  # any other error is this process's own, and says nothing of that one
    rest = text[text.rindex(b")") + 2 :].split()
    return None if rest[0] in b"ZX" else int(rest[19])


def fields(text: str) -> dict[str, str]:
    """Return ``name: value`` lines, as in status, fdinfo, meminfo and smaps_rollup."""
    return {key: value.strip() for key, _, value in (line.partition(":") for line in text.splitlines())}


def status(pid: int | str) -> dict[str, str]:
    """Return the fields of ``/proc/PID/status``."""
    return fields(Path(f"/proc/{pid}/status").read_text(errors="replace"))


def thread_status(pid: int, thread: int) -> dict[str, str]:
    """Return the fields of the status of one thread."""
    return fields(Path(f"/proc/{pid}/task/{thread}/status").read_text(errors="replace"))


def users(pid: int) -> set[int]:
    """Return the real, effective, saved and file system user of a process."""
    return {int(uid) for uid in status(pid)["Uid"].split()}


def user(pid: int) -> int:
    """Return the effective user of a process."""
    return os.stat(f"/proc/{pid}").st_uid


def held_by(pid: int) -> int:
    """Return the user who may look at a process's memory: root for one that protects itself from being traced."""
    return os.stat(f"/proc/{pid}/maps").st_uid


def shown(pid: int) -> bool:
    """Whether /proc shows a process to this user at all."""
    return os.path.exists(f"/proc/{pid}/stat")


def capable(capability: int) -> bool:
    """Whether this process holds a capability."""
    try:
        return bool(int(status("self")["CapEff"], 16) >> capability & 1)
    except (OSError, KeyError, ValueError):
        return False


def name(pid: int) -> str:
    """Return the short name of a process; ``""`` when it has gone."""
    try:
        return Path(f"/proc/{pid}/comm").read_text(errors="replace").strip()
    except OSError:
        return ""


def arguments(pid: int) -> list[bytes]:
    """Return the words of the command line of a process; none for kernel threads and zombies."""
    text = Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0")
    return text.split(b"\0") if text else []


def processes() -> list[int]:
    """Return the ids of all processes, in the order in which the kernel lists them: ascending."""
    return [int(entry) for entry in os.listdir("/proc") if entry.isdecimal()]


def threads(pid: int) -> list[int]:
    """Return the ids of the threads of a process."""
    return [int(entry) for entry in os.listdir(f"/proc/{pid}/task")]


def threads_left(pid: int) -> list[int]:
    """Return the ids of the threads of a process; none when it has ended or may not be read."""
    try:
        return threads(pid)
    except OSError:
        return []


def has_memory(pid: int, thread: int) -> bool:
    """Return whether a thread has memory: it leaves it early in its end. False where there is no such thread."""
    try:
        return not Path(f"/proc/{pid}/task/{thread}/statm").read_bytes().startswith(b"0 ")
    except OSError:
        return False


def children(pid: int) -> list[int]:
    """Return the children of all threads of a process; none when it has ended."""
    found: list[int] = []
    for thread in threads_left(pid):
        try:
            found += map(int, Path(f"/proc/{pid}/task/{thread}/children").read_text().split())
        except OSError:
            continue
    return found


def waiting_stack_pointers(pid: int) -> list[int]:
    """Return the stack pointers of the threads that wait in a system call: no thread is stopped for it."""
    found: list[int] = []
    for thread in threads_left(pid):
        try:
            found.append(int(Path(f"/proc/{pid}/task/{thread}/syscall").read_text().split()[-2], 16))
        except (OSError, ValueError, IndexError):
            continue
    return found


def descriptors(pid: int) -> Iterator[str]:
    """Yield what each open descriptor of a process leads to; those that may not be seen are left out."""
    try:
        numbers = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return
    for number in numbers:
        try:
            yield os.readlink(f"/proc/{pid}/fd/{number}")
        except OSError:
            continue


def descriptor_fields(pid: int) -> Iterator[dict[str, str]]:
    """Yield what the kernel says of each open descriptor of a process; those that may not be seen are left out."""
    for info in Path(f"/proc/{pid}/fdinfo").glob("*"):
        try:
            yield fields(info.read_text(errors="replace"))
        except OSError:
            continue  # closed meanwhile


def cpu_s(pid: int) -> float:
    """Return the CPU-seconds of a process's first thread, in nanoseconds where the kernel has that."""
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) * 1e-9
    except FileNotFoundError:
        return stat(pid).cpu_ticks / os.sysconf("SC_CLK_TCK")


# --- mappings -------------------------------------------------------------------------------------------------


def first_mapping(pid: int) -> int:
    """Return the address at which the lowest mapping of a process begins."""
    with open(f"/proc/{pid}/maps") as maps:
        return int(maps.readline().split("-")[0], 16)


def mapping_flags(pid: int) -> dict[int, frozenset[str]]:
    """Return the flags of each mapping by its start, from smaps. Cost: 0.3 µs a resident page, by the kernel."""
    return mapping_flags_in(Path(f"/proc/{pid}/smaps").read_text(errors="replace"))


def mapping_flags_in(text: str) -> dict[int, frozenset[str]]:
    """Return the flags of each mapping by its start from the text of smaps; ``key`` where a protection key is set."""
    # A mapping begins with a line of its addresses and ends with that of its flags.
    flags: dict[int, frozenset[str]] = {}
    head, *parts = text.split("\nVmFlags: ")
    for part in parts:
        its, _, behind = part.partition("\n")
        key = head.rpartition("\nProtectionKey:")[2] if "\nProtectionKey:" in head else "0"
        flags[int(head.partition("-")[0], 16)] = frozenset(its.split() + ["key"] * (key.strip() != "0"))
        head = behind
    return flags


def policies(pid: int) -> tuple[dict[int, str], str] | None:
    """Return the memory policy of each mapping by its start, and that of the process; None where there is none.

    Then the kernel has no policies, or the process has ended. Cost: as that of smaps.
    """
    try:
        lines = [line.split(maxsplit=2) for line in Path(f"/proc/{pid}/numa_maps").read_text().splitlines()]
    except OSError:
        return None
    its = next((line[1] for line in lines if " stack" in f" {line[-1]}"), "default")
    return {int(line[0], 16): line[1] for line in lines}, its


def smaps(pid: int) -> Iterator[tuple[int, int, dict[str, int]]]:
    """Yield start, end and the figures in bytes of each mapping. Cost: a walk of the process's page tables."""
    start = end = 0
    figures: dict[str, int] = {}
    for line in Path(f"/proc/{pid}/smaps").read_text(errors="replace").splitlines():
        first, *rest = line.split()
        if not first.endswith(":"):
            if end:
                yield start, end, figures
            low, _, high = first.partition("-")
            start, end, figures = int(low, 16), int(high, 16), {}
        elif rest[1:] == ["kB"]:
            figures[first[:-1]] = int(rest[0]) * 1024
    if end:
        yield start, end, figures


def memory_bytes(pid: int, figure: str) -> int | None:
    """Return a figure of the whole memory of a process (``Pss``, ``KSM`` …), bytes; None where the kernel has it not.

    Cost: a walk of its page tables.
    """
    its = fields(Path(f"/proc/{pid}/smaps_rollup").read_text()).get(figure)
    return int(its.split()[0]) * 1024 if its else None


def ksm_stat(pid: int) -> dict[str, str]:
    """Return the kernel's figures of its own merging in a process (``ksm_stat``)."""
    lines = (line.split() for line in Path(f"/proc/{pid}/ksm_stat").read_text().splitlines())
    return {line[0].rstrip(":"): line[-1] for line in lines if line}


def ksm_merging_pages(pid: int) -> int:
    """Return the pages of a process that map a frame of the kernel's own merging."""
    return int(Path(f"/proc/{pid}/ksm_merging_pages").read_text())


# --- control groups and mounts --------------------------------------------------------------------------------


class Group(NamedTuple):
    """A control group that a process is in."""

    hierarchy: int  #: 0 for version 2
    controllers: list[str]
    path: str


def groups(pid: int | str, proc: Path = PROC) -> list[Group]:
    """Return the control groups of a process."""
    found = []
    for line in (proc / str(pid) / "cgroup").read_text().splitlines():
        number, controllers, path = line.split(":", 2)
        found.append(Group(int(number), controllers.split(",") if controllers else [], path))
    return found


def mounts(proc: Path = PROC) -> Iterator[tuple[str, str, str, list[str]]]:
    """Yield ``(file system, what of it is mounted, where, its options)`` of each mount that this process sees."""
    for line in (proc / "self/mountinfo").read_text().splitlines():
        before, _, behind = line.partition(" - ")
        place, (kind, _, options) = before.split(), behind.split(" ", 2)
        yield kind, place[3], place[4], options.split(",")


class Mount(NamedTuple):
    """A mount that this process sees."""

    device: str  #: the device of its file system, as ``major:minor``
    kind: str  #: such as ``xfs``
    place: str  #: where it is mounted


def mount_of(descriptor: int) -> Mount | None:
    """Return the mount that an open descriptor of this process lies in; none if it is not in sight."""
    number = fields(Path(f"/proc/self/fdinfo/{descriptor}").read_text())["mnt_id"]
    for line in (PROC / "self/mountinfo").read_text().splitlines():
        before, _, behind = line.partition(" - ")
        words = before.split()
        if words[0] == number:
            return Mount(words[2], behind.split(" ", 1)[0], words[4])
    return None


# --- the system -----------------------------------------------------------------------------------------------


def last_id() -> int:
    """Return the id that was given to a new thread or process last: they ascend until they begin from the start."""
    with open("/proc/loadavg", "rb", buffering=0) as file:
        return int(file.read().split()[-1])


def max_map_count() -> int:
    """Return ``vm.max_map_count``, the most mappings of a process; the kernel's default where it is not told."""
    try:
        return int(Path("/proc/sys/vm/max_map_count").read_text())
    except (OSError, ValueError):
        return 65530


def ptrace_scope() -> int:
    """Return Yama's ptrace scope; 0 without Yama."""
    try:
        return int(Path("/proc/sys/kernel/yama/ptrace_scope").read_text())
    except OSError:
        return 0


def available_bytes() -> int:
    """Return the memory that the system could give out now (``MemAvailable``), bytes."""
    return int(fields(Path("/proc/meminfo").read_text())["MemAvailable"].split()[0]) * 1024


def cpuinfo(field: str) -> str:
    """Return a field of the first processor, such as ``model name``; ``""`` where there is none."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == field), "")


def vmstat(counter: str) -> int:
    """Return a counter of the kernel's memory management; 0 where there is none of this name."""
    lines = (line.split() for line in Path("/proc/vmstat").read_text().splitlines())
    return next((int(value) for key, value in lines if key == counter), 0)


def memory_nodes() -> int:
    """Return the number of memory nodes (NUMA) that are online, one at least; from /sys."""
    return max(1, len(list(Path("/sys/devices/system/node").glob("node[0-9]*"))))

"""What cannot be a target is refused from /proc alone, with the cause, before it is touched."""

from __future__ import annotations

import os
import platform
import re
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pageone import doctor, procfs
from pageone.errors import BadTargetError, TargetError, UnsupportedError
from pageone.live import preflight

SLEEP = "import sys; print('ready', flush=True); sys.stdin.read()"

SECCOMP = """
import ctypes, struct, sys
libc = ctypes.CDLL(None)
libc.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
allow = struct.pack("HBBI", 0x06, 0, 0, 0x7FFF0000)  # BPF_RET | BPF_K, SECCOMP_RET_ALLOW
code = ctypes.create_string_buffer(allow)
program = struct.pack("HxxxxxxQ", 1, ctypes.addressof(code))
assert libc.prctl(22, 2, program, 0, 0) == 0  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER
print("ready", flush=True)
sys.stdin.read()
"""

SECCOMP_IN_A_THREAD = (
    """
import threading
def install():
"""
    + "\n".join("    " + line for line in SECCOMP.strip().splitlines())
    + """
threading.Thread(target=install).start()
"""
)

TRACER = """
import ctypes, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
assert libc.ptrace(0x4206, int(sys.argv[1]), None, None) == 0, ctypes.get_errno()  # PTRACE_SEIZE
print("ready", flush=True)
sys.stdin.read()
"""


def state_of(pid: int) -> str:
    return procfs.stat(pid).state


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def ready(process: subprocess.Popen[str]) -> int:
    assert process.stdout
    assert process.stdout.readline() == "ready\n", process.stderr and process.stderr.read()
    return process.pid


def test_an_ordinary_process_passes_and_its_facts_are_told(spawn: Any) -> None:
    pid = ready(spawn.python(SLEEP))
    facts = preflight.check(pid)
    assert (facts.pid, facts.uid, facts.threads) == (pid, os.getuid(), 1)
    assert facts == preflight.check(pid)


@pytest.mark.parametrize("pid", [0, -1])
def test_a_number_that_is_no_process_id_is_refused(pid: int) -> None:
    with pytest.raises(BadTargetError, match="not a process id"):
        preflight.check(pid)


def test_a_process_that_has_gone_is_refused(spawn: Any) -> None:
    process = spawn(["true"])
    process.wait()
    with pytest.raises(BadTargetError, match=f"PID {process.pid}: there is no such process"):
        preflight.check(process.pid)


def test_a_zombie_is_refused(spawn: Any) -> None:
    process = spawn.python("import os, sys\npid = os.fork()\npid or os._exit(0)\nprint(pid)\nsys.stdin.read()")
    zombie = int(process.stdout.readline())
    wait_until(lambda: state_of(zombie) == "Z")
    with pytest.raises(BadTargetError, match="is a zombie"):
        preflight.check(zombie)


def test_a_kernel_thread_is_refused() -> None:
    for entry in sorted(int(p) for p in os.listdir("/proc") if p.isdigit()):
        try:
            is_kernel = procfs.stat(entry).kernel
        except OSError:
            continue
        if is_kernel:
            with pytest.raises(BadTargetError, match="thread of the kernel"):
                preflight.check(entry)
            return
    pytest.skip("no thread of the kernel is visible in this PID namespace")


def test_pageone_itself_is_refused(spawn: Any) -> None:
    with pytest.raises(BadTargetError, match="PageONE itself"):
        preflight.check(os.getpid())
    guardian = ready(spawn.python(SLEEP))
    with pytest.raises(BadTargetError, match="PageONE itself"):
        preflight.check(guardian, ours={guardian})


def test_the_id_of_a_thread_is_refused_with_the_process_to_give(spawn: Any) -> None:
    process = spawn.python(
        "import threading, sys\nthreading.Thread(target=sys.stdin.read, daemon=True).start()\n"
        "print('ready', flush=True)\nthreading.Event().wait()"
    )
    pid = ready(process)
    thread = next(int(t) for t in os.listdir(f"/proc/{pid}/task") if int(t) != pid)
    with pytest.raises(BadTargetError, match=f"is a thread of process {pid}"):
        preflight.check(thread)


@pytest.mark.needs("root")
def test_another_users_process_is_refused_to_an_ordinary_user(spawn: Any, as_user: Any) -> None:
    pid = ready(spawn.python(SLEEP))
    done = as_user.run("-c", f"from pageone.live import preflight; preflight.check({pid})")
    assert f"PID {pid}" in done.stderr
    assert "belongs to another user" in done.stderr
    theirs = ready(spawn([as_user.python, "-c", SLEEP], **as_user.identity))
    assert preflight.check(theirs).uid == as_user.uid


def test_a_process_that_is_not_dumpable_is_refused_to_an_ordinary_user(spawn: Any, as_user: Any) -> None:
    code = "import ctypes; ctypes.CDLL(None).prctl(4, 0, 0, 0, 0); " + SLEEP  # PR_SET_DUMPABLE
    pid = ready(spawn([as_user.python, "-c", code], **as_user.identity))
    done = as_user.run("-c", f"from pageone.live import preflight; preflight.check({pid})")
    assert "not dumpable" in done.stderr


@pytest.mark.needs("ptrace")
def test_a_process_under_another_tracer_is_refused_and_the_tracer_named(spawn: Any) -> None:
    target = ready(spawn.python(SLEEP))
    tracer = ready(spawn.python(TRACER, str(target)))
    with pytest.raises(TargetError, match=f"traced by PID {tracer}"):
        preflight.check(target)


@pytest.mark.parametrize("code", [SECCOMP, SECCOMP_IN_A_THREAD], ids=["process", "one thread"])
def test_a_process_under_seccomp_is_refused(spawn: Any, code: str) -> None:
    pid = ready(spawn.python(code))
    with pytest.raises(TargetError, match=r"under seccomp \(filter mode\)"):
        preflight.check(pid)


def elf32() -> bytes:
    """Return a whole 32-bit program: int 0x80 with eax = 29 (pause), for ever."""
    code = bytes.fromhex("b81d000000cd80ebf7")
    base, head = 0x08048000, 52 + 32
    header = b"\x7fELF\x01\x01\x01" + bytes(9)
    header += struct.pack("<HHIIIIIHHHHHH", 2, 3, 1, base + head, 52, 0, 0, 52, 32, 1, 0, 0, 0)
    segment = struct.pack("<8I", 1, 0, base, base, head + len(code), head + len(code), 5, 0x1000)
    return header + segment + code


def test_a_32_bit_program_is_refused(spawn: Any, tmp_path: Path) -> None:
    program = tmp_path / "pause32"
    program.write_bytes(elf32())
    program.chmod(0o755)
    try:
        process = spawn([program])
    except OSError as error:
        pytest.skip(f"this kernel runs no 32-bit programs: {error}")
    with pytest.raises(UnsupportedError, match="is a 32-bit program"):
        preflight.check(process.pid)


@pytest.mark.parametrize(
    ("scope", "declared", "words"),
    [
        (1, False, "only programs started by `pageone run`"),
        (1, True, None),
        (2, False, "ptrace scope is 2"),
        (3, False, "ptrace scope is 3"),
    ],
)
def test_ptrace_scope_decides_for_a_user_without_the_capability(
    monkeypatch: pytest.MonkeyPatch, scope: int, declared: bool, words: str | None
) -> None:
    monkeypatch.setattr(procfs, "ptrace_scope", lambda: scope)
    monkeypatch.setattr(procfs, "capable", lambda capability: False)
    parent = os.getppid()
    if procfs.status(parent)["Uid"] != procfs.status(os.getpid())["Uid"]:
        pytest.skip("the parent of this process is another user's")
    status = procfs.status(parent)
    if words is None:
        preflight._check_rights(parent, "x", status, declared=declared)
    else:
        with pytest.raises((TargetError, UnsupportedError), match=words):
            preflight._check_rights(parent, "x", status, declared=declared)


def test_a_child_may_be_merged_under_ptrace_scope_1(spawn: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(procfs, "ptrace_scope", lambda: 1)
    monkeypatch.setattr(procfs, "capable", lambda capability: False)
    pid = ready(spawn.python(SLEEP))
    assert preflight.check(pid).pid == pid


def test_a_kernel_too_old_is_refused_with_the_remedy_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    def lacking() -> doctor.Diagnosis:
        finding = doctor.Finding("PAGEMAP_SCAN", "missing", "Inappropriate ioctl", "no", "Linux 6.7", needed=True)
        return doctor.Diagnosis("6.1", "x86_64", 0, False, False, (finding,))

    monkeypatch.setattr(preflight, "diagnose", lacking)
    with pytest.raises(UnsupportedError, match=r"PAGEMAP_SCAN.*Linux 6\.7"):
        preflight.check_system()


@pytest.mark.needs("merge")
def test_this_system_passes_where_the_doctor_says_that_it_can_merge() -> None:
    preflight.check_system()


def test_a_check_touches_nothing(spawn: Any) -> None:
    pid = ready(spawn.python(SLEEP))

    def status() -> list[str]:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        # It may just be on its way to sleep, with its last pages to touch. SigQ counts those of all processes.
        return [line for line in lines if not re.match(r"State|.*ctxt|VmRSS|Rss|VmHWM|VmPTE|SigQ", line)]

    before = status()
    for _ in range(20):
        preflight.check(pid)
    assert status() == before


#: Forbids kcmp (312 on x86-64) for itself and all its children, and attaches to a process of its own.
WITHOUT_KCMP = """
import ctypes, struct, subprocess, sys
from pageone.doctor import diagnose
from pageone.engine import Engine
from pageone.errors import TargetError
codes = [(0x20, 0, 0, 0), (0x15, 0, 1, 312), (0x06, 0, 0, 0x50001), (0x06, 0, 0, 0x7FFF0000)]
program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *code) for code in codes))
class Filter(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("codes", ctypes.c_void_p)]
target = subprocess.Popen(["sleep", "60"])
libc = ctypes.CDLL(None, use_errno=True)
word = ctypes.c_ulong
assert libc.prctl(38, word(1), word(0), word(0), word(0)) == 0
assert libc.prctl(22, word(2), ctypes.byref(Filter(len(codes), ctypes.addressof(program)))) == 0
try:
    with Engine() as engine:
        engine.attach(target.pid)
except TargetError as error:
    print(error)
finally:
    target.kill()
print(diagnose().finding("kcmp").state)
"""


@pytest.mark.needs("merge")
@pytest.mark.skipif(platform.machine() != "x86_64", reason="the filter knows the number of x86-64 only")
def test_where_sharers_of_memory_cannot_be_told_nothing_is_merged() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_KCMP], capture_output=True, text=True, timeout=60)
    refusal, finding = done.stdout.splitlines()
    assert "kcmp" in refusal
    assert finding == "missing"


def test_a_thread_with_a_shadow_stack_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    # No processor here has any: the line is as the kernel writes it on those that have.
    told = procfs.thread_status
    line = {"x86_Thread_features": "shstk wrss"}
    monkeypatch.setattr(procfs, "thread_status", lambda pid, thread: told(pid, thread) | line)
    with pytest.raises(UnsupportedError, match="shadow stack"):
        preflight._check_threads(os.getpid(), "x", ())
    line["x86_Thread_features"] = ""
    preflight._check_threads(os.getpid(), "x", ())

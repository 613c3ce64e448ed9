"""``pageone merge`` on real processes: bytes stay, errors are one line."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pageone.demo import Worker, WorkerSpec, start_workers

pytestmark = pytest.mark.needs("merge")

Run = Callable[..., subprocess.CompletedProcess[str]]

MIB = 1 << 20
SPEC = WorkerSpec(common=16 * MIB, own=2 * MIB, zeros=MIB)
COMMON_PAGES = 16 * MIB // 4096

SLEEP = "import sys; print('ready', flush=True); sys.stdin.read()"


@pytest.fixture
def pair() -> Iterator[list[Worker]]:
    with start_workers(SPEC, 2) as workers:
        yield workers


def pss(worker: Worker) -> int:
    text = Path(f"/proc/{worker.pid}/smaps_rollup").read_text()
    match = re.search(r"^Pss:\s+(\d+) kB", text, re.MULTILINE)
    assert match
    return int(match.group(1)) * 1024


def assert_one_line(done: subprocess.CompletedProcess[str], code: int, words: str) -> None:
    assert done.returncode == code, done
    assert words in done.stderr
    assert done.stderr.startswith("pageone: ")
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_merge_shares_what_is_equal_and_no_byte_changes(pair: list[Worker], pageone: Run) -> None:
    before = [worker.check() for worker in pair]
    size = sum(map(pss, pair))
    done = pageone("merge", "--json", *(str(worker.pid) for worker in pair))
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["targets"] == 2
    assert told["duplicate_pages"] >= 2 * COMMON_PAGES
    assert told["merged_pages"] >= 0.99 * told["duplicate_pages"]
    assert [worker.check() for worker in pair] == before
    assert sum(map(pss, pair)) < size - 0.9 * 16 * MIB
    for worker in pair:
        worker.write(500, seed=worker.number + 1)
    after = [worker.check() for worker in pair]
    assert after[0]["common"] != after[1]["common"]


def test_merged_processes_run_on_after_the_command_has_ended(pair: list[Worker], pageone: Run) -> None:
    done = pageone("merge", *(str(worker.pid) for worker in pair))
    assert done.returncode == 0, done.stderr
    assert "memory saved" in done.stdout
    for worker in pair:
        worker.ask("churn", part="common", seconds=0.5, pages=200, seed=9)
    assert [worker.answer()["wrong"] for worker in pair] == [0, 0]
    for worker in pair:
        worker.check()
        status = Path(f"/proc/{worker.pid}/status").read_text()
        assert "TracerPid:\t0" in status


def test_a_second_pass_over_the_same_processes_changes_no_byte(pair: list[Worker], pageone: Run) -> None:
    before = [worker.check() for worker in pair]
    pids = [str(worker.pid) for worker in pair]
    assert pageone("merge", *pids).returncode == 0
    second = pageone("merge", *pids)
    assert second.returncode in (0, 1), second.stderr
    assert [worker.check() for worker in pair] == before


def test_an_ordinary_user_merges_processes_of_his_own(as_user: Any) -> None:
    with start_workers(SPEC, 2, python=as_user.python, popen=as_user.identity) as workers:
        before = [worker.check() for worker in workers]
        merged, wanted, deadline = 0, 2 * COMMON_PAGES * 0.99, time.monotonic() + 60
        while merged < wanted:  # on a busy machine not every one stops in time at once
            done = as_user.pageone("merge", "--json", *(str(worker.pid) for worker in workers))
            assert done.returncode == 0 or merged, done.stderr
            told = json.loads(done.stdout)
            merged += told["merged_pages"]
            assert merged >= wanted or time.monotonic() < deadline, told
        assert [worker.check() for worker in workers] == before


def test_nothing_is_touched_when_one_of_the_processes_cannot_be_merged(pair: list[Worker], pageone: Run) -> None:
    maps = [Path(f"/proc/{worker.pid}/maps").read_text() for worker in pair]
    done = pageone("merge", *(str(worker.pid) for worker in pair), str(2**22 + 1))
    assert_one_line(done, 2, "there is no such process")
    assert [Path(f"/proc/{worker.pid}/maps").read_text() for worker in pair] == maps


@pytest.mark.parametrize(
    ("make", "code", "words"),
    [
        ("gone", 2, "there is no such process"),
        ("zombie", 2, "is a zombie"),
        ("kernel", 2, "thread of the kernel"),
        ("number", 2, "not a process id"),
        ("traced", 1, "is traced by PID"),
        ("seccomp", 1, "under seccomp"),
        ("32-bit", 1, "32-bit program"),
    ],
)
def test_what_cannot_be_merged_is_one_line_with_the_cause(
    make: str, code: int, words: str, spawn: Any, pageone: Run, tmp_path: Path
) -> None:
    pid = TARGETS[make](spawn, tmp_path)
    done = pageone("merge", "--", str(pid))
    assert_one_line(done, code, words)


@pytest.mark.needs("root")
def test_another_users_process_is_refused_in_one_line(pair: list[Worker], as_user: Any) -> None:
    done = as_user.pageone("merge", str(pair[0].pid))
    assert_one_line(done, 1, "belongs to another user")


@pytest.mark.needs("root")
def test_root_does_not_merge_processes_of_different_users_unless_told(
    pair: list[Worker], as_user: Any, pageone: Run
) -> None:
    with start_workers(SPEC, 1, python=as_user.python, popen=as_user.identity) as (theirs,):
        done = pageone("merge", str(pair[0].pid), str(theirs.pid))
        assert done.returncode == 1
        assert "one user only" in done.stderr
        pair[0].check()
        theirs.check()


@pytest.mark.parametrize("arguments", [("merge",), ("merge", "x"), ("merge", "--quiet", "-1", "1"), ("run",)])
def test_bad_arguments_end_with_2(pageone: Run, arguments: tuple[str, ...]) -> None:
    assert pageone(*arguments).returncode == 2


@pytest.mark.parametrize("delay", [0.15, 0.3, 0.5, 0.8, 1.2, 1.4, 1.5, 1.6, 1.8])
def test_ctrl_c_at_any_moment_leaves_every_process_running_with_the_right_bytes(
    pair: list[Worker], spawn: Any, delay: float
) -> None:
    before = [worker.check() for worker in pair]
    code = "from pageone.cli import main; main()"
    pids = [str(worker.pid) for worker in pair]
    process = spawn([sys.executable, "-c", code, "merge", "--quiet", "0.5", *pids])
    time.sleep(delay)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode in (0, 130, -signal.SIGINT), errors
    for worker in pair:
        worker.ask("churn", part="own", seconds=0.05, pages=10, seed=1)
        assert worker.answer(within_s=20)["wrong"] == 0
        assert Path(f"/proc/{worker.pid}/stat").read_text().rsplit(")", 1)[1].split()[0] in "SR"
    assert [worker.check()["common"] for worker in pair] == [crc["common"] for crc in before]


# --- targets that cannot be -----------------------------------------------------------------------------------


def ready(process: subprocess.Popen[str]) -> int:
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    return process.pid


def gone(spawn: Any, folder: Path) -> int:
    process = spawn(["true"])
    process.wait()
    return int(process.pid)


def zombie(spawn: Any, folder: Path) -> int:
    process = spawn.python("import os, sys\npid = os.fork()\npid or os._exit(0)\nprint(pid)\nsys.stdin.read()")
    pid = int(process.stdout.readline())
    while ") Z " not in Path(f"/proc/{pid}/stat").read_text():
        time.sleep(0.01)
    return pid


def kernel_thread(spawn: Any, folder: Path) -> int:
    for pid in filter(str.isdigit, os.listdir("/proc")):
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        if int(fields[6]) & 0x00200000:
            return int(pid)
    pytest.skip("no thread of the kernel is visible in this PID namespace")


def traced(spawn: Any, folder: Path) -> int:
    pid = ready(spawn.python(SLEEP))
    tracer = (
        "import ctypes, sys\nlibc = ctypes.CDLL(None)\n"
        "libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]\n"
        f"assert libc.ptrace(0x4206, {pid}, None, None) == 0\n" + SLEEP
    )
    ready(spawn.python(tracer))
    return pid


def seccomp(spawn: Any, folder: Path) -> int:
    code = (
        "import ctypes, struct, sys\nlibc = ctypes.CDLL(None)\nlibc.prctl(38, 1, 0, 0, 0)\n"
        "code = ctypes.create_string_buffer(struct.pack('HBBI', 6, 0, 0, 0x7FFF0000))\n"
        "assert libc.prctl(22, 2, struct.pack('HxxxxxxQ', 1, ctypes.addressof(code)), 0, 0) == 0\n" + SLEEP
    )
    return ready(spawn.python(code))


def program_of_32_bits(spawn: Any, folder: Path) -> int:
    head = bytes.fromhex("7f454c46010101000000000000000000") + bytes.fromhex(
        "02000300010000005480040834000000000000000000000034002000010000000000000001000000000000000080040800800408"
    )
    code = bytes.fromhex("b81d000000cd80ebf7")  # pause, for ever
    size = (52 + 32 + len(code)).to_bytes(4, "little")
    image = head + size + size + bytes.fromhex("0500000000100000") + code
    program = folder / "pause32"
    program.write_bytes(image)
    program.chmod(0o755)
    try:
        return int(spawn([program]).pid)
    except OSError as error:
        pytest.skip(f"this kernel runs no 32-bit programs: {error}")


TARGETS: dict[str, Callable[[Any, Path], int]] = {
    "gone": gone,
    "zombie": zombie,
    "kernel": kernel_thread,
    "number": lambda spawn, folder: -5,
    "traced": traced,
    "seccomp": seccomp,
    "32-bit": program_of_32_bits,
}

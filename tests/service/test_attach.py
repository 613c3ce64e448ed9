"""Running processes are attached, shown, detached; engines are stopped, and killed."""

from __future__ import annotations

import json
import os
import re
import signal
from typing import Any

import pytest

from .conftest import MIB, User, both, merged_bytes, pss, right, until, wait_periods

pytestmark = pytest.mark.needs("merge")

SIZE = 8 * MIB


def merged(*pids: int) -> bool:
    return all(merged_bytes(pid) > SIZE * 3 // 4 for pid in pids)


@both
def test_running_programs_are_merged_and_given_their_memory_back(user: User) -> None:
    first, second = user.work(SIZE, 1), user.work(SIZE, 1)
    done = user.run("attach", "--period", "0.1", str(first.pid), str(second.pid))
    assert (done.returncode, done.stdout) == (0, b"attached 2 processes\n"), done.stderr
    until(lambda: merged(first.pid, second.pid))
    small = pss(first.pid)
    done = user.run("detach", str(first.pid))
    assert (done.returncode, done.stdout) == (0, b"detached 1 process\n"), done.stderr
    assert merged_bytes(first.pid) == 0
    assert pss(first.pid) > small + SIZE // 4
    assert right(first)
    assert right(second)
    wait_periods(user, 5)
    assert merged_bytes(first.pid) == 0  # and it is followed no more
    assert user.run("detach", str(first.pid)).returncode == 2


def test_processes_are_chosen_by_their_command_line(user: User) -> None:
    first, second, other = user.work(SIZE, 1), user.work(SIZE, 1), user.work(SIZE, 2)
    done = user.run("attach", "--period", "0.1", "--match", rf"{user.worker} \d+ 1$")
    assert done.stdout == b"attached 2 processes\n", done.stderr
    until(lambda: merged(first.pid, second.pid))
    assert {t["pid"] for t in user.status()[0]["targets"]} == {first.pid, second.pid}
    assert other.pid
    assert user.run("attach", "--match", "no such command").returncode == 2
    assert user.run("attach", "--match", "(").returncode == 2
    assert user.run("attach").returncode == 2
    assert user.run("attach", "--user", "no-such-user").returncode == 2


@pytest.mark.root
def test_root_attaches_a_users_processes_in_a_domain_of_that_users(user: User, as_user) -> None:  # type: ignore[no-untyped-def]
    own = user.work(SIZE, 1)
    theirs = [user.start(as_user.python, user.worker, str(SIZE), "1", **as_user.identity) for _ in range(2)]
    for process in theirs:
        assert process.stdout
        process.stdout.readline()
    assert user.run("attach", "--period", "0.1", str(own.pid)).returncode == 0
    done = user.run("attach", "--period", "0.1", "--user", str(as_user.uid), "--match", re.escape(str(user.worker)))
    assert done.returncode == 0, done.stderr
    until(lambda: merged(*(p.pid for p in theirs)))
    assert merged_bytes(own.pid) < SIZE // 4
    engines = {e["name"]: {t["pid"] for t in e["targets"]} for e in user.status()}
    assert engines == {"uid-0": {own.pid}, f"uid-{as_user.uid}": {p.pid for p in theirs}}
    # Nor in a domain that was named: root's memory is never shared with others'.
    done = user.run("attach", "--domain", "all", str(theirs[0].pid))
    mixed = user.work(SIZE, 1)
    user.run("run", "--domain", "mixed", "--", "true")
    assert user.run("attach", "--domain", "mixed", str(mixed.pid)).returncode == 0
    other = user.start(as_user.python, user.worker, str(SIZE), "3", **as_user.identity)
    assert other.stdout
    other.stdout.readline()
    done = user.run("attach", "--domain", "mixed", str(other.pid))
    assert done.returncode == 1
    assert b"never share" in done.stderr


def test_one_unfit_process_named_by_pid_leaves_all_untouched(user: User) -> None:
    worker = user.work(SIZE, 1)
    done = user.run("attach", str(worker.pid), "1999999")
    assert done.returncode == 2
    assert b"1999999" in done.stderr
    done = user.run("attach", str(worker.pid), "2")  # a thread of the kernel, or nobody
    assert done.returncode == 2
    assert all(not e["targets"] for e in user.status())


def test_children_are_followed_only_when_asked_for(user: User) -> None:
    script = f"exec 3<&0; {user.python} {user.worker} {SIZE} 1 <&3 & wait"
    shells = [user.start("sh", "-c", script) for _ in range(2)]
    children = []
    for shell in shells:
        assert shell.stdout
        children.append(int(shell.stdout.readline().split()[1]))
    pids = [str(s.pid) for s in shells]
    assert user.run("attach", "--period", "0.1", *pids).returncode == 0
    wait_periods(user, 10)
    assert {t["pid"] for t in user.status()[0]["targets"]} == {s.pid for s in shells}
    assert user.run("attach", "--descendants", *pids).returncode == 0
    until(lambda: merged(*children))
    assert user.run("detach", "--descendants", *pids).stdout == b"detached 4 processes\n"
    assert not any(map(merged_bytes, children))
    assert all(map(right, shells))


def test_stop_gives_everything_back_and_ends_the_engine(user: User) -> None:
    workers = [user.work(SIZE, 1, user.pageone, "run", "--period", "0.1", "--") for _ in range(2)]
    until(lambda: merged(*(w.pid for w in workers)))
    engine = user.status()[0]
    done = user.run("stop")
    assert (done.returncode, done.stdout) == (0, b"ended 1 engine\n"), done.stderr
    assert not any(merged_bytes(w.pid) for w in workers)
    assert all(map(right, workers))
    until(lambda: not os.path.exists(f"/proc/{engine['guardian']}"))
    assert user.status() == []
    assert user.run("stop", "--domain", "none").returncode == 2


def test_stop_can_leave_processes_merged_and_they_go_on(user: User) -> None:
    workers = [user.work(SIZE, 1, user.pageone, "run", "--period", "0.1", "--") for _ in range(2)]
    until(lambda: merged(*(w.pid for w in workers)))
    assert user.run("stop", "--leave").returncode == 0
    assert merged(*(w.pid for w in workers))
    assert all(map(right, workers))


@both
def test_processes_of_a_killed_engine_go_on_and_a_new_one_takes_them_over(user: User) -> None:
    workers = [user.work(SIZE, 1, user.pageone, "run", "--period", "0.1", "--") for _ in range(2)]
    until(lambda: merged(*(w.pid for w in workers)))
    killed = user.status()[0]
    os.kill(killed["pid"], signal.SIGKILL)
    assert all(map(right, workers))
    done = user.run("attach", "--period", "0.1", *(str(w.pid) for w in workers))
    assert done.returncode == 0, done.stderr
    until(lambda: not os.path.exists(f"/proc/{killed['guardian']}"))
    until(lambda: merged(*(w.pid for w in workers)))
    assert all(map(right, workers))


def test_what_a_killed_engine_has_left_can_be_given_back(user: User) -> None:
    workers = [user.work(SIZE, 1, user.pageone, "run", "--period", "0.1", "--") for _ in range(2)]
    until(lambda: merged(*(w.pid for w in workers)))
    os.kill(user.status()[0]["pid"], signal.SIGKILL)
    pids = [str(w.pid) for w in workers]
    assert user.run("attach", "--period", "1000", *pids).returncode == 0
    assert user.run("detach", *pids).returncode == 0
    assert not any(merged_bytes(w.pid) for w in workers)
    assert all(map(right, workers))


def test_top_and_status_show_what_is_followed(user: User) -> None:
    assert b"No engine of yours runs" in user.run("status").stdout
    assert b"No engine of yours runs" in user.run("top", "--count", "1").stdout
    worker = user.work(SIZE, 1, user.pageone, "run", "--period", "0.1", "--")
    until(lambda: user.status()[0]["targets"][0]["state"] == "merged")
    assert json.loads(user.run("status", "--json").stdout)["engines"][0]["targets"][0]["pid"] == worker.pid
    for shown in (user.run("status"), user.run("top", "--count", "2", "--every", "0.1")):
        assert shown.returncode == 0, shown.stderr
        assert str(worker.pid).encode() in shown.stdout
        assert b"engine uid-" in shown.stdout
    assert user.run("top", "--every", "0").returncode == 2


def test_a_period_asked_for_changes_the_running_engine_and_a_cpu_limit_is_refused(user: User) -> None:
    user.work(MIB, 1, user.pageone, "run", "--period", "5", "--")
    assert user.status()[0]["period"] == 5
    user.work(MIB, 1, user.pageone, "run", "--period", "0.5", "--")
    assert user.status()[0]["period"] == 0.5
    user.work(MIB, 1, user.pageone, "run", "--")
    assert user.status()[0]["period"] == 0.5
    done = user.run("run", "--cpu", "30%", "--", "true")
    assert done.returncode == 2
    assert b"--private" in done.stderr


@pytest.mark.root
def test_a_program_that_comes_under_a_limit_of_memory_later_is_given_back_its_own(user: User, memory: Any) -> None:
    first, second = user.work(SIZE, 1), user.work(SIZE, 1)
    assert user.run("attach", "--period", "0.1", str(first.pid), str(second.pid)).returncode == 0
    until(lambda: merged(first.pid, second.pid))
    (memory.group / memory.limit).write_text(str(100 * MIB))
    (memory.group / "cgroup.procs").write_text(str(first.pid))

    def reasons() -> dict[int, str]:
        return {t["pid"]: t["reason"] for t in user.status()[0]["targets"]}

    until(lambda: reasons()[first.pid])
    assert "limits the memory of process" in reasons()[first.pid]
    assert merged_bytes(first.pid) == 0
    assert reasons()[second.pid] == ""
    assert right(first)
    assert right(second)


#: Memory as a worker's, that a process shares with the child that it forks when it is told to by a line.
FORKING = """
import mmap, os, random, signal, sys
data = mmap.mmap(-1, int(sys.argv[1]), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
data[:] = random.Random(1).randbytes(len(data))
print("ready", flush=True)
sys.stdin.readline()
child = os.fork()
if not child:
    signal.pause()
print(child, flush=True)
signal.pause()
"""


@both
def test_detach_and_stop_say_how_many_pages_a_family_goes_on_sharing(user: User) -> None:
    parent, twin = user.start(user.python, "-c", FORKING, str(SIZE)), user.work(SIZE, 1)
    assert parent.stdin
    assert parent.stdout
    parent.stdout.readline()
    assert user.run("attach", "--period", "0.1", str(parent.pid), str(twin.pid)).returncode == 0
    until(lambda: merged(parent.pid, twin.pid))
    parent.stdin.write(b"\n")
    parent.stdin.flush()
    child = int(parent.stdout.readline())
    pages = merged_bytes(child) // 4096
    assert pages > SIZE // 4096 * 3 // 4
    done = user.run("detach", str(parent.pid))
    assert done.returncode == 0, done.stderr
    said, left = done.stdout.decode().splitlines()
    assert said == "detached 1 process"
    shared = int(left.partition(" pages were left merged")[0])
    assert shared == merged_bytes(parent.pid) // 4096 > pages // 2
    done = user.run("stop", "--json")
    assert json.loads(done.stdout) == {"ended": 1, "failed": {}, "left_pages": 0}, done.stderr
    assert merged_bytes(twin.pid) == 0
    assert right(twin)

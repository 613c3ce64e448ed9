"""A command under ``pageone run`` behaves as without it, and its memory is merged."""

from __future__ import annotations

import os
import random
import signal
import subprocess
from pathlib import Path

import pytest

from .conftest import MIB, Terminal, User, both, both_busy, merged_bytes, pss, right, until, wait_periods

pytestmark = pytest.mark.needs("merge")

SIZE = 8 * MIB


@both
def test_two_programs_started_apart_share_with_each_other(user: User) -> None:
    run = (user.pageone, "run", "--period", "0.1", "--")
    first, second = user.work(SIZE, 1, *run), user.work(SIZE, 1, *run)
    before = pss(first.pid)
    until(lambda: merged_bytes(first.pid) > SIZE * 3 // 4 and merged_bytes(second.pid) > SIZE * 3 // 4)
    assert pss(first.pid) < before - SIZE // 3
    assert right(first)
    assert right(second)
    engines = user.status()
    assert len(engines) == 1
    assert {t["pid"] for t in engines[0]["targets"]} == {first.pid, second.pid}
    # What the checks needed for a moment has been merged, too, and takes a few periods to be given back.
    until(lambda: user.status()[0]["stats"]["saved_bytes"] > SIZE // 2)


def test_the_engine_ends_with_its_last_process(user: User) -> None:
    worker = user.work(MIB, 1, user.pageone, "run", "--period", "0.1", "--")
    engine = user.status()[0]
    assert worker.stdin
    worker.stdin.close()
    assert worker.wait(20) == 0
    until(lambda: not list(user.runtime.glob("pageone/*.sock")))
    until(lambda: not any(os.path.exists(f"/proc/{engine[p]}") for p in ("pid", "guardian")))


@both_busy
def test_exit_status_and_death_by_a_signal_are_the_commands_own(busy: User) -> None:
    assert busy.run("run", "--", "sh", "-c", "exit 3").returncode == 3
    assert busy.run("run", "--", "sh", "-c", "kill -TERM $$").returncode == -signal.SIGTERM
    shell = subprocess.run(
        ["sh", "-c", f"{busy.pageone} run -- sh -c 'kill -KILL $$'; echo $?"], **busy.options, capture_output=True
    )
    assert shell.stdout == b"137\n"


def test_a_command_that_is_not_there_or_cannot_be_run_ends_as_in_a_shell(busy: User, folder: Path) -> None:
    missing = busy.run("run", "--", "no-such-command")
    assert missing.returncode == 127
    assert b"no-such-command: command not found" in missing.stderr
    (folder / "plain").write_text("text")
    assert busy.run("run", "--", str(folder / "plain")).returncode == 126
    assert busy.run("run").returncode == 2


def test_binary_streams_pass_unchanged_through_a_pipeline(busy: User) -> None:
    data = random.Random(5).randbytes(3 * MIB)
    done = busy.run("run", "--", "sh", "-c", "cat | cat; printf done >&2", input=data)
    assert done.stdout == data
    assert done.stderr == b"done"


def test_environment_folder_and_ignored_signals_are_those_of_the_caller(busy: User) -> None:
    show = ["sh", "-c", "env | grep -v ^_=; pwd; ulimit -a; grep -E 'Sig(Ign|Blk|Cgt)|Umask' /proc/self/status"]
    # SIGUSR2 ignored, a bare locale: Python adds to such an environment for itself.
    options = {**busy.options, "env": {**busy.options["env"], "LC_ALL": "C"}}
    alone = subprocess.run(["env", "--ignore-signal=USR2", *show], **options, capture_output=True)
    under = subprocess.run(
        ["env", "--ignore-signal=USR2", busy.pageone, "run", "--", *show], **options, capture_output=True
    )
    assert under.stderr == b""
    assert under.stdout == alone.stdout


@both_busy
def test_no_descriptor_and_no_child_is_left_to_the_command(busy: User) -> None:
    code = (
        "import os\n"
        "print(sorted(os.listdir('/proc/self/fd'), key=int)[:-1])\n"
        "try:\n    os.waitpid(-1, os.WNOHANG)\nexcept ChildProcessError:\n    print('no child')"
    )
    done = busy.run("run", "--", busy.python, "-c", code)
    assert done.stdout == b"['0', '1', '2']\nno child\n", done.stderr


def test_descendants_are_followed_also_when_their_parent_has_ended(user: User) -> None:
    worker = f"{user.python} {user.worker} {SIZE} 7 <&3 &"
    script = f"exec 3<&0; {worker} {worker} sleep 2"
    shell = user.start(user.pageone, "run", "--period", "0.1", "--", "sh", "-c", script)
    assert shell.stdout
    pids = [int(shell.stdout.readline().split()[1]) for _ in range(2)]
    assert shell.wait(20) == 0
    until(lambda: all(merged_bytes(pid) > SIZE * 3 // 4 for pid in pids))
    assert right(shell)  # one of them
    assert {t["pid"] for t in user.status()[0]["targets"]} >= set(pids)


def test_a_program_replaced_by_exec_is_merged_anew(user: User) -> None:
    worker = f"exec {user.python} {user.worker} {SIZE}"
    stages = f"{user.python} -c 'import time; x = bytes(range(256)) * 65536; time.sleep(2)'; {worker}"
    processes = [user.start(user.pageone, "run", "--period", "0.1", "--", "sh", "-c", f"{stages} 3") for _ in range(2)]
    for process in processes:
        assert process.stdout
        assert process.stdout.readline() == b"ready %d\n" % process.pid
    until(lambda: all(merged_bytes(p.pid) > SIZE * 3 // 4 for p in processes))
    assert all(map(right, processes))


def test_a_private_engine_shares_with_no_other(user: User) -> None:
    run = (user.pageone, "run", "--period", "0.1", "--private", "--")
    first, second = user.work(SIZE, 1, *run), user.work(SIZE, 1, *run)
    until(lambda: all(e["stats"]["period"] > 5 for e in user.status()) and len(user.status()) == 2)
    assert merged_bytes(first.pid) < SIZE // 4
    assert merged_bytes(second.pid) < SIZE // 4


def test_domains_are_apart_from_each_other(user: User) -> None:
    workers = [
        user.work(SIZE, 1, user.pageone, "run", "--period", "0.1", "--domain", name, "--") for name in ("a", "b", "a")
    ]
    until(lambda: merged_bytes(workers[0].pid) > SIZE * 3 // 4 and merged_bytes(workers[2].pid) > SIZE * 3 // 4)
    assert merged_bytes(workers[1].pid) < SIZE // 4
    assert {e["name"]: len(e["targets"]) for e in user.status()} == {"a": 2, "b": 1}


def test_bad_options_are_refused_before_anything_starts(user: User) -> None:
    for options in (
        ("--period", "0"),
        ("--cpu", "fast"),
        ("--domain", "uid-0"),
        ("--domain", "../x"),
        ("--domain", "a", "--private"),
    ):
        done = user.run("run", *options, "--", "true")
        assert done.returncode == 2, options
        assert done.stderr
    assert not list(user.runtime.glob("pageone/*.sock"))


# --- the terminal ---------------------------------------------------------------------------------------------


def test_ctrl_c_ends_the_command_and_the_shell_goes_on(terminal: Terminal, busy: User) -> None:
    terminal.say("pageone run --period 0.1 -- sh -c 'echo st''arted; sleep 60'; echo code:$?")
    terminal.expect(b"started")
    wait_periods(busy, 7)  # by now it is merged, and followed where forks need it
    terminal.press(b"\x03")
    terminal.say("echo code:$?")  # the interrupt ends the line above as a whole
    terminal.expect(b"code:130")


def test_a_program_that_handles_ctrl_c_gets_it_once_and_decides(terminal: Terminal, busy: User) -> None:
    code = (
        "import signal, time, sys; n = []; signal.signal(2, lambda *_: n.append(1))\n"
        "print('st' + 'arted', flush=True)\n"
        "while not n: time.sleep(.05)\n"
        "time.sleep(.5)\n"  # a second one would come by then
        "print('n' + 'umber', len(n)); sys.exit(7)"
    )
    (busy.folder / "handler.py").write_text(code)
    terminal.say(f"pageone run --period 0.1 -- {busy.python} {busy.folder}/handler.py; echo code:$?")
    terminal.expect(b"started")
    wait_periods(busy, 7)
    terminal.press(b"\x03")
    terminal.expect(b"number 1")
    terminal.expect(b"code:7")


@both_busy
def test_ctrl_z_suspends_and_fg_continues_while_it_is_merged(terminal: Terminal, busy: User) -> None:
    terminal.say(f"pageone run --period 0.1 -- {busy.python} {busy.worker} {4 * MIB} 1")
    terminal.expect(b"ready ")
    pid = int(terminal.expect(b"\r\n"))
    other = busy.work(4 * MIB, 1, busy.pageone, "run", "--")
    until(lambda: merged_bytes(pid) > 3 * MIB and merged_bytes(other.pid) > 3 * MIB)
    for _ in range(2):
        terminal.press(b"\x1a")
        terminal.expect(b"Stopped")
        terminal.expect(b'"$@"')
        until(lambda: Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1][0] in "Tt")
        wait_periods(busy, 5)
        assert Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1][0] in "Tt"
        terminal.say("fg")
        terminal.expect(b'"$@"')  # the job, as the shell calls it
        terminal.say("")
        terminal.expect(b"right")
    terminal.press(b"\x04")
    terminal.say("echo code:$?")
    terminal.expect(b"code:0")


@both_busy
def test_a_shell_under_it_has_job_control(terminal: Terminal, busy: User) -> None:
    terminal.say("pageone run --period 0.1 -- bash --norc --noediting -i")
    terminal.say("stty -echo; echo in''side")
    terminal.expect(b"inside")
    wait_periods(busy, 10)
    terminal.say("sleep 50 | { echo pi''ped; cat; }")
    terminal.expect(b"piped")
    wait_periods(busy, 10)
    terminal.press(b"\x1a")
    terminal.expect(b"Stopped")
    terminal.say("bg; jobs; kill %1; wait; echo do''ne; exit 5")
    terminal.expect(b"Running")
    terminal.expect(b"done")
    terminal.say("echo code:$?")
    terminal.expect(b"code:5")

"""Whoever gives up its rights keeps the frames that it was given, reads them right, and gets at nobody else's.

A program of root's is merged, and becomes another user, or has a child that does, as servers do. Behind the frames
that it maps lie those of other programs of root's; ``programs/rights.c`` tries to read them. The engine is root's.
"""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pageone.engine import Engine

SOURCE = Path(__file__).with_name("programs") / "rights.c"
LINUX = tuple(int(n) for n in platform.release().split("-")[0].split(".")[:2])
PAGES = 1024

pytestmark = [
    pytest.mark.needs("merge", "root", "gcc"),
    pytest.mark.skipif(not Path("/dev/userfaultfd").exists(), reason="needs /dev/userfaultfd"),
    pytest.mark.skipif(LINUX < (6, 4), reason="needs a tmpfs that is never swapped out (Linux 6.4)"),
]

Ask = Callable[[subprocess.Popen[str], str], str]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    built = tmp_path_factory.mktemp("rights") / "rights"
    subprocess.run(["gcc", "-O1", "-pthread", "-Wall", "-Wextra", "-o", built, SOURCE], check=True)
    return built


@pytest.fixture
def merged(program: Path, spawn: Any) -> Iterator[tuple[list[subprocess.Popen[str]], Engine]]:
    """Two programs with equal memory, and two more whose frames were filled after theirs."""
    programs = [spawn([program, first]) for first in ("0", "0", "70000", "70000")]
    for one in programs:
        assert one.stdout.readline() == "ready\n"
    with Engine() as engine:
        until = time.monotonic() + 30  # on a busy machine a program may not stop in time
        for pair in (programs[:2], programs[2:]):
            targets = [engine.attach(one.pid) for one in pair]
            while sum(target.stats.merged_pages for target in targets) < 2 * PAGES:
                assert time.monotonic() < until
                engine.merge_once(0.2)
        yield programs, engine


def _numbers(answer: str) -> list[int]:
    return [int(word) for word in answer.split()]


WAYS = [
    "place",
    "tracer",
    "moved",
    "call",
    pytest.param(
        "watched",
        marks=pytest.mark.skipif(LINUX < (6, 17), reason="before Linux 6.17 any userfaultfd ends another's watching"),
    ),
]


@pytest.mark.parametrize("who", ["child", "self"])
@pytest.mark.parametrize("way", WAYS)
def test_it_reads_no_frame_of_another_program(
    way: str, who: str, merged: tuple[list[subprocess.Popen[str]], Engine], ask: Ask
) -> None:
    programs, _ = merged
    seen, wrong, grown = _numbers(ask(programs[0], f"{who} {way}"))
    assert grown > 0
    assert (seen, wrong) == (0, 0)
    assert [ask(one, "check") for one in programs[1:]] == ["0 0 0"] * 3


@pytest.mark.parametrize("way", ["place", "call"])
def test_with_its_failpoint_it_reads_some(way: str, activate: Callable[[str], None], request: Any, ask: Ask) -> None:
    activate("close")
    programs, _ = request.getfixturevalue("merged")
    assert _numbers(ask(programs[0], f"child {way}"))[0] > PAGES // 2


def _maps_frames(pid: int) -> bool:
    with open(f"/proc/{pid}/maps") as maps:
        return "pageone" in maps.read()


@pytest.mark.parametrize("who", ["child", "self"])
def test_where_that_cannot_be_had_it_is_given_its_memory_back_and_not_merged_again(
    who: str, activate: Callable[[str], None], request: Any, ask: Ask
) -> None:
    activate("close")
    programs, engine = request.getfixturevalue("merged")
    if who == "child":
        pid = _numbers(ask(programs[0], "stay"))[0]
    else:
        pid = programs[0].pid
        assert ask(programs[0], "become") == "0 0 0"
    until = time.monotonic() + 30
    while _maps_frames(pid):
        assert time.monotonic() < until
        time.sleep(0.1)
    engine.merge_once(0.2)
    assert not _maps_frames(pid)
    assert [ask(one, "check") for one in programs] == ["0 0 0"] * 4


def test_a_child_with_fewer_rights_reads_forks_discards_and_runs_other_programs_as_ever(
    merged: tuple[list[subprocess.Popen[str]], Engine], ask: Ask
) -> None:
    programs, engine = merged
    assert ask(programs[0], "family") == "0 0 0"
    assert [ask(one, "check") for one in programs] == ["0 0 0"] * 4
    assert all(engine.detach(target) for target in engine.targets)
    assert [ask(one, "check") for one in programs] == ["0 0 0"] * 4


class _Range(ctypes.Structure):
    _fields_ = (("at", ctypes.c_size_t), ("bytes", ctypes.c_size_t))


def test_who_reads_the_memory_of_such_a_child_from_outside_finds_its_bytes(
    merged: tuple[list[subprocess.Popen[str]], Engine], ask: Ask
) -> None:
    programs, _ = merged
    child, area, pages = _numbers(ask(programs[0], "stay"))
    length = pages * 4096
    assert _maps_frames(child)
    by_file = os.pread(os.open(f"/proc/{child}/mem", os.O_RDONLY), length, area)
    buffer = ctypes.create_string_buffer(length)
    libc = ctypes.CDLL(None, use_errno=True)
    local, remote = _Range(ctypes.addressof(buffer), length), _Range(area, length)
    assert libc.process_vm_readv(child, ctypes.byref(local), 1, ctypes.byref(remote), 1, 0) == length
    assert by_file == buffer.raw
    assert [by_file[4096 * k : 4096 * k + 3] for k in range(pages)] == [k.to_bytes(3, "little") for k in range(pages)]


def test_its_bytes_are_right_when_the_guardian_has_been_killed(
    merged: tuple[list[subprocess.Popen[str]], Engine], ask: Ask
) -> None:
    programs, engine = merged
    assert ask(programs[0], "stay").count(" ") == 2
    guardian = engine.backend.guardian.pid  # type: ignore[attr-defined]
    os.kill(guardian, signal.SIGKILL)
    assert ask(programs[0], "check") == "0 0 0"  # its child answers
    assert [ask(one, "check") for one in programs[1:]] == ["0 0 0"] * 3


def test_what_grows_into_a_hole_that_its_program_has_made_is_zero_and_system_calls_fill_it(
    merged: tuple[list[subprocess.Popen[str]], Engine], ask: Ask
) -> None:
    programs, _ = merged
    assert ask(programs[0], "grow") == "0 0 0"
    assert [ask(one, "check") for one in programs[1:]] == ["0 0 0"] * 3


def test_frames_of_which_a_program_wants_huge_pages_stay_right_in_all_that_share_them(
    merged: tuple[list[subprocess.Popen[str]], Engine], ask: Ask
) -> None:
    programs, engine = merged
    assert ask(programs[0], "collapse") == "1 0 0"
    assert [ask(one, "check") for one in programs] == ["0 0 0"] * 4
    assert all(engine.detach(target) for target in engine.targets)
    assert [ask(one, "check") for one in programs] == ["0 0 0"] * 4

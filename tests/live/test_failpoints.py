"""What users get has no switch for exactness; the native core that tests of tests give to guardians has."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

import pageone._native as native
from pageone.engine import Engine
from pageone.errors import PageOneError

ROOT = Path(__file__).resolve().parents[2]
SWITCHES = ("PAGEONE_FAILPOINTS", "PAGEONE_DIE_AT", "PAGEONE_LEAVE_AT")
PRIVATE_FILE_MAPPINGS = 1 << 2  #: a bit of ``coredump_filter``


def test_what_users_get_does_not_know_the_names_of_the_switches() -> None:
    files = [Path(native.__file__), *(ROOT / "python").rglob("*.py")]
    assert len(files) > 50
    for file in files:
        content = file.read_bytes()
        assert not [name for name in SWITCHES if name.encode() in content], file


def test_the_library_of_the_tests_of_tests_knows_them(failpoints: Path) -> None:
    content = failpoints.read_bytes()
    assert all(name.encode() in content for name in SWITCHES)


#: Has pages that another program of its kind has, too.
PROGRAM = """
at = libc.mmap(0, 64 * SIZE, 3, 0x22, -1, 0)
for k in range(64):
    ctypes.memmove(at + SIZE * k, page(k + 1), SIZE)
print("ready", flush=True)
sys.stdin.read()
"""


def _dumps_of_merged(spawn: Any) -> bool:
    """Merge two programs; return whether core dumps have private mappings of files then, as they must."""
    programs = [spawn.mapper(PROGRAM) for _ in range(2)]
    assert all(program.stdout.readline() == "ready\n" for program in programs)
    file = Path(f"/proc/{programs[0].pid}/coredump_filter")
    assert not int(file.read_text(), 16) & PRIVATE_FILE_MAPPINGS
    deadline = time.monotonic() + 20
    with Engine() as engine:
        targets = [engine.attach(program.pid) for program in programs]
        while min(target.stats.merged_pages for target in targets) < 64:
            assert time.monotonic() < deadline
            engine.merge_once(0.2)
        return bool(int(file.read_text(), 16) & PRIVATE_FILE_MAPPINGS)


@pytest.mark.needs("merge")
def test_no_failpoint_of_what_users_get_is_activated_by_the_environment(
    spawn: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PAGEONE_FAILPOINTS", "dumps,zero-fill,compare,written,aside,rings")
    monkeypatch.setenv("PAGEONE_DIE_AT", "0")
    monkeypatch.setenv("PAGEONE_LEAVE_AT", "0,0")
    assert _dumps_of_merged(spawn)


@pytest.mark.needs("merge")
def test_one_of_the_other_library_is(spawn: Any, activate: Any) -> None:
    activate("dumps")
    assert not _dumps_of_merged(spawn)


@pytest.mark.needs("merge")
def test_the_other_library_dies_where_it_is_told_to(spawn: Any, activate: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    activate("")
    monkeypatch.setenv("PAGEONE_DIE_AT", "0")
    with pytest.raises(PageOneError, match="has ended"), Engine() as engine:
        engine.attach(spawn(["sleep", "100"]).pid)

"""What users get has no switch for exactness; the native core that tests of tests give to guardians has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import pageone._native as native
from pageone.engine import Engine
from pageone.errors import PageOneError

ROOT = Path(__file__).resolve().parents[2]
SWITCHES = ("PAGEONE_WITHOUT", "PAGEONE_DIE_AT", "PAGEONE_LEAVE_AT")
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


def _dumps_of_attached(pid: int) -> bool:
    """Attach a process; return whether its core dumps have private mappings of files then, as a remedy sees to."""
    assert not int(Path(f"/proc/{pid}/coredump_filter").read_text(), 16) & PRIVATE_FILE_MAPPINGS
    with Engine() as engine:
        target = engine.attach(pid)
        found = int(Path(f"/proc/{pid}/coredump_filter").read_text(), 16)
        engine.detach(target)
    return bool(found & PRIVATE_FILE_MAPPINGS)


@pytest.mark.needs("merge")
def test_no_remedy_of_what_users_get_is_switched_off_by_the_environment(
    spawn: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PAGEONE_WITHOUT", "dumps,mend,compare,written,aside,rings")
    monkeypatch.setenv("PAGEONE_DIE_AT", "0")
    monkeypatch.setenv("PAGEONE_LEAVE_AT", "0,0")
    assert _dumps_of_attached(spawn(["sleep", "100"]).pid)


@pytest.mark.needs("merge")
def test_one_of_the_other_library_is(spawn: Any, without: Any) -> None:
    without("dumps")
    assert not _dumps_of_attached(spawn(["sleep", "100"]).pid)


@pytest.mark.needs("merge")
def test_the_other_library_dies_where_it_is_told_to(spawn: Any, without: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    without("")
    monkeypatch.setenv("PAGEONE_DIE_AT", "0")
    with pytest.raises(PageOneError, match="has ended"), Engine() as engine:
        engine.attach(spawn(["sleep", "100"]).pid)

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pageone import doctor, procfs

Run = Callable[..., subprocess.CompletedProcess[str]]

LISTED = {
    "architecture",
    "kernel",
    "PAGEMAP_SCAN",
    "kcmp",
    "userfaultfd",
    "ptrace scope",
    "stop and read",
    "pool",
    "max_map_count",
    "transparent huge pages",
    "KSM",
}


def test_every_finding_says_what_follows_and_every_lack_how_to_enable_it() -> None:
    diagnosis = doctor.diagnose()
    assert {f.name for f in diagnosis.findings} >= LISTED
    for finding in diagnosis.findings:
        assert finding.follows
        assert finding.value
        if finding.state == "missing" and finding.name != "architecture":
            assert finding.enable, finding.name


def test_json_is_one_object_with_the_same_findings(pageone: Run) -> None:
    done = pageone("doctor", "--json")
    told = json.loads(done.stdout)
    assert {f["name"] for f in told["findings"]} >= LISTED
    assert done.returncode == (0 if told["merge_own"] else 1)
    assert told["uid"] == os.geteuid()


def test_the_table_names_every_finding(pageone: Run) -> None:
    done = pageone("doctor", env=os.environ | {"COLUMNS": "160"})
    for name in LISTED:
        assert name in done.stdout


def test_an_ordinary_user_is_told_of_user_mode_and_of_own_processes_only(as_user: Any) -> None:
    done = as_user.pageone("doctor", "--json")
    told = json.loads(done.stdout)
    assert told["uid"] == as_user.uid
    assert told["merge_any"] is False
    found = {f["name"]: f for f in told["findings"]}
    if Path("/proc/sys/vm/unprivileged_userfaultfd").read_text().strip() == "0":
        assert "user mode only" in found["userfaultfd"]["value"]
        assert found["userfaultfd"]["state"] == "ok"


@pytest.mark.parametrize(
    ("scope", "privileged", "state"),
    [
        (None, False, "ok"),
        ("0", False, "ok"),
        ("1", False, "limited"),
        ("1", True, "ok"),
        ("2", False, "missing"),
        ("2", True, "ok"),
        ("3", True, "missing"),
    ],
)
def test_each_ptrace_scope_is_judged_by_what_it_lets_this_user_do(
    monkeypatch: pytest.MonkeyPatch, scope: str | None, privileged: bool, state: str
) -> None:
    monkeypatch.setattr(doctor, "_read", lambda path: scope)
    monkeypatch.setattr(procfs, "capable", lambda capability: privileged)
    assert doctor._ptrace_scope().state == state


def test_an_old_kernel_is_missing_with_the_version_that_would_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.release", lambda: "6.1.0-13-amd64")
    finding = doctor._kernel()
    assert finding.state == "missing"
    assert "6.7" in finding.enable


def test_a_probe_that_is_refused_makes_merging_impossible(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> int:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(doctor, "_syscall", refuse)
    diagnosis = doctor.diagnose()
    assert diagnosis.finding("userfaultfd").state == "missing"
    assert not diagnosis.merge_own


def test_doctor_leaves_no_child_and_no_descriptor_behind() -> None:
    doctor.diagnose()
    before = sorted(os.listdir("/proc/self/fd"))
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text()
    doctor.diagnose()
    assert sorted(os.listdir("/proc/self/fd")) == before
    assert Path(f"/proc/self/task/{os.getpid()}/children").read_text() == children

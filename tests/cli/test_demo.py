"""``pageone demo``: what its one JSON object promises, for root and for an ordinary user, and what makes it fail."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

pytestmark = pytest.mark.needs("merge")

Run = Callable[..., subprocess.CompletedProcess[str]]

PROMISED = {
    "targets",
    "pages",
    "zero_pages",
    "duplicate_pages",
    "merged_pages",
    "mappings_added",
    "saved_bytes",
    "memavailable_gain_bytes",
    "engine_cpu_s",
    "pause_ms",
    "verified",
}


def assert_holds(done: subprocess.CompletedProcess[str], workers: int, mib: int) -> None:
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert set(told) >= PROMISED
    assert told["verified"] is True
    assert told["targets"] == workers
    common, zeros = mib * 256, mib * 16
    assert told["duplicate_pages"] >= workers * common
    assert told["zero_pages"] >= workers * zeros
    # What is equal by design, all of it; lone pages of the heaps may stay, more after modules were compiled.
    assert told["merged_pages"] >= workers * common
    assert told["merged_pages"] >= 0.97 * told["duplicate_pages"]
    assert told["mappings_added"] <= 200
    assert told["saved_bytes"] >= 0.95 * ((workers - 1) * common + workers * zeros) * 4096
    assert set(told["pause_ms"]) == {"p50", "p99", "max"}
    assert told["pss_before_bytes"] - told["pss_after_bytes"] >= 0.9 * told["saved_bytes"]


def test_the_demo_merges_nearly_all_and_verifies_all(pageone: Run) -> None:
    assert_holds(pageone("demo", "--json", "--size", "64MiB", "--workers", "3"), 3, 64)


def test_the_demo_works_for_an_ordinary_user(as_user: Any) -> None:
    assert_holds(as_user.pageone("demo", "--json", "--size", "32MiB", "--workers", "2"), 2, 32)


def test_the_table_tells_what_was_saved_and_that_bytes_were_checked(pageone: Run) -> None:
    done = pageone("demo", "--size", "8MiB", "--workers", "2")
    assert done.returncode == 0, done.stderr
    for words in ("every byte checked", "memory saved", "mappings added", "MemAvailable", "PSS", "median"):
        assert words in done.stdout


def test_a_wrong_byte_ends_the_demo_with_1_and_the_page() -> None:
    # A byte is changed behind a worker's back just after the merge.
    code = """
import pageone.demo.show as show
from pageone.cli import main
plain = show.pss_bytes
calls = []
def harm(pids):
    calls.append(1)
    if len(calls) == 2:
        line = max(
            (l for l in open(f"/proc/{pids[0]}/maps") if "memfd:pageone" in l),
            key=lambda l: int(l.split("-")[1].split()[0], 16) - int(l.split("-")[0], 16),
        )
        start = int(line.split("-")[0], 16)
        with open(f"/proc/{pids[0]}/mem", "r+b", buffering=0) as memory:
            memory.seek(start + 100 * 4096)
            memory.write(b"harm")
    return plain(pids)
show.pss_bytes = harm
main()
"""
    done = subprocess.run(
        [sys.executable, "-c", code, "demo", "--json", "--size", "32MiB", "--workers", "2"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "wrong byte in page" in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("arguments", [["--workers", "0"], ["--size", "0"], ["--size", "much"], ["--size", "-1MiB"]])
def test_sizes_and_numbers_that_make_no_sense_end_with_2(pageone: Run, arguments: list[str]) -> None:
    done = pageone("demo", *arguments)
    assert done.returncode == 2
    assert done.stderr

"""A program has its own memory merged: real processes, the real backend."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pageone import merge_self
from pageone.errors import PageOneError

PROGRAM = """
import hashlib
import numpy as np
from pageone import merge_self

one = np.random.PCG64(1).random_raw(512 * 2000)
two = one.copy()
was = hashlib.sha256(one).digest()
with merge_self(period=60) as helper:
    for _ in range(3):
        helper.step()
    stats = helper.stats()
    assert stats["sharers"] >= 3900, stats
    assert any("memfd:pageone" in line for line in open("/proc/self/maps"))
    assert hashlib.sha256(one).digest() == was
    two[::512] = 7
    assert hashlib.sha256(one).digest() == was
    assert (two[::512] == 7).all()
assert not any("memfd:pageone" in line for line in open("/proc/self/maps"))
assert hashlib.sha256(one).digest() == was
assert (two[::512] == 7).all()
print("sound")
"""


def test_a_program_merges_its_own_memory_and_gets_it_back(tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=90)
    assert done.stdout == "sound\n", done.stderr


@pytest.mark.parametrize(("option", "value"), [("period", -1), ("cpu", "much")])
def test_an_option_that_the_engine_refuses_is_an_error_of_the_caller(option: str, value: object) -> None:
    with pytest.raises(PageOneError, match=option):
        merge_self(**{option: value})


def test_a_worker_that_does_not_exist_is_refused_and_the_engine_ends() -> None:
    with pytest.raises(PageOneError, match="no such process"):
        merge_self(workers=[2**22 + 1], period=60)
    assert "memfd:pageone" not in Path("/proc/self/maps").read_text()

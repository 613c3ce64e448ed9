"""A guardian that is killed: its engine ends at once and says why, and nobody waits for what is not there any more."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path

import pytest

from .conftest import MIB, User, both, merged_bytes, right, until

pytestmark = pytest.mark.needs("merge")


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


@both
@pytest.mark.timeout(120)
def test_an_engine_whose_guardian_is_killed_says_so_and_ends_and_its_programs_go_on(user: User) -> None:
    workers = [user.work(2 * MIB, 1) for _ in range(2)]
    pids = [str(worker.pid) for worker in workers]
    assert user.run("attach", "--period", "0.1", *pids).returncode == 0
    until(lambda: all(merged_bytes(worker.pid) > MIB for worker in workers))
    (engine,) = user.status()
    began = time.monotonic()
    os.kill(engine["guardian"], signal.SIGKILL)
    until(lambda: not _runs(engine["pid"]), 30)
    print(f"ended after {time.monotonic() - began:.1f} s")
    assert not user.status()
    log = "".join(path.read_text() for path in (user.runtime / "pageone").glob("*.log"))
    # Whoever notices first says it: the one who asks it for something, or the one who has frames filled.
    assert re.search(rf"the guardian process( {engine['guardian']}|, which fills the frames,) has ended", log), log
    assert "programs go on with what they share" in log
    assert all(right(worker) for worker in workers)
    # What is shared is guarded by nobody now: nothing more is done with it, and whoever asks is told why.
    refused = user.run("attach", *pids)
    assert refused.returncode != 0
    assert b"shares memory of another engine" in refused.stderr
    others = [user.work(2 * MIB, 2) for _ in range(2)]
    assert user.run("attach", "--period", "0.1", *(str(one.pid) for one in others)).returncode == 0
    until(lambda: all(merged_bytes(one.pid) > MIB for one in others))
    assert all(right(worker) for worker in (*workers, *others))

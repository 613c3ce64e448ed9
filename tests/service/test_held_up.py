"""An engine one of whose processes holds up whoever reads it answers all the same."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from .conftest import User, merged_bytes, until

pytestmark = pytest.mark.needs("merge", "gcc")

SOURCE = Path(__file__).parents[1] / "live" / "programs" / "holds.c"


@pytest.mark.timeout(120)
def test_status_detach_and_stop_answer_while_a_process_keeps_its_address_space_locked(user: User) -> None:
    program = user.folder / "holds"
    subprocess.run(["gcc", "-O2", "-pthread", "-o", str(program), str(SOURCE)], check=True)
    folder = user.folder / "unanswered"
    folder.mkdir()
    folder.chmod(0o777)
    running = []
    try:
        for kind in ("lock", "none", "none"):
            running.append(user.start(str(program), kind, str(folder)))
            assert running[-1].stdout
            if running[-1].stdout.readline() != b"ready\n":
                pytest.skip("needs FUSE")
        hostile, *others = (one.pid for one in running)
        done = user.run("attach", "--period", "0.1", *map(str, (hostile, *others)))
        assert done.returncode == 0, done.stderr
        until(lambda: all(merged_bytes(pid) > 1 << 20 for pid in (hostile, *others)))
        assert running[0].stdin
        running[0].stdin.write(b"strike\n")
        running[0].stdin.flush()
        # It may be stopped just then, and not answer.

        def trouble() -> str:
            return next(
                (
                    str(target["stats"]["trouble"])
                    for engine in user.status()
                    for target in engine["targets"]
                    if target["pid"] == hostile and not engine["busy"]
                ),
                "",
            )

        assert until(trouble)
        nobody = user.run("attach", "--match", "no process has this in its command line"[::-1])
        assert b"no process matches" in nobody.stderr
        assert user.run("status", "--json").returncode == 0
        detached = user.run("detach", str(others[0]))
        assert detached.returncode == 0, detached.stderr
        assert not merged_bytes(others[0])
        refused = user.run("detach", str(hostile))
        assert refused.returncode != 0
        assert str(hostile).encode() in refused.stderr + refused.stdout
        stopped = user.run("stop")
        assert str(hostile).encode() in stopped.stderr + stopped.stdout
        assert user.run("stop", "--leave").returncode == 0
        assert not merged_bytes(others[1])
    finally:
        for one in running:
            one.kill()
        shutil.rmtree(folder, ignore_errors=True)

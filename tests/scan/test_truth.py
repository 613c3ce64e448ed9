"""What a scan promises is what merging gives: PageONE and the kernel's KSM merge for real, and frames are counted."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

import pytest

from pageone.scan import scan

if TYPE_CHECKING:
    from conftest import Spawner

pytestmark = pytest.mark.timeout(180)

# Private pages without huge ones: a third in common with the other process, a third of its own, a third zero.
HOLDER = """
import ctypes, json, mmap, sys
mine, ksm, pages = int(sys.argv[1]), sys.argv[2] == "ksm", 6000
PR_SET_MEMORY_MERGE = 67
if ksm and ctypes.CDLL(None).prctl(PR_SET_MEMORY_MERGE, *map(ctypes.c_ulong, (1, 0, 0, 0))):
    sys.exit("no PR_SET_MEMORY_MERGE")
import numpy as np
m = mmap.mmap(-1, pages * 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
m.madvise(15)
v = np.frombuffer(m, dtype=np.uint64).reshape(pages, 512)
v[:] = 0
v[:2000, 5] = np.arange(1, 2001)
v[2000:4000, 6] = np.arange(1, 2001) + mine * 10000
v[4000:4100, 7] = 1 + np.arange(100) // 25
print(json.dumps(1), flush=True)
sys.stdin.read()
"""

#: Scans of the kernel's KSM without a new page after which it has found what it finds: smart scan leaves out pages
#: that had no twin several times in a row.
KSM_QUIET_SCANS = 3


def holders(spawn: Spawner, merger: str) -> list[int]:
    pids = []
    for mine in (1, 2):
        process = spawn.python(HOLDER, str(mine), merger)
        assert process.stdout is not None
        assert json.loads(process.stdout.readline()) == 1
        pids.append(process.pid)
    return pids


@pytest.mark.needs("merge")
def test_pageone_frees_what_the_scan_promised_within_two_percent(spawn: Spawner) -> None:
    from pageone.engine import Engine

    pids = holders(spawn, "pageone")
    promised = scan(pids=pids)
    with Engine() as engine:
        for pid in pids:
            engine.attach(pid)
        merged = engine.merge_once(quiet_s=0.5)
        freed = merged.dropped_pages + merged.merged_pages - merged.frames
        after = scan(pids=pids)
    assert freed * 4096 == pytest.approx(promised.saveable_bytes, rel=0.02), merged
    assert after.saveable_bytes < 0.05 * promised.saveable_bytes


# Twins of 500 pages in a mapping of their own, asked for something that a merged mapping would not keep.
FLAGGED = """
import ctypes, mmap, sys
import numpy as np
libc = ctypes.CDLL(None, use_errno=True)
m = mmap.mmap(-1, 1000 * 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
m.madvise(15)
v = np.frombuffer(m, dtype=np.uint64).reshape(2, 500, 512)
v[:] = 0
v[:, :, 3] = np.arange(7_000_001, 7_000_501)
at, size = ctypes.c_void_p(v.ctypes.data), ctypes.c_size_t(1000 * 4096)
assert (libc.mlock(at, size) if sys.argv[1] == "locked" else libc.madvise(at, size, 18)) == 0
print(flush=True)
sys.stdin.read()
"""


@pytest.mark.needs("merge")
@pytest.mark.parametrize("what", ["locked", "wiped in children"])
def test_memory_that_the_engine_leaves_alone_for_its_flags_is_not_promised(spawn: Spawner, what: str) -> None:
    from pageone.engine import Engine

    process = spawn.python(FLAGGED, what)
    assert process.stdout is not None
    assert process.stdout.readline() == "\n", process.stderr.read() if process.stderr else ""
    promised = scan(pids=[process.pid])
    assert promised.pageone["not_mergeable_pages"] >= 1000
    with Engine() as engine:
        engine.attach(process.pid)
        merged = engine.merge_once(quiet_s=0.3)
    assert merged.merged_pages < 500
    assert promised.pageone["merged_pages"] < 500


@pytest.mark.needs("root", "ksm")
def test_the_kernels_ksm_frees_what_the_scan_promised_within_five_percent(spawn: Spawner) -> None:
    from pageone import ksm

    pids = holders(spawn, "ksm")
    # run=0 first: nothing is merged before the promise is made. Every knob is put back at the end.
    with ksm.driven(run=0, sleep_millisecs=0, pages_to_scan=1000):
        if ksm.read_counters().pages_shared:
            pytest.skip("KSM is in use on this machine")
        promised = scan(pids=pids)
        ksm.set_knob("run", 1)
        found, quiet_since = -1, 0
        deadline = time.monotonic() + 120
        while True:
            counters = ksm.read_counters()
            scans, sharing = counters.full_scans or 0, counters.pages_sharing or 0
            if sharing > found:
                found, quiet_since = sharing, scans
            if found > 0 and scans > quiet_since + KSM_QUIET_SCANS:
                break
            assert time.monotonic() < deadline
            time.sleep(0.01)
        ksm.set_knob("run", 0)
        shared = scan(pids=pids)
    assert found * 4096 == pytest.approx(promised.ksm["saveable_bytes"], rel=0.05)
    # What KSM shares is told as shared, and is not promised again.
    assert shared.already_shared_bytes - promised.already_shared_bytes == pytest.approx(found * 4096, rel=0.05)
    assert shared.ksm["saveable_bytes"] < 0.05 * promised.ksm["saveable_bytes"]

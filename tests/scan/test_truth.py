"""What a scan promises is what merging gives: PageONE merges for real, and the frames that went are counted."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from pageone.scan import scan

if TYPE_CHECKING:
    from conftest import Spawner

pytestmark = [pytest.mark.needs("merge"), pytest.mark.timeout(180)]

# Private pages without huge ones: a third in common with the other process, a third of its own, a third zero.
HOLDER = """
import json, mmap, sys
import numpy as np
mine, pages = int(sys.argv[1]), 6000
m = mmap.mmap(-1, pages * 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
m.madvise(15)
v = np.frombuffer(m, dtype=np.uint64).reshape(pages, 512)
v[:] = 0
v[:2000, 5] = np.arange(1, 2001)
v[2000:4000, 6] = np.arange(1, 2001) + mine * 10000
print(json.dumps(1), flush=True)
sys.stdin.read()
"""


def test_pageone_frees_what_the_scan_promised_within_two_percent(spawn: Spawner) -> None:
    from pageone.engine import Engine

    pids = []
    for mine in (1, 2):
        process = spawn.python(HOLDER, str(mine))
        assert process.stdout is not None
        assert json.loads(process.stdout.readline()) == 1
        pids.append(process.pid)
    promised = scan(pids=pids)
    with Engine() as engine:
        for pid in pids:
            engine.attach(pid)
        merged = engine.merge_once(quiet_s=0.5)
        freed = merged.dropped_pages + merged.merged_pages - merged.frames
        after = scan(pids=pids)
    assert freed * 4096 == pytest.approx(promised.saveable_bytes, rel=0.02), merged
    assert after.saveable_bytes < 0.05 * promised.saveable_bytes

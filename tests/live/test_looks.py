"""What looking at a live process costs, where the kernel makes a question expensive."""

import mmap
import time
from typing import Any

import pytest

from pageone.engine import Engine
from pageone.live import backend

pytestmark = pytest.mark.needs("merge")

#: Maps four pages more for each line it reads, apart from all others.
MAPPER = """
import mmap, sys
kept = []
for line in sys.stdin:
    kept.append(mmap.mmap(-1, 16384, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
    kept[-1][:] = bytes([len(kept)]) * 16384
    print(flush=True)
"""


def test_the_flags_of_new_mappings_are_read_as_often_as_their_share_of_the_time_allows(
    spawn: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = []
    ask = backend._smaps_flags
    monkeypatch.setattr(backend, "_smaps_flags", lambda pid: reads.append(pid) or ask(pid))
    process = spawn.python(MAPPER)

    def map_more() -> None:
        process.stdin.write("\n")
        process.stdin.flush()
        process.stdout.readline()

    with Engine(period=0.05) as engine:
        target = engine.attach(process.pid)
        engine.step()
        assert len(reads) == 1

        monkeypatch.setattr(backend, "FLAGS_SHARE", 1e-9)
        target._memory._flags_due = 0.0  # type: ignore[attr-defined]
        map_more()
        engine.step()
        assert len(reads) == 2, "a mapping is new: its flags are read"
        tracked = target.stats.tracked
        for _ in range(5):
            map_more()
            engine.step()
        assert len(reads) == 2, "the share of the time is used up"

        target._memory._flags_due = time.monotonic()  # type: ignore[attr-defined]
        engine.step()
        assert len(reads) == 3, "what was put off is made up for"
        assert target.stats.tracked >= tracked + 5 * 16384 // mmap.PAGESIZE

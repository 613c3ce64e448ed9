"""Processes: what they hold is counted exactly, nothing of them is changed, and those that go or refuse are named."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from pageone._native import mem
from pageone.scan import scan, sources

if TYPE_CHECKING:
    from conftest import OrdinaryUser, Spawner

pytestmark = pytest.mark.needs("pagemap_scan")

# Maps PAGES private pages without huge pages, prints where, forks if asked, and waits. Page i is filled with the
# number NUMBERS[i % len] in each of its 8-byte words; 0 is zero.
HOLDER = """
import json, mmap, os, sys
import numpy as np
numbers, pages, forks = json.loads(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
m = mmap.mmap(-1, pages * 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
m.madvise(15)
v = np.frombuffer(m, dtype=np.uint64).reshape(pages, 512)
v[:] = np.resize(np.array(numbers, np.uint64), pages)[:, None]
children = []
for _ in range(forks):
    pid = os.fork()
    if pid == 0:
        sys.stdin.read()
        os._exit(0)
    children.append(pid)
print(json.dumps([v.ctypes.data, children]), flush=True)
sys.stdin.read()
"""


def holder(spawn: Spawner, numbers: list[int], pages: int, forks: int = 0) -> tuple[int, int, list[int]]:
    process = spawn.python(HOLDER, json.dumps(numbers), str(pages), str(forks))
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, process.stderr.read() if process.stderr else ""
    at, children = json.loads(line)
    return process.pid, at, children


def big(report: object) -> dict[str, int]:
    """Return the row of the large arrays."""
    return next(row for row in report.regions if row["kind"].startswith("arrays"))  # type: ignore[attr-defined]


def test_duplicates_across_two_processes_are_counted(spawn: Spawner) -> None:
    numbers = [10**9 + i for i in range(1000)]
    alone = holder(spawn, [5 * 10**9 + i for i in range(1000)], 1000)
    base = scan(pids=[alone[0], holder(spawn, [6 * 10**9 + i for i in range(1000)], 1000)[0]])
    report = scan(pids=[alone[0], *(holder(spawn, numbers, 1000)[0] for _ in range(2))])
    gained = report.duplicates_across - base.duplicates_across
    # The third interpreter brings duplicates of its own; the arrays bring 1000.
    assert 1000 <= gained < 2200
    assert report.unstable_pages == 0
    assert report.pages == report.zero_pages + report.distinct_pages + report.duplicate_pages
    pairs = report.pairs["pages"]
    assert pairs[1][2] >= 1000 > pairs[0][1]


def test_pages_shared_since_a_fork_are_not_saveable(spawn: Spawner) -> None:
    # 700 contents, each three times in the parent; two children share all of it. 2100 frames hold it: 1400 could go
    # if all three processes were merged, and to give it back would then take 6300. The engine leaves that be.
    pid, _, children = holder(spawn, [10**9 + i for i in range(700)], 2100, forks=2)
    report = scan(pids=[pid, *children])
    assert report.sharing == ("frames" if os.geteuid() == 0 else "assumed")
    row = big(report)
    assert row["repeated_pages"] >= 3 * 2100
    assert report.already_shared["fork_bytes"] >= 2 * 2100 * 4096
    assert row["saveable_bytes"] < 200 * 4096
    assert report.pageone["shared_pages"] >= 3 * 2100
    assert big(scan(pids=[pid]))["saveable_bytes"] < 200 * 4096
    if report.sharing == "frames":
        # KSM takes shared pages, too: as if there were no children.
        assert report.ksm["saveable_bytes"] >= 1400 * 4096
        assert scan(pids=[pid]).ksm["saveable_bytes"] < 1400 * 4096


def test_scanning_leaves_shared_pages_shared_and_threads_running(spawn: Spawner) -> None:
    pid, at, children = holder(spawn, [10**9 + i for i in range(3000)], 3000, forks=1)
    ends = np.array([at], np.uint64), np.array([at + 3000 * 4096], np.uint64)

    def exclusive() -> int:
        with open(f"/proc/{children[0]}/pagemap", "rb") as pagemap:
            entries = mem.pagemap_entries(pagemap.fileno(), *ends)
        return int(np.count_nonzero(entries & np.uint64(mem.ENTRY_EXCLUSIVE)))

    before = exclusive()
    report = scan(pids=[pid, *children], watch=0.01, threads=2)
    assert report.pages > 6000
    assert exclusive() == before == 0
    status = Path(f"/proc/{pid}/status").read_text()
    assert "TracerPid:\t0\n" in status


def test_untouched_zero_mapped_and_swapped_pages_are_not_read_in(spawn: Spawner) -> None:
    pid, _at, _ = holder(spawn, [7], 100)
    source = sources.process(pid)
    assert len(source) < 60_000
    resident = int(next(r for r in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines() if "Rss" in r).split()[1])
    scan(pids=[pid])
    after = int(next(r for r in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines() if "Rss" in r).split()[1])
    assert after == resident
    source.close()


def test_a_process_that_ends_meanwhile_is_named_and_the_rest_counted(spawn: Spawner) -> None:
    victim = spawn.python(HOLDER, "[1]", "3000", "0")
    assert victim.stdout is not None
    victim.stdout.readline()
    other, _, _ = holder(spawn, [2], 1000)

    def kill(done: int, total: int) -> None:
        if victim.poll() is None:
            victim.kill()
            victim.wait()

    report = scan(pids=[victim.pid, other], progress=kill)
    assert any(str(victim.pid) in problem for problem in report.problems)
    assert report.targets[1]["repeated_pages"] >= 1000
    assert report.pages == report.zero_pages + report.distinct_pages + report.duplicate_pages + report.unstable_pages
    report = scan(pids=[victim.pid, other])
    assert report.problems == [f"process {victim.pid}: no such process"]


def test_pages_written_all_the_time_are_never_taken_for_duplicates(spawn: Spawner) -> None:
    writer = spawn.python(
        "import mmap, numpy as np\n"
        "m = mmap.mmap(-1, 2000 * 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)\n"
        "v = np.frombuffer(m, dtype=np.uint64).reshape(2000, 512)\n"
        "v[:] = 1\nn = 0\n"
        "while True:\n    n += 1\n    v[:, 0] = np.arange(n * 2000, n * 2000 + 2000)\n"
        "    if n == 2: print('ready', flush=True)\n"
    )
    assert writer.stdout is not None
    writer.stdout.readline()
    report = scan(pids=[writer.pid], watch=0.2)
    # At any moment all 2000 differ; while they are read some repeat a number of an earlier round, never the same page.
    assert big(report)["repeated_pages"] < 100
    assert report.watch is not None
    assert report.watch["changed_pages"] >= 1900


def test_a_thousand_processes_are_no_special_case_also_with_few_descriptors(spawn: Spawner) -> None:
    # One process with many children: each is a target, and may have nothing in common with the number of open files.
    script = (
        "import json, os, subprocess, sys\n"
        "all = [subprocess.Popen(['sleep', '1000']).pid for _ in range(1000)]\n"
        "print(json.dumps(all), flush=True)\n"
        "sys.stdin.read()\n"
    )
    process = spawn.python(script)
    assert process.stdout is not None
    pids = json.loads(process.stdout.readline())
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(100, limits[1]), limits[1]))
        report = scan(pids=pids, threads=2)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert report.problems == []
    assert len(report.targets) == 1000
    assert len(report.pairs["targets"]) == 32
    # Pages of a program that has just started are much the same in all of them.
    assert report.duplicate_pages > 1000
    assert report.distinct_pages + report.duplicate_pages + report.zero_pages + report.unstable_pages == report.pages


def test_thread_stacks_and_heap_are_told_apart(spawn: Spawner) -> None:
    process = spawn.python(
        "import threading, sys\n"
        "x = [bytes(100) for _ in range(50000)]\n"
        "for _ in range(3): threading.Thread(target=threading.Event().wait, daemon=True).start()\n"
        "print('ready', flush=True)\nsys.stdin.read()"
    )
    assert process.stdout is not None
    process.stdout.readline()
    kinds = {row["kind"]: row["pages"] for row in scan(pids=[process.pid]).regions}
    assert kinds["thread stack"] >= 3
    assert kinds["stack"] > 0
    assert "heap" in kinds


def test_an_ordinary_user_scans_its_own_and_is_told_about_the_rest(as_user: OrdinaryUser) -> None:
    code = (
        "import os, json, sys, pageone\n"
        "pid = os.fork()\n"
        "if pid == 0:\n    import time; time.sleep(60)\n"
        "r = pageone.scan(pids=[pid, 1])\n"
        "os.kill(pid, 9); os.waitpid(pid, 0)\n"
        "print(json.dumps([r.pages, r.sharing, r.problems]))\n"
    )
    done = as_user.run("-c", code)
    pages, sharing, problems = json.loads(done.stdout)
    assert pages > 500, done.stderr
    assert sharing == "assumed"
    assert len(problems) == 1
    assert "process 1" in problems[0]
    assert "not permitted" in problems[0]


# --- the command ----------------------------------------------------------------------------------------------


def test_the_command_chooses_by_pattern_and_children(
    spawn: Spawner, pageone: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    mark = f"mark-{os.getpid()}-{time.time_ns()}"
    process = spawn.python(HOLDER, "[1]", "300", "2", mark)
    assert process.stdout is not None
    _, children = json.loads(process.stdout.readline())
    by_pattern = json.loads(pageone("scan", "--match", mark, "--json").stdout)
    by_parent = json.loads(pageone("scan", str(process.pid), "--descendants", "--json").stdout)
    for report in (by_pattern, by_parent):
        assert {target["pid"] for target in report["targets"]} == {process.pid, *children}
    uid = str(os.geteuid())
    assert process.pid in {
        target["pid"] for target in json.loads(pageone("scan", "--user", uid, "--json").stdout)["targets"]
    }
    nothing = pageone("scan", "--match", "no process has this in its command line"[::-1])
    assert (nothing.returncode, nothing.stdout) == (2, "")


#: What a program begins with that fills blocks of huge pages, or of none; all such programs have the same pages.
BLOCKS_OF_PAGES = """
import mmap, os, sys
import numpy as np
BLOCK, BLOCKS = 512, 8
def fill(advice):
    m = mmap.mmap(-1, BLOCK * (BLOCKS + 1) * 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    m.madvise(advice)
    v = np.frombuffer(m, dtype=np.uint64).reshape(BLOCK * (BLOCKS + 1), 512)
    v = v[-(v.ctypes.data // 4096) % BLOCK :][: BLOCK * BLOCKS]
    v[:] = np.arange(10**9, 10**9 + len(v), dtype=np.uint64)[:, None]
    return v
"""
TWIN = """
v = fill(15)
print(flush=True)
sys.stdin.read()
"""
#: Its child has written the first page of each huge page: of all of them the kernel then says that they are its own.
FORKED = """
v = fill(14)
told, tell = os.pipe()
child = os.fork()
if not child:
    v[::BLOCK] = 7
    os.write(tell, b"x")
    sys.stdin.read()
    os._exit(0)
os.read(told, 1)
print(child, flush=True)
sys.stdin.read()
"""
#: Prints how many pages of the parent huge pages map, and how many pages of large arrays could be saved by what a scan
#: says: of it and its twin, of these and the child, and of the two when the child has ended.
PROMISED = """
import json, os, subprocess, sys, time
from pathlib import Path
from pageone.scan import scan
def arrays(report):
    return sum(row["saveable_bytes"] for row in report.regions if row["kind"].startswith("arrays")) // 4096
pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
parent, twin = (subprocess.Popen([sys.executable, "-c", code], **pipes) for code in sys.argv[1:])
try:
    child = int(parent.stdout.readline())
    twin.stdout.readline()
    rollup = Path(f"/proc/{parent.pid}/smaps_rollup").read_text().splitlines()
    huge = next(int(line.split()[1]) for line in rollup if line.startswith("AnonHugePages")) // 4
    pids = [parent.pid, twin.pid]
    promised = [arrays(scan(pids=pids)), arrays(scan(pids=[*pids, child]))]
    os.kill(child, 9)
    deadline = time.monotonic() + 20
    while "State:\tZ" not in Path(f"/proc/{child}/status").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    print(json.dumps([huge, *promised, arrays(scan(pids=pids))]))
finally:
    parent.kill()
    twin.kill()
"""


@pytest.mark.needs("thp")
@pytest.mark.parametrize("who", ["root or this user", "an ordinary user"])
def test_what_a_child_shares_of_huge_pages_is_not_promised(
    who: str, as_user: OrdinaryUser, python: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    if who == "an ordinary user" and not as_user.is_other:
        pytest.skip("this is an ordinary user")
    run = as_user.run if who == "an ordinary user" else python
    done = run("-c", PROMISED, BLOCKS_OF_PAGES + FORKED, BLOCKS_OF_PAGES + TWIN)
    assert done.returncode == 0, done.stderr
    huge, beside, family, alone = json.loads(done.stdout)
    if huge < 8 * 512:
        pytest.skip(f"the kernel gave {huge} pages in huge pages only")
    # Interpreters have some large arrays of their own.
    assert max(beside, family) < 512, (beside, family, alone)
    assert alone >= 8 * 512

"""What an engine does to processes made of arrays."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from fake import BASE, NONE, PAGE, FakeBackend, FakeProcess

from pageone.engine import Engine
from pageone.engine.pages import address
from pageone.engine.queue import CpuBudget
from pageone.engine.status import State
from pageone.errors import TargetError, UsageError


def values(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 1 << 62, n, dtype=np.uint64)


def pair_of(backend: FakeBackend, n: int = 256) -> tuple[FakeProcess, FakeProcess]:
    a, b = backend.spawn(), backend.spawn()
    for p in (a, b):
        p.write(np.arange(n), values(n))
    return a, b


def steps(engine: Engine, n: int) -> None:
    for _ in range(n):
        engine.step()


def consistent(engine: Engine, backend: FakeBackend) -> None:
    """Accounting, status and processes agree."""
    counts = sum(engine.accounting.pages.counts_of(t.number) for t in engine.targets) if engine.targets else 0
    assert np.array_equal(engine.accounting.pages.counts, counts + np.zeros(len(State), np.int64))
    assert engine.accounting.pages.counts.sum() == engine.accounting.pages.tracked
    mapped, read = np.zeros((2, backend.frames_max), np.int64)
    for t in engine.targets:
        frames = backend.processes[t.pid].frame
        np.add.at(mapped, frames[frames != NONE], 1)
        shared = engine.accounting.pages.in_state(t.number, State.SHARED)
        np.add.at(read, frames[(address(shared) // PAGE).astype(np.int64) - BASE], 1)
    assert np.array_equal(engine.accounting.frames.mapped, mapped)
    assert np.array_equal(engine.accounting.frames.live, read)
    assert engine.accounting.frames.used == backend.filled.sum()
    contents = engine.accounting.contents
    assert np.array_equal(contents.keys, backend.key(backend.pool[contents.frames])), "a frame under another's key"
    assert len(set(contents.frames.tolist())) == len(contents.frames)
    assert np.isin(np.flatnonzero(engine.accounting.frames.live), contents.frames).all(), (
        "a frame that is read, and not found"
    )
    assert (contents.find(contents.keys) != NONE).all()
    for p in backend.processes.values():
        p.check()


def test_equal_pages_at_rest_share_frames_and_each_process_reads_its_own() -> None:
    backend = FakeBackend()
    a, b = pair_of(backend)
    a.write(np.arange(300, 340), values(40, 1))
    b.write(np.arange(300, 340), values(40, 2))
    with Engine(backend=backend) as engine:
        engine.attach(a.pid)
        engine.attach(b.pid)
        steps(engine, 2)
        assert engine.stats.frames == 0, "merged before the quiet periods were over"
        report = engine.step()
        assert (report.pages, report.duplicate_pages, report.merged_pages, report.frames) == (592, 512, 512, 256)
        assert report.mappings_added == 2, "one run in each process"
        assert engine.stats.states["unique"] == 80
        consistent(engine, backend)


def test_pages_booked_batch_by_batch_find_their_twins_in_any_batch_before() -> None:
    backend = FakeBackend()
    a, b = pair_of(backend)
    a.write(np.arange(256, 512), values(256))  # the same contents once more, in the same process
    with Engine(backend=backend, batch_pages=16) as engine:
        engine.attach(a.pid)
        engine.attach(b.pid)
        steps(engine, 3)
        stats = engine.stats
        assert (stats.pages_read, stats.pages_merged, stats.frames, len(engine.accounting.contents)) == (
            768,
            768,
            256,
            256,
        )
        assert engine.accounting.pages.counts[State.UNIQUE] == 0
        consistent(engine, backend)


def test_frames_that_are_mapped_are_looked_for_in_no_process() -> None:
    backend = FakeBackend()
    a, b = pair_of(backend)
    with Engine(backend=backend) as engine:
        engine.attach(a.pid)
        engine.attach(b.pid)
        steps(engine, 20)
        assert engine.stats.frames == 256
        assert "mapped_frames" not in backend.calls
        a.exit()
        b.exit()
        steps(engine, 3)
        assert engine.stats.frames == 0


def test_runs_shorter_than_asked_for_are_left_alone_and_counted() -> None:
    backend = FakeBackend()
    a, b = pair_of(backend)
    a.write(np.arange(10, 512, 10), values(51, 1))  # cuts the equal pages into runs of 9, and one of 10 at the start
    with Engine(backend=backend, min_run=10) as engine:
        engine.attach(a.pid)
        engine.attach(b.pid)
        report = engine.merge_once(quiet_s=0)
        assert report.left_short + report.merged_pages == report.duplicate_pages
        assert 0 < report.merged_pages < report.left_short
        consistent(engine, backend)


def test_a_steady_state_reads_no_page_and_asks_for_nothing_but_what_was_written() -> None:
    backend = FakeBackend()
    a, b = pair_of(backend)
    with Engine(backend=backend) as engine:
        engine.attach(a.pid)
        engine.attach(b.pid)
        steps(engine, 3)
        backend.calls.clear()
        read = backend.pages_read
        steps(engine, 50)
        assert backend.pages_read == read
        assert backend.calls == {"regions": 100, "written": 100}


def test_a_page_that_is_written_every_period_is_never_read() -> None:
    backend = FakeBackend()
    a, b = pair_of(backend, 8)
    with Engine(backend=backend) as engine:
        engine.attach(a.pid)
        engine.attach(b.pid)
        for i in range(30):
            a.write(0, i + 1)
            engine.step()
        assert engine.stats.frames == 7
        assert engine.targets[0].stats.states["volatile"] == 1
        steps(engine, 2 + 7 - 1)
        assert engine.targets[0].stats.states["volatile"] == 1, "the longest back-off is two periods and seven"
        steps(engine, 1)
        assert engine.targets[0].stats.states["volatile"] == 0


def test_back_off_forgets() -> None:
    backend = FakeBackend()
    a = backend.spawn()
    with Engine(backend=backend) as engine:
        engine.attach(a.pid)
        waits = []
        for i in range(5):
            a.write(0, i + 1)
            engine.step()
            for wait in range(1, 20):
                if engine.step().pages:
                    waits.append(wait)
                    break
            steps(engine, 30)
        # written once and left alone each time: the level settles at 1, it does not climb to 7
        assert waits == [2, 3, 3, 3, 3]


def test_a_write_while_queued_is_left_alone_until_it_rests_again() -> None:
    backend = FakeBackend()
    a, b = pair_of(backend)
    with Engine(backend=backend, batch_pages=64) as engine:
        engine.attach(a.pid)
        engine.attach(b.pid)
        steps(engine, 2)
        engine.step(until=time.monotonic())  # no time left: all pages are queued, none is read
        assert engine.stats.states["queued"] == 512
        assert engine.stats.queue_batches == 8
        a.write(np.arange(10), values(10, 5))
        engine.step(until=time.monotonic())
        assert engine.stats.states["changed"] == 10
        consistent(engine, backend)
        report = engine.step()
        assert report.merged_pages == 2 * 246
        assert engine.stats.states["volatile"] == 10
        consistent(engine, backend)


@pytest.mark.parametrize(("moment", "sharers"), [("read_keys", 236 * 2), ("fill", 236 * 2), ("merge", 236 + 256)])
def test_a_write_between_any_two_calls_is_never_lost(moment: str, sharers: int) -> None:
    backend = FakeBackend()
    a, b = pair_of(backend)
    hits = []

    def race(name: str, process: FakeProcess) -> None:
        if name == moment and not hits:
            hits.append(name)
            a.write(np.arange(20), values(20, 9))

    backend.hook = race
    with Engine(backend=backend) as engine:
        engine.attach(a.pid)
        engine.attach(b.pid)
        steps(engine, 3)
        assert hits
        consistent(engine, backend)
        steps(engine, 20)
        assert engine.stats.states["shared"] == sharers  # the other one may be alone on its frames
        consistent(engine, backend)


def test_keys_that_collide_cost_time_and_never_bytes() -> None:
    backend = FakeBackend(collide=3)
    a, b = pair_of(backend)
    with Engine(backend=backend) as engine:
        engine.attach(a.pid)
        engine.attach(b.pid)
        steps(engine, 12)
        assert engine.stats.refused["DIFFERS"] > 0
        consistent(engine, backend)


def test_zero_pages_go_back_to_the_kernel() -> None:
    backend = FakeBackend()
    a = backend.spawn()
    a.write(np.arange(100), 0)
    with Engine(backend=backend) as engine:
        engine.attach(a.pid)
        report = engine.merge_once(quiet_s=0)
        assert (report.zero_pages, report.dropped_pages, report.merged_pages) == (100, 100, 0)
        assert not a.resident.any()
        a.write(5, 7)
        engine.step()
        assert engine.stats.states == {**engine.stats.states, "zero": 99, "volatile": 1}
        consistent(engine, backend)


def test_one_pass_merges_what_rests_and_nothing_else() -> None:
    backend = FakeBackend()
    a, b = pair_of(backend)
    seen = []

    def race(name: str, process: FakeProcess) -> None:
        seen.append(name)
        if name == "written" and seen.count("written") == 3:
            a.write(np.arange(16), values(16, 3))  # during the quiet interval

    backend.hook = race
    with Engine(backend=backend) as engine:
        engine.attach(a.pid)
        engine.attach(b.pid)
        progress: list[tuple[str, int, int]] = []
        report = engine.merge_once(quiet_s=0, progress=lambda *p: progress.append(p))
        assert report.written_pages == 16
        assert (report.pages, report.merged_pages) == (512 - 16, 2 * 240)
        assert report.saved_bytes < 240 * 4096
        assert {p[0] for p in progress} == {"find", "merge"}
        assert all(done <= total for _, done, total in progress)
        consistent(engine, backend)


def test_frames_are_freed_only_after_two_scans_that_find_nobody() -> None:
    backend = FakeBackend()
    a, b = pair_of(backend)
    with Engine(backend=backend) as engine:
        engine.attach(a.pid)
        engine.attach(b.pid)
        engine.merge_once(quiet_s=0)
        child = a.fork(backend.new_pid())  # nobody attaches it
        a.exit()
        b.exit()
        steps(engine, 40)
        assert engine.stats.frames == 256, "a child still maps them"
        child.check()
        child.exit()
        backend.complete = False
        steps(engine, 40)
        assert engine.stats.frames == 256, "a process that cannot be read may map them"
        backend.complete = True
        steps(engine, 40)
        stats = engine.stats
        assert (stats.frames, stats.frames_freed, stats.index_entries, stats.tracked) == (0, 256, 0, 0)
        assert not backend.filled.any()
        scans = backend.calls["mapped_frames"]
        steps(engine, 40)
        assert backend.calls["mapped_frames"] == scans, "there is nothing left to look for"


def test_detach_gives_every_page_back_and_can_be_stopped_half_way() -> None:
    backend = FakeBackend()
    a, b = backend.spawn(40000, (0, 40000)), backend.spawn(40000, (0, 40000))
    for p in (a, b):
        p.write(np.arange(40000), values(40000))
    with Engine(backend=backend) as engine:
        target = engine.attach(a.pid)
        engine.attach(b.pid)
        engine.merge_once(quiet_s=0)
        with pytest.raises(TargetError, match="needs 156 MiB"):
            engine.detach(target, available_bytes=lambda: 1 << 20)
        assert (a.frame != NONE).all()
        asked = []
        assert not engine.detach(target, stop=lambda: bool(asked.append(1)) or len(asked) > 1)
        left = target.stats.mapped_pages
        assert 0 < left < 40000
        assert target.attached
        consistent(engine, backend)
        assert engine.detach(target)
        assert (a.frame == NONE).all()
        assert len(a.vmas()[0]) == 1, "one mapping again"
        assert not target.attached
        consistent(engine, backend)
        with pytest.raises(TargetError, match="not attached"):
            engine.detach(target)


def test_detach_says_what_the_system_would_not_give_back() -> None:
    backend = FakeBackend()
    a, b = pair_of(backend)
    with Engine(backend=backend) as engine:
        target = engine.attach(a.pid)
        engine.attach(b.pid)
        engine.merge_once(quiet_s=0)
        a.pinned[3] = True
        with pytest.raises(TargetError, match="1 merged pages"):
            engine.detach(target)
        assert target.attached
        a.pinned[3] = False
        assert engine.detach(target)


def test_a_refused_page_is_left_alone_until_it_is_written() -> None:
    backend = FakeBackend()
    a, b = pair_of(backend)
    a.pinned[:4] = True
    with Engine(backend=backend) as engine:
        engine.attach(a.pid)
        engine.attach(b.pid)
        report = engine.merge_once(quiet_s=0)
        assert report.refused == {"REFUSED": 4}
        read = backend.pages_read
        steps(engine, 20)
        assert backend.pages_read == read
        assert engine.stats.states["refused"] == 4
        consistent(engine, backend)


def test_targets_of_two_users_share_only_when_a_domain_is_named() -> None:
    backend = FakeBackend()
    a, b = pair_of(backend)
    users = {a.pid: 1000, b.pid: 0}
    with Engine(backend=backend, owner=users.__getitem__) as engine:
        engine.attach(a.pid)
        with pytest.raises(TargetError, match="name a domain"):
            engine.attach(b.pid)
    with Engine(backend=backend, domain="both") as engine:
        engine.attach(a.pid)
        engine.attach(b.pid)


def test_the_thread_follows_targets_and_tells_what_ended_it() -> None:
    backend = FakeBackend()
    a, b = pair_of(backend)
    with Engine(backend=backend, period=0.01) as engine:
        engine.attach(a.pid)
        engine.attach(b.pid)
        engine.start()
        for _ in range(500):
            if engine.stats.sharers == 512:
                break
            time.sleep(0.01)
        assert engine.stats.sharers == 512

        failed = threading.Event()

        def fail(name: str, process: FakeProcess) -> None:
            failed.set()
            raise RuntimeError("broken")

        backend.hook = fail
        assert failed.wait(20)
        with pytest.raises(RuntimeError, match="broken"):
            engine.stop()
        backend.hook = lambda name, process: None
    assert backend.closed


def test_scans_that_take_longer_than_a_period_do_not_starve_the_merging() -> None:
    backend = FakeBackend()
    a, b = pair_of(backend)

    def dawdle(name: str, process: FakeProcess) -> None:
        if name == "written":
            time.sleep(0.02)

    backend.hook = dawdle
    with Engine(backend=backend, period=0.01) as engine:
        engine.attach(a.pid)
        engine.attach(b.pid)
        engine.start()
        for _ in range(300):
            if engine.stats.sharers == 512:
                break
            time.sleep(0.01)
        assert engine.stats.sharers == 512, engine.stats


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("period", 0),
        ("quiet_periods", 0),
        ("max_sharing", 1),
        ("map_share", 1.5),
        ("huge_share", -1),
        ("cpu", "much"),
        ("cpu", 0),
        ("workers", 0),
    ],
)
def test_a_value_out_of_range_is_refused_before_anything_starts(option: str, value: object) -> None:
    with pytest.raises(UsageError):
        Engine(backend=FakeBackend(), **{option: value})


def test_frames_that_every_sharer_has_written_over_are_unmerged() -> None:
    backend = FakeBackend()
    a, b = pair_of(backend)
    with Engine(backend=backend) as engine:
        engine.attach(a.pid)
        engine.attach(b.pid)
        engine.merge_once(quiet_s=0)
        a.write(np.arange(100), values(100, 5))
        steps(engine, 1)
        assert engine.stats.unmerged_unread == 0, "the other one still reads them"
        b.write(np.arange(100), values(100, 6))
        steps(engine, 1)
        assert engine.stats.unmerged_unread == 200
        assert (a.frame[:100] == NONE).all()
        assert (a.frame[100:256] != NONE).all()
        steps(engine, 3)
        assert engine.stats.frames == 156
        assert engine.stats.frames_freed == 100
        consistent(engine, backend)


def test_a_target_that_does_not_stop_in_time_is_asked_again_when_it_is_detached() -> None:
    backend = FakeBackend()
    a, b = pair_of(backend)
    with Engine(backend=backend) as engine:
        target = engine.attach(a.pid)
        engine.attach(b.pid)
        engine.merge_once(quiet_s=0)
        backend.timeout = True

        def recover(name: str, process: FakeProcess) -> None:
            backend.timeout = backend.calls["unmerge"] < 3

        backend.hook = lambda name, process: recover(name, process) if name == "unmerge" else None
        assert engine.detach(target)
        assert backend.calls["unmerge"] == 3


@pytest.mark.parametrize("call", ["regions", "written"])
def test_a_scan_that_fails_is_repeated_a_period_later(call: str) -> None:
    backend = FakeBackend()
    a, b = pair_of(backend)
    with Engine(backend=backend) as engine:
        engine.attach(a.pid)
        engine.attach(b.pid)
        failing = [True]

        def fail(name: str, process: FakeProcess) -> None:
            if name == call and process is a and failing and failing.pop():
                raise TargetError("its mappings are changing")

        backend.hook = fail
        steps(engine, 4)
        assert engine.stats.missed_scans == 1
        assert engine.stats.sharers == 512


def test_planning_and_filling_frames_count_for_the_cpu_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = FakeBackend()
    a, b = pair_of(backend, 4096)
    paid: list[float] = []
    pay = CpuBudget.pay

    def count(budget: CpuBudget, cpu_s: float) -> float:
        paid.append(cpu_s)
        return pay(budget, cpu_s)

    monkeypatch.setattr(CpuBudget, "pay", count)
    with Engine(backend=backend, cpu=0.9) as engine:
        for p in (a, b):
            engine.attach(p.pid)
        steps(engine, 4)
        spent = engine.stats.cpu_s
        assert engine.stats.sharers > 0
        assert spent["plan"] > 0
        assert sum(paid) >= 0.9 * (spent["find"] + spent["plan"] + spent["merge"])


def test_scans_come_less_often_where_they_would_take_more_than_a_quarter_of_the_cpu_budget() -> None:
    backend = FakeBackend()
    process, _ = pair_of(backend)
    scan_s = 0.01
    with Engine(backend=backend, cpu=0.2, period=0.001) as engine:
        target = engine.attach(process.pid)
        written = target.memory.written

        def slow(start: np.ndarray, end: np.ndarray) -> object:
            until = time.thread_time() + scan_s
            while time.thread_time() < until:
                pass
            return written(start, end)

        target.memory.written = slow  # type: ignore[method-assign, assignment]
        began = time.monotonic()
        engine.run(lambda: engine.stats.period >= 12)
        scans = engine.stats.period
        # The first few do not know yet what a scan costs.
        assert (scans - 4) * scan_s / (time.monotonic() - began) < 0.2 * 0.25
        engine.bypass_cpu_budget_when(lambda: True)
        assert engine.scan_every_s == engine.period


@pytest.mark.parametrize("error", [TargetError("cannot be read"), OSError(24, "no descriptors"), MemoryError()])
@pytest.mark.parametrize("call", ["regions", "written", "read_keys"])
def test_a_target_that_cannot_be_looked_at_is_noted_and_asked_ever_more_rarely_while_others_go_on(
    call: str, error: Exception
) -> None:
    backend = FakeBackend()
    a, b = pair_of(backend)
    c = backend.spawn()
    c.write(np.arange(256), values(256))
    asked: list[int] = []
    with Engine(backend=backend) as engine:
        targets = [engine.attach(p.pid) for p in (a, b, c)]

        def fail(name: str, process: FakeProcess) -> None:
            if name == call and process is c:
                asked.append(engine.accounting.period)
                if asked[-1] < 150:
                    raise error

        backend.hook = fail
        steps(engine, 150)
        assert {t.pid for t in engine.targets} == {a.pid, b.pid, c.pid}
        assert engine.stats.sharers >= 512, "the others are merged"
        if call != "read_keys":
            assert targets[2].stats.trouble == (str(error) or "MemoryError")
            assert len(asked) < 20, asked
        assert targets[0].stats.trouble == ""
        backend.hook = lambda name, process: None
        c.write(np.arange(256), values(256))
        steps(engine, 60)
        assert targets[2].stats.trouble == ""
        assert engine.stats.sharers >= 768
        consistent(engine, backend)

"""Each step of a period is a function of arrays: checked with numbers typed by hand."""

from __future__ import annotations

import functools
import json
import re
import threading
import time
import weakref

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pageone.engine.arrays import Extents, Reserve, coalesce, distinct, expand, repeated, requests, runs
from pageone.engine.contents import Contents
from pageone.engine.find import pair
from pageone.engine.frames import NO_FRAME, covered
from pageone.engine.index import Index, page_id_of, page_version
from pageone.engine.metrics import MergeReport, Pauses, Stats, TargetStats, as_json, as_prometheus
from pageone.engine.pages import PageTable, address, page_id, target_of
from pageone.engine.queue import CpuBudget, Workers, cpu_share
from pageone.engine.status import HUGE_BIT, LEVEL_MAX, TABLE, Event, State, level, state, transition
from pageone.errors import PageOneError, UsageError
from pageone.policy import Limits, afford, frames_wanted, spread, worth_splitting

PAGE = 4096


def u64(*values: int) -> np.ndarray:
    return np.array(values, np.uint64)


def u32(*values: int) -> np.ndarray:
    return np.array(values, np.uint32)


# ---------------------------------------------------------------- arrays


def test_expand_lists_every_element_of_runs() -> None:
    assert expand(u64(5, 100), np.array([3, 2])).tolist() == [5, 6, 7, 100, 101]
    assert expand(u32(9), np.array([2])).dtype == np.uint32
    assert expand(u64(5, 7, 9), np.array([1, 0, 2])).tolist() == [5, 9, 10]


def test_runs_break_where_any_column_does_not_step_by_one() -> None:
    first, count = runs(u64(10, 11, 12, 20, 21, 22), u64(3, 4, 9, 10, 11, 12))
    assert (first.tolist(), count.tolist()) == ([0, 2, 3], [2, 1, 3])
    first, count = runs(u64())
    assert (len(first), len(count)) == (0, 0)


def test_what_came_before_is_marked_and_only_that() -> None:
    assert repeated(np.array([5, 3, 5, 9, 3, 5], np.uint64)).tolist() == [False, False, True, False, True, True]
    assert not repeated(np.array([5, 3, 9], np.uint64)).any()


def test_distinct_sorts_and_drops_repeats() -> None:
    assert distinct(u64(3, 1, 3, 2, 1)).tolist() == [1, 2, 3]
    assert distinct(u64()).tolist() == []


def test_a_reserved_column_is_zero_again_after_it_was_cleared() -> None:
    column = Reserve(1 << 20, np.uint32)
    column.data[:] = 7
    column.clear(100, 900_001)
    assert column.data[99] == 7
    assert not column.data[100:900_001].any()
    assert column.data[900_001] == 7


def test_extents_give_consecutive_numbers_while_there_are_any() -> None:
    free = Extents(10)
    assert free.take(4).tolist() == [0, 1, 2, 3]
    assert free.take(4).tolist() == [4, 5, 6, 7]
    free.give(np.array([2, 0, 5]))
    assert free.take(3).tolist() == [0, 2, 5]  # no run of three is left
    assert free.take(5).tolist() == [8, 9]  # fewer when fewer are free
    assert free.take_run(1) is None
    free.give(np.arange(10))
    assert free.take_run(10) == 0


@given(st.lists(st.integers(0, 30), max_size=12), st.integers(0, 40))
def test_extents_never_give_a_number_twice(sizes: list[int], capacity: int) -> None:
    free = Extents(capacity)
    held: set[int] = set()
    for n in sizes:
        if n % 3 == 2 and held:
            back = sorted(held)[:n]
            free.give(np.array(back))
            held -= set(back)
        else:
            got = free.take(n).tolist()
            assert not held & set(got)
            assert len(got) == min(n, capacity - len(held))
            held |= set(got)
        assert free.free == capacity - len(held)


# ---------------------------------------------------------------- status


def test_every_state_has_a_way_on_when_it_is_written() -> None:
    for now in State:
        assert (now, Event.WRITTEN) in TABLE
        assert TABLE[now, Event.LOST][0] == State.ABSENT


def test_the_queue_owns_a_queued_page() -> None:
    status = np.array([State.QUEUED, State.VOLATILE, State.UNIQUE], np.uint8)
    after, change = transition(status, np.arange(3), Event.WRITTEN)
    assert state(after).tolist() == [State.CHANGED, State.VOLATILE, State.VOLATILE]
    assert change.sum() == 0
    assert (change[State.CHANGED], change[State.QUEUED], change[State.UNIQUE], change[State.VOLATILE]) == (1, -1, -1, 1)


def test_the_back_off_climbs_to_seven_and_halves_when_a_page_rests() -> None:
    status = np.array([State.VOLATILE], np.uint8)
    levels = []
    for _ in range(9):
        levels.append(int(level(transition(status, np.array([0]), Event.WRITTEN)[0])[0]))
    assert levels == [1, 2, 3, 4, 5, 6, 7, 7, 7]
    assert LEVEL_MAX == 7
    assert level(transition(status, np.array([0]), Event.DUE)[0]).tolist() == [3]


def test_an_impossible_event_raises_and_changes_nothing() -> None:
    status = np.array([State.SHARED, State.ABSENT], np.uint8)
    with pytest.raises(PageOneError, match=r"DUE on pages in state ABSENT, SHARED"):
        transition(status, np.array([0, 1]), Event.DUE)
    assert status.tolist() == [State.SHARED, State.ABSENT]


def test_a_merged_page_is_in_no_huge_page_any_more() -> None:
    status = np.array([State.QUEUED | HUGE_BIT, State.QUEUED | HUGE_BIT], np.uint8)
    assert transition(status, np.array([0]), Event.SHARED)[0].tolist() == [State.SHARED]
    assert transition(status, np.array([1]), Event.UNIQUE)[0].tolist() == [State.UNIQUE | HUGE_BIT]


# ---------------------------------------------------------------- pages


def test_a_place_names_target_and_page() -> None:
    page_ids = page_id(3, u64(0x7FFF_FFFF_F000, 0x1000))
    assert target_of(page_ids).tolist() == [3, 3]
    assert address(page_ids).tolist() == [0x7FFF_FFFF_F000, 0x1000]
    assert page_id(2, u64(0x7FFF_FFFF_F000))[0] < page_id(3, u64(0))[0]


def test_ranges_that_touch_are_one() -> None:
    start, end = coalesce(u64(0, 10, 30), u64(10, 20, 40))
    assert (start.tolist(), end.tolist()) == ([0, 30], [20, 40])


def test_pages_keep_their_status_when_their_mapping_grows_shrinks_or_splits() -> None:
    table = PageTable()
    table.update(1, u64(10 * PAGE), u64(20 * PAGE))
    indices = table.indices(page_id(1, u64(12 * PAGE, 18 * PAGE)))
    table.apply(indices, Event.WRITTEN)
    table.update(1, u64(5 * PAGE, 16 * PAGE), u64(14 * PAGE, 40 * PAGE))
    assert table.tracked == 33
    assert table.counts[State.VOLATILE] == 2
    assert table.counts.sum() == 33
    volatile = address(table.in_state(1, State.VOLATILE)) // PAGE
    assert volatile.tolist() == [12, 18]
    table.update(1, u64(5 * PAGE), u64(14 * PAGE))
    assert table.counts[State.VOLATILE] == 1
    assert table.indices(page_id(1, u64(14 * PAGE))).tolist() == [-1]
    table.update(1, u64(), u64())
    assert (table.tracked, table.counts.tolist()) == (0, [0] * len(State))
    table.update(2, u64(0), u64(100 * PAGE))
    assert table.counts[State.ABSENT] == 100, "a status index given back is blank"


def test_the_slot_of_a_place_does_not_depend_on_what_else_is_asked_for() -> None:
    table = PageTable()
    table.update(1, u64(10 * PAGE, 25 * PAGE), u64(15 * PAGE, 30 * PAGE))
    table.update(2, u64(0), u64(20 * PAGE))
    every = np.concatenate(
        (page_id(1, np.arange(40, dtype=np.uint64) * PAGE), page_id(2, np.arange(40, dtype=np.uint64) * PAGE))
    )
    alone = np.concatenate([table.indices(every[i : i + 1]) for i in range(len(every))])
    assert np.count_nonzero(alone >= 0) == len(set(alone.tolist()) - {-1}) == 30
    for low in range(len(every)):
        for high in range(low, len(every) + 1):
            assert np.array_equal(table.indices(every[low:high][::-1]), alone[low:high][::-1])


def test_of_ranges_noted_earlier_only_what_is_still_tracked_is_found() -> None:
    table = PageTable()
    table.update(1, u64(10 * PAGE), u64(30 * PAGE))
    table.update(1, u64(10 * PAGE, 25 * PAGE), u64(15 * PAGE, 30 * PAGE))
    table.update(2, u64(0), u64(20 * PAGE))  # has some of the status indices that were given back
    noted = page_id(1, u64(8 * PAGE, 12 * PAGE)), np.array([1, 16])
    page_ids, indices = table.indices_of_ranges(*noted)
    assert (address(page_ids) // PAGE).tolist() == [12, 13, 14, 25, 26, 27]
    assert indices.tolist() == table.indices(page_ids).tolist()
    whole = table.indices_of_ranges(page_id(1, u64(11 * PAGE, 25 * PAGE)), np.array([4, 5]))
    assert (address(whole[0]) // PAGE).tolist() == [11, 12, 13, 14, 25, 26, 27, 28, 29]
    assert whole[1].tolist() == table.indices(whole[0]).tolist()


# ---------------------------------------------------------------- plan


def test_of_equal_pages_the_first_becomes_the_place_of_their_content() -> None:
    stored = u64(90, 91, 92)
    ids, own = u32(0, 1, 0, 2, 1), u64(10, 11, 12, 13, 14)
    version = pair(ids, own, stored, np.array([False, True, False, False, True]))
    assert version.tolist() == [10, 91, 10, 13, 91]
    assert stored.tolist() == [10, 91, 13]


@pytest.mark.parametrize(
    ("pages", "cap", "share", "frames"),
    [(2, 256, 1 / 64, 1), (256, 256, 0, 1), (257, 256, 0, 2), (6400, 256, 1 / 64, 100), (1_048_576, 256, 0, 4096)],
)
def test_a_content_gets_frames_for_its_cap_and_its_repeats(pages: int, cap: int, share: float, frames: int) -> None:
    assert frames_wanted(np.array([pages]), Limits(cap, share)).tolist() == [frames]


def test_the_least_used_frames_are_taken_first_in_rounds() -> None:
    assert spread(np.array([0, 0, 0]), 7).tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert spread(np.array([5, 1, 3]), 2).tolist() == [1, 1]
    assert spread(np.array([5, 1, 3]), 4).tolist() == [1, 2, 1, 1]
    assert spread(np.array([9]), 3).tolist() == [0, 0, 0]


@given(st.lists(st.integers(0, 50), min_size=1, max_size=20), st.integers(1, 300))
def test_spreading_levels_the_load(load: list[int], pages: int) -> None:
    turn = spread(np.array(load), pages)
    assert len(turn) == pages
    added = np.bincount(turn, minlength=len(load))
    after = np.array(load) + added
    assert after[added > 0].max() - after[added > 0].min() <= 1
    assert after[added > 0].max() <= after[added == 0].min(initial=10**9) + 1


def test_the_budget_goes_to_the_longest_runs() -> None:
    assert afford(np.array([1, 9, 3, 9, 1]), 6).tolist() == [False, True, True, True, False]
    assert afford(np.array([1, 1, 1]), 4).tolist() == [True, True, False]
    assert afford(np.array([1]), 1).tolist() == [False]


def test_a_huge_page_is_split_only_for_more_than_the_share() -> None:
    assert worth_splitting(np.array([256, 257]), Limits(huge_share=0.5)).tolist() == [False, True]


def test_requests_cut_long_runs_and_gather_short_ones() -> None:
    start, pages, frame = u64(0, 100, 200), np.array([10, 2, 1]), u32(50, 7, 3)
    cut = [(s.tolist(), p.tolist(), f.tolist()) for s, p, f in requests(start, pages, frame, 4)]
    assert cut == [
        ([0], [4], [50]),
        ([4], [4], [54]),
        ([8, 100], [2, 2], [58, 7]),
        ([200], [1], [3]),
    ]
    assert list(requests(u64(), np.array([], int), None, 4)) == []


# ---------------------------------------------------------------- frames


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 3)), max_size=20), st.sets(st.integers(0, 60))),
        max_size=6,
    ),
    st.sampled_from([1, 0x9E3779B97F4A7C15, 1 << 60]),
)
def test_contents_find_the_frames_that_were_added_and_not_dropped(
    rounds: list[tuple[list[tuple[int, int]], set[int]]], factor: int
) -> None:
    def key(value: int) -> int:
        return value * factor & (1 << 64) - 1

    contents, number = Contents(), 0
    known: dict[int, int] = {}
    for added, dropped in rounds:
        for value, frames in added:
            fresh = np.arange(number, number + frames, dtype=np.uint32)
            number += frames
            contents.add(np.full(frames, key(value), np.uint64), fresh)
            known.update(dict.fromkeys(fresh.tolist(), key(value)))
        contents.drop(np.array(sorted(dropped), np.uint32))
        known = {frame: k for frame, k in known.items() if frame not in dropped}
        assert len(contents) == len(set(known.values()))
        every = u64(*(key(value) for value in range(14)))
        first, behind = contents.rows(every)
        found = contents.find(every)
        for k, low, high, frame in zip(every.tolist(), first, behind, found.tolist(), strict=True):
            rows = contents.frames[low:high].tolist()
            assert sorted(rows) == sorted(f for f, its in known.items() if its == k)
            assert frame == (rows[0] if rows else NO_FRAME)


def test_an_index_with_little_left_gives_its_memory_back_and_keeps_what_holds() -> None:
    table, index = PageTable(), Index()
    table.update(1, u64(0), u64(10_000 * PAGE))
    page_ids = page_id(1, np.arange(10_000, dtype=np.uint64) * PAGE)
    for event in (Event.WRITTEN, Event.DUE, Event.UNIQUE):
        table.apply(table.indices(page_ids), event)
    keys = np.random.default_rng(3).integers(1, 1 << 62, 10_000, dtype=np.uint64)
    ids, _ = index.intern(keys)
    index.versions[ids] = page_version(page_ids, 0)
    before = index.nbytes
    table.apply(table.indices(page_ids[1000:]), Event.SHARED)
    assert index.sweep(table) == 9000
    assert len(index) == 1000
    assert index.nbytes < before / 9
    ids, new = index.intern(keys[:1000])
    assert not new.any()
    assert np.array_equal(page_id_of(index.versions[ids]), page_ids[:1000])
    assert index.believed(index.versions[ids], table).all()


def test_a_frame_is_covered_by_any_mapping_that_reaches_over_it() -> None:
    first, pages = u32(0, 2, 50), u32(20, 1, 5)
    assert covered(u32(0, 19, 20, 49, 54, 55), first, pages).tolist() == [True, True, False, False, True, False]
    assert covered(u32(1), u32(), u32()).tolist() == [False]


# ---------------------------------------------------------------- queue and workers


def test_workers_do_every_job_once_and_leave_what_there_is_no_time_for() -> None:
    workers = Workers(3)
    try:
        workers.push([lambda i=i: i for i in range(100)])
        assert len(workers) == 100
        assert workers.drain(until=time.monotonic()) == []
        assert len(workers) == 100
        told: list[int] = []
        assert sorted(workers.drain(progress=told.append)) == list(range(100))
        assert told[-1] == 100
        assert workers.drain() == []
    finally:
        workers.close()


def test_what_jobs_return_is_kept_by_nobody_but_who_asked() -> None:
    workers = Workers(1)
    try:
        workers.push([lambda: np.zeros(1000)])
        result = weakref.ref(workers.drain()[0])
        assert result() is None
    finally:
        workers.close()


def test_the_exception_of_a_job_reaches_the_caller_and_the_workers_live_on() -> None:
    workers = Workers(2)
    try:

        def fail() -> None:
            raise ValueError("broken")

        workers.push([fail])
        with pytest.raises(ValueError, match="broken"):
            workers.drain()
        workers.push([lambda: 1])
        assert workers.drain() == [1]
    finally:
        workers.close()
    with pytest.raises(PageOneError, match="closed"):
        workers.drain()


def _burn(cpu_s: float) -> None:
    end = time.thread_time() + cpu_s
    while time.thread_time() < end:
        pass


def test_the_cpu_budget_holds_on_average() -> None:
    workers = Workers(2, CpuBudget(0.25, burst_s=0.0))
    try:
        workers.push([functools.partial(_burn, 0.01)] * 20)
        began = time.monotonic()
        workers.drain()
        assert 0.2 / (time.monotonic() - began) < 0.25 * 1.15
    finally:
        workers.close()


def test_the_budget_waits_while_somebody_waits_for_the_engine() -> None:
    urgent = threading.Event()
    workers = Workers(1, CpuBudget(0.001, burst_s=0.0))
    workers.urgent = urgent.is_set
    timer = threading.Timer(0.3, urgent.set)
    try:
        workers.push([functools.partial(_burn, 0.01)] * 3)  # 30 s of sleep
        timer.start()
        began = time.monotonic()
        workers.drain()
        assert 0.25 < time.monotonic() - began < 10
    finally:
        timer.cancel()
        workers.close()


def test_time_without_work_is_not_saved_up() -> None:
    clock = iter([0.0, 1000.0, 1000.0])
    budget = CpuBudget(0.5, burst_s=0.1, clock=clock.__next__)
    assert budget.pay(0.1) == 0
    assert budget.pay(0.1) == pytest.approx(0.2)


def test_a_budget_is_given_as_percent_or_share() -> None:
    assert cpu_share("20%") == pytest.approx(0.2)
    assert cpu_share(0.2) == cpu_share("0.2") == 0.2
    assert cpu_share(None) is None
    for wrong in ("x", "-1", "0%"):
        with pytest.raises(UsageError):
            cpu_share(wrong)


# ---------------------------------------------------------------- metrics


def sample() -> tuple[Stats, TargetStats]:
    pauses = Pauses()
    pauses.add(np.array([0.001, 0.002, 0.004]))
    states = {s.name.lower(): 1 for s in State}
    scalars = dict.fromkeys(
        (f for f, t in Stats.__annotations__.items() if t == "int"),
        5,
    )
    stats = Stats(
        **scalars, states=states, refused={"GONE": 2}, cpu_s={"scan": 0.5}, cpu_budget_left_s=None, pauses=pauses
    )
    target = TargetStats(42, states, 9, 20, 30, 4, 4096, 4, 1, {}, pauses)
    return stats, target


def test_every_sample_in_prometheus_format_belongs_to_a_family_with_help_and_type() -> None:
    stats, target = sample()
    text = as_prometheus(stats, [target])
    families = dict(re.findall(r"# TYPE (\w+) (\w+)", text))
    assert set(re.findall(r"# HELP (\w+)", text)) == set(families)
    for line in text.splitlines():
        if not line.startswith("#"):
            match = re.fullmatch(r'([a-z_]+)(\{\w+="[^"]*"\})? -?[0-9.e+-]+', line)
            assert match, line
            name = re.sub(r"_(sum|count)$", "", match[1])
            assert name in families, line
            assert (families[name] == "counter") == name.endswith("_total"), line
    assert 'pageone_target_saved_bytes{pid="42"} 4096' in text
    assert 'pageone_pages{state="shared"} 1' in text


def test_records_become_json_objects_with_their_fields() -> None:
    stats, target = sample()
    record = json.loads(as_json(stats))
    assert record["pauses"] == {
        "count": 3,
        "total_ms": 7.0,
        "p50_ms": 2.0,
        "p99_ms": pytest.approx(3.96),
        "max_ms": 4.0,
    }
    assert json.loads(as_json(target))["pid"] == 42
    report = dict.fromkeys(MergeReport.__annotations__, 1) | {"pauses_s": np.array([0.5]), "refused": {}}
    assert json.loads(as_json(MergeReport(**report)))["pause_ms"] == {"p50": 500.0, "p99": 500.0, "max": 500.0}

"""Pages shared since a fork: what is merged, claimed, and given back of them. Processes are made of arrays."""

from __future__ import annotations

import numpy as np
import pytest
from fake import NONE, FakeBackend, FakeProcess
from test_engine import consistent, pair_of, steps, values

from pageone.engine import Engine, Target

N = 256


def family(backend: FakeBackend, children: int, seed: int = 0) -> list[FakeProcess]:
    parent = backend.spawn()
    parent.write(np.arange(N), values(N, seed))
    return [parent] + [parent.fork(backend.new_pid()) for _ in range(children)]


def attach(engine: Engine, processes: list[FakeProcess]) -> list[Target]:
    return [engine.attach(p.pid) for p in processes]


def saved_pages(engine: Engine, backend: FakeBackend) -> int:
    """What is saved, of pages alone, by the accounting; held against the memory that is in use."""
    stats = engine.stats
    claimed = stats.states["shared"] + stats.states["zero"] - stats.frames + engine.accounting.frames.outside
    of_targets = round(sum(t.stats.saved_bytes for t in engine.targets) / 4096)
    assert claimed == backend.memory_without() - backend.memory_pages()
    unread = stats.frames - np.count_nonzero(engine.accounting.frames.live) - engine.accounting.frames.outside
    assert of_targets == claimed + unread
    return claimed


def finish(engine: Engine, backend: FakeBackend, processes: list[FakeProcess]) -> None:
    """Detach all: no more memory is in use than without an engine."""
    for target in engine.targets:
        engine.detach(target)
    steps(engine, 8)
    assert backend.memory_pages() <= backend.memory_without()
    for p in processes:
        p.check()


def test_pages_shared_since_a_fork_are_not_merged_and_nothing_is_claimed() -> None:
    backend = FakeBackend()
    processes = family(backend, 4)
    with Engine(backend=backend) as engine:
        attach(engine, processes)
        report = engine.merge_once(quiet_s=0)
        assert (report.merged_pages, report.frames, report.forked_pages) == (0, 0, 5 * N)
        assert engine.stats.states["forked"] == 5 * N
        assert saved_pages(engine, backend) == 0
        consistent(engine, backend)
        finish(engine, backend, processes)


def test_their_contents_are_not_read() -> None:
    backend = FakeBackend()
    with Engine(backend=backend) as engine:
        attach(engine, family(backend, 1))
        steps(engine, 6)
        assert not len(engine.accounting.index)


def test_copies_that_are_equal_again_are_merged_with_each_other_and_not_with_what_is_shared() -> None:
    backend = FakeBackend()
    processes = family(backend, 4)
    for p in processes[1:4]:
        p.write(np.arange(100), values(N)[:100])  # as it was, in copies; the last child shares
    with Engine(backend=backend) as engine:
        attach(engine, processes)
        engine.merge_once(quiet_s=0)
        assert saved_pages(engine, backend) == 200
        assert engine.stats.frames == 100
        assert all((p.frame[:100] == NONE).all() for p in (processes[0], processes[4]))
        finish(engine, backend, processes)


def test_one_copy_equal_to_what_is_shared_is_left_alone() -> None:
    backend = FakeBackend()
    processes = family(backend, 2)
    processes[1].write(np.arange(100), values(N)[:100])
    with Engine(backend=backend) as engine:
        attach(engine, processes)
        steps(engine, 6)
        assert engine.stats.pages_merged == 0
        assert saved_pages(engine, backend) == 0


def test_pages_are_merged_once_the_processes_that_shared_them_have_gone() -> None:
    backend = FakeBackend()
    processes = family(backend, 2)
    twin = backend.spawn()
    twin.write(np.arange(N), values(N))
    with Engine(backend=backend) as engine:
        attach(engine, [processes[0], twin])
        steps(engine, 6)
        assert engine.stats.pages_merged == 0
        assert saved_pages(engine, backend) == 0
        processes[1].exit()
        processes[2].write(np.arange(N), values(N, 7))
        steps(engine, 20)
        assert saved_pages(engine, backend) == N
        finish(engine, backend, [processes[0], processes[2], twin])


@pytest.mark.parametrize("between", ["steps", "merge"])
def test_a_page_known_as_unique_is_no_twin_once_a_child_shares_it(between: str) -> None:
    backend = FakeBackend()
    first = family(backend, 0)[0]
    with Engine(backend=backend) as engine:
        attach(engine, [first])
        steps(engine, 6)
        twins = [backend.spawn(), backend.spawn()]
        for twin in twins[:1]:
            twin.write(np.arange(N), values(N))
        attach(engine, twins)
        if between == "steps":
            child = first.fork(backend.new_pid())
        else:
            # at the last moment: frames are filled already
            children: list[FakeProcess] = []

            def hook(name: str, process: FakeProcess) -> None:
                if name == "merge" and not children:
                    children.append(first.fork(backend.new_pid()))

            backend.hook = hook
        steps(engine, 6)
        if between == "merge":
            (child,) = children
        assert saved_pages(engine, backend) == 0
        assert (first.frame == NONE).all()
        # The twin is known now: another finds it.
        twins[1].write(np.arange(N), values(N))
        steps(engine, 6)
        assert saved_pages(engine, backend) == N
        consistent(engine, backend)
        finish(engine, backend, [first, child, *twins])


@pytest.mark.parametrize("followed", [False, True])
def test_a_frame_that_relatives_map_is_left_to_them_and_given_back_to_others(followed: bool) -> None:
    backend = FakeBackend()
    parent, twin = family(backend, 0)[0], backend.spawn(4096, (1024, 1024))
    twin.write(np.arange(1024, 1024 + N), values(N))
    with Engine(backend=backend) as engine:
        attach(engine, [parent, twin])
        engine.merge_once(quiet_s=0)
        children = [parent.fork(backend.new_pid()) for _ in range(4)]
        if followed:
            attach(engine, children)
        steps(engine, 3)
        assert saved_pages(engine, backend) == N
        assert engine.stats.states["inherited"] == (4 * N if followed else 0)
        for target in engine.targets:
            engine.detach(target)
            assert target.left_pages == (0 if target.pid == twin.pid else N)
        assert (twin.frame == NONE).all()
        assert all((p.frame[:N] != NONE).all() for p in (parent, *children))
        finish(engine, backend, [parent, twin, *children])
        assert engine.stats.frames == N
        assert saved_pages(engine, backend) == 0
        # Attached again they are known for what they are; and the last one left has the frames to itself.
        again = attach(engine, [parent, children[0]])
        steps(engine, 3)
        assert saved_pages(engine, backend) == 0
        for p in (parent, *children[1:]):
            p.exit()
        steps(engine, 3)
        engine.detach(again[1])
        assert (children[0].frame == NONE).all()
        steps(engine, 8)
        assert engine.stats.frames == 0


def test_workers_that_merged_their_own_copies_at_the_same_addresses_get_all_of_it_back() -> None:
    backend = FakeBackend()
    processes = family(backend, 4)
    for p in processes:
        p.write(np.arange(N), values(N, 1))
    with Engine(backend=backend) as engine:
        attach(engine, processes)
        engine.merge_once(quiet_s=0)
        assert saved_pages(engine, backend) == 4 * N
        finish(engine, backend, processes)
        assert all((p.frame == NONE).all() for p in processes)


def test_a_page_written_after_merging_and_shared_since_a_later_fork_is_not_copied() -> None:
    backend = FakeBackend()
    parent, twin = family(backend, 0)[0], backend.spawn(4096, (1024, 1024))
    twin.write(np.arange(1024, 1024 + N), values(N))
    with Engine(backend=backend) as engine:
        attach(engine, [parent, twin])
        engine.merge_once(quiet_s=0)
        parent.write(np.arange(100), values(100, 9))
        child = parent.fork(backend.new_pid())
        steps(engine, 30)  # unmerge nothing that would be copied
        assert saved_pages(engine, backend) == N - 100
        for target in engine.targets:
            engine.detach(target)
        steps(engine, 8)
        # But for the frames beneath, which nobody reads and nobody may lose.
        assert backend.memory_pages() <= backend.memory_without() + backend.unread()
        assert backend.unread() <= 100
        for p in (parent, twin, child):
            p.check()


def test_a_child_takes_the_place_of_a_parent_that_writes_or_ends() -> None:
    backend = FakeBackend()
    parent, twin = family(backend, 0)[0], backend.spawn(4096, (1024, 1024))
    twin.write(np.arange(1024, 1024 + N), values(N))
    with Engine(backend=backend) as engine:
        attach(engine, [parent, twin])
        engine.merge_once(quiet_s=0)
        children = [parent.fork(backend.new_pid()) for _ in range(2)]
        attach(engine, children)
        steps(engine, 1)
        parent.write(np.arange(50), 5)
        steps(engine, 1)
        assert saved_pages(engine, backend) == N
        children[0].write(np.arange(50), 6)
        steps(engine, 1)
        assert saved_pages(engine, backend) == N
        children[1].write(np.arange(25), 7)
        steps(engine, 1)
        assert saved_pages(engine, backend) == N - 25
        parent.exit()
        steps(engine, 1)
        assert saved_pages(engine, backend) == N - 25
        consistent(engine, backend)
        finish(engine, backend, [*children, twin])


def test_zero_pages_that_a_relative_shares_or_that_hold_nothing_are_not_counted() -> None:
    backend = FakeBackend()
    parent = backend.spawn()
    parent.write(np.arange(N), 0)
    child = parent.fork(backend.new_pid())
    parent.write(np.arange(100), 0)
    with Engine(backend=backend) as engine:
        attach(engine, [parent, child])
        steps(engine, 2)
        parent.dontneed(0, 50)
        steps(engine, 2)
        # Of the child's first hundred nothing is shared any more.
        assert engine.stats.pages_dropped == 150
        assert saved_pages(engine, backend) == 150
        finish(engine, backend, [parent, child])


def test_frames_that_are_moved_over_others_are_read_where_they_are_now() -> None:
    backend = FakeBackend()
    processes = list(pair_of(backend, N))
    with Engine(backend=backend) as engine:
        targets = attach(engine, processes)
        engine.merge_once(quiet_s=0)
        processes[0].mremap(0, 64, 64)  # the frames that were there are the other's alone now
        steps(engine, 2)
        assert engine.accounting.frames.live[processes[1].frame[:N]].tolist() == [2] * 64 + [1] * 64 + [2] * 128
        assert saved_pages(engine, backend) == 192
        assert targets[0].stats.saved_bytes == targets[1].stats.saved_bytes == 96 * 4096
        consistent(engine, backend)
        finish(engine, backend, processes)


def test_a_page_that_was_written_and_merged_with_another_frame_is_read_there_alone() -> None:
    backend = FakeBackend()
    processes = list(pair_of(backend, N))
    with Engine(backend=backend) as engine:
        attach(engine, processes)
        engine.merge_once(quiet_s=0)
        processes[0].write(np.arange(64), values(N)[64:128])
        engine.merge_once(quiet_s=0)
        steps(engine, 4)
        assert (processes[0].frame[:64] == processes[1].frame[64:128]).all()
        assert engine.accounting.frames.live[processes[1].frame[:N]].tolist() == [1] * 64 + [3] * 64 + [2] * 128
        assert saved_pages(engine, backend) == N
        finish(engine, backend, processes)

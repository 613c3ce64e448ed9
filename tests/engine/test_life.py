"""Whatever processes do and whenever: they read what they wrote, the accounting agrees, nothing is left in the end."""

from __future__ import annotations

import numpy as np
import pytest
from fake import BASE, NONE, PAGE, FakeBackend, FakeProcess
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from test_engine import consistent

from pageone.engine import Engine
from pageone.engine.pages import address
from pageone.engine.status import State
from pageone.errors import TargetError

PAGES = 96


def settle(engine: Engine, backend: FakeBackend) -> None:
    """Let what is dead be found dead, scanned for twice, and freed."""
    backend.hook = lambda name, process: None
    backend.complete, backend.timeout, backend.room = True, False, backend.frames_max
    for _ in range(40):
        engine.step()


def nothing_is_left(engine: Engine, backend: FakeBackend) -> None:
    stats = engine.stats
    assert (stats.targets, stats.tracked, stats.frames, stats.index_entries) == (0, 0, 0, 0)
    assert not backend.filled.any()
    assert not engine.accounting.frames.mapped.any()
    assert not engine.accounting.frames.live.any()
    assert not len(engine.accounting.contents.frames)
    assert set(stats.states.values()) == {0}


class Life(RuleBasedStateMachine):
    """Processes that do as they please, with an engine that follows them."""

    @initialize(
        cap=st.sampled_from([2, 3, 256, None]),
        collide=st.sampled_from([0, 0, 5]),
        frames=st.sampled_from([8, 4096]),
        budget=st.sampled_from([12, 65530]),
        workers=st.integers(1, 2),
        quiet=st.integers(1, 3),
    )
    def begin(self, cap: int | None, collide: int, frames: int, budget: int, workers: int, quiet: int) -> None:
        self.backend = FakeBackend(frames, collide)
        self.engine = Engine(
            backend=self.backend,
            max_sharing=cap,
            workers=workers,
            quiet_periods=quiet,
            max_map_count=budget,
            repeat_share=0.1,
            batch_pages=16,
        )
        self.disturbed = self.pending = False
        self.spawn()

    def processes(self) -> list[FakeProcess]:
        return list(self.backend.processes.values())

    def some(self, data: st.DataObject) -> FakeProcess:
        return data.draw(st.sampled_from(self.processes()))

    @rule()
    def spawn(self) -> None:
        if len(self.processes()) < 6:
            process = self.backend.spawn(PAGES, (0, PAGES // 2))
            self.engine.attach(process.pid)

    @precondition(lambda self: self.processes())
    @rule(
        data=st.data(),
        start=st.integers(0, PAGES - 1),
        n=st.integers(1, PAGES),
        kind=st.integers(0, 3),
        seed=st.integers(0, 3),
    )
    def write(self, data: st.DataObject, start: int, n: int, kind: int, seed: int) -> None:
        pages = np.arange(start, min(PAGES, start + n))
        contents = [
            np.zeros(len(pages), np.uint64),
            np.full(len(pages), seed + 1, np.uint64),
            pages.astype(np.uint64) + 100,
            np.random.default_rng(seed).integers(1, 20, len(pages)).astype(np.uint64),
        ][kind]
        self.some(data).write(pages, contents)

    @precondition(lambda self: self.processes())
    @rule(
        data=st.data(),
        start=st.integers(0, PAGES - 1),
        n=st.integers(1, 40),
        what=st.integers(0, 4),
        to=st.integers(0, PAGES - 1),
    )
    def change_mappings(self, data: st.DataObject, start: int, n: int, what: int, to: int) -> None:
        process = self.some(data)
        n = min(n, PAGES - start)
        at = slice(start, start + n)
        if what == 0 and not process.mapped[at].any():
            process.mmap(start, n)
        elif what == 1:
            process.munmap(start, n)
        elif what == 2 and process.mapped[at].all():
            process.dontneed(start, n)
        elif what == 3:
            process.huge[at] = process.resident[at] & (process.frame[at] == NONE)
        elif what == 4 and process.mapped[at].all() and to + n <= PAGES and abs(to - start) >= n:
            process.mremap(start, to, n)

    @precondition(lambda self: self.processes())
    @rule(data=st.data(), follow=st.booleans())
    def fork(self, data: st.DataObject, follow: bool) -> None:
        if len(self.processes()) < 6:
            child = self.some(data).fork(self.backend.new_pid())
            if follow:
                self.engine.attach(child.pid)

    @precondition(lambda self: self.processes())
    @rule(data=st.data())
    def exit(self, data: st.DataObject) -> None:
        self.some(data).exit()

    @rule(n=st.integers(1, 4))
    def step(self, n: int) -> None:
        for _ in range(n):
            self.engine.step()
        self.no_more_is_claimed_than_is_saved()

    def no_more_is_claimed_than_is_saved(self) -> None:
        if self.disturbed:
            self.disturbed = self.pending  # something happened meanwhile that the next scan will see
            return
        backend, counts, frames = self.backend, self.engine.accounting.pages.counts, self.engine.accounting.frames
        claimed = counts[State.SHARED] + counts[State.ZERO] - frames.used + frames.outside
        # A program that discards a zero page given back long ago is not noticed, nor what strangers do with frames.
        unnoticed = frames.outside
        for target in self.engine.targets:
            process = backend.processes.get(target.pid)
            if process is not None:
                page_ids = self.engine.accounting.pages.in_state(target.number, State.ZERO)
                index = (address(page_ids) // PAGE).astype(np.int64) - BASE
                unnoticed += int(np.count_nonzero(process.without[index] < 0))
        empty = frames.used - int(backend.filled.sum())
        assert claimed <= backend.memory_without() - backend.memory_pages() + unnoticed - empty

    @rule()
    def step_without_time(self) -> None:
        self.engine.step(until=0.0)

    @rule()
    def merge_once(self) -> None:
        self.engine.merge_once(quiet_s=0)

    @rule(
        moment=st.sampled_from(["regions", "written", "read_keys", "fill", "merge", "drop_zero"]),
        page=st.integers(0, PAGES - 1),
        what=st.integers(0, 3),
    )
    def race(self, moment: str, page: int, what: int) -> None:
        """At the next such call something happens to the process that it is about, or to another."""

        def hook(name: str, process: FakeProcess) -> None:
            if name != moment:
                return
            self.backend.hook = lambda name, process: None
            self.pending = False
            if what == 0:
                process.write(page, 77)
            elif what == 1:
                process.munmap(page, min(8, PAGES - page))
            elif what == 2:
                process.exit()
            else:
                for other in self.processes():
                    other.write(page, 78)

        self.backend.hook = hook
        self.disturbed = self.pending = True

    @rule(on=st.booleans(), complete=st.booleans(), room=st.sampled_from((0, 1, 7, PAGES * 8)))
    def trouble(self, on: bool, complete: bool, room: int) -> None:
        self.backend.timeout = on
        self.backend.complete = complete
        self.backend.room = room

    @precondition(lambda self: self.engine.targets)
    @rule(data=st.data(), half=st.booleans())
    def detach(self, data: st.DataObject, half: bool) -> None:
        target = data.draw(st.sampled_from(self.engine.targets))
        try:
            self.engine.detach(target, stop=(lambda: True) if half else None)
        except TargetError:
            # it ended by a race, would not stop, or pages of it are pinned
            process = self.backend.processes.get(target.pid)
            assert process is None or self.backend.timeout or (process.pinned & (process.frame != NONE)).any()

    @precondition(lambda self: self.processes())
    @rule(data=st.data(), page=st.integers(0, PAGES - 1))
    def pin(self, data: st.DataObject, page: int) -> None:
        process = self.some(data)
        process.pinned[page] = process.frame[page] == NONE

    @invariant()
    def all_is_as_it_was_written(self) -> None:
        if not hasattr(self, "engine"):
            return
        for process in self.processes():
            process.check()
        assert self.engine.accounting.pages.counts.sum() == self.engine.accounting.pages.tracked
        counts = sum(
            (self.engine.accounting.pages.counts_of(t.number) for t in self.engine.targets), np.zeros(len(State), int)
        )
        assert self.engine.accounting.pages.counts.tolist() == counts.tolist()
        assert self.engine.accounting.frames.live.sum() == self.engine.accounting.pages.counts[State.SHARED]
        assert self.engine.accounting.families.inherited.sum() == self.engine.accounting.pages.counts[State.INHERITED]
        # Never more memory than without an engine, but for frames that all have written over.
        assert self.backend.memory_pages() <= self.backend.memory_without() + self.backend.unread()
        # A frame whose source ended before it was copied was never filled: it only waits to be free again.
        empty = self.engine.accounting.frames.used - int(self.backend.filled.sum())
        assert 0 <= empty <= self.engine.accounting.frames.waiting

    def teardown(self) -> None:
        if not hasattr(self, "engine"):
            return
        try:
            settle(self.engine, self.backend)
            if self.engine.targets:
                consistent(self.engine, self.backend)
            for process in self.processes():
                process.exit()
            settle(self.engine, self.backend)
            nothing_is_left(self.engine, self.backend)
        finally:
            self.engine.close()


TestLife = Life.TestCase
TestLife.settings = settings(
    max_examples=60, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)


@pytest.mark.parametrize("seed", [1])
def test_a_thousand_targets_come_write_fork_and_die_and_nothing_is_left(seed: int) -> None:
    rng = np.random.default_rng(seed)
    backend = FakeBackend(1 << 14)
    born = 0
    with Engine(backend=backend, workers=2, max_sharing=16, quiet_periods=1) as engine:
        while born < 1000:
            for _ in range(int(rng.integers(0, 24))):
                process = backend.spawn(128, (0, 100))
                process.write(np.arange(80), rng.integers(0, 200, 80))
                engine.attach(process.pid)
                born += 1
            for process in list(backend.processes.values()):
                luck = rng.random()
                if luck < 0.3:
                    process.exit()
                elif luck < 0.6:
                    pages = rng.integers(0, 100, int(rng.integers(1, 40)))
                    process.write(np.unique(pages), int(rng.integers(0, 50)))
                elif luck < 0.65:
                    child = process.fork(backend.new_pid())
                    if rng.random() < 0.5:
                        engine.attach(child.pid)
                        born += 1
            engine.step()
            for process in backend.processes.values():
                process.check()
        assert engine.stats.pages_merged > 10_000
        for process in list(backend.processes.values()):
            process.exit()
        settle(engine, backend)
        nothing_is_left(engine, backend)

"""The floor under the engine is measured on real processes, and adds up."""

from __future__ import annotations

import pytest

from pageone.bench import floor


@pytest.mark.needs("merge")
def test_the_floor_counts_each_call_once_and_adds_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(floor, "LONE", 500)
    monkeypatch.setattr(floor, "STOPS", 10)
    found = floor.floor(4096)
    gib = floor.GIB_PAGES / 1e6
    read, fill = found["read_us_per_page"], found["fill_us_per_frame"]
    assert found["unique_cpu_s_per_gib"] == pytest.approx(read * gib)
    runs = (read + (read + fill) / 2 + found["replace_us_per_page"]) * gib
    assert found["merge_runs_cpu_s_per_gib"] == pytest.approx(runs)
    # A kernel does none of these in less than 20 ns, and a lone page costs more than one in a run.
    assert min(read, fill, found["replace_us_per_page"]) > 0.02
    assert found["replace_alone_us_per_page"] > found["replace_us_per_page"]
    assert 0 < found["stop_ms"]["p50"] <= found["stop_ms"]["p99"]


def test_all_threads_are_stopped_and_resumed_as_often_as_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(floor, "STOPS", 5)
    assert len(floor._stopping(3)) == 5  # a thread left stopped could not be seized a second time

"""The engine's benchmarks run on real processes and say what they promise."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from pageone.bench import engine as bench_engine
from pageone.bench import equal as bench_equal
from pageone.bench._victims import parse_size
from pageone.cli import build_app
from pageone.errors import UsageError


@pytest.mark.soak
def test_the_engine_benchmark_prints_every_figure_it_promises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_engine, "ALONE_S", 0.5)
    monkeypatch.setattr(bench_engine, "MERGED_S", 6.0)
    monkeypatch.setattr(bench_engine, "VICTIM_ROUNDS", 1)
    result = CliRunner().invoke(build_app(), ["bench", "engine", "--size", "32MiB", "--scaling", "0.0625", "--json"])
    assert result.exit_code == 0, result.output
    figures = json.loads(result.stdout)
    assert {
        "steady_cpu_ms_per_gib_period",
        "steady_content_reads",
        "merge_runs_cpu_s_per_gib",
        "merge_scattered_cpu_s_per_gib",
        "unique_cpu_s_per_gib",
        "metadata_bytes_per_unmerged_page",
        "metadata_bytes_per_merged_page",
        "written_scaling",
        "pause_ms",
        "victim_loss_percent",
        "machine",
    } <= set(figures)
    assert figures["runs_merged_pages"] >= 7000
    assert figures["unique_reads_per_page"] <= 1.01
    assert figures["metadata_bytes_per_unmerged_page"] <= 48
    assert set(figures["pause_ms"]) >= {"p50", "p99", "max"}


def test_the_cap_on_sharers_holds_for_equal_pages_of_real_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_equal, "WRITE_S", 0.6)
    monkeypatch.setattr(bench_equal, "_compact", lambda: None)  # what else runs on this machine is not to be disturbed
    result = CliRunner().invoke(build_app(), ["bench", "equal", "--pages", "16384", "--max-sharing", "64", "--json"])
    assert result.exit_code == 0, result.output
    figures = json.loads(result.stdout)
    assert figures["capped"]["sharers_of_a_frame_max"] <= 64
    assert figures["capped"]["frames_of_the_content"] == 256
    assert figures["lifted"]["sharers_of_a_frame_max"] > 4 * 64
    for side in ("capped", "lifted"):
        assert figures[side]["merged_pages"] >= 0.95 * 16384  # a target that did not stop in time comes later
        assert figures[side]["wrong_pages"] == 0


@pytest.mark.parametrize(("text", "size"), [("1GiB", 1 << 30), ("512m", 512 << 20), ("33554432", 32 << 20)])
def test_sizes_are_read_with_their_unit(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "1", "GiB", "1.2.3G", "-1G"])
def test_a_size_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_size(text)

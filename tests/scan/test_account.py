"""From counts to savings: frames, runs, mappings, budgets and the page cache, with numbers typed by hand."""

from __future__ import annotations

import random
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from pageone.errors import UsageError
from pageone.policy import MAPPING_BYTES
from pageone.scan import ScanReport, account, scan

PAGE = 4096


def image(path: Path, numbers: list[int]) -> Path:
    pages = np.zeros((len(numbers), PAGE), np.uint8)
    pages.view(np.uint64)[:, 100] = numbers
    path.write_bytes(pages.tobytes())
    return path


def test_runs_of_duplicates_need_a_mapping_or_two_each(tmp_path: Path) -> None:
    # 1 2 3 twice, in order: two runs of three. The second copy of 9 stands alone.
    report = scan(files=[image(tmp_path / "a", [1, 2, 3, 50, 1, 2, 3, 51, 9, 52, 9])])
    assert report.pageone["merged_pages"] == 8
    assert report.pageone["runs"] == 4
    assert report.pageone["mappings"] == 8
    assert report.pageone["frames"] == 4
    assert report.saveable_bytes == 4 * PAGE
    assert report.pageone["run_lengths"] == [
        {"from": 1, "to": 1, "runs": 2, "pages": 2},
        {"from": 2, "to": 3, "runs": 2, "pages": 6},
    ]
    assert report.pageone["net_bytes"] == 4 * PAGE - 8 * MAPPING_BYTES


def test_runs_shorter_than_asked_for_are_left_out_and_what_that_leaves_alone_too(tmp_path: Path) -> None:
    # 1 2 3 twice; 4 5 in a run of two once, behind the first 1 2 3, and once each alone: no run of 4 or 5 is left.
    report = scan(files=[image(tmp_path / "a", [1, 2, 3, 4, 5, 50, 1, 2, 3, 51, 4, 52, 5])], min_run=3)
    assert report.duplicate_pages == 5
    assert report.pageone["merged_pages"] == 6
    assert report.pageone["runs"] == 2
    assert report.pageone["short_run_pages"] == 2
    assert report.saveable_bytes == 3 * PAGE
    with pytest.raises(UsageError, match="min_run"):
        scan(files=[tmp_path / "a"], min_run=0)


def test_the_cap_on_sharers_costs_a_frame_for_each_256_pages(tmp_path: Path) -> None:
    report = scan(files=[image(tmp_path / "a", [7] * 600)])
    assert report.distinct_pages == 1
    assert report.duplicate_pages == 599
    assert report.ksm["saveable_bytes"] == (600 - 3) * PAGE
    # The engine repeats a frame for each 128 pages, so that runs of one content need few mappings.
    assert report.saveable_bytes == (600 - 600 // 128) * PAGE
    assert report.pageone["runs"] == 1


def test_zero_pages_need_no_frame(tmp_path: Path) -> None:
    report = scan(files=[image(tmp_path / "a", [0, 0, 0, 1])])
    assert report.saveable_bytes == 3 * PAGE
    assert report.pageone["frames"] == 0
    assert report.pageone["mappings"] == 0
    assert report.ksm["saveable_bytes"] == 2 * PAGE, "KSM keeps one frame of zeros unless use_zero_pages is on"


def test_pairs_count_the_contents_that_both_have(tmp_path: Path) -> None:
    files = [
        image(tmp_path / "a", [1, 2, 3, 4, 4]),
        image(tmp_path / "b", [1, 2, 9, 9]),
        image(tmp_path / "c", [3, 20, 21]),
    ]
    report = scan(files=files)
    assert report.pairs["targets"] == [str(file) for file in files]
    assert report.pairs["pages"] == [[4, 2, 1], [2, 3, 0], [1, 0, 1]]
    assert report.duplicates_inside == 2
    assert report.duplicates_across == 3
    saved = {row["kind"]: row["saveable_bytes"] for row in report.regions}
    assert sum(saved.values()) == report.saveable_bytes == 5 * PAGE
    assert sum(target["saveable_bytes"] for target in report.targets) == report.saveable_bytes


def test_ranges_of_files_mapped_more_than_once_are_counted_like_a_set() -> None:
    seed = random.randrange(2**32)
    print("seed", seed)
    rng = random.Random(seed)
    for _ in range(50):
        rows, pages = [], []
        for _ in range(rng.randrange(4)):
            table = []
            for _ in range(rng.randrange(8)):
                device, inode, low = rng.randrange(2), rng.randrange(3), rng.randrange(50)
                high = low + rng.randrange(1, 20)
                table.append((device, inode, low, high))
                pages += [(device, inode, page) for page in range(low, high)]
            rows.append(np.array(table, np.uint64).reshape(-1, 4))
        assert account.page_cache_shared(rows, PAGE) == (len(pages) - len(set(pages))) * PAGE


def test_a_report_survives_json_and_another_version_is_refused(tmp_path: Path) -> None:
    report = scan(files=[image(tmp_path / "a", [1, 1, 2, 0])])
    assert ScanReport.from_json(report.to_json()) == report
    for text in ("", "[]", "{}", '{"schema": "pageone.scan/0"}', '{"schema": "pageone.scan/1", "targets": "x"}'):
        with pytest.raises(UsageError):
            ScanReport.from_json(text)


def test_targets_become_a_data_frame_when_pandas_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = types.ModuleType("pandas")
    stand_in.DataFrame = list  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pandas", stand_in)
    report = scan(files=[image(tmp_path / "a", [1, 1, 2, 0])])
    assert report.to_dataframe() == report.targets


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (bytes([0x5A]) * PAGE, "all bytes 5a"),
        (b"abcd" * 1024, "repeats every 4 bytes"),
        (b"some words of text, and a few more.\n" * 113 + b"." * 28, "text"),
        (bytes(4000) + bytes(range(96)), "97 % zeros"),
        (bytes(range(256)) * 15 + bytes(256), ""),
        (b"", "gone"),
    ],
)
def test_a_page_is_described_by_what_it_looks_like(data: bytes, says: str) -> None:
    assert account.describe(data) == says

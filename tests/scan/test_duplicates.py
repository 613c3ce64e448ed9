"""The count is exact: checked against a dictionary of bytes, with threads, colliding keys, and files that change."""

from __future__ import annotations

import collections
import os
import random
from pathlib import Path

import numpy as np
import pytest

from pageone.scan import duplicates as duplicates_module
from pageone.scan import scan, sources
from pageone.scan.account import account
from pageone.scan.duplicates import UNSTABLE, ZERO, DuplicateCount


def write_pages(path: Path, numbers: np.ndarray, page_size: int) -> None:
    """Write a page for each number; equal numbers give equal pages, 0 a zero page."""
    pages = np.zeros((len(numbers), page_size), np.uint8)
    pages.view(np.uint64)[:, -1] = numbers  # pages differ in their last bytes only
    pages[numbers > 0, 0] = 1
    path.write_bytes(pages.tobytes())


def by_dictionary(paths: list[Path], page_size: int) -> tuple[int, int, int, int]:
    """Return zero, distinct, duplicates inside a file, duplicates across files."""
    zero, seen = 0, collections.defaultdict(list)
    for number, path in enumerate(paths):
        data = path.read_bytes()
        for at in range(0, len(data) - page_size + 1, page_size):
            page = data[at : at + page_size]
            if not any(page):
                zero += 1
            else:
                seen[page].append(number)
    inside = sum(len(owners) - len(set(owners)) for owners in seen.values())
    across = sum(len(set(owners)) - 1 for owners in seen.values())
    return zero, len(seen), inside, across


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("truncate", [64, 6, 1])
@pytest.mark.parametrize("page_size", [512, 4096])
def test_counts_are_those_of_a_dictionary_of_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: int, truncate: int, page_size: int
) -> None:
    # With keys cut to a few bits most different contents collide: only the comparison of all bytes tells them apart.
    seed = random.randrange(2**32)
    print("seed", seed)
    rng = np.random.default_rng(seed)
    monkeypatch.setattr(duplicates_module, "BATCH_BYTES", 37 * page_size)
    paths = []
    for number in range(3):
        paths.append(tmp_path / f"image{number}")
        write_pages(paths[-1], rng.integers(0, 60, rng.integers(1, 900)).astype(np.uint64), page_size)
    found = [sources.file(path, page_size) for path in paths]
    counted = DuplicateCount(found, threads, truncate=truncate)
    counted.run()
    report = account(counted)
    zero, distinct, inside, across = by_dictionary(paths, page_size)
    assert (report.zero_pages, report.distinct_pages) == (zero, distinct)
    assert (report.duplicates_inside, report.duplicates_across) == (inside, across)
    assert report.unstable_pages == 0
    assert counted.collided == 0 or truncate < 64
    # Every page is in the content whose bytes it has.
    content = {}
    for number, path in enumerate(paths):
        data = path.read_bytes()
        for page in range(len(found[number])):
            bytes_ = data[page * page_size : (page + 1) * page_size]
            its = int(counted.ids[counted.base[number] + page])
            assert (its == ZERO) == (not any(bytes_))
            assert content.setdefault(bytes_, its) == its
    assert len(set(content.values())) == len(content)
    for source in found:
        source.close()


def test_a_model_that_changes_before_it_is_compared_is_unstable_and_no_duplicate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(duplicates_module, "BATCH_BYTES", 4 * 4096)
    path = tmp_path / "image"
    numbers = np.array([1, 2, 3, 4, 1, 2, 5, 5, 1, 1, 2, 6], np.uint64)
    write_pages(path, numbers, 4096)

    def change(pages: int) -> None:
        if not changed:
            changed.append(True)
            with path.open("r+b") as file:
                file.seek(0)
                file.write(b"\xff" * 4096)  # the representative of content 1, after it was read

    changed: list[bool] = []
    source = sources.file(path)
    counted = DuplicateCount([source], progress=change)
    counted.run()
    report = account(counted)
    # Page 0 changed: 1 has the pages 4, 8, 9; 2 has 1, 5, 10; 5 has 6, 7; 3, 4 and 6 have one each.
    assert counted.ids[0] == UNSTABLE
    assert report.unstable_pages == 1
    assert report.duplicate_pages == 2 + 2 + 1
    assert report.distinct_pages == 6
    assert len({int(i) for i in counted.ids[[4, 8, 9]]}) == 1
    source.close()


def test_a_file_cut_off_while_it_is_read_loses_its_pages_and_the_scan_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(duplicates_module, "BATCH_BYTES", 4 * 4096)
    path = tmp_path / "image"
    write_pages(path, np.array([1, 2, 1, 3, 1, 2, 3, 4, 5], np.uint64), 4096)
    done: list[int] = []

    def cut(pages: int, total: int) -> None:
        if not done:
            os.truncate(path, 4096 + 100)
        done.append(pages)

    report = scan(files=[path], progress=cut)
    assert done == [4, 8, 9]
    assert report.pages == 9
    # The first four were read while they were there; the others had gone.
    assert report.unstable_pages == 5
    assert report.duplicate_pages == 1
    assert report.distinct_pages == 3


def test_a_second_scan_finds_the_pages_that_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "image"
    write_pages(path, np.array([1, 1, 1, 2, 0, 0], np.uint64), 4096)
    real = duplicates_module.DuplicateCount.scan_again

    def change_first(self: DuplicateCount) -> np.ndarray:
        with path.open("r+b") as file:
            file.write(b"\x01\x02")  # page 0, a duplicate
            file.seek(4 * 4096)
            file.write(b"\x01")  # a zero page
        return real(self)

    monkeypatch.setattr(duplicates_module.DuplicateCount, "scan_again", change_first)
    report = scan(files=[path], watch=0.001)
    assert report.watch is not None
    assert report.watch["changed_pages"] == 2
    assert report.watch["changed_duplicates"] == 1
    assert report.watch["changed_zero_pages"] == 1
    assert report.watch["by_target"] == [2]
    assert report.watch["saveable_quiet_bytes"] < report.saveable_bytes

import json

import pytest
from typer.testing import CliRunner

from pageone.bench.tree import run_one, run_tree
from pageone.cli import build_app
from pageone.errors import UsageError


@pytest.mark.parametrize("kind", ["random", "tail", "zerohead", "thermometer", "onebit", "equal", "near"])
def test_all_baselines_agree_on_the_number_of_distinct_pages(kind: str) -> None:
    report = run_tree(600, kind, copies=2, rounds=1)
    assert report["distinct"] == (1 if kind == "equal" else 300)
    baselines = {"sdtree", "xxh3_table", "rbtree", "dashmap", "papaya", "read_once", "read_apart"}
    assert set(report["ns_per_page"]) >= baselines
    assert all(ns > 0 for ns in report["ns_per_page"].values())


def test_the_json_has_what_the_reader_needs() -> None:
    result = CliRunner().invoke(
        build_app(), ["bench", "tree", "--pages", "2000", "--kind", "head", "--threads", "2", "--rounds", "1", "--json"]
    )
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert {"ns_per_page", "bytes_per_object", "depth", "threads", "machine"} <= set(report)
    assert set(report["depth"]) == {"mean", "max"}
    assert report["threads"] == 2
    assert "mutex_table" in report["ns_per_page"]
    assert "rbtree" not in report["ns_per_page"]


def test_real_pages_of_files_and_processes_are_made_on_the_spot() -> None:
    for kind in ("files", "processes"):
        report = run_tree(3000, kind, rounds=1, baselines=["sdtree", "xxh3_table"])
        assert report["pages"] == 3000
        assert 0 < report["distinct"] < 3000


def test_unknown_kinds_and_baselines_are_refused_by_name() -> None:
    with pytest.raises(UsageError, match="no kind 'x'"):
        run_tree(10, "x")
    with pytest.raises(UsageError, match="no baseline 'y'"):
        run_tree(10, baselines=["y"])
    with pytest.raises(UsageError, match="at least 1"):
        run_one(0, 64)


def test_python_peers_find_the_same_distinct_rows() -> None:
    report = run_one(400, 64, copies=4, rounds=1)
    assert report["distinct"] == 100
    assert {"pageone.unique_rows", "dict of bytes", "numpy.unique(axis=0)"} <= set(report["ns_per_row"])

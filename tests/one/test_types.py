"""The types that `py.typed` promises: what a checker says of code that uses ``pageone.one``."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Each line that a checker must refuse says so; strictly checked, such a remark is an error where the line is accepted.
USES = """
from __future__ import annotations
import mmap
import numpy as np
import numpy.typing as npt
from typing_extensions import assert_type
from pageone.one import Interner, SDTree, unique_rows

U8 = npt.NDArray[np.uint8]
I64 = npt.NDArray[np.int64]
rows = np.zeros((3, 4096), np.uint8)

pages = SDTree()
assert_type(pages, SDTree[U8])
assert_type(pages.get([0]), U8)
assert_type(SDTree(64).get([0]), U8)
words = SDTree(None)
assert_type(words.get([0]), list[bytes])
Done = tuple[npt.NDArray[np.uint32], npt.NDArray[np.bool_]]
assert_type(words.intern([b"a", bytearray(b"b"), memoryview(b"c")]), Done)
assert_type(pages.find(rows), I64)
pages.intern(rows.tobytes())
def mapped(memory: mmap.mmap) -> None:
    pages.intern(memory)
words.intern([1, 2])  # type: ignore[list-item]
words.intern(7)  # type: ignore[arg-type]
words.intern([None])  # type: ignore[list-item]
pages.intern(rows.tolist())  # type: ignore[arg-type]
SDTree(order="other")  # type: ignore[call-overload]

assert_type(Interner().intern(b"x"), bytes)
assert_type(Interner(weak=True).intern(b"x"), memoryview)
Interner().intern(1)  # type: ignore[arg-type]

floats = np.zeros((3, 2), np.float64)
F64 = npt.NDArray[np.float64]
assert_type(unique_rows(floats), F64)
assert_type(unique_rows(floats, True), tuple[F64, I64])
assert_type(unique_rows(floats, return_counts=True), tuple[F64, I64])
assert_type(unique_rows(floats, return_index=True, return_counts=True), tuple[F64, I64, I64])
assert_type(unique_rows(floats, True, True, True), tuple[F64, I64, I64, I64])
assert_type(unique_rows(floats, False, True), tuple[F64, I64])
"""


@pytest.mark.skipif(importlib.util.find_spec("mypy") is None, reason="mypy is not installed")
def test_a_checker_knows_what_comes_back(tmp_path: Path) -> None:
    program = tmp_path / "uses.py"
    program.write_text(USES)
    said = subprocess.run(
        [
            sys.executable,
            "-m",
            "mypy",
            "--strict",
            "--config-file=",
            f"--cache-dir={ROOT / '.mypy_cache'}",
            str(program),
        ],
        cwd=ROOT / "python",
        capture_output=True,
        text=True,
    )
    assert said.returncode == 0, said.stdout + said.stderr


def test_the_package_says_that_it_is_typed() -> None:
    assert (ROOT / "python" / "pageone" / "py.typed").is_file()


def test_every_stub_of_the_tree_has_a_docstring() -> None:
    import ast

    tree = ast.parse((ROOT / "python" / "pageone" / "_native" / "one.pyi").read_text())
    named = [node for node in ast.walk(tree) if isinstance(node, (ast.ClassDef, ast.FunctionDef))]
    assert len(named) > 20
    missing = [node.name for node in named if node.name != "__len__" and not ast.get_docstring(node)]
    assert not missing

"""The walls of the house: who may call whom, checked over manifests and imports."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path
from typing import Any

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    from pip._vendor import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
CRATES = ROOT / "crates"
PACKAGE = ROOT / "python" / "pageone"

# Crates that reach the operating system, or Python.
SYSTEM_CRATES = {"libc", "nix", "rustix", "procfs", "memmap2", "userfaultfd", "syscalls", "linux-raw-sys"}
PYTHON_CRATES = {"pyo3", "numpy"}

# Each room of the package may import the rooms below it, never one above. What is not listed is a file of its own
# right under pageone: errors (everyone's), doctor (the standard library only).
ROOMS: dict[str, set[str]] = {
    "one": {"_native"},
    "engine": {"_native", "one"},
    "live": {"_native", "engine", "doctor"},
    "scan": {"_native", "one", "live"},
    "ksm": {"_native", "one", "scan"},
    "demo": {"engine", "live"},
    "bench": {"_native", "one", "engine", "live", "scan", "ksm", "demo"},
    "service": {"engine", "live"},
    "cli": {"one", "engine", "live", "service", "scan", "ksm", "demo", "bench", "doctor"},
}


def manifest(crate: str) -> dict[str, Any]:
    return tomllib.loads((CRATES / crate / "Cargo.toml").read_text())


def dependencies(crate: str, *, dev: bool = False) -> set[str]:
    table = manifest(crate)
    names = set(table.get("dependencies", {})) | set(table.get("build-dependencies", {}))
    for target in table.get("target", {}).values():
        names |= set(target.get("dependencies", {}))
    return names | set(table.get("dev-dependencies", {})) if dev else names


def imports(path: Path) -> set[str]:
    """Return the rooms of pageone that a module imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names = [node.module] if node.module != "pageone" else [f"pageone.{a.name}" for a in node.names]
        found |= {name.split(".")[1] for name in names if name.startswith("pageone.")}
    return found


def test_the_tree_knows_neither_the_system_nor_python() -> None:
    assert not dependencies("sdtree") & (SYSTEM_CRATES | PYTHON_CRATES | {"pagemem", "ksmmodel", "contenders"})
    for source in (CRATES / "sdtree" / "src").rglob("*.rs"):
        text = source.read_text()
        for reach in ("std::fs", "std::net", "std::process", "std::os", 'extern "C"', "syscall!"):
            assert reach not in text, f"{source.relative_to(ROOT)} uses {reach}"


@pytest.mark.parametrize("crate", ["pagemem", "ksmmodel"])
def test_memory_and_the_model_know_neither_the_tree_nor_python(crate: str) -> None:
    assert not dependencies(crate, dev=True) & (PYTHON_CRATES | {"sdtree"})


def test_only_the_bindings_know_python() -> None:
    crates = {path.parent.name for path in CRATES.glob("*/Cargo.toml")}
    assert {c for c in crates if dependencies(c, dev=True) & PYTHON_CRATES} == {"bindings"}


def test_the_peers_of_the_benchmark_are_not_in_the_shipped_wheel() -> None:
    table = manifest("bindings")
    assert table["dependencies"]["contenders"]["optional"] is True
    assert "contenders" not in str(table.get("features", {}).get("default", []))


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_a_room_imports_only_rooms_below_it(room: str) -> None:
    for path in (PACKAGE / room).rglob("*.py"):
        above = (imports(path) & (set(ROOMS) | {"doctor", "_native"})) - ROOMS[room] - {room}
        assert not above, f"{path.relative_to(ROOT)} imports {sorted(above)}"


def test_every_room_is_in_the_rule() -> None:
    rooms = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert rooms - set(ROOMS) == set(), "say in ROOMS which rooms it may import"


def test_doctor_needs_nothing_but_the_standard_library() -> None:
    for node in ast.walk(ast.parse((PACKAGE / "doctor.py").read_text())):
        if isinstance(node, ast.Import):
            assert all(a.name.split(".")[0] in sys.stdlib_module_names for a in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert (node.module or "").split(".")[0] in sys.stdlib_module_names


def test_every_crate_and_room_opens_with_what_it_is_for() -> None:
    for source in CRATES.glob("*/src/lib.rs"):
        assert source.read_text().startswith("//! "), source
    for source in PACKAGE.glob("*/__init__.py"):
        assert ast.get_docstring(ast.parse(source.read_text())), source


def test_every_unsafe_block_of_the_crates_says_why_it_is_sound() -> None:
    # clippy's undocumented_unsafe_blocks is denied in the workspace: each crate must take part in it.
    workspace = tomllib.loads((ROOT / "Cargo.toml").read_text())
    assert workspace["workspace"]["lints"]["clippy"]["undocumented_unsafe_blocks"] == "deny"
    for path in CRATES.glob("*/Cargo.toml"):
        assert tomllib.loads(path.read_text()).get("lints") == {"workspace": True}, path
    for source in CRATES.glob("*/src/**/*.rs"):
        assert not re.search(r"allow\([^)]*undocumented_unsafe", source.read_text()), source

"""The layers of the code: who may call whom, checked over manifests and imports."""

from __future__ import annotations

import ast
import re
import subprocess
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

# Each layer of the package may import the layers below it, never one above. What is not listed is a file of its own
# right under pageone: errors (everyone's), doctor (the standard library only).
LAYERS: dict[str, set[str]] = {
    "one": {"_native"},
    "engine": {"_native", "one"},
    "live": {"_native", "engine", "doctor"},
    "files": {"_native", "scan"},
    "scan": {"_native", "one", "live"},
    "ksm": {"_native", "one", "scan"},
    "demo": {"engine", "live"},
    "bench": {"_native", "one", "engine", "live", "files", "scan", "ksm", "demo"},
    "service": {"engine", "live"},
    "cli": {"one", "engine", "live", "service", "files", "scan", "ksm", "demo", "bench", "doctor"},
}

# Files right under pageone, and what of pageone each may import.
FILES: dict[str, set[str]] = {"errors": set(), "procfs": set(), "policy": {"errors"}, "doctor": {"procfs"}}

# Modules of another layer that a layer may import, where it may not import all of it.
PARTS: dict[tuple[str, str], set[str]] = {("live", "engine"): {"backend", "arrays", "clock"}}

# The modules of the engine: each may import those before it. What comes before the accounting are its columns; what
# comes after it are the steps of a period, in their order.
ENGINE = ["backend", "arrays", "clock", "status", "metrics", "pages", "frames", "contents", "index", "target"]
ENGINE += ["families", "queue", "accounting", "scan", "find", "plan", "merge", "free", "engine"]


def manifest(crate: str) -> dict[str, Any]:
    return tomllib.loads((CRATES / crate / "Cargo.toml").read_text())


def dependencies(crate: str, *, dev: bool = False) -> set[str]:
    table = manifest(crate)
    names = set(table.get("dependencies", {})) | set(table.get("build-dependencies", {}))
    for target in table.get("target", {}).values():
        names |= set(target.get("dependencies", {}))
    return names | set(table.get("dev-dependencies", {})) if dev else names


def modules(path: Path) -> set[tuple[str, str]]:
    """Return what a module imports of pageone, wherever in it: layer and module, ``""`` for the layer itself."""
    found: set[tuple[str, str]] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names = [node.module] if node.module.count(".") > 1 else [f"{node.module}.{a.name}" for a in node.names]
        for name in names:
            if name.startswith("pageone."):
                _, layer, module, *_ = [*name.split("."), ""]
                there = (PACKAGE / layer / f"{module}.py").exists() or (PACKAGE / layer / module).is_dir()
                found.add((layer, module if there else ""))
    return found


def imports(path: Path) -> set[str]:
    """Return the layers and files of pageone that a module imports, wherever in it."""
    return {layer for layer, _ in modules(path)}


def test_the_tree_knows_neither_the_system_nor_python() -> None:
    assert not dependencies("sdtree") & (SYSTEM_CRATES | PYTHON_CRATES | {"pagemem", "ksmmodel", "baselines"})
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


@pytest.mark.parametrize(("crate", "module"), [("baselines", "baselines"), ("ksmmodel", "ksm")])
def test_peers_and_models_are_not_in_the_shipped_wheel(crate: str, module: str) -> None:
    table = manifest("bindings")
    assert table["dependencies"][crate]["optional"] is True
    assert [name for name, puts_in in table["features"].items() if f"dep:{crate}" in puts_in] == ["bench"]
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["maturin"]["features"]
    assert not any("bench" in feature for feature in wheel)
    for path in PACKAGE.rglob("*.py"):
        if path.relative_to(PACKAGE).parts[0] != "bench":
            reach = re.search(rf"_native(\.| import .*\b){module}\b", path.read_text())
            assert not reach, f"{path.relative_to(ROOT)} needs what only a checkout has: {reach}"


@pytest.mark.parametrize("layer", sorted(LAYERS))
def test_a_layer_imports_only_layers_below_it(layer: str) -> None:
    for path in (PACKAGE / layer).rglob("*.py"):
        above = (imports(path) & (set(LAYERS) | {"doctor", "_native"})) - LAYERS[layer] - {layer}
        assert not above, f"{path.relative_to(ROOT)} imports {sorted(above)}"
        for other, module in modules(path):
            parts = PARTS.get((layer, other))
            assert parts is None or module in parts, f"{path.relative_to(ROOT)} imports {other}.{module}"


@pytest.mark.parametrize("file", sorted(FILES))
def test_a_file_of_its_own_imports_what_it_may(file: str) -> None:
    assert imports(PACKAGE / f"{file}.py") <= FILES[file]


def test_a_module_of_the_engine_imports_only_those_before_it() -> None:
    assert sorted(path.stem for path in (PACKAGE / "engine").glob("[!_]*.py")) == sorted(ENGINE)
    for at, name in enumerate(ENGINE):
        path = PACKAGE / "engine" / f"{name}.py"
        above = {module for layer, module in modules(path) if layer == "engine"} - set(ENGINE[:at])
        assert not above, f"{path.relative_to(ROOT)} imports {sorted(above)}"


def test_every_layer_is_in_the_rule() -> None:
    layers = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert layers - set(LAYERS) == set(), "say in LAYERS which layers it may import"


@pytest.mark.parametrize("file", ["doctor", "procfs"])
def test_it_needs_nothing_but_the_standard_library(file: str) -> None:
    for node in ast.walk(ast.parse((PACKAGE / f"{file}.py").read_text())):
        if isinstance(node, ast.Import):
            assert all(a.name.split(".")[0] in sys.stdlib_module_names for a in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert (node.module or "").split(".")[0] in {*sys.stdlib_module_names, "pageone"}


# Files of /proc/PID that are text to parse; mappings and pages are read by the native core. (``live/shown.py`` compares
# the name of one, and hands it to the native core.)
PARSED = r"/proc/(self|\{\})/(task/\{\}/)?(stat|status|maps|smaps|smaps_rollup|numa_maps|cgroup|cmdline|comm|schedstat"
PARSED += r"|mountinfo|mounts|children|syscall|fdinfo|ksm_\w+)$"


def test_the_files_of_processes_are_parsed_in_one_place() -> None:
    found: list[str] = []
    for path in sorted(set(PACKAGE.rglob("*.py")) - {PACKAGE / "procfs.py", PACKAGE / "live" / "shown.py"}):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                text = "".join(str(v.value) if isinstance(v, ast.Constant) else "{}" for v in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                text = node.value
            else:
                continue
            if re.fullmatch(PARSED, text):
                found.append(f"{path.relative_to(ROOT)} reads {text}")
    assert not found


def test_every_crate_and_layer_opens_with_what_it_is_for() -> None:
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


def test_whoever_only_asks_a_server_loads_neither_the_engine_nor_numpy() -> None:
    code = "import sys, pageone.cli.commands.attach, pageone.service.client, pageone.service.select\n"
    code += "print(*sorted({'numpy', 'pageone._native', 'pageone.engine', 'pageone.live'} & set(sys.modules)))"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.split() == []

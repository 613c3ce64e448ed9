"""Modules: no circle among those of a crate, and no file that is longer than one can hold in mind."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CRATES = sorted(path.parent for path in (ROOT / "crates").glob("*/src"))
PACKAGE = ROOT / "python" / "pageone"

#: Lines of a file at most, unless its head gives a reason: a line that begins with ``Longer than`` and this number.
LINES_MOST = 700


def without_tests(text: str) -> str:
    """Return Rust source without comments and without modules of tests, which stand at the end of a file."""
    text = re.sub(r"//[^\n]*", "", text)
    return re.split(r"#\[cfg\([^]]*\btest\b[^]]*\)\]\s*mod \w+ \{", text)[0]


def modules(source: Path) -> dict[str, set[str]]:
    """Return which modules right under a crate name which others of it, in ``use`` or in full."""
    names = {path.stem for path in source.iterdir()} - {"lib", "main"}
    named: dict[str, set[str]] = {name: set() for name in names}
    # What the crate shows under its own name is still the module's.
    shown = re.findall(r"\bpub use (\w+)::(?:\{([^}]*)\}|(\w+));", without_tests((source / "lib.rs").read_text()))
    home = {item: module for module, group, one in shown for item in re.findall(r"\w+", group or one)}
    for path in source.rglob("*.rs"):
        module = path.relative_to(source).parts[0].removesuffix(".rs")
        if module not in names or path.stem == "tests":
            continue
        text = without_tests(path.read_text())
        found = set(re.findall(r"\bcrate::(\w+)", text))
        for group in re.findall(r"\bcrate::\{([^;]*)\}", text):
            found |= set(re.findall(r"\w+", group))
        named[module] |= {home.get(item, item) for item in found} & names - {module}
    return named


def circle(named: dict[str, set[str]]) -> list[str]:
    """Return the modules of a circle, in order, the first again at its end; none where there is none."""
    done: set[str] = set()

    def walk(name: str, way: list[str]) -> list[str]:
        if name in way:
            return [*way[way.index(name) :], name]
        if name in done:
            return []
        for other in sorted(named[name]):
            if found := walk(other, [*way, name]):
                return found
        done.add(name)
        return []

    return next((found for name in sorted(named) if (found := walk(name, []))), [])


def test_a_circle_is_found() -> None:
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []
    named = "use crate::{one, two::{self, Three}};\n// crate::four\nfn f() { crate::five::six() }\n"
    assert "four" not in without_tests(named)
    assert "six" not in without_tests(named + "#[cfg(test)]\nmod tests { use crate::six; }").split("fn f")[0]


@pytest.mark.parametrize("crate", CRATES, ids=lambda path: path.name)
def test_no_circle_leads_through_the_modules_of_a_crate(crate: Path) -> None:
    assert not circle(modules(crate / "src"))


def imported(path: Path) -> Iterator[str]:
    """Yield the modules of pageone that a module imports as it is loaded."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def test_no_circle_leads_through_the_modules_of_the_package() -> None:
    paths = {".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts): path for path in PACKAGE.rglob("*.py")}
    paths = {name: path for name, path in paths.items() if not name.endswith("__init__")}
    assert len(paths) > 50
    assert not circle({name: set(imported(path)) & set(paths) - {name} for name, path in paths.items()})


def test_no_file_is_too_long_without_a_reason() -> None:
    files = [*PACKAGE.rglob("*.py"), *(path for crate in CRATES for path in (crate / "src").rglob("*.rs"))]
    assert len(files) > 100
    for path in files:
        lines = path.read_text().splitlines()
        if len(lines) > LINES_MOST:
            reason = rf"Longer than {LINES_MOST} lines\b"
            assert re.search(reason, "\n".join(lines[:20])), f"{path.relative_to(ROOT)}: {len(lines)} lines"

"""What the package says of itself: all that an index asks for, and its version, which stands in one place."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pageone

if sys.version_info >= (3, 11):
    import tomllib
else:
    from pip._vendor import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
WORKSPACE = tomllib.loads((ROOT / "Cargo.toml").read_text())["workspace"]["package"]


def test_the_package_says_of_itself_what_an_index_shows() -> None:
    assert 20 < len(PROJECT["description"]) <= 150
    assert PROJECT["license"] == WORKSPACE["license"]
    for file in (PROJECT["readme"], *PROJECT["license-files"]):
        assert (ROOT / file).is_file()
    assert [author["name"] for author in PROJECT["authors"]]
    assert 3 <= len(PROJECT["keywords"]) <= 10
    assert {"Repository", "Documentation", "Changelog", "Issues"} <= set(PROJECT["urls"])
    assert all(url.startswith(WORKSPACE["repository"]) for url in PROJECT["urls"].values())


def test_the_classifiers_tell_what_an_index_sorts_by() -> None:
    kinds = {line.split(" :: ")[0] for line in PROJECT["classifiers"]}
    assert {"Development Status", "Intended Audience", "Operating System", "Programming Language", "Typing"} <= kinds
    assert "License" not in kinds, "the expression in `license` has replaced these"
    assert len(set(PROJECT["classifiers"])) == len(PROJECT["classifiers"])


def test_the_oldest_python_is_the_same_for_users_linter_and_native_core() -> None:
    assert PROJECT["requires-python"] == ">=3.10"
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    assert tools["ruff"]["target-version"] == "py310"
    assert 'features = ["abi3-py310"]' in (ROOT / "crates" / "bindings" / "Cargo.toml").read_text()


def test_the_version_stands_once() -> None:
    assert "version" not in PROJECT
    assert PROJECT["dynamic"] == ["version"]
    version = re.compile(rf"""["']{re.escape(WORKSPACE["version"])}["']""")
    files = [*ROOT.glob("*.toml"), *ROOT.glob("crates/*/Cargo.toml"), *(ROOT / "python").rglob("*.py")]
    found = [
        (str(path.relative_to(ROOT)), line.split(" =")[0])
        for path in files
        for line in path.read_text().splitlines()
        if version.search(line)
    ]
    # Of a crate that another one needs a registry wants to know which; tests/house/test_crates.py holds them together.
    assert sorted(found) == [("Cargo.toml", "version"), ("crates/sdtree/Cargo.toml", "keyhash")]


def test_the_package_tells_that_version() -> None:
    assert pageone.__version__ == WORKSPACE["version"]


def test_the_command_tells_that_version(python: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    done = python("-c", "from pageone.cli import main; main()", "--version")
    assert (done.returncode, done.stdout) == (0, f"pageone {WORKSPACE['version']}\n"), done.stderr

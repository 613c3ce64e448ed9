"""The crates that can be published: what a registry asks of them, and that nothing in them leads out of them."""

from __future__ import annotations

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
WORKSPACE = tomllib.loads((ROOT / "Cargo.toml").read_text())["workspace"]["package"]
PUBLISHED = ["keyhash", "sdtree"]


def package(crate: str) -> dict[str, Any]:
    return tomllib.loads((CRATES / crate / "Cargo.toml").read_text())


def test_all_other_crates_are_kept_from_being_published() -> None:
    can = [
        path.parent.name
        for path in CRATES.glob("*/Cargo.toml")
        if package(path.parent.name)["package"].get("publish", True)
    ]
    assert sorted(can) == PUBLISHED


@pytest.mark.parametrize("crate", PUBLISHED)
def test_a_crate_says_of_itself_what_a_registry_asks(crate: str) -> None:
    said = package(crate)["package"]
    assert 20 < len(said["description"]) <= 150
    assert 1 <= len(said["keywords"]) <= 5
    assert all(len(word) <= 20 for word in said["keywords"])
    assert said["categories"]
    for inherited in ("version", "license", "rust-version", "repository"):
        assert said[inherited] == {"workspace": True}
    for file in (said["readme"], "LICENSE"):
        assert (CRATES / crate / file).is_file()
    assert (CRATES / crate / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()
    for name, needed in package(crate).get("dependencies", {}).items():
        assert needed["version"] == WORKSPACE["version"], f"{name} has no version that a registry could give"


@pytest.mark.parametrize("crate", PUBLISHED)
def test_the_documentation_of_a_crate_stays_inside_it(crate: str) -> None:
    assert f"Needs Rust {WORKSPACE['rust-version']}." in (CRATES / crate / "README.md").read_text()
    # What is packed, and so read by somebody who has nothing else of the repository.
    for path in [CRATES / crate / "README.md", *(CRATES / crate / "src").rglob("*.rs")]:
        for line in path.read_text().splitlines():
            if path.suffix == ".md" or line.lstrip().startswith(("///", "//!")):
                assert not re.search(r"\bdocs/|\bcrates/|\bpagemem\b|\bbindings\b|\bbaselines\b|PageONE", line), (
                    f"{path}: {line}"
                )

"""The documentation site builds, without a warning, where what builds it is installed (``make docs`` does that)."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MKDOCS = ROOT / ".venv-docs" / "bin" / "mkdocs"


def test_every_document_has_a_place_on_the_site() -> None:
    placed = set(re.findall(r"[\w./-]+\.md", (ROOT / "mkdocs.yml").read_text()))
    pages = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}
    assert pages | {"index.md", "SECURITY.md", "CONTRIBUTING.md", "CHANGELOG.md"} == placed


@pytest.mark.skipif(not MKDOCS.exists(), reason="needs MkDocs and its plugins: make docs")
def test_the_site_builds_with_every_page_and_the_interface_from_its_docstrings(tmp_path: Path) -> None:
    done = subprocess.run(
        [MKDOCS, "build", "--strict", "--site-dir", tmp_path],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    for page in ("index.html", "limits/index.html", "SECURITY/index.html", "lab/index.html"):
        assert (tmp_path / page).exists(), page
    interface = (tmp_path / "api" / "index.html").read_text()
    assert 'id="pageone.engine.Engine.attach"' in interface
    assert "Keeps equal pages of its targets in shared frames." in interface

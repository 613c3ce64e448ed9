"""What MkDocs is told beside ``mkdocs.yml``: pages from the root of the repository, and the roles of docstrings.

For: ``make docs``, as a hook of MkDocs. README, SECURITY and so on stay where people look for them; on the site they
stand beside the pages of ``docs/``, so links between them are written anew.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]

#: Files of the root, and what they are called on the site.
PAGES = {"README.md": "index.md", "SECURITY.md": "SECURITY.md", "CONTRIBUTING.md": "CONTRIBUTING.md"}
PAGES |= {"CHANGELOG.md": "CHANGELOG.md"}


def on_files(files: Files, config: Any) -> Files:
    """Add the pages of the root."""
    for name, page in PAGES.items():
        content = re.sub(r"(\]\()docs/", r"\1", (ROOT / name).read_text())
        files.append(File.generated(config, page, content=content))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Let links to files of the root lead to their pages."""
    return re.sub(r"(\]\()((?:\.\./)+)(README|SECURITY|CONTRIBUTING|CHANGELOG)\.md", _moved, markdown)


def _moved(link: re.Match[str]) -> str:
    up = link[2][len("../") :]  # one folder less: docs/ is the root of the site
    return f"{link[1]}{up}{PAGES[link[3] + '.md']}"


def on_page_content(html: str, **_: Any) -> str:
    """Show what a role of a docstring (``:class:`Engine```) names, without the role."""
    return re.sub(r":(?:class|func|meth|mod|data|attr|exc):<code>~?([^<]*)</code>", r"<code>\1</code>", html)

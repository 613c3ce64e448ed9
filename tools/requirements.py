"""Print what a checkout needs from the registry: the package's dependencies and its extras named, ``dev`` by default.

After ``--only`` the extras alone: ``requirements.py pyproject.toml --only docs``.

For: the Makefile. Python 3.10 has no ``tomllib``; the copy of its forerunner inside pip stands in.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any


def load(path: Path) -> dict[str, Any]:
    """Return the parsed TOML file."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        from pip._vendor import tomli as tomllib
    return tomllib.loads(path.read_text())


if __name__ == "__main__":
    project = load(Path(sys.argv[1]))["project"]
    only = sys.argv[2:3] == ["--only"]
    extras = sys.argv[3 if only else 2 :] or ["dev"]
    wanted = [p for e in extras for p in project["optional-dependencies"][e]]
    print("\n".join([*([] if only else project["dependencies"]), *wanted]))

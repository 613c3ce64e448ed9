"""Print what a checkout needs from the registry: the package's dependencies and its extras named, ``dev`` by default.

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
    extras = sys.argv[2:] or ["dev"]
    print("\n".join([*project["dependencies"], *(p for e in extras for p in project["optional-dependencies"][e])]))

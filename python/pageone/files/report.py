"""What a scan of files found, as plain data: a dataclass with a documented, versioned JSON form.

For: people's programs and the reporters (text, HTML). It reads no file.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["SCHEMA", "FilesReport"]

#: Version of the JSON form: the number grows when a field changes its meaning or goes.
SCHEMA = "pageone.files/1"


@dataclass
class FilesReport:
    """The answer of a scan. All figures are bytes unless the name says otherwise.

    ``equal_file_bytes``: of files that equal an older one; ``equal_block_bytes``: of other blocks that equal an older
    one (without zeros). ``to_share_bytes`` of both lie in ranges long enough, are not shared yet and could be;
    ``frees_bytes`` is what sharing them frees for certain. Not in it: ``shared_elsewhere_bytes`` (freed only if nothing
    outside refers to them), ``compressed_bytes`` (freed at most), ``kept_bytes`` (btrfs keeps an extent that is in use
    in part).
    """

    paths: list[str] = field(default_factory=list)
    whole_files: bool = False
    block_size: int = 4096
    #: ``device``, ``kind``, ``can_share``
    file_systems: list[dict[str, Any]] = field(default_factory=list)
    files: int = 0
    file_bytes: int = 0
    allocated_bytes: int = 0
    blocks: int = 0
    zero_bytes: int = 0
    equal_groups: int = 0
    equal_files: int = 0
    equal_file_bytes: int = 0
    equal_blocks: int = 0
    equal_block_bytes: int = 0
    to_share_bytes: int = 0
    to_share_ranges: int = 0
    frees_bytes: int = 0
    already_shared_bytes: int = 0
    shared_elsewhere_bytes: int = 0
    compressed_bytes: int = 0
    kept_bytes: int = 0
    inline_bytes: int = 0
    cannot_share_bytes: int = 0
    unknown_bytes: int = 0
    #: Numbers of what was met and left alone: ``hard_links``, ``symbolic_links``, ``special_files``, …
    left: dict[str, int] = field(default_factory=dict)
    #: Equal files: ``bytes`` of each, ``files``, the oldest first. The largest first.
    groups: list[dict[str, Any]] = field(default_factory=list)
    #: Equal ranges beyond them: ``file``, ``at``, ``equals``, ``equals_at``, ``bytes``.
    ranges: list[dict[str, Any]] = field(default_factory=list)
    files_from_index: int = 0
    index_bytes: int = 0
    bytes_read: int = 0
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    #: What sharing has done: see ``docs/files.md``; none after a scan.
    shared: dict[str, Any] | None = None
    schema: str = SCHEMA

    def to_json(self) -> str:
        """Return the report as one JSON object."""
        return json.dumps(asdict(self), indent=1)

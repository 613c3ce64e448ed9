"""What a scan found, as plain data: a dataclass with a documented, versioned JSON form.

For: people's programs, the reporters (text, HTML) and ``--compare``. It reads no target.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from pageone.errors import UsageError

#: Version of the JSON form: the number grows when a field changes its meaning or goes.
SCHEMA = "pageone.scan/1"


@dataclass
class ScanReport:
    """The answer of a scan. Counts are of pages of ``page_size`` bytes unless the name says bytes.

    ``pages = zero_pages + distinct_pages + duplicate_pages + unstable_pages``: of equal pages the first is distinct
    and the others duplicates. ``saveable_bytes`` is what merging by PageONE would free, before its cost. The fields:

    * ``schema``, ``created``, ``page_size``: version of the form; ISO time, UTC; bytes of a page
    * ``pages``, ``zero_pages``, ``distinct_pages``, ``duplicate_pages``, ``unstable_pages``: of equal pages the
      first is distinct, the others are duplicates
    * ``duplicates_inside``, ``duplicates_across``: their sum is ``duplicate_pages``
    * ``saveable_bytes``: frames that PageONE would free, zero pages included, before its cost
    * ``already_shared_bytes``, ``already_shared``: the sum, and its parts: ``fork_bytes`` (also merged pages),
      ``page_cache_bytes``, ``zero_page_bytes``
    * ``sharing``: ``frames``, ``assumed``, or ``none`` (files only)
    * ``pageone``: ``saveable_bytes``, ``zero_bytes`` (of it), ``frames``, ``merged_pages``, ``runs``, ``mappings``
      (more than now), ``mapping_bytes``, ``net_bytes``, ``over_budget_pages``, ``short_run_pages``,
      ``huge_pages_split``, ``huge_pages_kept_whole`` (pages in them), ``shared_pages``, ``not_mergeable_pages`` (in
      mappings left alone), ``run_lengths`` (``from``, ``to``, ``runs``, ``pages``)
    * ``ksm``: ``saveable_bytes``, ``metadata_bytes``, ``net_bytes``, ``huge_pages_split``
    * ``targets``: ``name``, ``kind`` (process, file, core, qcow2), ``pid``, ``pages``, ``zero_pages``,
      ``repeated_pages``, ``unique_pages``, ``unstable_pages``, ``huge_pages``, ``swapped_pages``, ``hole_pages``,
      ``tail_bytes``, ``mappings``, ``saveable_bytes`` (its part)
    * ``pairs``: ``targets`` (the 32 with most repeated pages) and ``pages`` that both hold
    * ``regions``: by kind of memory: ``kind``, ``pages``, ``zero_pages``, ``repeated_pages``, ``saveable_bytes``
    * ``contents``: the most repeated: ``pages``, ``hex`` (first 32 bytes), ``what`` it looks like
    * ``watch``: null, or ``seconds``, ``changed_pages``, ``changed_duplicates``, ``changed_zero_pages``,
      ``saveable_quiet_bytes``, ``by_target``
    * ``problems``: one line for each target that could not be scanned, or not wholly
    * ``threads``, ``seconds``, ``cpu_seconds``, ``bytes_per_second``: of this scan; the last of reading and counting
    """

    page_size: int = 4096
    pages: int = 0
    zero_pages: int = 0
    distinct_pages: int = 0
    duplicate_pages: int = 0
    duplicates_inside: int = 0  #: duplicates of a page of their own target
    duplicates_across: int = 0  #: duplicates whose content first appears in another target
    unstable_pages: int = 0  #: changed or went while they were read: in none of the other counts
    saveable_bytes: int = 0
    already_shared_bytes: int = 0
    #: ``fork_bytes`` (also merged pages), ``page_cache_bytes``, ``zero_page_bytes``.
    already_shared: dict[str, int] = field(default_factory=dict)
    #: How sharing was told: ``frames`` (exact; root), ``assumed`` (equal shared pages count as one frame) or ``none``.
    sharing: str = "none"
    #: What PageONE would do: see above.
    pageone: dict[str, Any] = field(default_factory=dict)
    #: What the kernel's KSM would do.
    ksm: dict[str, Any] = field(default_factory=dict)
    targets: list[dict[str, Any]] = field(default_factory=list)
    #: ``targets``: names; ``pages``: for each pair, the contents that both have; the diagonal, each one's own.
    pairs: dict[str, Any] = field(default_factory=dict)
    regions: list[dict[str, Any]] = field(default_factory=list)
    contents: list[dict[str, Any]] = field(default_factory=list)
    watch: dict[str, Any] | None = None
    problems: list[str] = field(default_factory=list)
    threads: int = 1
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    bytes_per_second: float = 0.0
    created: str = ""  #: ISO 8601, UTC
    schema: str = SCHEMA

    def to_json(self) -> str:
        """Return the report as one JSON object."""
        return json.dumps(asdict(self), indent=1, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> ScanReport:
        """Return the report of a JSON text; :class:`UsageError` for anything else or another version."""
        try:
            value = json.loads(text)
        except ValueError as error:
            raise UsageError(f"not a scan report: {error}") from None
        if not isinstance(value, dict) or not str(value.get("schema", "")).startswith("pageone.scan/"):
            raise UsageError("not a scan report: no schema of pageone.scan in it")
        if value["schema"] != SCHEMA:
            raise UsageError(f"a scan report of schema {value['schema']}; this version reads {SCHEMA}")
        known = {f.name: f for f in fields(cls)}
        blank = asdict(cls())
        for name, given in value.items():
            if name in blank and blank[name] is not None and not isinstance(given, (type(blank[name]), int)):
                raise UsageError(f"not a scan report: {name} is of the wrong type")
        return cls(**{name: given for name, given in value.items() if name in known})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ScanReport:
        """Read a report that ``--json`` has written."""
        try:
            text = Path(path).read_text()
        except UnicodeDecodeError:
            raise UsageError(f"{os.fspath(path)}: not a scan report: not text") from None
        except (OSError, ValueError) as error:
            raise UsageError(f"{os.fspath(path)}: {getattr(error, 'strerror', None) or error}") from None
        try:
            return cls.from_json(text)
        except UsageError as error:
            raise UsageError(f"{os.fspath(path)}: {error}") from None

    def compare(self, old: ScanReport) -> list[tuple[str, int, int]]:
        """Return ``(what, then, now)`` of the main figures; pages of another size are given in bytes alike."""
        rows: list[tuple[str, int, int]] = []
        for name in ("pages", "zero_pages", "distinct_pages", "duplicate_pages", "unstable_pages"):
            label = name.replace("_pages", "").replace("pages", "all") + " bytes"
            rows.append((label, getattr(old, name) * old.page_size, getattr(self, name) * self.page_size))
        for name in ("saveable_bytes", "already_shared_bytes"):
            rows.append((name.replace("_", " "), getattr(old, name), getattr(self, name)))
        was = {target["name"]: target for target in old.targets}
        for target in self.targets:
            before = was.get(target["name"], {})
            rows.append((f"saveable in {target['name']}", before.get("saveable_bytes", 0), target["saveable_bytes"]))
        return rows

    def to_dataframe(self) -> Any:
        """Return the targets as a pandas data frame, one row a target; ``ImportError`` without pandas."""
        import pandas  # type: ignore[import-untyped,import-not-found,unused-ignore]

        return pandas.DataFrame(self.targets)

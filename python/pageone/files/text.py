"""A report of files as tables for a terminal. For: ``pageone files``; it prints and computes nothing."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pageone.files.report import FilesReport
from pageone.scan.text import human

__all__ = ["ROWS", "rows", "show"]

#: Groups of equal files shown.
ROWS = 10

#: What is left out of what could be shared, and why.
_APART = (
    ("already_shared_bytes", "shared already"),
    ("shared_elsewhere_bytes", "freed only if nothing outside refers to it"),
    ("compressed_bytes", "compressed: freed at most"),
    ("kept_bytes", "kept by the rest of its extent"),
    ("inline_bytes", "too small: lies among metadata"),
    ("unknown_bytes", "extents not told"),
    ("cannot_share_bytes", "on a file system that cannot share"),
)


def rows(report: FilesReport) -> list[tuple[str, str]]:
    """Return what the report says, as pairs of a name and a figure."""
    found = [
        ("files", f"{report.files:,}"),
        ("bytes", human(report.file_bytes)),
        ("allocated", human(report.allocated_bytes)),
        ("files that equal an older one", f"{report.equal_files:,} in {report.equal_groups:,} groups"),
        ("  their bytes", human(report.equal_file_bytes)),
    ]
    if not report.whole_files:
        found.append(("equal blocks of other files", human(report.equal_block_bytes)))
        found.append(("blocks of zeros that are no holes", human(report.zero_bytes)))
    found.append(("to be shared", f"{human(report.to_share_bytes)} in {report.to_share_ranges:,} ranges"))
    found.append(("  frees", human(report.frees_bytes)))
    for name, text in _APART:
        size = getattr(report, name)
        if size:
            found.append((f"  {text}", human(size)))
    found += [(name.replace("_", " "), f"{count:,}") for name, count in report.left.items()]
    if report.files_from_index:
        found.append(("files not read again", f"{report.files_from_index:,}"))
    shared = report.shared
    if shared is not None:
        found.append(("shared" + (", stopped" if shared["stopped"] else ""), human(shared["bytes"])))
        found += [(f"  not: {why}", human(size)) for why, size in shared["not_shared"].items()]
        found.append(("  free space gained", human(shared["free_bytes_gained"])))
    found.append(("CPU", f"{report.cpu_seconds:.2f} s"))
    return found


def show(report: FilesReport, console: Console) -> None:
    """Print the report."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(overflow="fold")
    table.add_column(justify="right", no_wrap=True)
    for name, figure in rows(report):
        table.add_row(escape(name), figure)
    console.print(table)
    for group in report.groups[:ROWS]:
        console.print(f"{len(group['files'])} equal files of {human(group['bytes'])}", highlight=False)
        for path in group["files"][:3]:
            console.print(f"  {_printable(path)}", markup=False, highlight=False, soft_wrap=True)


def _printable(path: str) -> str:
    """Return a path without what could write elsewhere on the terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in path)

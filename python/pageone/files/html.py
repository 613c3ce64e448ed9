"""A report of files as one HTML file, readable without a network. For: ``pageone files --html``."""

from __future__ import annotations

import html
from pathlib import Path

from pageone.errors import UsageError
from pageone.files.report import FilesReport
from pageone.files.text import rows
from pageone.scan.text import human

__all__ = ["write"]

#: Groups and ranges shown; the JSON form has all.
_ROWS = 200
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 1000px; padding: 0 1rem; color: #222 }
table { border-collapse: collapse } td, th { padding: .15rem .8rem .15rem 0; text-align: right; vertical-align: top }
td:first-child, th:first-child { text-align: left } th { border-bottom: 1px solid #bbb }
.lead { font-size: 1.25rem } .bar { background: #eee; height: 1.2rem; margin: .3rem 0 } .bar div { height: 100% }
code { font-size: .85rem; overflow-wrap: anywhere }
"""


def _text(value: str) -> str:
    return html.escape(value.encode("utf-8", "backslashreplace").decode())


def _bar(name: str, size: int, of: int, colour: str) -> str:
    width = 100 * size / of if of else 0
    inner = f'<div style="width:{width:.1f}%;background:{colour}"></div>'
    return f'{_text(name)}: {human(size)}<div class="bar">{inner}</div>'


def write(report: FilesReport, path: str) -> None:
    """Write the report. Raises :class:`UsageError` if the file cannot be written."""
    systems = ", ".join(f"{it['kind']}{'' if it['can_share'] else ' (cannot share)'}" for it in report.file_systems)
    parts = [
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>PageONE files</title><style>{_STYLE}</style>',
        f"<h1>Equal files and blocks</h1><p>{', '.join(f'<code>{_text(it)}</code>' for it in report.paths)}",
        f"<br>{_text(systems)}</p>",
        f'<p class="lead">Sharing would free {human(report.frees_bytes)} of {human(report.allocated_bytes)}.</p>',
        _bar("allocated", report.allocated_bytes, report.allocated_bytes, "#999999"),
        _bar("in files that equal another", report.equal_file_bytes, report.allocated_bytes, "#e69f00"),
        _bar("in equal blocks", report.equal_block_bytes, report.allocated_bytes, "#56b4e9"),
        _bar("freed", report.frees_bytes, report.allocated_bytes, "#009e73"),
        "<h2>All figures</h2><table>",
        *(f"<tr><td>{_text(name.strip())}<td>{_text(figure)}" for name, figure in rows(report)),
        "</table><h2>Equal files</h2><table><tr><th>files<th>each",
    ]
    for group in report.groups[:_ROWS]:
        names = "<br>".join(f"<code>{_text(name)}</code>" for name in group["files"][:_ROWS])
        parts.append(f"<tr><td>{names}<td>{human(group['bytes'])}")
    parts.append("</table><h2>Equal ranges of other files</h2><table><tr><th>range<th>equals<th>bytes")
    for it in report.ranges[:_ROWS]:
        here, there = f"{it['file']} at {it['at']:,}", f"{it['equals']} at {it['equals_at']:,}"
        parts.append(f"<tr><td><code>{_text(here)}</code><td><code>{_text(there)}</code><td>{human(it['bytes'])}")
    parts.append("</table></html>")
    try:
        Path(path).write_text("\n".join(parts))
    except OSError as error:
        raise UsageError(f"--html {path}: {error.strerror}") from None

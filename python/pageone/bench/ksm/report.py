"""The HTML report of ``pageone bench ksm``: one file with its plots inside, no network needed to read it.

For: the command in :mod:`pageone.bench.ksm`. Arrays and rows in, a file out; it measures nothing.
"""

from __future__ import annotations

import html
import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pageone.errors import UnsupportedError

Row = dict[str, Any]

FILE_NAME = "ksm.html"

COLORS = {
    "ksm-kernel": "#c0392b",
    "ksm-model-jhash2": "#f5b7b1",
    "ksm-model-crc32c": "#e59866",
    "ksm-model-xxh64": "#d98880",
    "pageone": "#1f618d",
}

#: Ratios closer to 1 than this are called equal.
EQUAL = 0.05

#: A plot whose highest bar is more often than this as high as its lowest has a logarithmic axis; others begin at 0.
LOG_FROM = 30

#: Ratios of a comparison that the table shows after the first and its spread, in this order.
RATIOS = (
    "cpu_touched",
    "wall_s",
    "wall_waited",
    "stay_cpu_s",
    "stay_changing_cpu_s",
    "victim_p99_us",
    "victim_max_us",
    "metadata_bytes",
    "break_us",
    "unmerge_cpu_s",
)

#: How many times less CPU than KSM's PageONE is to take, by data set, and what share of the pages it is to find.
CPU_AIMS = {"unique": 15.0, "random": 5.0, "tail": 10.0, "scattered": 1.0, "memory": 5.0}
STAY_AIM, FOUND_AIM = 20.0, 0.99

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2em auto; padding: 0 1em; color: #222 }
table { border-collapse: collapse; margin: 1em 0; font-size: 13px } th, td { padding: 3px 8px; text-align: right }
td { white-space: nowrap } h3 { margin: 1.6em 0 0; font-size: 1.05em }
th { border-bottom: 2px solid #888; vertical-align: bottom } td { border-bottom: 1px solid #ddd }
td:first-child, th:first-child, td:nth-child(2), th:nth-child(2) { text-align: left }
.win { color: #1e6b34; font-weight: 600 } .loss { color: #b03a2e; font-weight: 600 } .note { color: #666 }
"""


def require() -> None:
    """Raise ``UnsupportedError`` when the plotting library is not there, before anything is measured."""
    if importlib.util.find_spec("plotly") is None:
        raise UnsupportedError("the report needs plotly: pip install 'pageone[report]'")


def write(result: dict[str, Any], folder: Path) -> Path:
    """Write the report of :func:`pageone.bench.ksm.run.run` into ``folder`` (made if need be); return the file."""
    require()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / FILE_NAME
    path.write_text(page(result), encoding="utf-8")
    return path


def comparisons(rows: Sequence[Row]) -> list[Row]:
    """Return PageONE with one thread against the kernel's KSM, one row a data set that both have.

    Ratios are KSM's figure by PageONE's: more than 1 is in PageONE's favour. The spread is that of the rounds.
    """
    found = []
    for ours in rows:
        if ours["baseline"] != "pageone" or ours["threads"] != 1:
            continue
        theirs = next((r for r in rows if r["data"] == ours["data"] and r["baseline"] == "ksm-kernel"), None)
        if theirs is None:
            continue
        row: Row = {"data": ours["data"]}
        for key in ("cpu_s", "wall_s", "stay_cpu_s", "stay_changing_cpu_s", "victim_p99_us", "victim_max_us",
                    "metadata_bytes", "break_us", "unmerge_cpu_s"):  # fmt: skip
            a, b = theirs.get(key), ours.get(key)
            row[key] = a / b if a and b else None
        touched = ours["cpu_s"] + ours.get("touch_cpu_s", 0.0)
        row["cpu_touched"] = (theirs["cpu_s"] + theirs.get("touch_cpu_s", 0.0)) / touched if touched else None
        row["cpu_s_low"] = theirs["cpu_s_min"] / ours["cpu_s_max"] if ours["cpu_s_max"] else None
        row["cpu_s_high"] = theirs["cpu_s_max"] / ours["cpu_s_min"] if ours["cpu_s_min"] else None
        waited = ours["wall_s"] + ours["observe_s"]
        row["wall_waited"] = (theirs["wall_s"] + theirs["observe_s"]) / waited if waited else None
        expected = ours["expected_pages"]
        row["found"] = ours["found_pages"] / expected if expected else None
        row["found_ksm"] = theirs["found_pages"] / expected if expected else None
        found.append(row)
    return found


def aims(rows: Sequence[Row]) -> list[Row]:
    """Return what PageONE is to reach against the kernel's KSM and what it did: missed ones first.

    One row a data set and aim: ``data``, ``what`` (``cpu``, ``stay`` or ``found``), ``aim``, ``found``, ``held``.
    """
    rated = []
    for row in comparisons(rows):
        for what, aim, value in (
            ("cpu", CPU_AIMS.get(row["data"]), row["cpu_s"]),
            ("stay", STAY_AIM, row["stay_cpu_s"]),
            ("found", FOUND_AIM, row["found"]),
        ):
            if aim is not None and value is not None:
                rated.append({"data": row["data"], "what": what, "aim": aim, "found": value, "held": value >= aim})
    return sorted(rated, key=lambda row: row["held"])


def verdict(result: dict[str, Any]) -> list[str]:
    """Return what to read first, in sentences: the aims that were missed, those held, and what the kernel allows."""
    says = {"cpu": "CPU to the end state", "stay": "CPU of staying there", "found": "pages found"}
    lines = []
    rated = aims(result["rows"])
    for held, begin in ((False, "Missed"), (True, "Held")):
        for what, name in says.items():
            ones = [row for row in rated if row["held"] is held and row["what"] == what]
            if ones:
                form = "{data} {found:.1%}" if what == "found" else "{data} {found:.2g}"
                aim = "of {aim:.0%}" if what == "found" else "of {aim:g}"
                listed = ", ".join((form + " " + aim).format(**row) for row in ones)
                times = "" if what == "found" else ", times less than KSM"
                lines.append(f"{begin}: {name}{times}: {listed}")
    if result.get("floor"):
        f = result["floor"]
        lines.append(
            f"What the kernel alone takes here for merging from user space: {f['read_us_per_page']:.2f} µs to read a "
            f"page, {f['fill_us_per_frame']:.1f} to fill a frame, {f['replace_us_per_page']:.1f} to replace a page "
            f"in a run, {f['replace_alone_us_per_page']:.0f} a lone one. "
            "Aims below that are out of reach on this machine."
        )
    return lines


def page(result: dict[str, Any]) -> str:
    """Return the whole report as HTML."""
    rows, about = result["rows"], result["machine"]
    parts = [
        "<!doctype html><html lang='en'><meta charset='utf-8'><title>PageONE and KSM on the same pages</title>",
        f"<style>{STYLE}</style><h1>PageONE and KSM on the same pages</h1>",
        f"<p>{html.escape(about['date'])} · commit {html.escape(about['commit'] or 'unknown')} · "
        f"{html.escape(about['cpu'])}, {about['cpus']} processors, {about['memory_bytes'] / 2**30:.0f} GiB · "
        f"Linux {html.escape(about['kernel'])} · transparent huge pages: {html.escape(about['transparent_hugepage'])}"
        f"{' · in a virtual machine' if about['virtual_machine'] else ''}</p>",
        f"<p>Medians of {result['settings']['rounds']} rounds in which the baselines took turns; bars show the least "
        "and the most. Ratios are KSM's figure by PageONE's, one thread each: more than 1 is in PageONE's favour, "
        "less than 1 is a loss.</p>",
        *(f"<p class='{_class(line)}'>{html.escape(line)}</p>" for line in verdict(result)),
        *(f"<p class='note'>{html.escape(note)}</p>" for note in result["notes"]),
        _comparison_table(comparisons(rows)),
    ]
    parts += _plots(rows)
    parts.append("<h2>All figures</h2>" + _table(rows))
    return "\n".join(parts) + "</html>\n"


def _ratio(value: float | None) -> str:
    if value is None:
        return "<td>–</td>"
    kind = "win" if value > 1 + EQUAL else "loss" if value < 1 - EQUAL else "equal"
    return f"<td class='{kind}'>{value:.3g}</td>"


def _comparison_table(rows: Sequence[Row]) -> str:
    if not rows:
        return "<p class='note'>The kernel's KSM and PageONE were not both in this run: no ratios.</p>"
    heads = ("data", "CPU", "least–most", "CPU with first touch", "wall", "wall with waiting", "staying",
             "staying, 1 % changing", "victim p99", "victim max", "metadata", "breaking write", "unmerge CPU",
             "found, PageONE", "found, KSM")  # fmt: skip
    body = []
    for row in rows:
        spread = f"{row['cpu_s_low']:.3g}–{row['cpu_s_high']:.3g}" if row["cpu_s_low"] and row["cpu_s_high"] else "–"
        found = ["–" if row[k] is None else f"{100 * row[k]:.2f} %" for k in ("found", "found_ksm")]
        body.append(
            f"<tr><td>{html.escape(row['data'])}</td>{_ratio(row['cpu_s'])}<td>{spread}</td>"
            + "".join(_ratio(row[key]) for key in RATIOS)
            + "".join(f"<td>{text}</td>" for text in found)
            + "</tr>"
        )
    losses = sum(
        1 for row in rows for key in ("cpu_s", "wall_waited", "stay_cpu_s") if row[key] and row[key] < 1 - EQUAL
    )
    head = "".join(f"<th>{h}</th>" for h in heads)
    return (
        f"<h2>KSM ÷ PageONE</h2><p>{losses} losses among CPU, wall time with waiting, and staying.</p>"
        f"<table><tr>{head}</tr>{''.join(body)}</table>"
    )


def _plots(rows: Sequence[Row]) -> list[str]:
    import plotly.graph_objects as go
    from plotly.offline import get_plotlyjs

    def label(row: Row) -> str:
        return str(row["baseline"]) if row["threads"] == 1 else f"{row['baseline']} ×{row['threads']}"

    names = list(dict.fromkeys(label(row) for row in rows))
    data = list(dict.fromkeys(row["data"] for row in rows))
    parts = [f"<script>{get_plotlyjs()}</script>"]

    def bars(
        title: str, unit: str, value: Callable[[Row], float | None], spread: str | None = None, log: bool = True
    ) -> None:
        figure = go.Figure()
        drawn = [height for height in map(value, rows) if height]
        log = log and bool(drawn) and max(drawn) > LOG_FROM * min(drawn)
        for name in names:
            by_data = {row["data"]: row for row in rows if label(row) == name}
            heights = [value(by_data[d]) if d in by_data else None for d in data]
            if not any(heights):
                continue
            error = None
            if spread is not None:
                pairs = [(by_data.get(d), h) for d, h in zip(data, heights, strict=True)]

                def scaled(row: Row | None, end: str, height: float | None) -> float:
                    if not row or height is None or not row.get(spread):
                        return 0.0
                    return float(abs(height * (row[f"{spread}_{end}"] / row[spread] - 1)))

                error = {
                    "type": "data",
                    "symmetric": False,
                    "array": [scaled(row, "max", h) for row, h in pairs],
                    "arrayminus": [scaled(row, "min", h) for row, h in pairs],
                }
            color = COLORS[name.partition(" ")[0]]
            figure.add_bar(
                name=name,
                x=data,
                y=heights,
                error_y=error,
                text=["" if height is None else f"{height:.3g}" for height in heights],
                textposition="outside",
                textfont={"size": 10},
                cliponaxis=False,
                marker={"color": color, "pattern": {"shape": "/" if "×" in name else ""}},
            )
        figure.update_layout(
            yaxis={"title": unit, "type": "log", "dtick": 1} if log else {"title": unit, "rangemode": "tozero"},
            barmode="group",
            template="plotly_white",
            height=360,
            margin={"t": 30, "b": 40, "l": 10, "r": 10},
            legend={"orientation": "h", "y": -0.15},
        )
        figure.update_yaxes(automargin=True, ticksuffix=" ")
        drawing = figure.to_html(full_html=False, include_plotlyjs=False, config={"displayModeBar": False})
        scale = " (logarithmic)" if log else ""
        parts.append(f"<h3>{html.escape(title)}: {html.escape(unit)}{scale}</h3>{drawing}")

    bars("CPU to the end state", "µs of CPU a page", lambda r: r["cpu_s"] / r["pages"] * 1e6, "cpu_s")
    bars("Time to the end state, waiting included", "seconds", lambda r: r["wall_s"] + r["observe_s"])
    bars("Time at work, waiting not included", "seconds", lambda r: r["wall_s"], "wall_s")
    bars("Staying there for a minute, nothing changing", "CPU-seconds", lambda r: r.get("stay_cpu_s"), "stay_cpu_s")
    bars(
        "Staying there for a minute, 1 % of the pages written before each period",
        "CPU-seconds",
        lambda r: r.get("stay_changing_cpu_s"),
        "stay_changing_cpu_s",
    )
    bars(
        "Pages found of those there are",
        "per cent",
        lambda r: 100 * r["found_pages"] / r["expected_pages"] if r["expected_pages"] else None,
        log=False,
    )
    bars("A victim's requests, 99th percentile", "µs", lambda r: r.get("victim_p99_us"), "victim_p99_us")
    bars("A victim's requests, the longest", "µs", lambda r: r.get("victim_max_us"), "victim_max_us")
    bars("Metadata", "bytes a page", lambda r: r["metadata_bytes"] / r["pages"])
    return parts


def _class(line: str) -> str:
    return "loss" if line.startswith("Missed") else "win" if line.startswith("Held") else "note"


def _table(rows: Sequence[Row]) -> str:
    keys = list(dict.fromkeys(key for row in rows for key, value in row.items() if not isinstance(value, (dict, list))))

    def text(value: Any) -> str:
        if value is None:
            return "–"
        if isinstance(value, float):
            return f"{value:.4g}"
        return html.escape(f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value))

    head = "".join(f"<th>{html.escape(key.replace('_', ' '))}</th>" for key in keys)
    body = "".join("<tr>" + "".join(f"<td>{text(row.get(key))}</td>" for key in keys) + "</tr>" for row in rows)
    return f"<div style='overflow-x:auto'><table><tr>{head}</tr>{body}</table></div>"

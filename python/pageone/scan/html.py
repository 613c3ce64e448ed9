"""A report as one HTML file with plots, readable without a network. For: ``pageone scan --html``; needs plotly."""

from __future__ import annotations

import html
import os
from pathlib import Path
from typing import Any

from pageone.errors import UnsupportedError, UsageError
from pageone.scan.report import ScanReport
from pageone.scan.text import human

# One colour a meaning, the same in all plots; told apart by colour-blind readers (Okabe and Ito).
_COLOUR = {
    "zero": "#56b4e9",
    "distinct": "#999999",
    "duplicates": "#e69f00",
    "unstable": "#d55e00",
    "saved": "#009e73",
    "cost": "#cc79a7",
}
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 1100px; padding: 0 1rem; color: #222 }
h1 { font-size: 1.6rem; margin-bottom: 0 } h2 { font-size: 1.15rem; margin: 2.2rem 0 .2rem }
.lead { font-size: 1.25rem; margin: .6rem 0 } .note { color: #666; font-size: .9rem; margin: .2rem 0 }
.tiles { display: flex; flex-wrap: wrap; gap: .8rem; margin: 1rem 0 }
.tile { border: 1px solid #ddd; border-radius: 8px; padding: .6rem .9rem; flex: 1 1 7rem }
.tile b { display: block; font-size: 1.35rem } .tile span { color: #666; font-size: .85rem }
table { border-collapse: collapse; font-size: .92rem } td, th { padding: .2rem .8rem .2rem 0; text-align: right }
td:first-child, th:first-child { text-align: left } th { border-bottom: 1px solid #bbb; font-weight: 600 }
code { font-size: .85rem } .problem { color: #a33 }
"""
MIB = 1 << 20


def _layout(figure: Any, height: int, **more: Any) -> Any:
    figure.update_layout(
        template="plotly_white",
        height=height,
        margin={"l": 10, "r": 20, "t": 20, "b": 40},
        font={"size": 14},
        hoverlabel={"namelength": -1},
        **more,
    )
    figure.update_xaxes(automargin=True)
    # A space between the names and what is drawn.
    figure.update_yaxes(automargin=True, ticksuffix="  ")
    return figure


def _composition(go: Any, report: ScanReport) -> Any:
    figure = go.Figure()
    for name, pages in (
        ("distinct", report.distinct_pages),
        ("duplicates", report.duplicate_pages),
        ("zero", report.zero_pages),
        ("unstable", report.unstable_pages),
    ):
        size = pages * report.page_size
        share = pages / report.pages if report.pages else 0
        figure.add_bar(
            x=[size / MIB],
            y=["pages"],
            name=name,
            orientation="h",
            marker_color=_COLOUR[name],
            text=f"{name} {share:.0%}" if share > 0.06 else "",
            textposition="inside",
            insidetextanchor="middle",
            hovertemplate=f"{name}: {human(size)}, {pages:,} pages<extra></extra>",
        )
    figure.update_yaxes(visible=False)
    return _layout(figure, 150, barmode="stack", xaxis_title="MiB", legend={"orientation": "h", "y": 1.6})


def _net(go: Any, report: ScanReport) -> Any:
    names = ["KSM", "PageONE"]
    gross = [report.ksm["saveable_bytes"], report.saveable_bytes]
    cost = [report.ksm["metadata_bytes"], report.pageone["mapping_bytes"]]
    figure = go.Figure()
    for label, values, colour in (("freed", gross, "saved"), ("cost", [-c for c in cost], "cost")):
        figure.add_bar(
            y=names,
            x=[v / MIB for v in values],
            orientation="h",
            name=label,
            marker_color=_COLOUR[colour],
            text=[human(abs(v)) for v in values],
            textposition="auto",
            hovertemplate="%{y}: " + label + " %{x:.1f} MiB<extra></extra>",
        )
    # Room for the label left of a short bar.
    reach = max(*gross, *cost, 1) / MIB
    figure.update_xaxes(range=[-max(cost) / MIB - 0.12 * reach, 1.05 * max(*gross, 0) / MIB + 0.02 * reach])
    return _layout(figure, 190, barmode="relative", xaxis_title="MiB", legend={"orientation": "h", "y": 1.4})


def _regions(go: Any, report: ScanReport) -> Any:
    rows = [row for row in report.regions if row["saveable_bytes"] > 0][:15][::-1]
    figure = go.Figure(
        go.Bar(
            y=[row["kind"] for row in rows],
            x=[row["saveable_bytes"] / MIB for row in rows],
            orientation="h",
            marker_color=_COLOUR["saved"],
            text=[human(row["saveable_bytes"]) for row in rows],
            textposition="auto",
            customdata=[[row["pages"], row["repeated_pages"], row["zero_pages"]] for row in rows],
            hovertemplate="%{y}: %{x:.1f} MiB saveable<br>%{customdata[0]:,} pages, %{customdata[1]:,} repeated, "
            "%{customdata[2]:,} zero<extra></extra>",
        )
    )
    return _layout(figure, 80 + 34 * len(rows), xaxis_title="MiB that merging would free")


def _heat(go: Any, report: ScanReport) -> Any:
    names = report.pairs["targets"]
    values = [[pages * report.page_size / MIB for pages in row] for row in report.pairs["pages"]]
    # The diagonal (what a target has in common with itself) would drown the pairs.
    shown = [[None if i == j else value for j, value in enumerate(row)] for i, row in enumerate(values)]
    few = len(names) <= 12
    figure = go.Figure(
        go.Heatmap(
            z=shown,
            x=list(range(len(names))),
            y=list(range(len(names))),
            colorscale="Viridis",
            zmin=0,
            zmax=max((value for row in shown for value in row if value is not None), default=1) or 1,
            colorbar={"title": "MiB"},
            texttemplate="%{z:.1f}" if few else None,
            customdata=[[[one, other] for other in names] for one in names],
            hovertemplate="%{customdata[0]}<br>%{customdata[1]}<br>%{z:.1f} MiB in common<extra></extra>",
            hoverongaps=False,
        )
    )
    ticks = {"tickvals": list(range(len(names))), "ticktext": [name[-28:] for name in names]}
    figure.update_xaxes(**ticks, tickangle=-40)
    figure.update_yaxes(**ticks, autorange="reversed")
    return _layout(figure, 200 + max(220, 30 * len(names)))


def _runs(go: Any, report: ScanReport) -> Any:
    rows = report.pageone["run_lengths"]
    labels = [str(row["from"]) if row["from"] == row["to"] else f"{row['from']}-{row['to']}" for row in rows]
    figure = go.Figure(
        go.Bar(
            x=labels,
            y=[row["pages"] * report.page_size / MIB for row in rows],
            marker_color=_COLOUR["duplicates"],
            text=[f"{row['runs']:,} runs" for row in rows],
            textposition="outside",
            cliponaxis=False,
            hovertemplate="runs of %{x} pages: %{y:.1f} MiB in %{text}<extra></extra>",
        )
    )
    figure.update_xaxes(type="category")
    return _layout(figure, 320, xaxis_title="pages in a run", yaxis_title="MiB")


def _volatility(go: Any, report: ScanReport) -> Any:
    assert report.watch is not None
    both = zip(report.targets, report.watch["by_target"], strict=True)
    rows = sorted(both, key=lambda row: -int(row[1]))[:20][::-1]
    figure = go.Figure()
    for label, colour, values in (
        ("changed", "unstable", [changed for _, changed in rows]),
        ("stayed", "distinct", [target["pages"] - changed for target, changed in rows]),
    ):
        figure.add_bar(
            y=[target["name"] for target, _ in rows],
            x=[value * report.page_size / MIB for value in values],
            orientation="h",
            name=label,
            marker_color=_COLOUR[colour],
            hovertemplate="%{y}: %{x:.1f} MiB " + label + "<extra></extra>",
        )
    return _layout(
        figure,
        150 + 30 * len(rows),
        barmode="stack",
        xaxis_title="MiB",
        legend={"orientation": "h", "y": 1.0, "yanchor": "bottom"},
    )


def _tile(value: str, label: str) -> str:
    return f"<div class=tile><b>{html.escape(value)}</b><span>{html.escape(label)}</span></div>"


def _rows(head: list[str], rows: list[list[str]]) -> str:
    cells = "".join(f"<th>{html.escape(h)}</th>" for h in head)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(c)}</td>" for c in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table>"


def render(report: ScanReport) -> str:
    """Return the report as one HTML page; :class:`UnsupportedError` without plotly (extra ``report``)."""
    try:
        import plotly.graph_objects as go  # type: ignore[import-untyped,unused-ignore]
        from plotly.offline import get_plotlyjs  # type: ignore[import-untyped,unused-ignore]
    except ImportError:
        raise UnsupportedError("an HTML report needs plotly: pip install 'pageone[report]'") from None

    parts: list[str] = []

    def plot(identity: str, title: str, note: str, figure: Any) -> None:
        division = figure.to_html(
            full_html=False, include_plotlyjs=False, div_id=identity, config={"displayModeBar": False}
        )
        parts.append(f"<h2>{html.escape(title)}</h2><p class=note>{html.escape(note)}</p>{division}")

    plot("composition", "What the pages are", "Of equal pages one is distinct and the others are duplicates.",
         _composition(go, report))  # fmt: skip
    if report.sharing != "none":
        plot("net", "What merging would free, and cost", "Costs: mappings for PageONE, metadata of every scanned page "
             "for KSM.", _net(go, report))  # fmt: skip
    if any(row["saveable_bytes"] > 0 for row in report.regions):
        plot("regions", "Where it lies", "What merging would free, by kind of memory.", _regions(go, report))
    if len(report.pairs.get("targets", [])) > 1:
        plot("pairs", "Which targets have most in common", "Contents that both of a pair hold, in MiB.",
             _heat(go, report))  # fmt: skip
    if report.pageone["run_lengths"]:
        plot("runs", "Run lengths", "Duplicates that lie in long runs need few mappings.", _runs(go, report))
    if report.watch is not None:
        plot("volatility", f"What changed within {report.watch['seconds']:g} s", "A duplicate that changes is not "
             "worth merging.", _volatility(go, report))  # fmt: skip
    if report.contents:
        rows = [[" ".join(r["hex"][i : i + 2] for i in range(0, 32, 2)), f"{r['pages']:,}", r["what"]]
                for r in report.contents]  # fmt: skip
        parts.append("<h2>Most repeated contents</h2>" + _rows(["begins with", "pages", "what"], rows))
    ranked = sorted(report.targets, key=lambda target: -int(target["saveable_bytes"]))[:50]
    rows = [
        [t["name"], f"{t['pages']:,}", f"{t['zero_pages']:,}", f"{t['repeated_pages']:,}", human(t["saveable_bytes"])]
        for t in ranked
    ]
    head = ["target", "pages", "zero", "repeated", "saveable"]
    parts.append(f"<h2>Targets ({len(report.targets)})</h2>" + _rows(head, rows))
    for problem in report.problems:
        parts.append(f"<p class=problem>{html.escape(problem)}</p>")

    total = report.pages * report.page_size
    share = report.saveable_bytes / total if total else 0.0
    targets = f"{len(report.targets)} target{'s' if len(report.targets) != 1 else ''}"
    lead = f"{human(report.saveable_bytes)} of {human(total)} ({share:.0%}) in {targets} could be freed."
    tiles = [
        _tile(f"{report.pages:,}", "pages scanned"),
        _tile(human(report.saveable_bytes), "PageONE could free"),
        *([_tile(human(report.ksm["saveable_bytes"]), "KSM could free")] if report.sharing != "none" else []),
        _tile(f"{report.pageone['mappings']:,}", f"more mappings ({report.pageone['runs']:,} runs)"),
        *([_tile(human(report.already_shared_bytes), "shared already")] if report.sharing != "none" else []),
        _tile(f"{report.bytes_per_second / 1e9:.2f} GB/s", f"{report.seconds:.2f} s, {report.threads} thread(s)"),
    ]
    return (
        "<!DOCTYPE html><html lang=en><head><meta charset=utf-8><title>PageONE scan</title>"
        f"<style>{_STYLE}</style><script>{get_plotlyjs()}</script></head><body><h1>What would merging save?</h1>"
        f"<p class=note>pageone scan, {html.escape(report.created)}</p><p class=lead>{html.escape(lead)}</p>"
        f"<div class=tiles>{''.join(tiles)}</div>{''.join(parts)}</body></html>\n"
    )


def write(report: ScanReport, path: str | os.PathLike[str]) -> None:
    """Write the report as HTML; :class:`UsageError` where the file cannot be written."""
    text = render(report)
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{os.fspath(path)}: {error.strerror}") from None

"""A report as tables for a terminal. For: ``pageone scan``; it prints and computes nothing but shares."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pageone.scan.report import ScanReport

#: Rows of the tables of targets, regions and pairs.
ROWS = 15


def human(count: float) -> str:
    """Return a number of bytes with a binary unit."""
    value, sign = abs(count), "-" if count < 0 else ""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{sign}{value:.0f} {unit}" if unit == "B" else f"{sign}{value:.1f} {unit}"
        value /= 1024
    return f"{sign}{value:.1f} TiB"


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", pad_edge=False, box=None)
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right", no_wrap=number > 0, overflow="fold")
    return table


def show(report: ScanReport, console: Console) -> None:
    """Print the report."""
    size = report.page_size
    pageone, ksm = report.pageone, report.ksm

    def part(pages: int) -> str:
        return f"{100 * pages / report.pages:.1f} %" if report.pages else ""

    table = _table("Pages", "", "pages", "bytes", "of all")
    for name, pages in (
        ("scanned (resident, private)" if report.sharing != "none" else "scanned", report.pages),
        ("zero", report.zero_pages),
        ("distinct contents", report.distinct_pages),
        ("duplicates", report.duplicate_pages),
        ("  inside a target", report.duplicates_inside),
        ("  across targets", report.duplicates_across),
        ("unstable: changed while read", report.unstable_pages),
    ):
        table.add_row(name, f"{pages:,}", human(pages * size), part(pages))
    console.print(table)

    table = _table("What could be saved", "", "freed", "costs", "net")
    table.add_row(
        "PageONE", human(report.saveable_bytes), human(pageone["mapping_bytes"]), f"[bold]{human(pageone['net_bytes'])}"
    )
    if report.sharing != "none":
        table.add_row("KSM", human(ksm["saveable_bytes"]), human(ksm["metadata_bytes"]), human(ksm["net_bytes"]))
        table.add_row("shared already", human(report.already_shared_bytes), "", "")
    console.print(table)
    details = [
        f"{pageone['merged_pages']:,} pages in {pageone['runs']:,} runs, {pageone['mappings']:,} more mappings, "
        f"{pageone['frames']:,} frames; zero pages {human(pageone['zero_bytes'])}"
    ]
    if pageone["huge_pages_split"] or pageone["huge_pages_kept_whole"]:
        details.append(
            f"{pageone['huge_pages_split']:,} huge pages would be split; {pageone['huge_pages_kept_whole']:,} equal or "
            "zero pages stay in huge pages that are mostly unique"
        )
    if pageone["over_budget_pages"]:
        details.append(f"{pageone['over_budget_pages']:,} pages left out: the budget of mappings of their targets")
    if pageone["short_run_pages"]:
        details.append(f"{pageone['short_run_pages']:,} equal pages left out: in runs shorter than is asked for")
    if pageone["shared_pages"]:
        details.append(f"{pageone['shared_pages']:,} repeated pages left out: shared since a fork, in memory once")
    if report.sharing == "frames" or report.sharing == "assumed":
        shared = report.already_shared
        details.append(
            f"shared already: fork or merging {human(shared['fork_bytes'])}, page cache "
            f"{human(shared['page_cache_bytes'])}, zero page {human(shared['zero_page_bytes'])}"
        )
    if report.sharing == "assumed" and report.already_shared["fork_bytes"]:
        details.append("frames are told to root only: for KSM equal pages shared since a fork are taken for one frame")
    if report.watch:
        watch = report.watch
        details.append(
            f"after {watch['seconds']:g} s: {watch['changed_pages']:,} pages changed, {watch['changed_duplicates']:,} "
            f"of them duplicates; saveable of what stayed {human(watch['saveable_quiet_bytes'])}"
        )
    for line in details:
        console.print(f"  {line}", highlight=False)

    if len(report.targets) > 1 or report.targets[0]["kind"] != "file":
        table = _table("Targets", "target", "pages", "zero", "repeated", "unstable", "swapped", "saveable")
        ranked = sorted(report.targets, key=lambda target: -int(target["saveable_bytes"]))
        for target in ranked[:ROWS]:
            counts = ("pages", "zero_pages", "repeated_pages", "unstable_pages", "swapped_pages")
            figures = [f"{target[name]:,}" for name in counts]
            table.add_row(escape(target["name"]), *figures, human(target["saveable_bytes"]))
        if len(ranked) > ROWS:
            table.add_row(f"… {len(ranked) - ROWS} more")
        console.print(table)

    if len(report.regions) > 1:
        table = _table("Regions", "kind", "pages", "zero", "repeated", "saveable")
        for row in report.regions[:ROWS]:
            figures = [f"{row[name]:,}" for name in ("pages", "zero_pages", "repeated_pages")]
            table.add_row(escape(row["kind"]), *figures, human(row["saveable_bytes"]))
        console.print(table)

    names = report.pairs.get("targets", [])
    matrix = report.pairs.get("pages", [])
    pairs = [(matrix[i][j], names[i], names[j]) for i in range(len(names)) for j in range(i) if matrix[i][j]]
    if pairs:
        table = _table("Pairs that have most in common", "targets", "contents", "bytes")
        for pages, one, other in sorted(pairs, reverse=True)[:5]:
            table.add_row(escape(f"{other}, {one}"), f"{pages:,}", human(pages * size))
        console.print(table)

    if report.contents:
        table = _table("Most repeated", "begins with", "pages", "what")
        for row in report.contents[:6]:
            table.add_row(" ".join(row["hex"][i : i + 2] for i in range(0, 32, 2)), f"{row['pages']:,}", row["what"])
        console.print(table)
    console.print(
        f"{report.pages:,} pages in {report.seconds:.2f} s, {report.cpu_seconds:.2f} CPU-s; reading and counting "
        f"{report.bytes_per_second / 1e9:.2f} GB/s, {report.threads} thread(s)",
        highlight=False,
    )


def show_comparison(report: ScanReport, old: ScanReport, console: Console) -> None:
    """Print what has changed since an older report."""
    table = _table(f"Since {old.created or 'the older report'}", "", "then", "now", "change")
    for name, then, now in report.compare(old)[: ROWS + 7]:
        table.add_row(escape(name), human(then), human(now), ("+" if now > then else "") + human(now - then))
    console.print(table)

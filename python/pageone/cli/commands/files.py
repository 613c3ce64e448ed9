"""``pageone files …``: equal files and blocks found, and made to share extents."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Annotated

import typer

from pageone.errors import UsageError

if TYPE_CHECKING:
    from pageone.files import Job
    from pageone.files.scan import Progress

Paths = Annotated[list[str], typer.Argument(metavar="PATH...", help="Files, folders.")]
Whole = Annotated[bool, typer.Option("--whole-files", help="No blocks: quicker.")]
Least = Annotated[str, typer.Option("--min-size", metavar="SIZE", help="Smallest file.")]
Run = Annotated[str, typer.Option("--min-run", metavar="SIZE", help="Shortest range shared.")]
Across = Annotated[bool, typer.Option("--across-users", help="Whoever owns them.")]
Index = Annotated[str | None, typer.Option("--index", metavar="FILE", help="Go on from an earlier scan.")]
Memory = Annotated[str, typer.Option("--memory", metavar="SIZE", help="For keys.")]
Threads = Annotated[int, typer.Option("--threads", metavar="N", min=1, max=64, help="Threads.")]
Cpu = Annotated[float, typer.Option("--cpu-share", metavar="PERCENT", min=0, help="Of one CPU.")]
Rate = Annotated[str | None, typer.Option("--rate", metavar="SIZE", help="Read a second.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Html = Annotated[str | None, typer.Option("--html", metavar="FILE", help="Write a page.")]

#: Exit code of a command that was interrupted, as shells have it.
INTERRUPTED = 130


def register(app: typer.Typer) -> None:
    """Add ``files`` with its subcommands."""
    sub = typer.Typer(no_args_is_help=True, help="Equal files and blocks.")

    @sub.callback()
    def _group() -> None:
        """Find equal files and blocks, and let them share extents."""

    @sub.command()
    def scan(
        paths: Paths,
        whole_files: Whole = False,
        min_size: Least = "1",
        min_run: Run = "16KiB",
        across_users: Across = False,
        index: Index = None,
        memory: Memory = "1GiB",
        threads: Threads = 1,
        cpu_share: Cpu = 0.0,
        rate: Rate = None,
        as_json: Json = False,
        html: Html = None,
    ) -> None:
        """Tell what is equal and what sharing would free, changing nothing.

        Example: pageone files scan /srv/images --index /var/tmp/images.index
        """
        _run(
            paths, whole_files, min_size, min_run, across_users, index, memory, threads, cpu_share, rate, as_json, html
        )

    @sub.command()
    def share(
        paths: Paths,
        yes: Annotated[bool, typer.Option("--yes/--dry-run", help="Share, or tell.")] = False,
        whole_files: Whole = False,
        min_size: Least = "1",
        min_run: Run = "16KiB",
        across_users: Across = False,
        index: Index = None,
        memory: Memory = "1GiB",
        threads: Threads = 1,
        cpu_share: Cpu = 0.0,
        rate: Rate = None,
        as_json: Json = False,
        html: Html = None,
    ) -> None:
        """Let equal files and blocks share extents (XFS, btrfs), the longest first.

        Example: pageone files share /srv/images --yes --cpu-share 20 --rate 100MiB
        """
        _run(
            paths,
            whole_files,
            min_size,
            min_run,
            across_users,
            index,
            memory,
            threads,
            cpu_share,
            rate,
            as_json,
            html,
            yes=yes,
        )

    app.add_typer(sub, name="files")


def _run(
    paths: list[str],
    whole_files: bool,
    min_size: str,
    min_run: str,
    across_users: bool,
    index: str | None,
    memory: str,
    threads: int,
    cpu_share: float,
    rate: str | None,
    as_json: bool,
    html: str | None,
    *,
    yes: bool = False,
) -> None:
    from rich.console import Console

    from pageone import files
    from pageone.cli.units import parse_size
    from pageone.files.scan import Interrupted

    if html is not None and (os.path.isdir(html) or not os.path.isdir(os.path.dirname(html) or ".")):
        raise UsageError(f"--html {html}: not a file in an existing folder")
    errors = Console(stderr=True)
    with _Shown(errors) as shown:
        try:
            job = files.scan(
                paths,
                whole_files=whole_files,
                min_size=parse_size(min_size),
                min_run=parse_size(min_run),
                across_users=across_users,
                index=index,
                memory=parse_size(memory),
                threads=threads,
                budget=files.Budget(cpu_share / 100, parse_size(rate) if rate else 0),
                progress=shown.progress,
            )
        except Interrupted:
            raise typer.Exit(INTERRUPTED) from None
        except OSError as error:
            raise UsageError(f"keys of blocks cannot be kept: {error.strerror}") from None
        try:
            stopped = False
            if yes:
                try:
                    files.share(job, shown.progress)
                except Interrupted:
                    stopped = True
        finally:
            shown.end()
    try:
        _print(job, as_json, html)
    finally:
        job.close()
    for problem in job.report.problems:
        errors.print(f"pageone: {problem}", markup=False, highlight=False, soft_wrap=True)
    if stopped:
        raise typer.Exit(INTERRUPTED)
    if job.report.problems:
        raise typer.Exit(1)


def _print(job: Job, as_json: bool, html: str | None) -> None:
    from rich.console import Console

    from pageone.files import text
    from pageone.files.scan import list_groups, list_ranges

    everything = as_json or html is not None
    list_groups(job, None if everything else text.ROWS)
    if everything:
        list_ranges(job)
    if html is not None:
        from pageone.files.html import write

        write(job.report, html)
    if as_json:
        print(job.report.to_json())
    else:
        text.show(job.report, Console())


class _Shown:
    """A line of progress on the terminal; without a terminal, none."""

    def __init__(self, console: object) -> None:
        from rich.console import Console

        assert isinstance(console, Console)
        self.console = console
        self.progress: Progress | None = self._show if console.is_terminal else None
        self.began = time.monotonic()

    def __enter__(self) -> _Shown:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def _show(self, step: str, done: int, total: int) -> None:
        share = f" {min(1.0, done / total):.0%}" if total else ""
        self.console.file.write(f"\r\x1b[K{step}{share}  {time.monotonic() - self.began:.0f} s")
        self.console.file.flush()

    def end(self) -> None:
        """Wipe the line."""
        if self.progress is not None:
            self.console.file.write("\r\x1b[K")
            self.console.file.flush()

"""``pageone scan``: what merging would save, in processes, dumps and images. Reads only."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Annotated

import typer

from pageone.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from pageone.scan import ScanReport


def choose(
    targets: list[str], match: str | None, user: str | None, descendants: bool, everything: bool
) -> tuple[list[int], list[str]]:
    """Return the PIDs and files meant. Digits are a PID; write ./123 for a file of that name.

    Raises :class:`UsageError` for a bad pattern, an unknown user, or when nothing is chosen.
    """
    import psutil

    from pageone import procfs
    from pageone.live import patience

    pids = [int(target) for target in targets if target.isascii() and target.isdigit()]
    files = [target for target in targets if not (target.isascii() and target.isdigit())]
    if any(pid >= 2**31 or pid == 0 for pid in pids):
        raise UsageError("a PID is a number from 1 to 2147483647; write ./NAME for a file with such a name")
    if descendants:
        if not pids:
            raise UsageError("--descendants: give the PIDs whose descendants are meant")
        for pid in list(pids):
            try:
                pids += [child.pid for child in psutil.Process(pid).children(recursive=True)]
            except psutil.Error:
                continue  # the scan reports a process that is not there
    if match is None and user is None and not everything:
        if not targets:
            raise UsageError("nothing to scan: give PIDs or files, or --match, --user or --all")
        return pids, files
    try:
        pattern = re.compile(match or "")
    except re.error as error:
        raise UsageError(f"--match {match!r}: not a regular expression: {error}") from None
    if user is not None:
        import pwd

        try:
            uid = int(user) if user.isdigit() else pwd.getpwnam(user).pw_uid
        except KeyError:
            raise UsageError(f"--user {user}: no such user") from None
    chosen = []
    for pid in procfs.processes():
        try:
            if pid == os.getpid() or (user is not None and int(procfs.status(pid)["Uid"].split()[1]) != uid):
                continue
            words = patience.read(pid, procfs.arguments, pid)
            # A process without a command line is a kernel thread or a zombie: it has no memory.
            command = b" ".join(words).decode(errors="replace")
            if command and (pattern.search(command) or pattern.search(procfs.name(pid))):
                chosen.append(pid)
        except patience.HeldUpError:
            chosen.append(pid)  # it may be meant: the scan names it
        except (OSError, KeyError):
            continue
    if not chosen and not pids and not files:
        raise UsageError("no process is chosen by these options")
    return pids + chosen, files


def register(app: typer.Typer) -> None:
    """Add ``scan``."""

    @app.command()
    def scan(
        targets: Annotated[
            list[str] | None,
            typer.Argument(
                metavar="[PID|FILE]...",
                help="Processes, memory images, core dumps, disk images (raw, qcow2), or any files.",
            ),
        ] = None,
        match: Annotated[
            str | None, typer.Option(metavar="REGEX", help="Processes whose command line contains this.")
        ] = None,
        user: Annotated[str | None, typer.Option(metavar="NAME", help="Processes of a user.")] = None,
        descendants: Annotated[
            bool, typer.Option("--descendants", help="Scan the descendants of the PIDs, too.")
        ] = False,
        everything: Annotated[bool, typer.Option("--all", help="All processes.")] = False,
        page_size: Annotated[int, typer.Option(metavar="BYTES", help="Size of the blocks of files.")] = 4096,
        threads: Annotated[int, typer.Option(metavar="N", help="Threads that read and count.")] = 1,
        watch: Annotated[
            float, typer.Option(metavar="SECONDS", help="Seconds until a second scan that tells which pages change.")
        ] = 0.0,
        min_run: Annotated[
            int, typer.Option(metavar="PAGES", help="Count only runs of at least so many equal pages for PageONE.")
        ] = 1,
        as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
        html: Annotated[str | None, typer.Option(metavar="FILE", help="Write a report with plots.")] = None,
        compare: Annotated[
            str | None, typer.Option(metavar="OLD.json", help="Show what changed since an older report.")
        ] = None,
    ) -> None:
        """Tell what merging equal pages would save, changing nothing.

        It reads pages and compares all bytes of equal ones; it stops no process and writes nothing. The exit code is
        0, or 1 if some targets could not be scanned, or 2 if none could.
        """
        from rich.console import Console

        from pageone.scan import ScanReport, text
        from pageone.scan import scan as run

        old = ScanReport.load(compare) if compare else None
        if html is not None and (os.path.isdir(html) or not os.path.isdir(os.path.dirname(html) or ".")):
            raise UsageError(f"--html {html}: not a file in an existing folder")
        pids, files = choose(targets or [], match, user, descendants, everything)
        errors = Console(stderr=True)
        report = _with_progress(
            errors,
            lambda progress: run(
                pids,
                files,
                page_size=page_size,
                threads=threads,
                watch=watch,
                min_run=min_run,
                progress=progress,
            ),
        )
        if html is not None:
            from pageone.scan.html import write

            write(report, html)
        if as_json:
            print(report.to_json())
        else:
            console = Console()
            text.show(report, console)
            if old is not None:
                text.show_comparison(report, old, console)
        for problem in report.problems:
            errors.print(f"pageone: {problem}", markup=False, highlight=False, soft_wrap=True)
        if report.problems:
            raise typer.Exit(1)


def _with_progress(console: object, run: Callable[[Callable[[int, int], None] | None], ScanReport]) -> ScanReport:
    """Run with a progress bar on the terminal: pages, GB/s, time left. Without a terminal, without."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    assert isinstance(console, Console)
    if not console.is_terminal:
        return run(None)
    import time

    columns = (BarColumn(), TextColumn("{task.fields[pages]} pages  {task.fields[speed]}"), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("scan", total=None, pages="", speed="")
        began = time.monotonic()

        def advance(done: int, total: int) -> None:
            speed = done * 4096 / max(1e-9, time.monotonic() - began) / 1e9
            bar.update(task, completed=done, total=total, pages=f"{done:,}/{total:,}", speed=f"{speed:.2f} GB/s")

        return run(advance)

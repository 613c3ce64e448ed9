"""What the commands that talk to an engine have in common: which engine is meant, and how its state is shown.

For: ``run``, ``attach``, ``detach``, ``status``, ``top`` and ``stop``.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from pageone.errors import UsageError
from pageone.service.client import Detached, EngineRequest
from pageone.service.place import domain_name, private_name, user_name

__all__ = ["Cpu", "Domain", "Period", "choose", "engine_name", "mib", "print_detached", "targets_table", "title"]

#: Options by which ``run`` and ``attach`` say which engine is meant, and how it is to work.
Period = Annotated[
    float | None,
    typer.Option(
        metavar="SECONDS", help="Seconds between two scans for changes (default 20); changes a running engine."
    ),
]
Cpu = Annotated[
    str | None,
    typer.Option(
        metavar="SHARE", help="Most CPU time that the engine may use on average (default 10%); 100% is one CPU."
    ),
]
Domain = Annotated[str | None, typer.Option(metavar="NAME", help="Share only within the domain of this name.")]


def choose(
    *,
    domain: str | None = None,
    private: bool = False,
    uid: int | None = None,
    period: float | None = None,
    cpu: str | None = None,
) -> EngineRequest:
    """Return which engine options mean: one of its own, that of a domain, else that of the user ``uid`` (this one).

    Raises :class:`UsageError` for values out of range.
    """
    if private and domain is not None:
        raise UsageError("--private and --domain: give one of them")
    if period is not None and not 0.001 <= period <= 1e6:
        raise UsageError(f"--period {period:g}: give seconds, at least 0.001")
    if cpu is not None:
        from pageone.engine.queue import cpu_share  # late: only who limits the CPU needs numpy for it

        cpu_share(cpu)
    user = os.geteuid() if uid is None else uid
    if private:
        return EngineRequest(private_name(), user, period, cpu)
    if domain is not None:
        return EngineRequest(domain_name(domain), None, period, cpu)
    return EngineRequest(user_name(user), user, period, cpu)


def engine_name(domain: str | None, uid: int | None = None) -> str:
    """Return the name of the engine of a domain or, without one, of a user. Any name that ``status`` shows is good."""
    return domain if domain is not None else user_name(os.geteuid() if uid is None else uid)


def print_detached(done: Detached, did: str, what: tuple[str, str], *, as_json: bool) -> None:
    """Say what was detached or ended: ``did`` that to so many of ``what`` (one, and several).

    Exits with 1 where some could not be.
    """
    for pid, reason in done.failed.items():
        print(f"pageone: PID {pid}: {reason}", file=sys.stderr)
    if as_json:
        print(json.dumps({did: done.done, "failed": done.failed, "left_pages": done.left_pages}))
    else:
        print(f"{did} {done.done} {what[done.done != 1]}")
        if done.left_pages:
            print(f"{done.left_pages} pages were left merged: processes share them as they do since a fork")
    if done.failed:
        raise typer.Exit(1)


def mib(size: float) -> str:
    """Return bytes as MiB with one digit."""
    return f"{size / (1 << 20):,.1f}"


def title(state: dict[str, Any]) -> str:
    """Return one line on an engine."""
    stats = state["stats"]
    cpu = sum(stats["cpu_s"].values())
    return (
        f"engine {state['name']} (PID {state['pid']}, guardian {state['guardian']}): "
        f"{len(state['targets'])} processes, "
        f"{mib(stats['saved_bytes'])} MiB saved, {stats['sharers']:,} pages share {stats['frames']:,} frames, "
        f"period {state['period']:g} s ({stats['period']:,} done), {cpu:.2f} CPU-seconds"
        + (", busy" if state["busy"] else "")
    )


def targets_table(state: dict[str, Any]) -> Table:
    """Return the processes of an engine, those first that save most."""
    table = Table(box=None, pad_edge=False, header_style="bold", expand=True)
    columns = ("PID", "state", "saved MiB", "merged", "mappings", "p99 ms", "max ms")
    for heading in columns:
        table.add_column(heading, justify="left" if heading == "state" else "right", no_wrap=True)
    table.add_column("command", overflow="fold", ratio=1)

    def saved(target: dict[str, Any]) -> int:
        return int(target["stats"]["saved_bytes"]) if "stats" in target else -1

    for target in sorted(state["targets"], key=saved, reverse=True):
        stats = target.get("stats")
        cells = [""] * 5
        if stats is not None:
            pauses = stats["pauses"]
            cells = [
                mib(stats["saved_bytes"]),
                f"{stats['merged_pages']:,}",
                f"{stats['mappings']:,}",
                f"{pauses['p99_ms']:.2f}",
                f"{pauses['max_ms']:.2f}",
            ]
        command = Text(target["command"])
        open_now = stats["left_alone"] if stats is not None else ""
        trouble = stats["trouble"] if stats is not None else ""
        reason = target["reason"] or (open_now and f"left alone while it has {open_now}") or trouble
        if reason:
            command.append(f"  [{reason}]", style="yellow")
        table.add_row(str(target["pid"]), target["state"], *cells, command)
    return table

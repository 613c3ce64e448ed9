"""Start a command, make one pass over it and its descendants, wait for its end.

For: ``pageone run --once``. The command is a child of this process, which passes on signals that are sent to it.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from types import FrameType
from typing import TYPE_CHECKING

from rich.console import Console

from pageone.cli.commands.merge import with_descendants
from pageone.cli.passes import pass_progress, report_dict, report_rows, show_rows
from pageone.errors import PageOneError, TargetError

if TYPE_CHECKING:
    from pageone.engine import MergeReport

__all__ = ["run_once"]

# What a shell says of a command that is not there, or cannot be run.
_NOT_FOUND, _NOT_EXECUTABLE = 127, 126

#: Signals that are meant for the command and are passed on.
_PASSED_ON = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def run_once(command: list[str], after: float, quiet: float, as_json: bool) -> int:
    """Start the command, make the pass, wait; return the exit code for this process."""
    started: list[subprocess.Popen[bytes]] = []
    early: list[int] = []  # signals that come before the command is there

    def pass_on(number: int, frame: FrameType | None) -> None:
        if not started:
            early.append(number)
        elif started[0].poll() is None:
            started[0].send_signal(number)

    def leave_alone(number: int, frame: FrameType | None) -> None:
        """Interrupt and quit reach the command by itself, from the terminal; what it makes of them is its affair."""

    # Handlers, not SIG_IGN: the command starts with the defaults, as it would without PageONE.
    before = {number: signal.signal(number, pass_on) for number in _PASSED_ON}
    before |= {number: signal.signal(number, leave_alone) for number in (signal.SIGINT, signal.SIGQUIT)}
    try:
        try:
            process = subprocess.Popen(command)
        except FileNotFoundError:
            print(f"pageone: {command[0]}: command not found", file=sys.stderr)
            return _NOT_FOUND
        except OSError as error:
            print(f"pageone: {command[0]}: {error.strerror}", file=sys.stderr)
            return _NOT_EXECUTABLE
        started.append(process)
        for number in early:
            process.send_signal(number)
        try:
            process.wait(timeout=after)
        except subprocess.TimeoutExpired:
            _one_pass(process.pid, quiet, as_json)
        code = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return code if code >= 0 else 128 - code


def _one_pass(pid: int, quiet: float, as_json: bool) -> None:
    """Merge the process and its descendants; whatever fails, the command goes on and stderr says why."""
    from pageone.engine import Engine
    from pageone.live import preflight

    console = Console(stderr=True, highlight=False)
    left: list[str] = []
    report: MergeReport | None = None
    try:
        with pass_progress(console) as tell, Engine() as engine:
            for each in with_descendants([pid]):
                try:
                    preflight.check(each)
                    engine.attach(each)
                except TargetError as error:
                    left.append(str(error))
            if engine.targets:
                report = engine.merge_once(quiet_s=quiet, progress=tell)
    except PageOneError as error:
        left.append(str(error))
    for line in left:
        print(f"pageone: {line}", file=sys.stderr)
    if report is None:
        return
    if as_json:
        print(json.dumps(report_dict(report)), file=sys.stderr)
    else:
        show_rows(console, f"pageone: one pass over {report.targets} processes", report_rows(report))

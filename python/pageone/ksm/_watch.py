"""The process that puts KSM's knobs back, also when the process that changed them was killed.

For: :mod:`pageone.ksm.control`, which runs this file as a program, and calls :func:`restore` itself should this
program have been killed. Standard library only, no import of the package: it starts in milliseconds and stays small.

It reads one line of JSON, ``{"root": directory, "parent": PID, "knobs": {name: text}, "unmerge": bool}``, answers
``ready``, and waits until its input closes or its parent is gone. Then it restores and prints ``{"failed": {...}}``.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
import time

#: How long to try a knob that is busy: pages of a process that is just ending are still being given back.
BUSY_S = 10.0


def _value(root: str, name: str) -> str:
    with open(os.path.join(root, name)) as file:
        text = file.read().strip()
    return text[text.index("[") + 1 : text.index("]")] if "[" in text else text


def write(root: str, name: str, value: str) -> None:
    """Write one knob. Raises ``OSError``, never makes a file that is not there."""
    fd = os.open(os.path.join(root, name), os.O_WRONLY | os.O_TRUNC)
    try:
        os.write(fd, value.encode())
    finally:
        os.close(fd)


def _order(knobs: dict[str, str]) -> list[str]:
    """Return the knobs in an order in which the kernel takes them.

    pages_to_scan cannot be set while an advisor runs, so an advisor is turned off before it and on after it;
    run comes last, so that ksmd starts (or stays stopped) with everything else in place.
    """
    rank = {"advisor_mode": 0 if knobs.get("advisor_mode") == "none" else 2, "run": 3}
    return sorted(knobs, key=lambda name: rank.get(name, 1))


def restore(root: str, knobs: dict[str, str], unmerge: bool) -> dict[str, str]:
    """Write every knob that differs from what was found; return those that could not be, with the reason.

    ``unmerge``: nothing was merged when the knobs were read, so what is merged now is given back first (the kernel
    also refuses to change ``max_page_sharing`` and ``merge_across_nodes`` while anything is merged).
    """
    failed: dict[str, str] = {}
    if unmerge:
        try:
            # The records of processes that ended go with the next scan; run=2 drops them all now.
            if _value(root, "pages_shared") != "0" or _value(root, "run") != knobs.get("run"):
                write(root, "run", "2")
        except OSError as error:
            failed["pages_shared"] = str(error)
    for name in _order(knobs):
        deadline = time.monotonic() + BUSY_S
        while True:
            try:
                if _value(root, name) != knobs[name]:
                    write(root, name, knobs[name])
                failed.pop(name, None)
                break
            except OSError as error:
                failed[name] = str(error)
                if time.monotonic() > deadline:
                    break
                time.sleep(0.02)
    return failed


def main() -> None:
    """Wait for the end of the parent, then restore."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGPIPE"):
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    order = json.loads(sys.stdin.readline())
    watched = [sys.stdin.fileno()]
    try:
        # The pipe alone would do, but a child forked by the parent may hold its other end open.
        watched.append(os.pidfd_open(order["parent"]))
    except OSError:
        if os.getppid() != order["parent"]:
            watched.clear()
    print("ready", flush=True)
    if watched:
        select.select(watched, [], [])
    failed = restore(order["root"], order["knobs"], order["unmerge"])
    with contextlib.suppress(OSError):  # the parent is gone: there is nobody to tell
        print(json.dumps({"failed": failed}), flush=True)


if __name__ == "__main__":
    main()

"""Start of the guardian process: ``python -I -S _guardian.py NATIVE CONTROL_FD FILLING_FD FRAMES``.

Runs without the site packages so that the process stays small: it loads the native module by path and nothing else.
"""

import contextlib
import importlib.machinery
import importlib.util
import os
import signal
import sys


def main() -> None:
    """Load the native core and guard until the engine and the last guarded target have gone."""
    native, control, filling, frames = sys.argv[1], *map(int, sys.argv[2:5])
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as score:
        score.write("-1000")  # without it, what its targets discard would not read as zeros; root may ask for this
    with contextlib.suppress(OSError):
        # A target stands still while this process waits for a processor; root may ask for an early turn.
        os.setpriority(os.PRIO_PROCESS, 0, -10)
    loader = importlib.machinery.ExtensionFileLoader("_native", native)
    spec = importlib.util.spec_from_loader("_native", loader)
    if spec is None:
        raise SystemExit(1)
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    module.mem.guardian(control, filling, frames)


main()

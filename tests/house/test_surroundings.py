"""The suite passes however it is started: what it relies on it sets itself."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

#: Fails unless Ctrl-C, the mask of new files and the number of open files are what tests rely on, in what they start.
TEST = """
import os, resource, signal, subprocess, sys

def test_it():
    code = "import signal, resource, os; print(signal.getsignal(2) is signal.default_int_handler, os.umask(0), " \\
        "resource.getrlimit(resource.RLIMIT_NOFILE)[0], signal.getsignal(1) == signal.SIG_DFL)"
    seen = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout
    assert seen.split() == ["True", "18", "1024", "True"], seen
"""


def test_what_the_suite_inherits_from_a_script_in_the_background_does_not_matter(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(TEST)
    environment = {
        k: v for k, v in os.environ.items() if k not in ("HOME", "XDG_RUNTIME_DIR", "TERM", "PYTEST_XDIST_WORKER")
    }

    def as_in_the_background() -> None:
        for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        os.umask(0o077)
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))

    argv = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", str(ROOT / "pyproject.toml")]
    done = subprocess.run(
        [
            *argv,
            "--confcutdir",
            str(ROOT),
            "-p",
            "tests.conftest",
            "--rootdir",
            str(tmp_path),
            str(tmp_path / "test_it.py"),
        ],
        env=environment | {"LANG": "C", "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        start_new_session=True,
        preexec_fn=as_in_the_background,
    )
    assert done.returncode == 0, done.stdout

"""What a figure was measured on.

For: :mod:`pageone.bench.ksm`. Reads ``/proc`` and ``/sys`` and asks git for the commit.
"""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import psutil

import pageone
from pageone import procfs


def _chosen(path: str) -> str:
    try:
        text = Path(path).read_text()
    except OSError:
        return "none"
    return text[text.find("[") + 1 : text.find("]")] if "[" in text else text.strip()


def _commit() -> str:
    try:
        here = Path(pageone.__file__).parent
        answer = subprocess.run(
            ["git", "-C", str(here), "describe", "--always", "--dirty"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return answer.stdout.strip()


def describe() -> dict[str, Any]:
    """Return processor, memory, kernel, versions, commit and date."""
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": _commit(),
        "pageone": pageone.__version__,
        "kernel": platform.release(),
        "cpu": procfs.cpuinfo("model name"),
        "cpus": len(os.sched_getaffinity(0)),
        "memory_bytes": psutil.virtual_memory().total,
        "transparent_hugepage": _chosen("/sys/kernel/mm/transparent_hugepage/enabled"),
        "virtual_machine": "hypervisor" in procfs.cpuinfo("flags").split(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "root": os.geteuid() == 0,
        "load_1m": os.getloadavg()[0],
    }

"""Memory allocators under a merging engine: what they free, discard and hand out again stays right.

Two processes of one program run at once and are merged every 0.05 s, so that they share frames; each checks every byte
that it was given. ``make test`` runs each for about a second, ``make soak`` for minutes (``PAGEONE_SOAK_SECONDS``).
Go and Java, which take seconds to compile and to warm up, belong to ``make realworld``.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from pageone.engine import Engine

SECONDS = float(os.environ.get("PAGEONE_FIRE_SECONDS", "1.2"))
SOAK_SECONDS = float(os.environ.get("PAGEONE_SOAK_SECONDS", "600"))
REALWORLD_SECONDS = float(os.environ.get("PAGEONE_REALWORLD_SECONDS", "30"))
PERIOD = 0.05
HERE = Path(__file__).parent

#: What each allocator is told, so that it gives memory back within the test, and the library that has it.
ALLOCATORS: dict[str, tuple[str | None, dict[str, str]]] = {
    "glibc": (None, {"MALLOC_ARENA_MAX": "8", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_TOP_PAD_": "0"}),
    "glibc-heap-only": (None, {"MALLOC_MMAP_MAX_": "0"}),
    "jemalloc": ("libjemalloc.so.2", {"MALLOC_CONF": "dirty_decay_ms:10,muzzy_decay_ms:10,background_thread:true"}),
    "jemalloc-muzzy": ("libjemalloc.so.2", {"MALLOC_CONF": "dirty_decay_ms:5,muzzy_decay_ms:200"}),
    "mimalloc": ("libmimalloc.so.2", {"MIMALLOC_RESET_DELAY": "0", "MIMALLOC_PAGE_RESET": "1"}),
    "tcmalloc": ("libtcmalloc_minimal.so.4", {"TCMALLOC_RELEASE_RATE": "10"}),
}

pytestmark = [pytest.mark.needs("merge")]


def _library(name: str) -> Path:
    for folder in ("/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib"):
        path = Path(folder) / name
        if path.exists():
            return path
    pytest.skip(f"needs {name} (Debian: libjemalloc2, libmimalloc2.0, libtcmalloc-minimal4)")


@pytest.fixture(scope="session")
def allocate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("allocate") / "allocate"
    # Without the compiler's own knowledge of malloc: what calloc returns is to be looked at.
    options = ["-O2", "-pthread", "-fno-builtin", "-o", str(program)]
    subprocess.run(["gcc", *options, str(HERE / "allocate.c")], check=True)
    return program


def two_under_fire(
    spawn: Any,
    argv: Sequence[str | Path],
    seconds: float,
    *,
    at_least: int = 50,
    environment: dict[str, str] | None = None,
) -> Engine:
    """Run ``argv SECONDS SEED`` twice under one merging engine; both must end with a line that begins with OK."""
    settings = {"env": dict(os.environ) | (environment or {})}
    running = [spawn([*argv, str(seconds), str(seed)], **settings) for seed in (2, 3)]
    with Engine(period=PERIOD) as engine:
        for one in running:
            assert one.stdout.readline() == "READY\n", one.communicate()
            engine.attach(one.pid)
        engine.start()
        for one in running:
            out, errors = one.communicate(timeout=seconds + 60)
            last = out.strip().splitlines()[-1] if out.strip() else ""
            assert (one.returncode, last[:2]) == (0, "OK"), f"status {one.returncode}: {last} {errors[-2000:]}"
    # A test in which nothing was merged has shown nothing.
    assert engine.stats.pages_merged > at_least, engine.stats
    return engine


def _with(name: str, spawn: Any, allocate: Path, seconds: float) -> None:
    library, environment = ALLOCATORS[name]
    if library is not None:
        environment = environment | {"LD_PRELOAD": str(_library(library))}
    two_under_fire(spawn, [allocate], seconds, environment=environment)


@pytest.mark.needs("gcc")
@pytest.mark.parametrize("name", ALLOCATORS)
def test_what_is_allocated_freed_and_allocated_again_stays_right_with(name: str, spawn: Any, allocate: Path) -> None:
    _with(name, spawn, allocate, SECONDS)


@pytest.mark.soak
@pytest.mark.needs("gcc")
@pytest.mark.parametrize("name", ALLOCATORS)
def test_it_stays_right_for_long_with(name: str, spawn: Any, allocate: Path) -> None:
    _with(name, spawn, allocate, SOAK_SECONDS)


def test_objects_of_cpython_stay_right(spawn: Any) -> None:
    two_under_fire(spawn, [sys.executable, HERE / "allocate.py"], SECONDS + 1)


@pytest.mark.soak
def test_objects_of_cpython_stay_right_for_long(spawn: Any) -> None:
    two_under_fire(spawn, [sys.executable, HERE / "allocate.py"], SOAK_SECONDS)


@pytest.mark.realworld
@pytest.mark.needs("program:go")
@pytest.mark.timeout(600)
def test_objects_of_go_stay_right_while_its_collector_gives_memory_back(spawn: Any, tmp_path: Path) -> None:
    program = tmp_path / "allocate"
    environment = dict(os.environ) | {"GOCACHE": str(tmp_path / "cache"), "GO111MODULE": "off", "CGO_ENABLED": "0"}
    subprocess.run(["go", "build", "-o", str(program), str(HERE / "allocate.go")], check=True, env=environment)
    for advice in ("madvdontneed=1", "madvdontneed=0"):
        two_under_fire(spawn, [program], REALWORLD_SECONDS, environment={"GODEBUG": advice, "GOGC": "40"})


@pytest.mark.realworld
@pytest.mark.needs("program:javac")
@pytest.mark.timeout(600)
def test_objects_of_java_stay_right_while_g1_moves_them(spawn: Any, tmp_path: Path) -> None:
    subprocess.run(["javac", "-d", str(tmp_path), str(HERE / "Allocate.java")], check=True)
    options = ["-XX:+UseG1GC", "-Xmx192m", "-Xms16m", "-XX:MinHeapFreeRatio=5", "-XX:MaxHeapFreeRatio=10"]
    argv = ["java", *options, "-cp", str(tmp_path), "Allocate"]
    started = time.monotonic()
    two_under_fire(spawn, argv, REALWORLD_SECONDS)
    assert time.monotonic() - started >= REALWORLD_SECONDS

"""Memory allocators under a merging engine: what they free, discard and hand out again stays right.

Two processes of one program run at once and are merged every 0.05 s, so that they share frames; each checks every byte
that it was given. ``make test`` runs each alone for about a second, so that a failure is soon found, and all side by
side for 15 seconds (``PAGEONE_STRESS_SECONDS``); ``make soak`` does that for ten minutes (``PAGEONE_SOAK_SECONDS``). Go
and Java, which take seconds to compile and to warm up, belong to ``make realworld``.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from pageone.engine import Engine
from pageone.live import LiveBackend

SECONDS = 1.2
STRESS_SECONDS = float(os.environ.get("PAGEONE_STRESS_SECONDS", "15"))
SOAK_SECONDS = float(os.environ.get("PAGEONE_SOAK_SECONDS", "600"))
REALWORLD_SECONDS = float(os.environ.get("PAGEONE_REALWORLD_SECONDS", "30"))
PERIOD = 0.05
MERGED = 50
AT_REST_S = 20.0
#: Other tests run beside these; what never waits would leave them nothing.
NICE = 10
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


@pytest.fixture(autouse=True)
def new_mappings_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have new mappings scanned in every period, at whatever cost: allocators map and unmap all the time."""
    monkeypatch.setattr("pageone.live.backend.FLAGS_SHARE", 1.0)


CPYTHON = ([sys.executable, HERE / "allocate.py"], dict[str, str]())

pytestmark = [pytest.mark.needs("merge")]


def _library(name: str) -> Path:
    for folder in ("/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib"):
        path = Path(folder) / name
        if path.exists():
            return path
    pytest.skip(f"needs {name} (Debian: libjemalloc2, libmimalloc2.0, libtcmalloc-minimal4)")


@pytest.fixture(scope="session")
def allocate(compiled: Callable[..., Path]) -> Path:
    # Without the compiler's own knowledge of malloc: what calloc returns is to be looked at.
    return compiled(HERE / "allocate.c", "-fno-builtin")


#: A program, the arguments before its seconds and seed, and what is added to its environment.
Program = tuple[Sequence[str | Path], dict[str, str]]


def two_of_each_under_stress(spawn: Any, programs: dict[str, Program], seconds: float) -> None:
    """Run ``… SECONDS SEED`` of every program twice, all at once, under one merging engine.

    They may begin when pages of all have been merged. All must end with a line that begins with OK, and pages of each
    must have been merged. Raises AssertionError, naming the programs.
    """
    with Engine(period=PERIOD, quiet_periods=1, backend=LiveBackend(stop_timeout_s=0.2, pause_s=0.005)) as engine:
        running = []
        for name, (argv, environment) in programs.items():
            for seed in (2, 3):
                command = ["nice", "-n", str(NICE), *argv, str(seconds), str(seed)]
                one = spawn(command, env=dict(os.environ) | environment)
                assert one.stdout.readline() == "READY\n", (name, one.communicate())
                running.append((name, one, engine.attach(one.pid)))
        engine.start()
        # However busy this machine is, something is in danger; Go's and Java's programs do not wait for it.
        deadline = time.monotonic() + AT_REST_S
        while any(t.stats.merged_pages <= MERGED for _, _, t in running) and time.monotonic() < deadline:
            time.sleep(PERIOD)
        for _, one, _ in running:
            with contextlib.suppress(BrokenPipeError):
                print(file=one.stdin, flush=True)
        merged: Counter[str] = Counter()
        wrong = []
        for name, one, target in running:
            out, errors = one.communicate(timeout=seconds + 60)
            last = out.strip().splitlines()[-1] if out.strip() else ""
            if (one.returncode, last[:2]) != (0, "OK"):
                wrong.append(f"{name}: status {one.returncode}: {last} {errors[-2000:]}")
            merged[name] += target.stats.merged_pages
        print(dict(merged))
        # A test in which nothing was merged has shown nothing.
        wrong += [f"{name}: only {merged[name]} pages merged" for name in programs if merged[name] <= MERGED]
        assert not wrong, "\n".join(wrong)
        engine.stop()
        engine.step()
        assert not any(engine.stats.states.values()), "pages of programs that have ended are still counted"


def _program(name: str, allocate: Path) -> Program:
    library, environment = ALLOCATORS[name]
    if library is not None:
        environment = environment | {"LD_PRELOAD": str(_library(library))}
    return [allocate], environment


def _all_programs(allocate: Path) -> dict[str, Program]:
    """Return every allocator's program; those whose library lacks are left out, and skipped where each is alone."""
    programs: dict[str, Program] = {"cpython": CPYTHON}
    for name in ALLOCATORS:
        with contextlib.suppress(pytest.skip.Exception):
            programs[name] = _program(name, allocate)
    return programs


@pytest.mark.needs("gcc")
@pytest.mark.parametrize("name", ALLOCATORS)
def test_what_is_allocated_freed_and_allocated_again_stays_right_with(name: str, spawn: Any, allocate: Path) -> None:
    two_of_each_under_stress(spawn, {name: _program(name, allocate)}, SECONDS)


def test_objects_of_cpython_stay_right(spawn: Any) -> None:
    two_of_each_under_stress(spawn, {"cpython": CPYTHON}, SECONDS + 1)


# Not beside the scenarios under stress: each keeps all processors busy.
@pytest.mark.xdist_group("stress")
@pytest.mark.needs("gcc")
@pytest.mark.timeout(STRESS_SECONDS + 150)
def test_memory_of_all_allocators_side_by_side_stays_right(spawn: Any, allocate: Path) -> None:
    two_of_each_under_stress(spawn, _all_programs(allocate), STRESS_SECONDS)


@pytest.mark.soak
@pytest.mark.needs("gcc")
def test_memory_of_all_allocators_side_by_side_stays_right_for_long(spawn: Any, allocate: Path) -> None:
    two_of_each_under_stress(spawn, _all_programs(allocate), SOAK_SECONDS)


@pytest.mark.realworld
@pytest.mark.needs("program:go")
@pytest.mark.timeout(600)
def test_objects_of_go_stay_right_while_its_collector_gives_memory_back(spawn: Any, tmp_path: Path) -> None:
    program = tmp_path / "allocate"
    environment = dict(os.environ) | {"GOCACHE": str(tmp_path / "cache"), "GO111MODULE": "off", "CGO_ENABLED": "0"}
    subprocess.run(["go", "build", "-o", str(program), str(HERE / "allocate.go")], check=True, env=environment)
    for advice in ("madvdontneed=1", "madvdontneed=0"):
        two_of_each_under_stress(spawn, {advice: ([program], {"GODEBUG": advice, "GOGC": "40"})}, REALWORLD_SECONDS)


@pytest.mark.realworld
@pytest.mark.needs("program:javac")
@pytest.mark.timeout(600)
def test_objects_of_java_stay_right_while_g1_moves_them(spawn: Any, tmp_path: Path) -> None:
    subprocess.run(["javac", "-d", str(tmp_path), str(HERE / "Allocate.java")], check=True)
    options = ["-XX:+UseG1GC", "-Xmx192m", "-Xms16m", "-XX:MinHeapFreeRatio=5", "-XX:MaxHeapFreeRatio=10"]
    argv = ["java", *options, "-cp", str(tmp_path), "Allocate"]
    started = time.monotonic()
    two_of_each_under_stress(spawn, {"G1": (argv, {})}, REALWORLD_SECONDS)
    assert time.monotonic() - started >= REALWORLD_SECONDS

"""What is discarded, or grows, reads as zeros also where the process that does it cannot be stopped."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.needs("merge", "gcc")

SOURCE = Path(__file__).with_name("programs") / "discards.c"

#: For each thing to do a pair of programs is merged: the first does it, under the tracer named, if any. Tells how many
#: pages were wrong, then and later, and how long it took.
DRIVER = """
import json, shutil, subprocess, sys, time
from pageone.engine import Engine
program, tracer, *todo = sys.argv[1:]
PAGES = 512
LATER = {"vfork": "discarded", "sibling": "discarded", "thread": "discarded", "process_madvise": "process_madvise"}
def start(*argv):
    one = subprocess.Popen([program, *argv], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert one.stdout.readline() in ("ready\\n", "tracing\\n")
    return one
def trace(pid):
    if tracer == "own":
        return start("trace", str(pid))
    argv = {"strace": ["strace", "-f", "-o", "/dev/null", "-p", str(pid)],
            "gdb": ["gdb", "-q", "-nx", "-ex", "set confirm off", "-ex", "set pagination off",
                    "-p", str(pid), *["-ex", "continue"] * 50]}[tracer]  # where it cannot read it stops
    one = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 30
    def status(name):
        with open(f"/proc/{pid}/status") as lines:
            return next(line.split()[1] for line in lines if line.startswith(name))
    while (status("TracerPid:") == "0" or status("State:") == "t") and time.monotonic() < deadline:
        time.sleep(0.01)
    return one
def ask(one, what):
    print(what, file=one.stdin, flush=True)
    return [int(word) for word in one.stdout.readline().split()]
pairs = {what: [start(str(PAGES), str(9000 * k)) for _ in range(2)] for k, what in enumerate(todo, 1)}
told = {what: {} for what in todo}
with Engine(period=0.05) as engine:
    targets = {what: [engine.attach(one.pid) for one in pair] for what, pair in pairs.items()}
    merged, deadline = 0, time.monotonic() + 30
    while merged < 2 * PAGES * len(todo) and time.monotonic() < deadline:
        merged += engine.merge_once(0.2).merged_pages
    for what, (acting, other) in pairs.items():
        last = LATER.get(what, "kept")
        tracer_of_it = trace(acting.pid) if tracer != "none" else None
        wrong, waited = ask(acting, what)
        engine.step()
        wrongs = [wrong, ask(acting, last)[0]]
        if tracer == "own":
            tracer_of_it.stdin.close()
        elif tracer_of_it:
            tracer_of_it.terminate()
        if tracer_of_it:
            tracer_of_it.wait()
        deadline = time.monotonic() + 20
        let_go = []
        for target in targets[what]:
            gone = False
            while not gone and time.monotonic() < deadline:
                try:
                    gone = engine.detach(target)
                except Exception:
                    time.sleep(0.05)
            let_go.append(gone)
        wrongs += [ask(acting, last)[0], ask(other, "kept")[0]]
        told[what] = {"wrong": wrongs, "waited_s": waited / 1e6, "let go": let_go}
print(json.dumps([merged, told]))
for pair in pairs.values():
    for one in pair:
        one.kill()
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("discards") / "discards"
    subprocess.run(["gcc", "-O2", "-pthread", "-o", str(made), str(SOURCE)], check=True)
    return made


def _do(todo: list[str], tracer: str, program: Path, as_user: Any, root: bool) -> dict[str, Any]:
    if root and not as_user.is_other:
        pytest.skip("needs root")
    options: dict[str, Any] = {}
    if root:
        options = {"user": None, "group": None, "extra_groups": None}
    else:
        copy = as_user.folder / "discards"
        shutil.copy2(program, copy)
        copy.chmod(0o755)
        program = copy
    done = as_user.run("-c", DRIVER, str(program), tracer, *todo, timeout=150, **options)
    assert done.returncode == 0, done.stderr
    merged, told = json.loads(done.stdout)
    assert merged >= 1000 * len(todo)
    wrong = {what: told[what]["wrong"] for what in todo if any(told[what]["wrong"])}
    assert not wrong, "pages that were not right: at once, later, when let go, and of a program that did nothing"
    assert all(all(told[what]["let go"]) for what in todo), told
    waited: dict[str, Any] = {what: told[what]["waited_s"] for what in todo}
    return waited


#: Hangs were 5 to 8 s for a child of `vfork`, and 22 to 51 s for a sibling; a busy machine alone may make it one.
BOUND_S = 4.0


@pytest.mark.timeout(170)
@pytest.mark.parametrize("root", [True, False])
def test_a_discard_is_zero_whoever_asks_for_it_and_none_waits_for_long(root: bool, program: Path, as_user: Any) -> None:
    todo = ["fork", "vfork", "vfork with a copy", "sibling", "thread", "process_madvise"]
    # Of a child that hides from tracers nobody tells an ordinary user.
    waited = _do([*todo, "untraced"] if root else todo, "none", program, as_user, root)
    assert max(waited.values()) < BOUND_S, waited


@pytest.mark.timeout(170)
@pytest.mark.parametrize(
    ("tracer", "todo"),
    [
        ("own", ["thread", "vfork", "grow", "leave", "process_madvise"]),
        ("strace", ["thread", "grow"]),
        ("gdb", ["thread", "grow"]),
    ],
)
def test_what_is_new_is_zero_under_another_tracer(tracer: str, todo: list[str], program: Path, as_user: Any) -> None:
    if tracer != "own" and not shutil.which(tracer):
        pytest.skip(f"needs the program {tracer}")
    _do(todo, tracer, program, as_user, True)

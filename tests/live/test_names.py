"""Programs whose names, or those of files that they map, are no text: any bytes will do for the kernel."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pageone.engine import Engine

pytestmark = pytest.mark.needs("merge")

PAGES = 2048
#: The first half of a letter at the end, as is left where a long name is cut.
NAMED = f"""
import mmap, os, sys, threading
name = b"caf\\xc3"
path = os.path.join(os.fsencode(sys.argv[1]), name)
with open(path, "w+b") as file:
    file.truncate(4096)
    kept = mmap.mmap(file.fileno(), 4096)
def work(named):
    with open(f"/proc/self/task/{{threading.get_native_id()}}/comm", "wb", buffering=0) as comm:
        comm.write(name)
    named.set()
    while True:
        sum(range(1000))
named = threading.Event()
threading.Thread(target=work, args=[named], daemon=True).start()
named.wait()
with open("/proc/self/comm", "wb", buffering=0) as comm:
    comm.write(name)
memory = mmap.mmap(-1, {PAGES} * 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
page = lambda n: n.to_bytes(4, "little") * 1024
for n in range({PAGES}):
    memory[4096 * n : 4096 * n + 4096] = page(n)
print("ready", flush=True)
for line in sys.stdin:
    if line == "write\\n":
        memory[: 64 * 4096] = memory[: 64 * 4096]
    print(sum(memory[4096 * n : 4096 * n + 4096] == page(n) for n in range({PAGES})), flush=True)
"""


def test_programs_whose_names_are_no_text_are_merged_and_detached_as_all_others(
    spawn: Any,
    ask: Callable[[subprocess.Popen[str], str], str],
    merge_at_least: Callable[[Engine, int], None],
    tmp_path: Path,
) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
    programs = [spawn.python(NAMED, str(folder)) for folder in folders]
    for program in programs:
        assert program.stdout.readline() == "ready\n", program.communicate()
        assert b"(caf\xc3)" in Path(f"/proc/{program.pid}/stat").read_bytes()
    with Engine() as engine:
        targets = [engine.attach(program.pid) for program in programs]
        merge_at_least(engine, 2 * PAGES - 64)
        assert [ask(program, "write") for program in programs] == [str(PAGES)] * 2
        engine.merge_once(0.2)
        for target in targets:
            assert engine.detach(target)
        assert [ask(program, "check") for program in programs] == [str(PAGES)] * 2

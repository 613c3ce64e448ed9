"""A program that takes all the mappings it can get, while pages of it are merged, loses none of them."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.needs("merge", "gcc")

SOURCE = Path(__file__).with_name("programs") / "limit.c"

#: Merges single pages, and gives them back, in a program that keeps close to the limit of mappings.
DRIVER = """
import json, random, subprocess, sys
import numpy as np
from pageone.live import LiveBackend
PAGES, ROUNDS = 1024, 16
program, seed, margin = sys.argv[1], int(sys.argv[2]), sys.argv[3]
chance = random.Random(seed)
limit = subprocess.Popen([program, str(PAGES), str(seed)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
def ask(what):
    print(what, file=limit.stdin, flush=True)
    return limit.stdout.readline().strip()
start = int(limit.stdout.readline())
at = lambda some: np.array([start + 4096 * k for k in some], np.uint64)
ones = lambda some: np.ones(len(some), np.uint32)
backend = LiveBackend(pool_bytes=PAGES * 4096, stop_timeout_s=0.2)
memory = backend.attach(limit.pid)
memory.regions()
assert not backend.fill(np.arange(PAGES, dtype=np.uint32), memory, at(range(PAGES)))[0].any()
codes, answers, merged = {}, [], set()
def count(outcome):
    for code in outcome.code:
        codes[int(code)] = codes.get(int(code), 0) + 1
    return outcome.code
answers.append(ask(f"near {margin}"))
for number in range(ROUNDS):
    memory.regions()
    memory.written(at([0]), at([PAGES]))
    some = sorted(chance.sample([k for k in range(PAGES) if k not in merged], 60))
    code = count(memory.merge(at(some), ones(some), np.array(some, np.uint32)))
    merged |= {k for k, c in zip(some, code) if c == 0}
    if number % 3 == 2 and merged:
        some = sorted(chance.sample(sorted(merged), len(merged) // 2))
        code = memory.unmerge(at(some), ones(some), apart=number % 2 == 0).code
        merged -= {k for k, c in zip(some, code) if c == 0}
    answers.append(ask("fork" if number % 8 == 7 else "check"))
answers.append(ask("rest"))
some = sorted(merged)
memory.unmerge(at(some), ones(some))
memory.detach()
answers.append(ask("check"))
print(json.dumps({"codes": codes, "answers": answers, "ended": limit.poll()}))
limit.kill()
"""


@pytest.fixture
def limit(compiled: Callable[..., Path]) -> Path:
    return compiled(SOURCE)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("margin", [0, 100])
@pytest.mark.parametrize("root", [True, False])
def test_no_page_is_lost_near_the_limit_of_mappings(root: bool, margin: int, limit: Path, as_user: Any) -> None:
    if root and not as_user.is_other:
        pytest.skip("needs root")
    seed = random.randrange(1 << 30)
    print("seed", seed)
    options: dict[str, Any] = {"user": None, "group": None, "extra_groups": None} if root and as_user.is_other else {}
    done = as_user.run("-c", DRIVER, str(limit), str(seed), str(margin), timeout=100, **options)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["ended"] is None
    assert set(told["answers"]) == {"there", "0", "resting"}
    assert told["codes"].get("0", 0) > 20, "some of them are merged all the same"
    if margin == 0:
        assert told["codes"].get("4", 0) > 0, "the limit is met"

"""A WSGI application as ``gunicorn --preload`` loads it once for all its workers: some 100 MiB that requests read.

Every worker does the same rounds of work whichever requests it gets, so that two servers can be compared: a request
asks for round after round until the worker that answers has done as many as it says.
"""

from __future__ import annotations

import hashlib
import os
import random
import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

ROWS_READ, KEPT = 6000, 32

_random = random.Random(5)
ROWS = [(n, f"row {n} of the table", _random.randbytes(250), [n % 977, str(n)]) for n in range(110_000)]
ARRAY = np.random.default_rng(5).standard_normal(6 << 20)
CACHE: dict[int, bytes] = {}
OWN: dict[int, tuple[bytes, bytes]] = {}
ROUNDS = 0


def answer(number: int) -> str:
    """Return what round ``number`` finds in the table and the array: the same in every process."""
    chosen = random.Random(number)
    digest = hashlib.sha256()
    first = chosen.randrange(len(ROWS) - ROWS_READ)
    for key, name, body, more in ROWS[first : first + ROWS_READ]:  # reading an object counts references in it
        digest.update(b"%d %s %s %d" % (key, name.encode(), body, more[0]))
    first = chosen.randrange(len(ARRAY) - 100_000)
    digest.update(ARRAY[first : first + 100_000].tobytes())
    CACHE[number % KEPT] = chosen.randbytes(100_000)
    digest.update(CACHE[chosen.randrange(number % KEPT + 1)])
    return digest.hexdigest()


def keep(number: int) -> bool:
    """Keep some bytes that no other process has; tell whether those kept before are still what they were."""
    right = all(hashlib.sha256(body).digest() == of for body, of in OWN.values())
    body = os.urandom(20_000)
    OWN[number % KEPT] = body, hashlib.sha256(body).digest()
    return right


def app(environ: dict[str, Any], start_response: Callable[[str, list[tuple[str, str]]], Any]) -> Iterable[bytes]:
    """Do one round more, unless this worker has done as many as the query says; answer PID, round and result."""
    global ROUNDS
    if int(environ["QUERY_STRING"]) > ROUNDS:
        told = f"{os.getpid()} {ROUNDS} {answer(ROUNDS) if keep(ROUNDS) else 'WRONG'}"
        ROUNDS += 1
    else:
        told = f"{os.getpid()} {ROUNDS} enough"
        time.sleep(0.05)  # so that another worker takes the next
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [told.encode()]

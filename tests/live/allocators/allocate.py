"""Allocates, drops and checks objects of many sizes, through pymalloc and malloc: ``allocate.py SECONDS SEED``."""

import random
import sys
import time

KINDS = [bytes((i % 16 + 1) * 37 * (kind + 3) % 256 for i in range(16)) for kind in range(5)]


def made(kind: int, size: int) -> bytes:
    return (KINDS[kind] * (size // 16 + 1))[:size]


def main() -> None:
    seconds, seed = float(sys.argv[1]), int(sys.argv[2])
    chance = random.Random(seed)
    right = {(kind, size): made(kind, size) for kind in range(5) for size in (24, 200, 500, 4096, 60000)}
    resting: list[list[tuple[int, bytearray]]] = [[] for _ in range(40)]
    small: list[list[object]] = []
    number = 0
    # At rest until there is a line, or the end, on the standard input.
    resting[0] = [(kind, bytearray(right[kind, 60000])) for kind in range(5) for _ in range(10)]
    print("READY", flush=True)
    sys.stdin.readline()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        # Small objects: lists of fresh strings, tuples and floats, dropped as a whole so that arenas become free.
        small.append([(n, str(n), float(n), right[n % 5, 24] + b"") for n in range(2000)])
        if len(small) > 20:
            for n, text, real, raw in small.pop(chance.randrange(len(small))):  # type: ignore[misc]
                if (text, real, raw) != (str(n), float(n), right[n % 5, 24]):
                    print("WRONG small object", n, text, real, raw, flush=True)
                    sys.exit(1)
        place = number % len(resting)
        for kind, block in resting[place]:
            if block != right[kind, len(block)]:
                print("WRONG block of", len(block), "kind", kind, flush=True)
                sys.exit(1)
        kinds = [chance.randrange(5) for _ in range(12)]
        sizes = (200, 500, 4096, 60000) * 3
        resting[place] = [(kind, bytearray(right[kind, size])) for kind, size in zip(kinds, sizes, strict=True)]
        zeros = bytes(chance.randrange(1, 300000))
        if zeros.count(0) != len(zeros):
            print("WRONG zeros", flush=True)
            sys.exit(1)
        number += 1
        time.sleep(0.001)
    print("OK", number)


main()

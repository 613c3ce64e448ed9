"""What a worker runs: build known memory alone, write into it when told, check every byte when asked.

For: ``pageone.demo.workers``, as ``python -m pageone.demo.program SPEC``; nothing imports it. It calls numpy and the
standard library only: to PageONE it must be a program like any other.

The memory has three parts: ``common`` (incompressible, from a seed that all workers have), ``own`` (from a seed of
the worker's own) and ``zeros``. What every byte must be is not kept but made again from the seed, chunk by chunk, at
each check: a wrong byte cannot hide by being wrong in the copy as well. Writes are kept as a list.

Lines on stdin and stdout, one JSON object each. First it says ``{"ready": true, ...}``; then it answers
``{"do": "check"}``, ``{"do": "write", "part": NAME, "pages": N, "seed": K}``, ``{"do": "churn", "part": NAME,
"seconds": S, "pages": N, "seed": K}`` (writes and reads back at full speed) and ``{"do": "where"}``. It ends when
stdin does.
"""

from __future__ import annotations

import json
import sys
import time
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

U64 = npt.NDArray[np.uint64]

PAGE = 4096
WORDS = PAGE // 8
CHUNK = 256  #: pages made and compared at a time: 1 MiB, so that checking needs no memory to speak of

#: A check tells of at most so many wrong pages.
TOLD = 10


class Part:
    """One array of the worker: ``words`` has shape (pages, 512), dtype uint64, and starts on a page boundary."""

    def __init__(self, name: str, size: int, seed: int | None) -> None:
        self.name = name
        self.seed = seed
        pages = size // PAGE
        raw = np.empty(pages * PAGE + PAGE, dtype=np.uint8)
        skip = -raw.ctypes.data % PAGE
        self.words: U64 = raw[skip : skip + pages * PAGE].view(np.uint64).reshape(pages, WORDS)
        # Writes so far, in order: page, word in the page, value.
        self.pages: U64 = np.empty(0, np.uint64)
        self.places: U64 = np.empty(0, np.uint64)
        self.values: U64 = np.empty(0, np.uint64)
        for start, chunk in self.chunks():
            self.words[start : start + len(chunk)] = chunk

    def chunks(self) -> Iterator[tuple[int, U64]]:
        """Yield ``(first page, words)`` of what the part was built as; the words are the receiver's to change."""
        generator = None if self.seed is None else np.random.PCG64(self.seed)
        for start in range(0, len(self.words), CHUNK):
            count = min(CHUNK, len(self.words) - start)
            if generator is None:
                yield start, np.zeros((count, WORDS), np.uint64)
            else:
                yield start, generator.random_raw(count * WORDS).reshape(count, WORDS)

    def write(self, count: int, seed: int) -> None:
        """Write one word into each of ``count`` random pages."""
        random = np.random.Generator(np.random.PCG64(seed))
        count = min(count, len(self.words))
        pages = random.choice(len(self.words), size=count, replace=False).astype(np.uint64)
        places = random.integers(0, WORDS, size=count, dtype=np.uint64)
        values = random.integers(0, 2**64 - 1, size=count, dtype=np.uint64, endpoint=True)
        self.words[pages, places] = values
        self.pages = np.concatenate([self.pages, pages])
        self.places = np.concatenate([self.places, places])
        self.values = np.concatenate([self.values, values])

    def check(self) -> tuple[int, list[dict[str, Any]]]:
        """Compare every byte with what it must be; return a CRC of what is there and the first wrong pages."""
        crc = 0
        wrong: list[dict[str, Any]] = []
        for start, expected in self.chunks():
            stop = start + len(expected)
            mine = (self.pages >= start) & (self.pages < stop)
            for page, place, value in zip(
                self.pages[mine], self.places[mine], self.values[mine], strict=True
            ):  # a write each, in order: a later one wins
                expected[int(page) - start, int(place)] = value
            found = self.words[start:stop]
            crc = zlib.crc32(found.data, crc)
            differs = found != expected
            for page in np.flatnonzero(differs.any(axis=1))[: TOLD - len(wrong)]:
                place = int(np.argmax(differs[page]))
                wrong.append(
                    {
                        "part": self.name,
                        "page": start + int(page),
                        "address": int(self.words.ctypes.data) + (start + int(page)) * PAGE,
                        "offset": place * 8,
                        "found": f"{int(found[page, place]):016x}",
                        "expected": f"{int(expected[page, place]):016x}",
                    }
                )
        return crc, wrong

    def churn(self, seconds: float, count: int, seed: int) -> dict[str, Any]:
        """Write batches of ``count`` words and read each back, for so long; return rounds and wrong reads."""
        deadline = time.monotonic() + seconds
        rounds, wrong = 0, 0
        while time.monotonic() < deadline:
            self.write(count, seed + rounds)
            recent = slice(len(self.pages) - min(count, len(self.words)), None)
            wrong += int((self.words[self.pages[recent], self.places[recent]] != self.values[recent]).sum())
            rounds += 1
        return {"rounds": rounds, "wrong": wrong}


def answer(parts: dict[str, Part], question: dict[str, Any]) -> dict[str, Any]:
    """Do what one line asks for and return the answer."""
    match question["do"]:
        case "check":
            checked = {name: part.check() for name, part in parts.items()}
            return {
                "crc32": {name: f"{crc:08x}" for name, (crc, _) in checked.items()},
                "pages": sum(len(part.words) for part in parts.values()),
                "wrong": [page for _, pages in checked.values() for page in pages],
            }
        case "write":
            parts[question["part"]].write(question["pages"], question["seed"])
            return {"written": question["pages"]}
        case "churn":
            return parts[question["part"]].churn(question["seconds"], question["pages"], question["seed"])
        case "where":
            return {
                name: [int(part.words.ctypes.data), int(part.words.ctypes.data) + part.words.nbytes]
                for name, part in parts.items()
            }
        case other:
            raise ValueError(f"unknown question {other!r}")


def main(spec: dict[str, Any]) -> None:
    """Build the parts, say so, and answer until stdin ends."""
    sizes: dict[str, int] = spec["sizes"]
    seeds: dict[str, int | None] = spec["seeds"]
    parts = {name: Part(name, size, seeds[name]) for name, size in sizes.items() if size}
    print(json.dumps({"ready": True, "pages": sum(len(part.words) for part in parts.values())}), flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(parts, json.loads(line))), flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))

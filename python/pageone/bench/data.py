"""Sets of pages that predict their own answer: how many distinct pages, how many duplicates, how many zero pages.

For: the benchmarks and tests. It calls numpy only.

Most sets are scaled copies of those of the PageONE benchmark of 2017: k·2^b pages draw their content from 2^b
values, so that 2^b·(1 - e^-k) distinct pages are expected whatever b is; then 12 virtual machines of 16 GiB drew
50.3 million pages from 2^24 values, k = 3. A page's content is a function of its value (and of the seed), made by
arithmetic on whole arrays: any part of a set can be made alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pageone.errors import UsageError

U8 = npt.NDArray[np.uint8]
U64 = npt.NDArray[np.uint64]

PAGE_SIZE = 4096
WORDS = PAGE_SIZE // 8
BITS = PAGE_SIZE * 8

#: Draws a value: the k of 2017.
DRAWS = 3
#: Copies of each page of ``random``; pages in a row that have their twins in a row, as in cloned processes
#: (identical scikit-learn workers were measured to have runs of 127 pages).
COPIES, RUN_PAGES = 2, 128

#: Pages made at a time, so that the temporary arrays stay in the cache.
_CHUNK = 256


def _mix(x: U64) -> U64:
    """Return the finalizer of splitmix64 (Steele, Lea, Flood 2014): a bijection of 64-bit words that scatters."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _noise(values: U64, words: int, seed: int) -> U64:
    """Return ``words`` pseudo-random words for each value, shape (n, words)."""
    with np.errstate(over="ignore"):
        base = _mix(values + np.uint64(seed) * np.uint64(0x9E3779B97F4A7C15))
        return _mix(base[:, None] + np.arange(1, words + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15))


def _spread24(values: U64) -> U64:
    """Return the values scattered over 24 bits, one to one below 2^24: the original drew 24-bit values."""
    with np.errstate(over="ignore"):
        return (values * np.uint64(0x9E3779B1)) & np.uint64(0xFFFFFF)


# --- contents: values, seed -> words of shape (n, 512) ---


def _at(offset: Callable[[U64], U64]) -> Callable[[U64, int], U64]:
    def fill(values: U64, seed: int) -> U64:
        value = _spread24(values)
        words = np.zeros((len(values), WORDS * 2), "<u4")
        words[np.arange(len(values)), (offset(value) // np.uint64(4)).astype(np.int64)] = value
        return words.view("<u8")

    return fill


def _first128(values: U64, seed: int) -> U64:
    words = np.zeros((len(values), WORDS), np.uint64)
    # 31 bits in each 32, as rand() gives them.
    words[:, :16] = _noise(values, 16, seed) & np.uint64(0x7FFFFFFF7FFFFFFF)
    return words


def _random(values: U64, seed: int) -> U64:
    return _noise(values, WORDS, seed)


def _tail(values: U64, seed: int) -> U64:
    words = np.repeat(_noise(np.zeros(1, np.uint64), WORDS, seed), len(values), axis=0)
    words[:, -1] = values.byteswap()
    return words


def _thermometer(values: U64, seed: int) -> U64:
    """Return pages whose first ``value`` bits are 1, the rest 0."""
    position = np.arange(WORDS, dtype=np.int64) * 64
    ones = np.clip(values.astype(np.int64)[:, None] - position, 0, 64).astype(np.uint64)
    with np.errstate(over="ignore"):
        return np.where(
            ones == 64, np.uint64(0xFFFFFFFFFFFFFFFF), (np.uint64(1) << (ones % np.uint64(64))) - np.uint64(1)
        )


def _onebit(values: U64, seed: int) -> U64:
    words = np.zeros((len(values), WORDS), np.uint64)
    words[np.arange(len(values)), (values // np.uint64(64)).astype(np.int64)] = np.uint64(1) << (values % np.uint64(64))
    return words


def _zero(values: U64, seed: int) -> U64:
    return np.zeros((len(values), WORDS), np.uint64)


# --- values: number of pages, generator -> which content each page has ---


def _drawn(limit: int | None = None) -> Callable[[int, np.random.Generator], U64]:
    def draw(pages: int, rng: np.random.Generator) -> U64:
        values = max(1, pages // DRAWS)
        return rng.integers(0, min(values, limit or values), pages, dtype=np.uint64)

    return draw


def _copies_in_runs(pages: int, rng: np.random.Generator) -> U64:
    """Each page :data:`COPIES` times: once in order, then again with the runs in another order."""
    values = -(-pages // COPIES)
    order = np.arange(values, dtype=np.uint64)
    parts = [order]
    for _ in range(COPIES - 1):
        runs = np.array_split(order, max(1, values // RUN_PAGES))
        parts.append(np.concatenate([runs[i] for i in rng.permutation(len(runs))]))
    return np.concatenate(parts)[:pages]


def _scattered(pages: int, rng: np.random.Generator) -> U64:
    """Every other page has one twin somewhere; no two neighbours have twins that are neighbours."""
    values = np.arange(pages, dtype=np.uint64) + np.uint64(pages)
    twins = len(values[::2]) // 2
    values[: 4 * twins : 2] = rng.permutation(np.repeat(np.arange(twins, dtype=np.uint64), 2))
    return values


def _distinct(pages: int, rng: np.random.Generator) -> U64:
    return np.arange(pages, dtype=np.uint64)


def _same(pages: int, rng: np.random.Generator) -> U64:
    return np.ones(pages, np.uint64)


@dataclass(frozen=True)
class Kind:
    """One kind of set: what it is, how values are drawn, how a value becomes a page."""

    about: str
    draw: Callable[[int, np.random.Generator], U64]
    fill: Callable[[U64, int], U64]
    zero_value: int | None = None  #: the value whose page is empty


KINDS: dict[str, Kind] = {
    "head": Kind("24-bit value in the first bytes, rest zero", _drawn(1 << 24), _at(lambda v: v * np.uint64(0)), 0),
    "zerohead": Kind(
        "24-bit value v at (v & 63)·4, rest zero: a zero head of 126 bytes on average",
        _drawn(1 << 24),
        _at(lambda v: (v & np.uint64(63)) * np.uint64(4)),
        0,
    ),
    "zerohead1k": Kind(
        "24-bit value v at (v & 255)·4, rest zero",
        _drawn(1 << 24),
        _at(lambda v: (v & np.uint64(255)) * np.uint64(4)),
        0,
    ),
    "first128": Kind("first 128 bytes random, rest zero", _drawn(), _first128),
    "random": Kind(f"4 KiB random, each page {COPIES} times, in runs of {RUN_PAGES}", _copies_in_runs, _random),
    "scattered": Kind("4 KiB random, every other page has one twin, alone", _scattered, _random),
    "unique": Kind("4 KiB random, no page has a twin", _distinct, _random),
    "tail": Kind("equal but for the last 8 bytes: KSM's worst case", _drawn(), _tail),
    "thermometer": Kind("i one-bits, then zero-bits: a trie's worst case", _drawn(BITS), _thermometer, 0),
    "onebit": Kind("one bit set: a trie's worst case in any order of bits", _drawn(BITS), _onebit),
    "equal": Kind("all pages the same, not empty", _same, _random),
    "zero": Kind("all pages empty", _same, _zero, 1),
}


@dataclass(frozen=True)
class Expected:
    """What there is to find."""

    pages: int
    distinct: int  #: different contents, the empty page included if it occurs
    zero: int  #: empty pages

    @property
    def duplicates(self) -> int:
        """Pages that need no memory of their own when every content is kept once."""
        return self.pages - self.distinct


class DataSet:
    """A set of pages: ``values`` says which content each page has, uint64, shape (pages,)."""

    def __init__(self, name: str, pages: int, seed: int = 2017) -> None:
        if name not in KINDS:
            raise UsageError(f"no data set {name!r}: choose from {', '.join(KINDS)}")
        if pages < 1:
            raise UsageError(f"a data set needs 1 page or more, not {pages}")
        self.name = name
        self.seed = seed
        self.kind = KINDS[name]
        self.values = self.kind.draw(pages, np.random.default_rng(seed))

    def expected(self) -> Expected:
        """Return the answer, from the values alone. Cost: one sort of 8 bytes a page."""
        zero = 0 if self.kind.zero_value is None else int((self.values == self.kind.zero_value).sum())
        return Expected(len(self.values), len(np.unique(self.values)), zero)

    def fill(self, out: U8, start: int = 0) -> None:
        """Write pages ``start``, ``start + 1`` … into ``out``, uint8, shape (n, 4096). Cost: about 2 µs a page."""
        for at in range(0, len(out), _CHUNK):
            values = self.values[start + at : start + min(at + _CHUNK, len(out))]
            out[at : at + len(values)] = (
                self.kind.fill(values, self.seed).view(np.uint8).reshape(len(values), PAGE_SIZE)
            )

    def pages(self) -> U8:
        """Return all pages, uint8, shape (pages, 4096), writable."""
        out = np.empty((len(self.values), PAGE_SIZE), np.uint8)
        self.fill(out)
        return out

"""The count: which pages hold equal bytes. Exact: a key only routes, all bytes of every duplicate are compared.

For: :mod:`pageone.scan`. It hands batches of sources to the native count (``pageone._native.duplicates``) and settles
what that leaves in doubt; it knows neither reports nor the command line.

The native count reads each page once. A page whose key is new becomes its content's *representative*; any other is
compared with its representative, all bytes, while they are in the cache. Where they differ, here both are read again: a
page that has changed is counted as unstable; so is a representative, and the page at hand takes its place; two contents
with one key are told apart by their bytes.

Memory: 4 bytes a page for its content, 4 for the representative and 28 in the tree for each distinct content, 4 for
counts.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import threading
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from pageone._native import duplicates as native
from pageone._native import mem
from pageone.scan.sources import Source

U8 = npt.NDArray[np.uint8]
U32 = npt.NDArray[np.uint32]
U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

#: What a page has in place of the number of a content.
ZERO, UNSTABLE = 0xFFFF_FFFF, 0xFFFF_FFFE
#: Bytes of a batch: so large that numpy's calls weigh little.
BATCH_BYTES = 16 << 20

_OK, _GONE = 0, 2
_SAME = 0


class DuplicateCount:
    """Counts the contents of sources.

    After :meth:`run`: ``ids``, ``(pages,)`` uint32, the content of each page, or ``ZERO`` or ``UNSTABLE``; ``extra``,
    uint32 by content, how many pages have it beyond the first; ``representative``, uint32 by content, a page that has
    it, plus one; ``shared_page`` and ``shared_frame``, the pages mapped more than once and their frames (0 if not
    told). ``base[i]`` is the number of source ``i``'s first page.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        threads: int = 1,
        progress: Callable[[int], None] | None = None,
        remember: bool = False,
        truncate: int = 64,
    ) -> None:
        """``remember`` keeps every key (8 bytes a page) for a second scan; ``truncate`` (tests) cuts keys to bits."""
        self.sources = list(sources)
        self.threads = threads
        self.base = np.concatenate((np.zeros(1, np.int64), np.cumsum([len(s) for s in self.sources], dtype=np.int64)))
        total = int(self.base[-1])
        self.total = total
        seed = secrets.token_bytes(32)
        mask = (1 << truncate) - 1
        size = self.sources[0].page_size if self.sources else 4096
        self._native: native.DuplicateCount | None = native.DuplicateCount(
            [(*source.handle, source.start, source.first) for source in self.sources], size, seed, mask, remember
        )
        self.ids = self._native.ids
        # Not touched before it is used, so a page without a twin costs no count.
        self.extra = self._native.extra
        self.representative = self._native.representative
        self.remembered = self._native.keys
        self.collided = 0
        self._progress = progress or (lambda pages: None)
        self._key = mem.Key(seed)
        self._mask = np.uint64(mask)
        self._shared: list[tuple[U32, U64]] = []
        self._late: list[tuple[int, I64, U32, U64]] = []
        self._contents: dict[bytes, int] = {}
        self._lock = threading.RLock()

    # --- the run ----------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Read and count everything. Cost: what reading costs, and 0.1-0.2 µs a page."""
        self._each(self._batch, self._work())
        # With several threads a content may be met before its first thread has written down its representative.
        while self._late:
            self._verify(*self._late.pop())
        self._native = None  # the tree goes, the columns stay

    def _work(self) -> list[tuple[int, int, int]]:
        work = []
        for number, source in enumerate(self.sources):
            step = max(1, BATCH_BYTES // source.page_size)
            work += [(number, low, min(low + step, len(source))) for low in range(0, len(source), step)]
        return work

    def _each(self, do: Callable[[int, int, int], None], work: list[tuple[int, int, int]]) -> None:
        if self.threads <= 1 or len(work) <= 1:
            for item in work:
                do(*item)
            return
        todo = iter(work)
        failed: list[BaseException] = []

        def go() -> None:
            while not failed:
                with self._lock:
                    item = next(todo, None)
                if item is None:
                    return
                try:
                    do(*item)
                except BaseException as error:
                    failed.append(error)

        # Not of an executor, whose threads are waited for at the end of the program: one may be held up.
        hands = [threading.Thread(target=go, name="pageone-scan", daemon=True) for _ in range(self.threads)]
        for hand in hands:
            hand.start()
        for hand in hands:
            hand.join()
        if failed:
            raise failed[0]

    def _batch(self, number: int, low: int, high: int) -> None:
        source = self.sources[number]
        base = int(self.base[number])
        assert self._native is not None, "counted once"
        (page, ids, keys), (shared, entries), error = self._native.count(number, low, high)
        if len(page):
            self._verify(number, page.astype(np.int64) - base, ids, keys)
        if len(shared):
            self._shared.append((shared, entries & np.uint64(mem.ENTRY_FRAME)))
        if error:
            with self._lock:
                source.notes.append(f"{source.name}: reading stopped: {os.strerror(error)}")
        self._progress(high - low)

    # --- all bytes --------------------------------------------------------------------------------------------

    def _verify(self, number: int, page: I64, ids: U32, keys: U64) -> None:
        """Compare pages of source ``number`` with their representatives, all bytes, and record the outcome."""
        representative = self.representative[ids].astype(np.int64) - 1
        late = representative < 0
        if late.any():
            with self._lock:
                self._late.append((number, page[late], ids[late], keys[late]))
            page, ids, keys, representative = page[~late], ids[~late], keys[~late], representative[~late]
        verdict = self._compare(number, page, representative)
        same = verdict == _SAME
        self._add(ids[same])
        if not same.all():
            with self._lock:
                self._differing(number, page[~same], ids[~same], keys[~same], representative[~same])

    def _add(self, ids: U32) -> None:
        # Atomic: other threads count meanwhile.
        assert self._native is not None
        self._native.add(ids)

    def _compare(self, number: int, page: I64, representative: I64) -> U8:
        verdict = np.full(len(page), _GONE, np.uint8)
        source = self.sources[number]
        at = source.positions(page)
        owner = np.searchsorted(self.base, representative, side="right") - 1
        for other in np.unique(owner).tolist():
            mine = owner == other
            its = self.sources[other]
            representative_at = its.positions(representative[mine] - self.base[other])
            with contextlib.suppress(OSError):  # one has become unreadable: its pages have changed
                verdict[mine] = mem.compare(source.handle, at[mine], its.handle, representative_at, source.page_size)
        return verdict

    def _now(self, number: int, page: I64) -> U64:
        """Read pages again: their keys as they are now; all ones for what is gone or zero."""
        source = self.sources[number]
        try:
            keys, code = source.keys(source.positions(page), self._key)
        except OSError:
            return np.full(len(page), ~np.uint64(0))
        keys &= self._mask
        keys[code != _OK] = ~np.uint64(0)
        return keys

    def _differing(self, number: int, page: I64, ids: U32, keys: U64, representative: I64) -> None:
        """Settle pages that differ from their representatives: one of the two has changed, or two contents share a key.

        Under the lock: representatives change.
        """
        base = int(self.base[number])
        changed = self._now(number, page) != keys
        self.ids[base + page[changed]] = UNSTABLE
        page, ids, keys, representative = page[~changed], ids[~changed], keys[~changed], representative[~changed]

        owner = np.searchsorted(self.base, representative, side="right") - 1
        now = np.empty(len(representative), np.uint64)
        for other in np.unique(owner).tolist():
            now[owner == other] = self._now(other, representative[owner == other] - self.base[other])
        stale = (now != keys) & (self.representative[ids].astype(np.int64) - 1 == representative)
        # The first page of each content takes the changed representative's place: one page more, one less.
        _, first = np.unique(ids[stale], return_index=True)
        first = np.flatnonzero(stale)[first]
        self.ids[representative[first]] = UNSTABLE
        self.representative[ids[first]] = base + page[first] + 1
        done = np.zeros(len(page), bool)
        done[first] = True
        # Pages whose representative has been replaced are compared with the new one.
        again = ~done & (self.representative[ids].astype(np.int64) - 1 != representative)
        if again.any():
            self._verify(number, page[again], ids[again], keys[again])
        rest = np.flatnonzero(~done & ~again)
        verdict = self._compare(number, page[rest], representative[rest])
        self._add(ids[rest[verdict == _SAME]])
        # What is left has the key of another content: told apart by its bytes, in a table of bytes.
        size = self.sources[number].page_size
        for i in rest[verdict != _SAME].tolist():
            data = self.preview(number, int(page[i]))
            if len(data) != size:
                self.ids[base + page[i]] = UNSTABLE
                continue
            content = self._contents.get(data)
            if content is None:
                content = len(self.representative) - 1 - len(self._contents)
                self._contents[data] = content
                self.representative[content] = base + int(page[i]) + 1
                self.collided += 1
            else:
                self.extra[content] += np.uint32(1)
            self.ids[base + page[i]] = content

    # --- afterwards -------------------------------------------------------------------------------------------

    def shared(self) -> tuple[U32, U64]:
        """Return the pages that are mapped more than once, ascending, and their frames."""
        if not self._shared:
            return np.empty(0, np.uint32), np.empty(0, np.uint64)
        page = np.concatenate([p for p, _ in self._shared])
        frame = np.concatenate([f for _, f in self._shared])
        self._shared = []
        order = np.argsort(page, kind="stable")
        return page[order], frame[order]

    def preview(self, number: int, page: int) -> bytes:
        """Read one page of source ``number``; empty when it is gone."""
        source = self.sources[number]
        keep = np.empty(source.page_size, np.uint8)
        try:
            _, code = source.keys(source.positions(np.array([page])), self._key, keep)
        except OSError:
            return b""
        return b"" if code[0] == _GONE else keep.tobytes()

    def scan_again(self) -> Bools:
        """Read everything again; returns ``(pages,)`` bool: the page has changed or gone since :meth:`run`."""
        assert self.remembered is not None, "the keys were not kept"
        changed = np.zeros(self.total, bool)

        def batch(number: int, low: int, high: int) -> None:
            source = self.sources[number]
            base = int(self.base[number])
            try:
                keys, code = source.keys(source.positions(np.arange(low, high)), self._key)
            except OSError:
                changed[base + low : base + high] = True
                return
            assert self.remembered is not None
            changed[base + low : base + high] = (keys != self.remembered[base + low : base + high]) | (code == _GONE)

        self._each(batch, self._work())
        return changed

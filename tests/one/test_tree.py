import mmap
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pageone.one import SDTree


def pages(values: list[int], size: int = 4096) -> np.ndarray:
    """Pages that differ only in their last eight bytes."""
    rows = np.full((len(values), size), 0xAA, np.uint8)
    rows[:, -8:] = np.array(values, ">u8").view(np.uint8).reshape(-1, 8)
    return rows


def test_equal_pages_get_one_id_and_the_first_is_new() -> None:
    tree = SDTree()
    ids, is_new = tree.intern(pages([3, 1, 3, 2, 1]))
    assert ids.tolist() == [0, 1, 0, 2, 1]
    assert is_new.tolist() == [True, True, False, True, False]
    assert (tree.get([2, 0]) == pages([2, 3])).all()
    assert tree.find(pages([2, 9])).tolist() == [2, -1]
    assert tree.remove(pages([2, 9])).tolist() == [True, False]
    assert len(tree) == 2
    assert pages([3]).tobytes() in tree
    assert pages([2]) not in tree
    assert b"short" not in tree
    assert sorted(tree) == sorted(p.tobytes() for p in pages([3, 1]))


def test_strings_of_any_length_are_told_apart_by_length_too() -> None:
    tree = SDTree(object_size=None)
    ids, _ = tree.intern([b"a", b"a\0", b"", bytearray(b"a"), memoryview(b"\0a")[1:]])
    assert ids.tolist() == [0, 1, 2, 0, 0]
    assert tree.get([1, 2]) == [b"a\0", b""]
    assert b"" in tree
    assert b"\0" not in tree
    assert set(tree) == {b"a", b"a\0", b""}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.binary(max_size=40), max_size=30), max_size=8))
def test_interning_agrees_with_a_dict(batches: list[list[bytes]]) -> None:
    tree = SDTree(object_size=None)
    known: dict[bytes, int] = {}
    for batch in batches:
        ids, is_new = tree.intern(batch)
        for item, number, new in zip(batch, ids.tolist(), is_new.tolist(), strict=True):
            assert new == (item not in known)
            assert known.setdefault(item, len(known)) == number
    assert len(tree) == len(known)
    assert tree.get(list(known.values())) == list(known)


@pytest.mark.parametrize("order", ["sampled", "hashed", "raw"])
@pytest.mark.parametrize("size", [1, 7, 64, 600, 70_000])
def test_rows_of_any_size_and_order_are_told_apart(order: str, size: int) -> None:
    rng = np.random.default_rng(size)
    rows = rng.integers(0, 2, (200, size), np.uint8)
    rows[100:] = rows[rng.integers(0, 100, 100)]
    tree = SDTree(size, order=order)
    ids, is_new = tree.intern(rows)
    assert len(tree) == is_new.sum() == len({r.tobytes() for r in rows})
    assert (tree.get(ids) == rows).all()
    assert (tree.find(rows) == ids).all()


def test_buffers_of_whole_rows_and_mapped_files_are_taken(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    path.write_bytes(pages([1, 2, 1]).tobytes())
    tree = SDTree()
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
        assert tree.intern(view)[0].tolist() == [0, 1, 0]
    assert tree.intern(np.memmap(path, np.uint8, "r").reshape(-1, 4096))[0].tolist() == [0, 1, 0]
    assert tree.intern(path.read_bytes())[0].tolist() == [0, 1, 0]
    assert tree.intern(b"")[0].tolist() == []
    assert tree.intern([pages([2]).tobytes()])[0].tolist() == [1]


def test_arrow_arrays_are_read_in_place() -> None:
    class Type(str):
        pass

    class Arrow:
        """What `SDTree` reads of a `pyarrow.BinaryArray`."""

        def __init__(self, items: list[bytes], offset: int = 0, nulls: int = 0, kind: str = "binary") -> None:
            offsets = np.cumsum([0] + [len(i) for i in items]).astype(np.int32)
            self._buffers = [None, offsets.tobytes(), np.frombuffer(b"".join(items) or b"\0", np.uint8)]
            self.offset, self.null_count, self.type, self._n = offset, nulls, kind, len(items) - offset

        def buffers(self) -> list[object]:
            return list(self._buffers)

        def __len__(self) -> int:
            return self._n

    tree = SDTree(None)
    assert tree.intern(Arrow([b"x", b"", b"yy", b"x"]))[0].tolist() == [0, 1, 2, 0]
    assert tree.find(Arrow([b"x", b"", b"yy", b"z"], offset=1)).tolist() == [1, 2, -1]
    with pytest.raises(ValueError, match="2 nulls"):
        tree.intern(Arrow([b"x"], nulls=2))
    with pytest.raises(TypeError, match="not int64"):
        tree.intern(Arrow([b"x"], kind="int64"))


def test_what_is_no_row_is_refused_and_the_tree_stays_usable() -> None:
    tree = SDTree(16)
    with pytest.raises(ValueError, match=r"shape \(n, 16\), not \(2, 8\)"):
        tree.intern(np.zeros((2, 8), np.uint8))
    with pytest.raises(TypeError, match="uint8, not float64"):
        tree.intern(np.zeros((2, 16)))
    with pytest.raises(TypeError, match="C-contiguous"):
        tree.intern(np.zeros((16, 16), np.uint8).T)
    with pytest.raises(TypeError, match="C-contiguous"):
        tree.find(np.zeros((4, 32), np.uint8)[:, ::2])
    with pytest.raises(ValueError, match="no whole number of rows of 16"):
        tree.intern(b"17 bytes, no less")
    with pytest.raises(TypeError, match="not int"):
        tree.intern(5)
    with pytest.raises(ValueError, match="object of 3 bytes in a tree of 16"):
        tree.intern([b"abc"])
    with pytest.raises(TypeError, match="list of bytes"):
        SDTree(None).intern(b"abc")
    with pytest.raises(TypeError, match="not str"):
        SDTree(None).intern(["abc"])
    with pytest.raises(ValueError, match="at least 1"):
        SDTree(0)
    with pytest.raises(ValueError, match="order"):
        SDTree(16, order="sorted")
    for bad in ([0], [-1], [2**40]):
        with pytest.raises(KeyError):
            tree.get(bad)
    with pytest.raises(TypeError, match="integers"):
        tree.get([0.5])
    freed = memoryview(bytearray(16))
    freed.release()
    with pytest.raises(ValueError, match="released"):
        tree.intern(freed)
    assert tree.intern(bytes(16))[0].tolist() == [0]
    read_only = np.zeros((1, 16), np.uint8)
    read_only.flags.writeable = False
    assert tree.find(read_only).tolist() == [0]


def test_an_array_that_is_written_to_meanwhile_leaves_a_whole_tree() -> None:
    tree = SDTree(256)
    rows = np.zeros((2000, 256), np.uint8)
    stop = threading.Event()

    def write() -> None:
        rng = np.random.default_rng(1)
        while not stop.is_set():
            rows[rng.integers(0, 2000, 200), rng.integers(0, 256, 200)] += 1

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(30):
            tree.intern(rows)
            tree.remove(rows)
    finally:
        stop.set()
        writer.join()
    everything = list(tree)
    assert len(everything) == len(set(everything)) == len(tree)
    # What the tree holds it can also find, under its own bytes.
    assert (tree.find(everything) >= 0).all()
    tree.clear()
    assert len(tree) == 0


def test_python_threads_share_one_tree() -> None:
    tree = SDTree(512)
    rng = np.random.default_rng(4)
    rows = rng.integers(0, 256, (3000, 512)).astype(np.uint8)
    new = np.zeros(4, int)

    def work(t: int) -> None:
        order = np.random.default_rng(t).permutation(len(rows))
        new[t] = tree.intern(rows[order])[1].sum()

    threads = [threading.Thread(target=work, args=(t,)) for t in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert new.sum() == len(tree) == 3000
    assert (tree.get(tree.find(rows)) == rows).all()


def test_stats_tell_bytes_and_depth() -> None:
    tree = SDTree(64)
    rows = np.random.default_rng(5).integers(0, 256, (200_000, 64)).astype(np.uint8)
    tree.intern(rows)
    stats = tree.stats()
    assert stats["objects"] == 200_000
    assert stats["bytes_per_object"] <= 32
    assert stats["object_bytes"] >= 64 * 200_000
    assert 1 <= stats["depth_mean"] <= 4
    assert stats["depth_max"] <= 12

import gc
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pageone
from pageone.one import Interner, unique_rows


@pytest.mark.parametrize("dtype", ["u1", "<i2", "f4", "f8", "S5", "U3", "datetime64[s]", "i4,f8"])
def test_rows_agree_with_numpy_unique_for_any_dtype(dtype: str) -> None:
    rng = np.random.default_rng(7)
    shape = (500,) if "," in dtype else (500, 3)
    plain = rng.integers(0, 3, shape)
    a = np.zeros(shape, dtype)
    if "," in dtype:
        a["f0"], a["f1"] = plain, rng.integers(0, 3, shape)
    else:
        a[...] = plain.astype(dtype)
    rows, index, inverse, counts = unique_rows(a, True, True, True)
    assert (rows == a[index]).all()
    assert (rows[inverse] == a).all()
    assert (np.diff(index) > 0).all()
    sorted_rows, sorted_counts = np.unique(a, axis=0, return_counts=True)
    assert len(rows) == len(sorted_rows)
    assert sorted(counts.tolist()) == sorted(sorted_counts.tolist())
    assert (np.unique(rows, axis=0) == sorted_rows).all()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.binary(min_size=5, max_size=5), max_size=50))
def test_rows_come_in_first_seen_order(items: list[bytes]) -> None:
    a = np.frombuffer(b"".join(items), np.uint8).reshape(-1, 5)
    want = list(dict.fromkeys(items))
    rows, counts = unique_rows(a, return_counts=True)
    assert [r.tobytes() for r in rows] == want
    assert counts.tolist() == [items.count(w) for w in want]


def test_bytes_decide_for_zeros_and_nans() -> None:
    a = np.array([[0.0], [-0.0], [np.nan], [np.nan], [0.0]])
    assert len(unique_rows(a)) == 3


def test_arrays_of_many_dimensions_strides_and_none_are_taken() -> None:
    a = np.arange(48).reshape(4, 3, 4) % 12
    assert unique_rows(a).shape == (1, 3, 4)
    assert unique_rows(np.array([1, 2, 1, 3])[::-1]).tolist() == [3, 1, 2]
    rows, inverse = unique_rows(np.empty((0, 3)), return_inverse=True)
    assert rows.shape == (0, 3)
    assert inverse.shape == (0,)
    for bad, error in [(np.array([None]), TypeError), (np.float64(1), ValueError), (np.empty((3, 0)), ValueError)]:
        with pytest.raises(error):
            unique_rows(np.asarray(bad))


def test_memory_mapped_rows_stay_where_they_are(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    data = np.random.default_rng(3).integers(0, 256, (300, 4096)).astype(np.uint8)
    data[150:] = data[:150][::-1]
    data.tofile(path)
    rows, index = unique_rows(np.memmap(path, np.uint8, "r", shape=(300, 4096)), return_index=True)
    assert index.tolist() == list(range(150))
    assert type(rows) is np.ndarray
    assert (rows == data[:150]).all()


def test_an_interner_gives_back_the_very_same_object() -> None:
    interner = Interner()
    a = interner.intern(b"x" * 100)
    assert interner.intern(bytearray(b"x" * 100)) is a
    assert interner.intern(np.full(100, ord("x"), np.uint8)) is a
    assert interner.intern(b"") is interner.intern(b"")
    assert b"x" * 100 in interner
    assert interner.discard(a)
    assert not interner.discard(a)
    assert len(interner) == 1
    with pytest.raises(TypeError):
        interner.intern("text")


def test_a_weak_interner_forgets_what_nobody_holds() -> None:
    interner = Interner(weak=True)
    a = interner.intern(b"once" * 10)
    b = interner.intern(b"again" * 10)
    assert interner.intern(bytearray(b"once" * 10)) is a
    assert bytes(a) == b"once" * 10
    assert len(interner) == 2
    del a
    gc.collect()
    assert len(interner) == 1
    assert b"once" * 10 not in interner
    assert bytes(interner.intern(b"once" * 10)) == b"once" * 10
    assert interner.intern(b"again" * 10) is b


def test_threads_get_the_same_canonical_objects() -> None:
    interner = Interner()
    results: list[list[bytes]] = []

    def work() -> None:
        results.append([interner.intern(bytes([i % 50]) * 20) for i in range(500)])

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(x is y for other in results[1:] for x, y in zip(results[0], other, strict=True))
    assert len(interner) == 50


def test_the_package_offers_one_at_the_top() -> None:
    assert pageone.unique_rows is unique_rows
    assert {"SDTree", "KeyTree", "Interner", "unique_rows"} <= set(pageone.__all__)

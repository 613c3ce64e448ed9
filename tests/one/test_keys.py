import threading

import numpy as np
import pytest

from pageone.one import KeyTree


def test_equal_keys_get_one_id_and_the_first_is_new() -> None:
    tree = KeyTree()
    ids, is_new = tree.intern(np.array([5, 6, 5, 5, 7], np.uint64))
    assert ids.dtype == np.uint32
    assert ids.tolist() == [0, 1, 0, 0, 2]
    assert is_new.tolist() == [True, True, False, False, True]
    assert len(tree) == 3
    assert 5 in tree
    assert 8 not in tree
    assert -1 not in tree


def test_ids_of_removed_keys_come_back_so_that_columns_stay_small() -> None:
    tree = KeyTree()
    for start in range(0, 1_000_000, 10_000):
        keys = np.arange(start, start + 10_000, dtype=np.uint64)
        ids, is_new = tree.intern(keys)
        assert is_new.all()
        assert ids.max() < tree.id_bound
        assert tree.remove(keys).all()
    assert len(tree) == 0
    assert tree.id_bound < 40_000


def test_find_tells_absent_keys_with_minus_one() -> None:
    tree = KeyTree()
    assert tree.find(np.array([0, 2**64 - 1], np.uint64)).tolist() == [-1, -1]
    tree.intern(np.array([0, 2**64 - 1], np.uint64))
    assert tree.find(np.array([2**64 - 1, 1, 0], np.uint64)).tolist() == [1, -1, 0]
    keys, ids = tree.items()
    assert dict(zip(keys.tolist(), ids.tolist(), strict=True)) == {0: 0, 2**64 - 1: 1}


def test_arrays_that_are_not_keys_are_refused_and_the_tree_stays_usable() -> None:
    tree = KeyTree()
    with pytest.raises(TypeError, match="uint64, not float64"):
        tree.intern(np.zeros(3))
    with pytest.raises(TypeError, match="negative"):
        tree.intern(np.array([1, -1]))
    with pytest.raises(ValueError, match="one dimension"):
        tree.intern(np.zeros((2, 2), np.uint64))
    with pytest.raises(ValueError, match="negative"):
        KeyTree(-1)
    assert tree.intern(np.arange(6, dtype=np.uint64)[::2])[0].tolist() == [0, 1, 2]
    assert tree.intern([])[0].shape == (0,)


def test_four_python_threads_agree_on_ids() -> None:
    tree = KeyTree()
    keys = np.random.default_rng(1).integers(0, 50_000, 200_000).astype(np.uint64)
    ids: dict[int, np.ndarray] = {}
    new = np.zeros(4, int)

    def work(t: int) -> None:
        mine = keys if t % 2 else keys[::-1]
        got, is_new = tree.intern(mine)
        ids[t] = got if t % 2 else got[::-1]
        new[t] = is_new.sum()

    threads = [threading.Thread(target=work, args=(t,)) for t in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all((ids[t] == ids[0]).all() for t in range(4))
    assert new.sum() == len(tree) == len(np.unique(keys))


def test_an_entry_costs_at_most_28_bytes() -> None:
    tree = KeyTree()
    tree.intern(np.random.default_rng(2).integers(0, 2**63, 1_000_000).astype(np.uint64))
    stats = tree.stats()
    assert stats["objects"] == 1_000_000
    assert stats["bytes_per_object"] <= 28
    assert stats["depth_max"] <= 12

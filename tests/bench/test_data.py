import numpy as np
import pytest

from pageone.bench.data import DRAWS, KINDS, DataSet
from pageone.errors import UsageError

PAGES = 3000


def distinct(pages):
    return len({page.tobytes() for page in pages})


@pytest.mark.parametrize("name", KINDS)
def test_a_set_predicts_how_many_pages_are_distinct_and_how_many_are_empty(name):
    data = DataSet(name, PAGES, seed=1)
    pages = data.pages()
    want = data.expected()
    assert pages.shape == (PAGES, 4096)
    assert (want.pages, want.distinct) == (PAGES, distinct(pages))
    assert want.zero == (~pages.any(axis=1)).sum()
    assert want.duplicates == PAGES - want.distinct


@pytest.mark.parametrize("name", KINDS)
def test_any_part_of_a_set_can_be_made_alone(name):
    data = DataSet(name, 1000, seed=2)
    part = np.empty((300, 4096), np.uint8)
    data.fill(part, start=650)
    np.testing.assert_array_equal(part, data.pages()[650:950])


@pytest.mark.parametrize("name", ["head", "zerohead", "zerohead1k", "first128", "tail"])
def test_a_scaled_copy_has_the_distinct_pages_that_its_scale_predicts(name):
    pages = 60_000
    values = pages // DRAWS
    want = values * (1 - np.exp(-DRAWS))
    assert abs(DataSet(name, pages, seed=3).expected().distinct - want) < 6 * np.sqrt(values)


def test_the_value_of_zerohead_lies_where_its_low_bits_say():
    for name, mask in [("head", 0), ("zerohead", 63), ("zerohead1k", 255)]:
        words = DataSet(name, 2000).pages().view("<u4")
        row, column = np.nonzero(words)
        assert len(np.unique(row)) == len(row)
        np.testing.assert_array_equal(column, words[row, column] & mask)


def test_thermometer_pages_are_ones_then_zeros():
    bits = np.unpackbits(DataSet("thermometer", 500).pages(), axis=1, bitorder="little")
    np.testing.assert_array_equal(bits, np.sort(bits, axis=1)[:, ::-1])


def test_tail_pages_differ_only_in_the_last_eight_bytes():
    pages = DataSet("tail", 500).pages()
    assert (pages[:, :-8] == pages[0, :-8]).all()
    assert pages[0, :-8].any()


def test_scattered_twins_have_no_twins_as_neighbours():
    values = DataSet("scattered", 4000).values
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    twins = counts[inverse] == 2
    assert twins.sum() == 2000
    assert not (twins[1:] & twins[:-1]).any()


def test_the_same_seed_gives_the_same_pages_and_another_seed_others():
    one, same, other = (DataSet("random", 100, seed=s).pages() for s in (5, 5, 6))
    np.testing.assert_array_equal(one, same)
    assert not (one == other).all(axis=1).any()


def test_an_unknown_set_is_refused_with_the_names_to_choose_from():
    with pytest.raises(UsageError, match="thermometer"):
        DataSet("nothing", 10)

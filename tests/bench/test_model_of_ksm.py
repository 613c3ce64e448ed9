import time

import numpy as np
import pytest

from pageone import ksm
from pageone.bench.data import KINDS, DataSet
from pageone.bench.ksm.model import Model
from pageone.bench.processes import Image, Workers
from pageone.errors import UsageError

PAGES = 2048


def kernel_counts(pages, scans, **knobs):
    """KSM's counters after so many full scans of ``pages``, held by two processes."""
    image = Image(pages)
    try:
        with (
            ksm.driven(run=0, sleep_millisecs=0, pages_to_scan=256, smart_scan=0, **knobs) as found,
            Workers(image, 2, merge=True) as workers,
        ):
            assert found.run == 0, "KSM is in use on this machine"
            start = ksm.read_counters()
            ksm.set_knob("run", 1)
            end = time.monotonic() + 30
            while ksm.read_counters().full_scans < start.full_scans + scans:
                assert time.monotonic() < end, "ksmd does not get on"
                time.sleep(0.002)
            ksm.set_knob("run", 0)
            counters = ksm.read_counters()
            zero = sum(ksm.process_figures(w.pid).zero_pages for w in workers)
            return counters.pages_shared, counters.pages_sharing, counters.pages_unshared, zero
    finally:
        image.close()


def model_counts(pages, scans, threads=1, **knobs):
    model = Model(len(pages), smart_scan=False, **{k: bool(v) if k[0] == "u" else v for k, v in knobs.items()})
    for _ in range(scans):
        model.scan(pages, threads)
    counts = model.counts()
    return counts.pages_shared, counts.pages_sharing, counts.pages_unshared, counts.ksm_zero_pages


@pytest.mark.needs("root", "ksm")
@pytest.mark.parametrize("name", KINDS)
def test_the_model_ends_with_the_counts_of_the_kernel_on_the_same_pages(name):
    pages = DataSet(name, PAGES).pages()
    kernel = kernel_counts(pages, 4)
    for threads in (1, 2):
        assert model_counts(pages, 4, threads) == kernel


@pytest.mark.needs("root", "ksm")
@pytest.mark.parametrize("cap", [2, 16, 100])
def test_the_model_keeps_to_the_sharer_cap_as_the_kernel_does(cap):
    pages = DataSet("equal", PAGES).pages()
    pages[::5] = DataSet("head", PAGES // 5 + 1).pages()
    kernel = kernel_counts(pages, 4, max_page_sharing=cap)
    assert model_counts(pages, 4, max_page_sharing=cap) == kernel


@pytest.mark.needs("root", "ksm")
def test_the_model_gives_empty_pages_back_as_the_kernel_does():
    pages = DataSet("zerohead", PAGES).pages()
    pages[::3] = 0
    kernel = kernel_counts(pages, 4, use_zero_pages=1)
    assert kernel[3] >= PAGES // 3
    assert model_counts(pages, 4, use_zero_pages=1) == kernel


def test_pages_that_share_a_frame_of_the_model_are_equal_and_equal_pages_share():
    data = DataSet("tail", 5000)
    model = Model(5000, checksum="crc32c")
    for _ in range(3):
        cost = model.scan(data.pages(), 2)
    frames = model.frames()
    shared = frames >= 0
    pairs = np.unique(np.stack([frames[shared].astype(np.uint64), data.values[shared]]), axis=1)
    assert pairs.shape[1] == len(np.unique(frames[shared]))
    counts = model.counts()
    assert counts.pages_sharing == data.expected().duplicates
    assert cost.cpu_s > 0
    assert model.metadata_bytes() >= 5000 * 8


def test_wrong_shapes_and_knobs_are_usage_errors():
    model = Model(4)
    for call in (
        lambda: Model(4, checksum="md5"),
        lambda: Model(4, max_page_sharing=1),
        lambda: model.scan(np.zeros((5, 4096), np.uint8)),
        lambda: model.scan(np.zeros((4, 4095), np.uint8)),
        lambda: model.scan(np.zeros((8, 4096), np.uint8)[::2]),
        lambda: model.scan(np.zeros((4, 4096), np.uint8), 0),
        lambda: model.written(np.array([4], np.uint32)),
    ):
        with pytest.raises(UsageError):
            call()

import dataclasses
import signal
import subprocess
import sys
import time

import pytest

from pageone import ksm
from pageone.errors import PageOneError, UnsupportedError, UsageError

HOLDER = """
import sys, time
from pageone import ksm
from pageone.bench.data import DataSet
from pageone.bench.processes import Image, Workers
image = Image(DataSet("equal", 64).pages())
with ksm.driven(run=0, sleep_millisecs=0, pages_to_scan=777, max_page_sharing=3, use_zero_pages=1):
    with Workers(image, 1, merge=True):
        ksm.set_knob("run", 1)
        while not ksm.read_counters().pages_shared:
            time.sleep(0.01)
        print("merged", flush=True)
        time.sleep(60)
"""

FAKE = {
    "run": "1",
    "pages_to_scan": "100",
    "sleep_millisecs": "20",
    "merge_across_nodes": "1",
    "use_zero_pages": "0",
    "max_page_sharing": "256",
    "advisor_mode": "[none] scan-time",
    "pages_shared": "0",
    "pages_sharing": "5",
}


@pytest.fixture
def fake(tmp_path):
    """A directory that looks like an older kernel's KSM."""
    for name, text in FAKE.items():
        (tmp_path / name).write_text(text + "\n")
    return tmp_path


def test_knobs_and_counters_are_read_with_their_types_and_none_where_a_kernel_lacks_them(fake):
    knobs = ksm.read_knobs(fake)
    assert (knobs.run, knobs.max_page_sharing, knobs.advisor_mode, knobs.smart_scan) == (1, 256, "none", None)
    counters = ksm.read_counters(fake)
    assert (counters.pages_sharing, counters.ksm_zero_pages) == (5, None)


def test_a_kernel_without_ksm_is_named_as_the_cause(tmp_path):
    assert not ksm.supported(tmp_path)
    with pytest.raises(UnsupportedError, match="CONFIG_KSM"):
        ksm.read_knobs(tmp_path)


def test_a_knob_that_ksm_does_not_have_is_a_usage_error(fake):
    with pytest.raises(UsageError, match="pages_to_scan"):
        ksm.set_knob("speed", 1, fake)


def test_knobs_are_set_inside_the_block_and_back_after_it(fake):
    with ksm.driven(root=fake, sleep_millisecs=0, pages_to_scan=9) as found:
        assert found.sleep_millisecs == 20
        assert ksm.read_knobs(fake).sleep_millisecs == 0
        assert ksm.read_knobs(fake).pages_to_scan == 9
    assert ksm.read_knobs(fake) == found


def test_knobs_come_back_when_the_block_raises(fake):
    before = ksm.read_knobs(fake)
    with pytest.raises(ZeroDivisionError), ksm.driven(root=fake, sleep_millisecs=0):
        raise ZeroDivisionError
    assert ksm.read_knobs(fake) == before


def test_a_knob_that_cannot_be_set_leaves_the_others_as_they_were(fake):
    before = ksm.read_knobs(fake)
    with pytest.raises(UnsupportedError, match="smart_scan"), ksm.driven(root=fake, sleep_millisecs=0, smart_scan=1):
        pass
    assert ksm.read_knobs(fake) == before


def test_a_second_driver_waits_and_then_says_who_is_in_the_way(fake):
    with (
        ksm.driven(root=fake, sleep_millisecs=0),
        pytest.raises(PageOneError, match="another process drives KSM"),
        ksm.driven(root=fake, wait_s=0.2, sleep_millisecs=1),
    ):
        pass


def test_knobs_come_back_when_the_process_that_puts_them_back_was_killed(fake, monkeypatch):
    started = []
    popen = subprocess.Popen

    def remember(*args, **kwargs):
        started.append(popen(*args, **kwargs))
        return started[-1]

    monkeypatch.setattr("pageone.ksm.control.subprocess.Popen", remember)
    with ksm.driven(root=fake, sleep_millisecs=0) as found:
        started[0].kill()
        started[0].wait()
    assert ksm.read_knobs(fake) == found


@pytest.mark.needs("root", "ksm")
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_the_kernels_ksm_is_left_as_it_was_found_when_its_driver_is_ended(end):
    # The lock on KSM's directory keeps other tests and benchmarks away while "found" is compared.
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        assert process.stdout.readline() == "merged\n"
        assert ksm.read_knobs().pages_to_scan == 777
        assert ksm.read_counters().pages_shared > 0
        before = dataclasses.replace(ksm.read_knobs(), run=0)
        process.send_signal(end)
        process.wait(20)
        with ksm.driven(wait_s=20) as after:
            assert after.pages_to_scan != 777
            assert after.max_page_sharing != 3
            assert (after.use_zero_pages, after.sleep_millisecs) != (1, 0)
            assert after.run != 1
            assert after.merge_across_nodes == before.merge_across_nodes
            assert ksm.read_counters().pages_shared == 0
    finally:
        process.kill()
        process.wait()


@pytest.mark.needs("root", "ksm")
def test_everything_merged_meanwhile_is_unmerged_when_nothing_was_merged_before():
    from pageone.bench.data import DataSet
    from pageone.bench.processes import Image, Workers

    image = Image(DataSet("equal", 256).pages())
    with Workers(image, 1, merge=True) as workers:
        with ksm.driven(run=1, sleep_millisecs=0, pages_to_scan=1000):
            if ksm.read_counters().pages_shared is None:
                pytest.skip("no counters")
            end = time.monotonic() + 10
            while ksm.read_counters().pages_sharing != 255 and time.monotonic() < end:
                time.sleep(0.01)
            assert ksm.read_counters().pages_sharing == 255
            assert ksm.process_figures(workers[0].pid).merging_pages == 256
        with ksm.driven():
            assert ksm.read_counters().pages_sharing == 0
        assert len(set(workers.frames().tolist())) == 256
    image.close()


@pytest.mark.needs("root", "ksm")
def test_a_scan_costs_ksmd_cpu_seconds_that_are_seen():
    from pageone.bench.data import DataSet
    from pageone.bench.processes import Image, Workers

    image = Image(DataSet("unique", 2000).pages())
    with ksm.driven(run=0, sleep_millisecs=0, pages_to_scan=1000), Workers(image, 1, merge=True):
        before = ksm.ksmd_cpu_s()
        scans = ksm.read_counters().full_scans
        ksm.set_knob("run", 1)
        end = time.monotonic() + 10
        while ksm.read_counters().full_scans < scans + 2 and time.monotonic() < end:
            time.sleep(0.01)
        cost = ksm.ksmd_cpu_s() - before
        assert 2000 * 2 * 100e-9 < cost < 2
        assert ksm.metadata_bytes() >= 2000 * 64
    image.close()


def test_an_ordinary_user_is_told_that_only_root_may_drive_ksm(as_user):
    if not ksm.supported():
        pytest.skip("this kernel has no KSM")
    result = as_user.run("-c", "from pageone import ksm\nwith ksm.driven(run=0): pass")
    assert result.returncode != 0
    assert "run as root" in result.stderr

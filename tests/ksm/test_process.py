import json
import os
import subprocess
import sys

import pytest

from pageone import ksm
from pageone.errors import TargetError


def test_figures_of_a_process_that_does_not_exist_name_the_process_and_the_remedy():
    with pytest.raises(TargetError, match=r"no process 4194305: give the PID"):
        ksm.process_figures(4194305)


@pytest.mark.needs("root", "ksm")
def test_a_process_that_asked_for_merging_passes_it_on_to_its_children_and_can_take_it_back():
    code = """
import os
from pageone import ksm
before = ksm.memory_merge_enabled()
ksm.memory_merge()
child = os.fork()
if child == 0:
    os._exit(int(ksm.memory_merge_enabled()))
inherited = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
figures = ksm.process_figures(os.getpid())
ksm.memory_merge(False)
print(before, inherited, figures.merge_any, ksm.memory_merge_enabled())
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.split() == ["False", "1", "True", "False"]


@pytest.mark.needs("ksm")
def test_status_prints_one_json_object_with_every_knob_and_counter(pageone):
    out = pageone("ksm", "status", "--json", "--pid", str(os.getpid()))
    state = json.loads(out.stdout)
    assert state["knobs"]["max_page_sharing"] >= 2
    assert set(state) == {"knobs", "counters", "ksmd_pid", "ksmd_cpu_s", "metadata_bytes", "processes"}
    assert state["processes"][0]["pid"] == os.getpid()
    assert state["processes"][0]["merging_pages"] == 0


@pytest.mark.needs("ksm")
def test_status_is_readable_by_a_person_and_names_every_knob(pageone):
    out = pageone("ksm", "status", env=os.environ | {"COLUMNS": "120"})
    assert out.returncode == 0
    assert "KSM is " in out.stdout
    for name in ("pages_to_scan", "smart_scan", "ksm_zero_pages", "CPU since boot"):
        assert name in out.stdout


def test_status_of_an_ordinary_user_works_without_the_figures_that_need_root(as_user):
    if not ksm.supported():
        pytest.skip("this kernel has no KSM")
    out = as_user.pageone("ksm", "status", "--json")
    assert json.loads(out.stdout)["metadata_bytes"] is None

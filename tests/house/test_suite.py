"""The suite itself."""

from __future__ import annotations

import pytest


@pytest.mark.xdist_group("suite")
def test_tests_of_one_group_are_run_by_one_worker(request: pytest.FixtureRequest) -> None:
    if not getattr(request.config.option, "loadgroup", False):
        pytest.skip("needs several workers (pytest -n 2 --dist loadgroup)")
    # How pytest-xdist tells its controller of the group.
    assert request.node.nodeid.endswith("@suite")

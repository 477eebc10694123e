"""What all tests share."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import settings

settings.register_profile("cc1d", deadline=None)  # a machine that is slow, or busy, breaks no law
settings.load_profile("cc1d")

if "PYTEST_XDIST_WORKER" in os.environ:  # torch threads that wait for one another keep the other from its core
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Under `make test` the tools are there (`make tools`): a test that skips for want of one has failed."""
    report = yield
    if report.skipped and item.get_closest_marker("amd") and os.environ.get("CC1D_NO_SKIP"):
        report.outcome = "failed"
        report.longrepr = f"CC1D_NO_SKIP is set, and this test skipped: {report.longrepr}"
    return report

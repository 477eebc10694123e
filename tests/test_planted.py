"""Every planted bug is found, and every harmless change passes: the checks can fail, and do not cry wolf."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from planted import BUGS, CONTROLS, Planted, plant

from cc1d_lab import build
from cc1d_lab.cell import Cell
from cc1d_lab.evaluation import evaluate
from cc1d_lab.results import Row


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A cache of these tests alone; what they share is built once."""
    monkeypatch.setenv("CC1D_CACHE", str(tmp_path_factory.getbasetemp() / "planted-cache"))
    build.emulation_runtime.cache_clear()
    yield
    build.emulation_runtime.cache_clear()


def _evaluate_with(bug: Planted, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Row:
    monkeypatch.setenv("CC1D_KERNELS", str(plant(bug, folder)))
    return evaluate([Cell(bug.variant, "cpu", bug.case)])[0]


@pytest.mark.parametrize("bug", BUGS, ids=lambda b: f"{b.variant}-{b.name}".replace(" ", "_"))
def test_planted_bug_is_found(bug: Planted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = _evaluate_with(bug, tmp_path, monkeypatch)
    assert row["status"] in ("wrong", "launch_failed"), row
    assert row["reason"]
    assert row["time_us_p50"] is None, "what is wrong has no time"


@pytest.mark.parametrize("control", CONTROLS, ids=lambda b: f"{b.variant}-{b.name}".replace(" ", "_"))
def test_harmless_change_passes(control: Planted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = _evaluate_with(control, tmp_path, monkeypatch)
    assert row["status"] == "ok", row["reason"]

"""A run on disk: rows as they come, resumed where it stopped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cc1d_lab import experiment, results
from cc1d_lab.errors import StoreError
from cc1d_lab.runner import run_experiment

TWO_CASES = (
    "variants: torch_conv1d\nbaselines: []\ncases: [{batch: 1, dim: 4, seqlen: 5}, {batch: 1, dim: 4, seqlen: 6}]\n"
)


@pytest.fixture
def study(tmp_path: Path) -> experiment.Experiment:
    (tmp_path / "study.yaml").write_text(TWO_CASES)
    return experiment.load(tmp_path / "study.yaml")


def _lengths(run: Path) -> list[int]:
    return [row["seqlen"] for row in results.read(run / "rows.jsonl")]


def test_a_run_that_was_killed_goes_on_where_it_stopped(study: experiment.Experiment, tmp_path: Path) -> None:
    run = run_experiment(study, "cpu", out=tmp_path, progress=False)
    first, second = (run / "rows.jsonl").read_text().splitlines()
    (run / "rows.jsonl").write_text(f"{first}\n{second[:40]}")  # as the kill left it, amid a line
    assert run_experiment(study, "cpu", out=tmp_path, resume=run, progress=False) == run
    assert sorted(_lengths(run)) == [5, 6]
    assert (run / "rows.jsonl").read_text().splitlines()[0] == first, "what was measured stays as it was"


@pytest.mark.parametrize("damage", ["", "{", "[]", "{}"])
def test_a_run_that_does_not_say_what_it_is_of_is_not_resumed(
    damage: str, study: experiment.Experiment, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.json").write_text(damage)
    with pytest.raises(StoreError, match=r"run\.json does not say of which experiment it is .*; begin a new run"):
        run_experiment(study, "cpu", out=tmp_path, resume=run, progress=False)


def test_a_run_of_another_experiment_is_not_resumed(study: experiment.Experiment, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.json").write_text(json.dumps({"experiment": "quick"}))
    with pytest.raises(StoreError, match="it is a run of 'quick', not of 'study'; name another run"):
        run_experiment(study, "cpu", out=tmp_path, resume=run, progress=False)

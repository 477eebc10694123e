"""S3's tables, and the notebook that shows them, on rows measured in emulation."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from cc1d_lab import load_rows, paths, tables
from cc1d_lab.case import Case
from cc1d_lab.cell import Cell
from cc1d_lab.evaluation import evaluate
from cc1d_lab.report.execute import execute
from cc1d_lab.results import Row, append

PLAIN = Case(1, 32, 64, op="bwd", layout="channel_last", activation="none", label="Tiny")
PACKED = Case(2, 16, 64, op="bwd", layout="channel_last", states=True, seq_idx=True)


@pytest.fixture(scope="module")
def measured() -> list[Row]:
    names = ("bwd_channel_last", "bwd_naive", "torch_conv1d")
    return [row for case in (PLAIN, PACKED) for row in evaluate([Cell(name, "cpu", case) for name in names])]


def _with_fault(rows: list[Row]) -> pd.DataFrame:
    bad = {"max_abs_err": 0.02, "bound_ratio": 900.0, "n_bad": 7, "n_outside_tolerance": 5}
    errors = {**rows[0]["output_errors"], "dx": bad}
    return load_rows([{**rows[0], "status": "wrong", "time_us_mean": None, "output_errors": errors}, *rows[1:]])


def test_accuracy_is_listed_per_gradient(measured: list[Row]) -> None:
    found = tables.gradient_accuracy(load_rows(measured))
    tiny = found[found["configuration"].str.startswith("Tiny bwd 1x32x64x4")]
    assert list(tiny["gradient"]) == ["dx", "dweight", "dbias"] * 3
    assert (tiny["max_abs_err"] < 1e-4).all()
    assert not tiny["outside_tolerance"].any()
    packed = found[found["configuration"].str.contains("states seq_idx")]
    assert set(packed["gradient"]) == {"dx", "dweight", "dbias", "dinitial_states"}
    assert "torch_conv1d" not in set(packed["variant"])


def test_a_wrong_gradient_is_counted_and_has_no_time(measured: list[Row]) -> None:
    rows = _with_fault(measured)
    found = tables.gradient_accuracy(rows)
    bad = found[found["status"] == "wrong"]
    assert list(bad[bad["gradient"] == "dx"]["outside_bound"]) == [7]
    assert list(bad[bad["gradient"] == "dx"]["outside_tolerance"]) == [5]
    assert len(tables.gradient_speed(rows)) == len(tables.gradient_speed(load_rows(measured))) - 1


def test_speed_has_mean_and_least_time(measured: list[Row]) -> None:
    found = tables.gradient_speed(load_rows(measured))
    assert (found["min_ms"] <= found["mean_ms"]).all()
    assert found["gbps"].gt(0).all()
    assert found["pct_copy"].isna().all(), "there is no ceiling in emulation"


def test_rows_of_the_forward_have_no_gradients(measured: list[Row]) -> None:
    assert tables.gradient_accuracy(load_rows([{**row, "op": "fwd"} for row in measured])).empty


def test_the_notebook_runs(measured: list[Row], tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    for row in measured:
        append(tmp_path / "rows.jsonl", row)
    target = tmp_path / "notebooks" / "40_backward.ipynb"
    execute(paths.notebooks_dir() / target.name, target, {"run": str(tmp_path)})
    text = target.read_text()
    assert "outside tolerance" in text
    assert "dinitial_states" in text

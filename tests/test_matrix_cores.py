"""The matrix-core variants: what 0 x Inf does in them, and that rows say what they issue and materialise."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd
import pytest
import torch
from planted import Planted, plant

from cc1d_lab import build, kernel, reference, variants
from cc1d_lab.case import Case
from cc1d_lab.cell import Cell
from cc1d_lab.evaluation import base_row, evaluate, needed_builds
from cc1d_lab.matrix_work import matrix_work
from cc1d_lab.results import load_rows
from cc1d_lab.timing import Policy

NAMES = [v.name for v in variants.select("all") if v.name.endswith("_wmma")]
SMALL = Case(batch=1, dim=20, seqlen=50, dtype="float16", activation="none")


def _run(name: str, case: Case, x: torch.Tensor, arch: str = "") -> torch.Tensor:
    weight, bias = reference.make_inputs(case).weight, reference.make_inputs(case).bias
    out = torch.empty_like(x)
    library = build.build(variants.get(name), case, {}, "cpu", arch).library
    kernel.bind(kernel.load(library), x, weight, bias, out)()
    return out


@pytest.mark.parametrize("arch", ["wave64", "wave32"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_goes_no_further_in_the_banded_product_than_tap_by_tap(bad: float, arch: str) -> None:
    case = Case(batch=1, dim=3, seqlen=1100, dtype="bfloat16", activation="none")
    x = reference.make_inputs(case).x.clone()
    x[0, 1, [0, 15, 16, 200, 255, 256, 511, 700, 1099]] = bad  # ends of a segment, a tile and the row
    found, naive = _run("fwd_toeplitz_wmma", case, x, arch), _run("fwd_naive", case, x, arch)
    assert torch.equal(found.isfinite(), naive.isfinite())
    assert torch.equal(found.isnan(), naive.isnan())
    assert torch.equal(found[found.isinf()], naive[naive.isinf()])
    assert int((~found.isfinite()).sum()) < 9 * case.width


@pytest.mark.parametrize("name", NAMES)
def test_the_caveat_says_whether_a_nan_stays(name: str) -> None:
    (row,) = evaluate([Cell(name, "cpu", SMALL)])
    assert row["status"] == "ok", row["reason"]
    assert row["nan_stays"] == (row["caveat"] == "")


def test_a_banded_product_that_computes_nothing_again_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, check = "fwd_toeplitz_wmma", "vote(spread != 0)"
    bug = Planted("not again", name, check, "false", SMALL, f"{name}.hip")
    monkeypatch.setenv("CC1D_KERNELS", str(plant(bug, tmp_path)))
    (row,) = evaluate([Cell(name, "cpu", SMALL)])
    assert (row["status"], row["nan_stays"]) == ("ok", False)


def test_a_row_counts_the_workspace_of_the_pipeline_and_none_of_the_fused() -> None:
    """50 steps and 20 channels are 64 and 32 in whole tiles; A and B have 2 bytes an element, C has 4."""
    a, b, c = 64 * 4 * 32 * 2, 4 * 32 * 32 * 2, 64 * 32 * 4
    rows = {row["variant"]: row for row in evaluate([Cell(name, "cpu", SMALL) for name in NAMES])}
    assert (rows["fwd_im2col_wmma"]["im2col_bytes"], rows["fwd_im2col_wmma"]["workspace_bytes"]) == (a, a + b + c)
    for name in ("fwd_im2col_fused_wmma", "fwd_toeplitz_wmma"):
        assert (rows[name]["im2col_bytes"], rows[name]["workspace_bytes"]) == (None, 0)


@pytest.mark.parametrize(
    ("name", "width", "flops"),
    [
        ("fwd_im2col_wmma", 4, 2 * 64 * 32 * (4 * 32)),
        ("fwd_im2col_fused_wmma", 4, (64 // 16) * (32 // 16) * 4 * 2 * 16**3),
        ("fwd_toeplitz_wmma", 4, 20 * 2 * 2 * 16**3),
        ("fwd_toeplitz_wmma", 1, 20 * 2 * 16**3),
    ],
)
def test_issued_operations_by_hand(name: str, width: int, flops: int) -> None:
    issued = variants.get(name).executed_flops
    assert issued is not None
    assert issued(Case(batch=1, dim=20, seqlen=50, width=width, dtype="float16")) == flops


def test_table_of_work_has_issued_beside_useful_and_no_time_for_what_is_not_ok() -> None:
    case = Case(batch=1, dim=16, seqlen=256, width=4, bias=False, dtype="float16")
    good = {"status": "ok", "time_us_p50": 2.0, "pct_copy": 50.0, "workspace_bytes": 0}
    rows = [
        base_row(Cell("fwd_toeplitz_wmma", "nvidia", case), **good),
        base_row(Cell("fwd_im2col_wmma", "nvidia", case), status="wrong", time_us_p50=None),
        base_row(Cell("fwd_naive", "nvidia", case), **good),
    ]
    table = matrix_work(load_rows(rows)).set_index("variant")
    assert list(table.index) == ["fwd_toeplitz_wmma", "fwd_im2col_wmma"]
    banded, dense = table.loc["fwd_toeplitz_wmma"], table.loc["fwd_im2col_wmma"]
    assert banded["issued_gflop"] == 64 * 16 * 256 / 1e9
    assert banded["issued_per_useful"] == 8
    assert banded["issued_tflops"] == pytest.approx(64 * 16 * 256 / 2e-6 / 1e12)
    assert banded["workspace_mb"] == 0
    assert dense["im2col_mb"] == 256 * 4 * 16 * 2 / 1e6
    assert pd.isna(dense[["time_us", "issued_tflops", "pct_copy"]]).all()
    assert matrix_work(load_rows([])).empty


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", variants.HALF)
@pytest.mark.parametrize("name", NAMES)
def test_right_on_the_device_at_awkward_cases(name: str, dtype: str) -> None:
    """Lengths around a segment, a tile and a run; views, widths, layouts; a NaN stays where the caveat says so."""
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    variant = variants.get(name)
    cells = [
        Cell(name, "nvidia", Case(2, 21, seqlen, width, dtype, layout=layout, view=view))
        for layout in variant.layouts
        for seqlen, width, view in (
            *((n, 4, "contiguous") for n in (1, 2, 15, 16, 17, 64, 65, 255, 257, 1023, 1024, 1025, 2047, 4099)),
            *((1134, width, "misaligned") for width in (1, 2, 5, 8)),
            *((n, 3, "channel_slice") for n in (31, 513, 1134)),
        )
    ]
    list(build.build_all([needed for cell in cells for needed in needed_builds(cell)]))  # side by side
    rows = [evaluate([cell], Policy(warmup=0, min_samples=1, max_samples=1))[0] for cell in cells]
    assert {(row["status"], row["reason"]) for row in rows} == {("ok", None)}
    assert all(row["nan_stays"] for row in rows) == (variant.caveat == "")

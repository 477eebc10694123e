"""Subnormal, large and infinite x: every kernel gives what the oracle says; a planted error of each kind is found."""

from __future__ import annotations

from pathlib import Path

import pytest
from planted import BUGS, Planted, plant

from cc1d_lab import backends, build, evaluation, kernel, special, variants
from cc1d_lab.case import Case
from cc1d_lab.cell import Cell

KERNELS = [v for v in variants.VARIANTS.values() if v.kind == "kernel"]
MATH = "include/cc1d/math.h"
SPREADS = [v.name for v in KERNELS if "0 * Inf" in v.caveat]  # matrix products with a dense weight


def wrong(cell: Cell) -> list[str]:
    """The kinds that do not come out right in one cell; its other checks are left out."""
    device = backends.get(cell.backend).torch_device
    special.problems(cell.case, device)
    launcher = evaluation._launcher(kernel.load(build.build_cell(cell).library))
    found = special.findings(cell.case, device, lambda case, inputs: evaluation._run(case, launcher, inputs)[0])
    return [kind for kind, fine in found.items() if not fine]


def cell_of(variant: variants.Variant, dtype: str, backend: str) -> Cell:
    return Cell(variant.name, backend, Case(dtype=dtype, layout=variant.layouts[0], op=variant.op))


@pytest.mark.parametrize("variant", KERNELS, ids=lambda v: v.name)
def test_special_values_come_out_right(variant: variants.Variant) -> None:
    dtype = variant.dtypes[KERNELS.index(variant) % len(variant.dtypes)]
    dtype = variant.dtypes[0] if dtype == "float64" else dtype
    assert wrong(cell_of(variant, dtype, "cpu")) == (["inf"] if variant.name in SPREADS else [])


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("variant", KERNELS, ids=lambda v: v.name)
def test_special_values_come_out_right_on_a_gpu(variant: variants.Variant, dtype: str) -> None:
    if dtype not in variant.dtypes:
        pytest.skip(f"{variant.name} takes {', '.join(variant.dtypes)}")
    cell = cell_of(variant, dtype, next(name for name in ("nvidia", "amd") if name in backends.runnable()))
    assert wrong(cell) == (["inf"] if variant.name in SPREADS else [])


@pytest.mark.parametrize(
    ("file", "old", "new", "kind"),
    [
        (MATH, "return y * sigmoid(y);", "return (y * kSigmoidScale) * scaled_sigmoid(y);", "subnormal"),
        (MATH, "return y * sigmoid(y);", "const float e = expf(y); return y * e / (1.0f + e);", "large"),
        ("fwd_naive.hip", "activate(sum)", "activate(sum + 0 * to_float(x[(p.seqlen - 1) * p.x_seq_stride]))", "inf"),
    ],
)  # fmt: skip
def test_a_planted_error_of_each_kind_is_found(
    file: str, old: str, new: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bug = Planted(kind, "fwd_naive", old, new, Case(), file)
    monkeypatch.setenv("CC1D_KERNELS", str(plant(bug, tmp_path)))
    assert wrong(Cell("fwd_naive", "cpu", Case())) == [kind]


def test_a_kernel_that_writes_its_input_spoils_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bug = next(b for b in BUGS if b.name == "writes its input")
    monkeypatch.setenv("CC1D_KERNELS", str(plant(bug, tmp_path)))
    bad, good = evaluation.evaluate([Cell(name, "cpu", Case()) for name in (bug.variant, "fwd_shared_memory")])
    assert (bad["status"], good["status"]) == ("wrong", "ok")
    assert good["special_values"] == dict.fromkeys(special.KINDS, True)

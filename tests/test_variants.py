"""The registry names each variant once, and says why a variant cannot do a case."""

from __future__ import annotations

import dataclasses
import re

import pytest
from hypothesis import given
from test_case import cases

from cc1d_lab import paths, variants
from cc1d_lab.case import EVERY_DTYPE, LAYOUTS, OPS, Case
from cc1d_lab.errors import ConfigError
from cc1d_lab.variants import VARIANTS, resolve_tunables, select, vectors, why_not

KERNELS = [v for v in VARIANTS.values() if v.kind == "kernel"]
ids = [v.name for v in KERNELS]


def test_names_are_the_keys() -> None:
    assert all(name == v.name for name, v in VARIANTS.items())


@pytest.mark.parametrize("variant", KERNELS, ids=ids)
def test_a_variant_takes_known_dtypes_layouts_and_its_own_defaults(variant: variants.Variant) -> None:
    assert set(variant.dtypes) <= set(EVERY_DTYPE)
    assert set(variant.layouts) <= set(LAYOUTS)
    assert variant.widths[0] <= 4 <= variant.widths[1]
    for tunable in variant.tunables.values():
        assert {tunable.default, tunable.default_of(Case())} <= set(tunable.choices)


@pytest.mark.parametrize("variant", KERNELS, ids=ids)
def test_a_kernel_has_its_source(variant: variants.Variant) -> None:
    assert (paths.kernels_dir() / str(variant.source)).is_file()


@pytest.mark.parametrize("op", OPS)
def test_all_is_every_kernel_of_an_op_and_nothing_else(op: str) -> None:
    every = [v.name for v in KERNELS if v.op == op]
    assert [v.name for v in select("all", op)] == every
    assert [v.name for v in select(["torch_conv1d", "all"], op)] == ["torch_conv1d", *every]


def test_all_is_the_forward_kernels_when_no_op_is_named() -> None:
    assert select("all") == select("all", "fwd")


def test_a_variant_named_twice_is_there_once() -> None:
    assert select(["fwd_naive", "all", "fwd_naive"]) == select("all")


def test_an_unknown_variant_is_refused_with_its_neighbour() -> None:
    with pytest.raises(ConfigError, match=r"'fwd_naiv' is not known .did you mean 'fwd_naive'"):
        select("fwd_naiv")


@pytest.mark.parametrize("variant", KERNELS, ids=ids)
def test_tunables_are_the_defaults_until_given(variant: variants.Variant) -> None:
    defaults = resolve_tunables(variant, {})
    assert defaults == {name: t.default for name, t in variant.tunables.items()}
    for name, tunable in variant.tunables.items():
        for choice in tunable.choices:
            assert resolve_tunables(variant, {name: choice}) == defaults | {name: choice}


def test_a_default_may_be_another_one_in_float32() -> None:
    raster = variants.get("fwd_raster")
    chosen = [
        resolve_tunables(raster, {}, Case(layout="channel_last", dtype=dtype))["steps"]
        for dtype in ("float16", "float32")
    ]
    assert chosen == [4, 2]
    assert resolve_tunables(raster, {"steps": 8}, Case(layout="channel_last"))["steps"] == 8


def test_unknown_tunables_and_values_are_refused() -> None:
    naive = variants.get("fwd_naive")
    with pytest.raises(ConfigError, match=r"'blok' is not known .did you mean 'block'"):
        resolve_tunables(naive, {"blok": 64})
    with pytest.raises(ConfigError, match="tunable block: 65 is not among"):
        resolve_tunables(naive, {"block": 65})


FIXED = [
    ("fwd_raster", Case(layout="channel_last", width=8, dtype="bfloat16"), {"block": 64, "steps": 8, "resident": 896}),
    ("fwd_raster", Case(layout="channel_last", width=8, dtype="float32"), {"steps": 8, "resident": 640}),
    ("fwd_register", Case(width=8), {"vectors": 2}),
    ("fwd_raster", Case(layout="channel_last", dtype="bfloat16", seq_idx=True), {"steps": 8, "resident": 1024}),
    ("fwd_raster", Case(layout="channel_last", states=True), {"steps": 8, "resident": 896}),
    ("fwd_register", Case(states=True), {"vectors": 2}),
]


@pytest.mark.parametrize(("name", "case", "fixed"), FIXED)
def test_a_tunable_that_a_case_fixes_takes_no_other_value(name: str, case: Case, fixed: dict[str, int]) -> None:
    variant = variants.get(name)
    usual = variants.defaults(variant, Case(layout=case.layout))
    assert variants.defaults(variant, case) == resolve_tunables(variant, fixed, case) == usual | fixed
    assert why_not(variant, case, "nvidia", fixed) == ""
    for knob in fixed:
        features = "".join(f" with {f}" for f in ("states", "seq_idx") if getattr(case, f))
        kind = f"{case.dtype} of width {case.width}{features}"
        reason = (
            f"tunable {knob}={usual[knob]}: {name} has {fixed[knob]} alone for {kind}; give that, or leave {knob} out"
        )
        assert why_not(variant, case, "nvidia", {knob: usual[knob]}) == reason
        with pytest.raises(ConfigError, match=reason):
            resolve_tunables(variant, {knob: usual[knob]}, case)


@given(cases)
def test_the_reason_names_what_does_not_fit(case: Case) -> None:
    for variant in KERNELS:
        reason = why_not(variant, case, "nvidia")
        fits = {
            "op": case.op == variant.op,
            "states": not case.states or "states" in variant.features,
            "seq_idx": not case.seq_idx or "seq_idx" in variant.features,
            "dtype": case.dtype in variant.dtypes,
            "layout": case.layout in variant.layouts,
            "width": variant.widths[0] <= case.width <= variant.widths[1],
            "weight": variant.mixed_weight or case.weight_dtype == case.dtype,
            "outputs": not variant.counts_in_31_bits or vectors(case) < 2**31,
            "seqlen": not variant.counts_in_31_bits or case.seqlen < 2**31,
        }
        assert bool(reason) == (not all(fits.values()))
        assert not reason or not fits[re.match(r"\w+", reason)[0]]


def test_a_variant_without_states_says_so() -> None:
    plain = dataclasses.replace(variants.get("fwd_naive"), name="plain", features=())
    assert why_not(plain, Case(states=True), "nvidia") == "states: plain has no states"
    assert why_not(plain, Case(states=True, seq_idx=True), "nvidia").startswith("states and seq_idx: plain has no")
    assert why_not(variants.get("fwd_naive"), Case(states=True, seq_idx=True), "nvidia") == ""


def test_rows_beyond_31_bits_of_steps_are_refused_where_steps_are_counted_in_31() -> None:
    walk = variants.get("bwd_warp_walk")
    assert why_not(walk, Case(op="bwd", batch=1, dim=1, seqlen=2**31 - 1), "nvidia") == ""
    assert why_not(walk, Case(op="bwd", batch=1, dim=1, seqlen=2**31), "nvidia").startswith("seqlen 2147483648: ")


def test_doubles_are_for_emulation() -> None:
    naive = variants.get("fwd_naive")
    assert why_not(naive, Case(dtype="float64"), "cpu") == ""
    assert "float64" in why_not(naive, Case(dtype="float64"), "nvidia")


def test_what_would_take_minutes_in_emulation_is_not_run_there() -> None:
    case = Case(batch=8, dim=5120, seqlen=2048, dtype="bfloat16")
    gemm = variants.get("fwd_im2col_wmma")
    assert "emulation" in why_not(gemm, case, "cpu")
    assert why_not(gemm, case, "nvidia") == ""
    assert why_not(gemm, dataclasses.replace(case, dim=64, seqlen=256), "cpu") == ""


def test_the_dense_gemm_costs_dim_times_the_useful_work() -> None:
    case = Case(batch=2, dim=64, seqlen=256, width=4, bias=False, dtype="float16")
    executed = variants.get("fwd_im2col_wmma").executed_flops
    assert executed is not None
    assert executed(case) == case.dim * case.flops()

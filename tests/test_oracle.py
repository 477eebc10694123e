"""The oracle of each op agrees with the operator's reference, which loops have checked, and its bounds are bounds."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from cc1d_lab import causal_conv1d_fn_ref, causal_conv1d_update_ref, oracle, reference
from cc1d_lab.case import Case
from cc1d_lab.cell import Cell
from cc1d_lab.evaluation import ceiling_case, evaluate
from cc1d_lab.oracle import truths
from cc1d_lab.timing import Policy

CASES = [
    Case(2, 5, 37, width, activation=activation, states=states, seq_idx=packed)
    for width, activation, states, packed in [
        (4, "silu", False, False),
        (4, "none", True, False),
        (4, "silu", True, True),
        (3, "silu", False, True),
        (1, "silu", True, True),
        (7, "none", True, True),
    ]
]


def _wide(inputs: reference.Inputs) -> dict[str, torch.Tensor | None]:
    given = {"x": inputs.x, "weight": inputs.weight, "bias": inputs.bias}
    given["initial_states"] = inputs.more.get("initial_states")
    return {k: None if t is None else t.double().detach().requires_grad_() for k, t in given.items()}


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.title())
def test_forward_and_gradients_are_those_of_the_reference(case: Case) -> None:
    backward = dataclasses.replace(case, op="bwd")
    inputs = reference.make_inputs(backward)
    leaves = _wide(inputs)
    activation = None if case.activation == "none" else case.activation
    out, final = causal_conv1d_fn_ref(
        **leaves, seq_idx=inputs.more.get("seq_idx"), return_final_states=True, activation=activation
    )
    forward = truths(case, inputs)
    torch.testing.assert_close(forward["out"].y, out)
    loss = (out * inputs.more["dout"]).sum()
    if case.states:
        assert torch.equal(forward["final_states"].y, final)
        loss = loss + (final * inputs.more["dfinal_states"]).sum()
    loss.backward()
    found = truths(backward, inputs)
    names = {"dx": "x", "dweight": "weight", "dbias": "bias"} | (
        {"dinitial_states": "initial_states"} if case.states else {}
    )
    assert set(found) == set(names)
    for name, leaf in names.items():
        torch.testing.assert_close(found[name].y, leaves[leaf].grad)
        assert (found[name].bound > 0).all()


@pytest.mark.parametrize("op", ["fwd", "bwd", "update"])
def test_a_large_case_is_the_same_a_few_channels_at_a_time(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for full in (False, op != "update"):
        case = Case(2, 7, 37, op=op, layout="channel_last", states=full, seq_idx=full, view="channel_slice")
        inputs = reference.make_inputs(case)
        whole = truths(case, inputs)
        with monkeypatch.context() as patch:
            patch.setattr(oracle, "AT_ONCE", 2 * case.batch * case.seqlen)
            parts = truths(case, inputs)
        assert set(parts) == set(whole)
        for name, truth in whole.items():
            torch.testing.assert_close(parts[name].y, truth.y, rtol=1e-13, atol=0)
            torch.testing.assert_close(parts[name].bound, truth.bound, rtol=1e-13, atol=0)


def test_a_nan_is_the_worst_error_of_all_outputs() -> None:
    case = Case(1, 2, 8, op="bwd")
    inputs = reference.make_inputs(case)
    outputs = {name: truth.y.float() for name, truth in truths(case, inputs).items()}
    outputs["dweight"][0, 0] = float("nan")
    found = reference.all_errors(case, outputs, truths(case, inputs))
    assert (found["n_bad"], found["first_bad"]) == (1, [0, 0])
    assert all(math.isnan(found[name]) for name in ("bound_ratio", "max_abs_err", "max_rel_err"))


def test_an_update_is_that_of_the_reference() -> None:
    case = Case(2, 5, 3, op="update")
    inputs = reference.make_inputs(case)
    state = inputs.more["conv_state"].double()
    out = causal_conv1d_update_ref(inputs.x.double(), state, inputs.weight.double(), inputs.bias.double(), "silu")
    found = truths(case, inputs)
    torch.testing.assert_close(found["out"].y, out)
    assert torch.equal(found["conv_state"].y, state)


@pytest.mark.parametrize("op", ["bwd", "update"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("layout", ["channel_first", "channel_last"])
def test_kernels_of_the_op_pass(op: str, dtype: str, layout: str) -> None:
    from cc1d_lab import variants

    for seqlen in (1, 2, 65, 131):
        case = Case(2, 21, seqlen, dtype=dtype, weight_dtype="float32", layout=layout, op=op, view="channel_slice")
        for one in (case, dataclasses.replace(case, states=True, seq_idx=True) if op == "bwd" else case):
            cells = [
                Cell(v.name, "cpu", one) for v in variants.select("all", op) if not variants.why_not(v, one, "cpu")
            ]
            for row in evaluate(cells, Policy(warmup=0, min_samples=1, max_samples=1)):
                assert row["status"] == "ok", f"{row['variant']} {one.title()}: {row['reason']}"
                assert row["nan_stays"]
                assert row["time_us_p50"] > 0
                assert set(row["output_errors"]) == set(truths(one, reference.make_inputs(one)))


def test_a_baseline_is_measured_for_every_op() -> None:
    for op in ("fwd", "bwd", "update"):
        row = evaluate([Cell("torch_conv1d", "cpu", Case(2, 8, 33, op=op))])[0]
        assert row["status"] == "ok"
        assert row["n_bad"] == 0
        assert row["torch_n_bad"] == 0
        assert row["gbps"] > 0
    states = evaluate([Cell("torch_conv1d", "cpu", Case(2, 8, 33, states=True))])[0]
    assert states["status"] == "unsupported"


def test_doubles_are_not_evaluated() -> None:
    row = evaluate([Cell("fwd_naive", "cpu", Case(dtype="float64"))])[0]
    assert (row["status"], row["reason"].split(":")[0]) == ("unsupported", "dtype float64")


@pytest.mark.parametrize(
    "case", [Case(op="bwd"), Case(op="update", seqlen=4), Case(states=True)], ids=lambda c: c.title()
)
def test_the_ceiling_copies_as_many_bytes(case: Case) -> None:
    copied = ceiling_case(case)
    assert copied.op == "fwd"
    parameters = 2 * (case.width + 1) * case.dim * case.itemsize
    assert abs(2 * copied.outputs * case.itemsize - case.bytes()) <= parameters + case.batch * case.dim * case.itemsize

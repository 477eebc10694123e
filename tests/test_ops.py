"""The operator: against a float64 reference that is itself checked by loops; gradients, states, decoding, bad input."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import cc1d_lab
from cc1d_lab import (
    causal_conv1d_fn,
    causal_conv1d_fn_ref,
    causal_conv1d_ref,
    causal_conv1d_update,
    causal_conv1d_update_ref,
    causal_conv1d_varlen_states,
    causal_conv1d_varlen_states_ref,
    variants,
)
from cc1d_lab.errors import ConfigError, DeviceError, DtypeError, LayoutError, LimitError, RangeError, ShapeError
from cc1d_lab.ops import choice, launch
from cc1d_lab.ops.arguments import overlap

HALF_ULP = {torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8, torch.float64: 2.0**-50}
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclasses.dataclass(frozen=True)
class Call:
    """The arguments of a call, from a seed."""

    batch: int = 2
    dim: int = 12
    seqlen: int = 70
    width: int = 4
    dtype: torch.dtype = torch.float32
    weight_dtype: torch.dtype | None = None
    last: bool = False  # channels contiguous
    silu: bool = True
    bias: bool = True
    states: bool = False
    packed: bool = False
    sliced: bool = False  # x is a channel slice of a wider buffer that starts off a 16-byte boundary
    seed: int = 0

    def tensors(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor | None, Any]:
        g = torch.Generator().manual_seed(self.seed)
        wide = self.dim + (7 if self.sliced else 0)
        shape = (self.batch, self.seqlen, wide) if self.last else (self.batch, wide, self.seqlen)
        x = torch.randn(shape, generator=g).to(self.dtype)
        x = (x.transpose(1, 2) if self.last else x)[:, wide - self.dim :]
        weight_dtype = self.weight_dtype or self.dtype
        weight = torch.randn(self.dim, self.width, generator=g).to(weight_dtype)
        bias = torch.randn(self.dim, generator=g).to(weight_dtype) if self.bias else None
        states = torch.randn(self.batch, self.dim, self.width - 1, generator=g).to(self.dtype) if self.states else None
        return x, weight, bias, self.seq_idx(g) if self.packed else None, states

    def seq_idx(self, g: torch.Generator) -> torch.Tensor:
        """Random cuts, runs shorter than the width, a number that comes back, padding within and at the end."""
        found = (torch.rand(self.batch, self.seqlen, generator=g) < 0.15).cumsum(1) % 3
        found[0, self.seqlen * 4 // 5 :] = -1
        found[-1, self.seqlen // 3 : self.seqlen // 3 + 2] = -1
        return found.int()


# --- the references, by loops ---------------------------------------------------------------------


def loops(x: Any, weight: Any, bias: Any, seq_idx: Any, states: Any, silu: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """out and final states, written as the definition reads."""
    batch, dim, seqlen = x.shape
    width = weight.shape[1]
    out, final = torch.zeros(x.shape), torch.zeros(batch, dim, width - 1)

    def sequence(b: int, t: int) -> int:
        """Number of the sequence of step t, counted by where seq_idx changes."""
        steps = [] if seq_idx is None else seq_idx[b].tolist()
        return sum(steps[i] != steps[i - 1] for i in range(1, t + 1)) if t > 0 and steps else 0

    def value(b: int, d: int, t: int) -> float:
        if t >= 0:
            return float(x[b, d, t])
        return float(states[b, d, width - 1 + t]) if states is not None else 0.0

    def padding(b: int, t: int) -> bool:
        return seq_idx is not None and int(seq_idx[b, t]) < 0

    for b, d in itertools.product(range(batch), range(dim)):
        for t in range(seqlen):
            total = 0.0 if bias is None else float(bias[d])
            for w in range(width):
                source = t - (width - 1) + w
                if sequence(b, source) == sequence(b, t):
                    total += float(weight[d, w]) * value(b, d, source)
            out[b, d, t] = 0.0 if padding(b, t) else total / (1 + float(np.exp(-total))) if silu else total
        end = seqlen
        while end > 0 and padding(b, end - 1):
            end -= 1
        for i in range(width - 1):
            t = end - (width - 1) + i
            if seq_idx is None or seqlen == 0 or (end > 0 and sequence(b, t) == sequence(b, end - 1)):
                final[b, d, i] = value(b, d, t)
    return out, final


@pytest.mark.parametrize("seqlen", [0, 1, 2, 7, 15])
@pytest.mark.parametrize("width", [1, 2, 4, 5])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("states", [False, True])
def test_reference_does_what_the_definition_says(seqlen: int, width: int, packed: bool, states: bool) -> None:
    for seed in range(3):
        call = Call(2, 3, seqlen, width, packed=packed, states=states, seed=seed, silu=seed > 0)
        x, weight, bias, seq_idx, initial = call.tensors()
        activation = "silu" if call.silu else None
        out, final = causal_conv1d_fn_ref(x, weight, bias, seq_idx, initial, True, None, activation)
        by_loops, final_by_loops = loops(x, weight, bias, seq_idx, initial, call.silu)
        torch.testing.assert_close(out, by_loops, rtol=1e-5, atol=1e-5)
        assert torch.equal(final, final_by_loops)
        if not packed:
            assert torch.equal(causal_conv1d_ref(x, weight, bias, initial, activation=activation), out)


def test_reference_of_nothing_but_padding_has_an_empty_state() -> None:
    x, seq_idx = torch.randn(1, 2, 5), torch.full((1, 5), -1, dtype=torch.int32)
    out, final = causal_conv1d_fn_ref(x, torch.randn(2, 4), None, seq_idx, torch.randn(1, 2, 3), True)
    assert not out.any()
    assert not final.any()


def update_loops(x: Any, state: Any, weight: Any, bias: Any, silu: bool, steps: Any, rows: Any) -> torch.Tensor:
    """out; `state` is moved on."""
    batch, dim, seqlen = x.shape
    width, state_len = weight.shape[1], state.shape[2]
    out = torch.zeros(x.shape)
    for b, d in itertools.product(range(batch), range(dim)):
        row = b if rows is None else int(rows[b])
        if row < 0:
            continue
        ring, next_ = state[row, d], 0 if steps is None else int(steps[b])
        history = [float(ring[(next_ + i) % state_len]) for i in range(state_len)]  # oldest first
        for t in range(seqlen):
            history.append(float(x[b, d, t]))
            total = sum(float(weight[d, w]) * history[w - width] for w in range(width))
            total += 0.0 if bias is None else float(bias[d])
            out[b, d, t] = total / (1 + float(np.exp(-total))) if silu else total
        for i in range(state_len):
            if steps is None:
                ring[i] = history[len(history) - state_len + i]
        if steps is not None:
            for t in range(seqlen):
                ring[(next_ + t) % state_len] = x[b, d, t]
    return out


UPDATES = [
    {"seqlen": 1, "state_len": 3},
    {"seqlen": 1, "state_len": 3, "ring": True},
    {"seqlen": 5, "state_len": 3},
    {"seqlen": 4, "state_len": 9},
    {"seqlen": 4, "state_len": 9, "ring": True},
    {"seqlen": 7, "state_len": 4, "ring": True},
    {"seqlen": 1, "state_len": 3, "gathered": True},
    {"seqlen": 2, "state_len": 6, "gathered": True, "ring": True},
    {"seqlen": 2, "state_len": 0, "width": 1},
    {"seqlen": 3, "state_len": 8, "width": 7},
]


def _update_tensors(
    seqlen: int, state_len: int, width: int = 4, ring: bool = False, gathered: bool = False, dtype: Any = torch.float32
) -> dict[str, Any]:
    g = torch.Generator().manual_seed(seqlen + state_len)
    batch, dim, entries = 3, 5, 7 if gathered else 3
    x, weight, bias = (torch.randn(s, generator=g) for s in ((batch, dim, seqlen), (dim, width), (dim,)))
    return {
        "x": x.to(dtype),
        "conv_state": torch.randn(entries, state_len, dim, generator=g).to(dtype).transpose(1, 2),
        "weight": weight,
        "bias": bias,
        "cache_seqlens": torch.tensor([0, 2, 11], dtype=torch.int32) if ring else None,
        "conv_state_indices": torch.tensor([5, -1, 0], dtype=torch.int32) if gathered else None,
    }


@pytest.mark.parametrize("config", UPDATES, ids=str)
@pytest.mark.parametrize("activation", [None, "silu"])
def test_update_and_its_reference_do_what_the_definition_says(config: dict, activation: str | None) -> None:
    arguments = _update_tensors(**config)
    states = [arguments["conv_state"].clone() for _ in range(3)]
    tail = (arguments["cache_seqlens"], arguments["conv_state_indices"])
    x, weight, bias = arguments["x"], arguments["weight"], arguments["bias"]
    expected = update_loops(x, states[0], weight, bias, activation == "silu", *tail)
    by_reference = causal_conv1d_update_ref(x, states[1], weight, bias, activation, *tail)
    out = causal_conv1d_update(x, states[2], weight, bias, activation, *tail)
    torch.testing.assert_close(by_reference, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(states[1], states[0])
    assert torch.equal(states[2], states[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_update_in_16_bits(dtype: torch.dtype) -> None:
    arguments = _update_tensors(4, 5, dtype=dtype)
    state = arguments["conv_state"]
    truth = causal_conv1d_update_ref(
        *(t.double() for t in (arguments["x"], state, arguments["weight"], arguments["bias"])), "silu"
    )
    moved = torch.cat([state, arguments["x"]], 2)[:, :, 4:]
    out = causal_conv1d_update(**arguments, activation="silu")
    _assert_rounded(out, truth)
    assert torch.equal(state, moved)


def test_update_takes_one_step_without_its_dimension() -> None:
    arguments = _update_tensors(1, 3)
    twice = arguments["conv_state"].clone()
    out = causal_conv1d_update(arguments["x"][..., 0], twice, arguments["weight"], arguments["bias"], "silu")
    assert out.shape == (3, 5)
    assert torch.equal(out, causal_conv1d_update(**arguments, activation="silu")[..., 0])
    assert torch.equal(twice, arguments["conv_state"])


def test_padding_in_an_update_touches_no_state_and_gives_zero() -> None:
    arguments = _update_tensors(2, 3, gathered=True)
    before = arguments["conv_state"].clone()
    out = causal_conv1d_update(**arguments)
    assert not out[1].any()
    untouched = [1, 2, 3, 4, 6]
    assert torch.equal(arguments["conv_state"][untouched], before[untouched])
    assert not torch.equal(arguments["conv_state"][[5, 0]], before[[5, 0]])


@pytest.mark.parametrize("state_len", [0, 1, 3, 9])
def test_varlen_states_are_the_last_steps_of_each_sequence(state_len: int) -> None:
    x = torch.randn(17, 6)
    bounds = torch.tensor([0, 0, 1, 3, 9, 17], dtype=torch.int32)
    expected = torch.zeros(5, 6, state_len)
    for s, d, i in itertools.product(range(5), range(6), range(state_len)):
        t = int(bounds[s + 1]) - state_len + i
        expected[s, d, i] = x[t, d] if t >= int(bounds[s]) else 0
    assert torch.equal(causal_conv1d_varlen_states(x, bounds, state_len), expected)
    assert torch.equal(causal_conv1d_varlen_states_ref(x, bounds, state_len), expected)
    assert causal_conv1d_varlen_states(x[:0], bounds[:1].expand(3), state_len).shape == (2, 6, state_len)


# --- forward and backward against float64 ---------------------------------------------------------


def _largest(truth: torch.Tensor) -> float:
    """Terms are about as large as that, whatever they add up to."""
    return float(truth.abs().max()) if truth.numel() else 0.0


def _assert_rounded(found: torch.Tensor, truth: torch.Tensor, magnitude: torch.Tensor | None = None) -> None:
    """`found` is the truth within the rounding of its dtype, and of fp32 sums of terms of `magnitude`."""
    slack = 4e-6 * (1 + _largest(truth)) if magnitude is None else magnitude
    bound = slack + HALF_ULP[found.dtype] * 1.02 * truth.abs() + 2.0**-24
    excess = (found.double() - truth).abs() - bound
    assert found.shape == truth.shape
    assert not found.numel() or excess.max() <= 0, f"off by {float((found.double() - truth).abs().max())}"


def _leaves(tensors: tuple[torch.Tensor | None, ...], wide: bool) -> list[torch.Tensor | None]:
    """Copies that want a gradient, with the same strides; in float64 when `wide`."""
    dtypes = [t if t is None or not t.is_floating_point() else (torch.float64 if wide else t.dtype) for t in tensors]
    return [
        t if t is None or not t.is_floating_point() else t.detach().to(d).requires_grad_()
        for t, d in zip(tensors, dtypes, strict=True)
    ]


def check_call(call: Call, **how: str) -> None:
    """Outputs and all gradients of a call against the reference in float64."""
    check_tensors(call.tensors(), call.silu, call.states, **how)


def check_tensors(tensors: tuple[torch.Tensor | None, ...], silu: bool, states: bool, **how: str) -> None:
    """`check_call` with x, weight, bias, seq_idx and initial_states, on their device."""
    mine, truth = _leaves(tensors, False), _leaves(tensors, True)
    activation = "silu" if silu else None
    results = causal_conv1d_fn(*mine, states, None, activation, **how)
    expected = causal_conv1d_fn_ref(*truth, states, None, activation)
    results, expected = (r if isinstance(r, tuple) else (r,) for r in (results, expected))
    g = torch.Generator(results[0].device).manual_seed(1)
    gradients = [torch.randn(r.shape, generator=g, device=r.device).to(r.dtype) for r in results]
    torch.autograd.backward(results, gradients)
    torch.autograd.backward(expected, [gradient.double() for gradient in gradients])
    for found, true in zip(results, expected, strict=True):
        _assert_rounded(found, true.detach())
    terms = mine[0].shape[0] * max(mine[0].shape[2], 1)
    for found, true in zip(mine, truth, strict=True):
        if found is not None and found.is_floating_point():
            assert found.grad.dtype == found.dtype
            summed = found.dim() < 3  # weight and bias: sums over batch and seqlen
            size = 20 + (terms if summed else _largest(true.grad))
            _assert_rounded(found.grad, true.grad, torch.full_like(true.grad, 3e-7 * size))


SAMPLE = [
    Call(),
    Call(last=True),
    Call(seqlen=1134, dim=5, dtype=torch.bfloat16),
    Call(seqlen=151, dim=70, dtype=torch.bfloat16, last=True, weight_dtype=torch.float32),
    Call(dtype=torch.float16, states=True, sliced=True, last=True),
    Call(dtype=torch.float16, states=True, sliced=True, silu=False, weight_dtype=torch.float32),
    Call(packed=True, states=True, dim=65),
    Call(packed=True, states=True, dim=65, last=True),
    Call(packed=True, dtype=torch.bfloat16, bias=False),
    Call(seqlen=1, states=True),
    Call(seqlen=2, states=True, last=True),
    Call(width=2, silu=False, bias=False, seqlen=129),
    Call(width=3, last=True, seqlen=130),
    Call(width=8, seqlen=9, states=True),
    Call(width=8, last=True, seqlen=65, states=True, packed=True),
    Call(width=1, states=True),
    Call(width=11, states=True, packed=True),
    Call(width=4, dtype=torch.float32, weight_dtype=torch.bfloat16),
    # Dao-AILab's channel_first backward with SiLU is wrong where the last chunk is shorter than a vector.
    Call(dim=3, seqlen=1024 + 3, dtype=torch.bfloat16),
    Call(dim=3, seqlen=512 + 2),
]


@pytest.mark.parametrize("call", SAMPLE, ids=str)
def test_call_is_right_forward_and_backward(call: Call) -> None:
    check_call(call)


@pytest.mark.parametrize("op", ["fwd", "bwd"])
@pytest.mark.parametrize("last", [False, True], ids=["channel_first", "channel_last"])
@pytest.mark.parametrize("plain", [True, False], ids=["plain", "packed"])
def test_every_variant_gives_the_same(op: str, last: bool, plain: bool) -> None:
    layout = "channel_last" if last else "channel_first"
    for variant in variants.select("all", op):
        if layout in variant.layouts and (plain or len(variant.features) == 2):
            dtype = getattr(torch, variant.dtypes[0])
            call = Call(dim=66, last=last, dtype=dtype, states=not plain, packed=not plain)
            if variant.executed_flops is None:
                check_call(call, variant=variant.name)


# --- gradients ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variant", "last"),
    [("bwd_naive", False), ("bwd_naive", True), ("bwd_two_stage", False), ("bwd_channel_last", True)],
)
@pytest.mark.parametrize("extras", [False, True], ids=["plain", "packed"])
def test_gradcheck_in_float64(variant: str, last: bool, extras: bool) -> None:
    call = Call(2, 3, 9, 4, torch.float64, last=last, states=extras, packed=extras)
    x, weight, bias, seq_idx, states = _leaves(call.tensors(), True)

    def function(*leaves: torch.Tensor) -> Any:
        return causal_conv1d_fn(*leaves[:3], seq_idx, *leaves[3:] or (None,), extras, None, "silu", variant=variant)

    leaves = (x, weight, bias, states) if extras else (x, weight, bias)
    assert torch.autograd.gradcheck(function, leaves, fast_mode=False)


def test_a_tensor_used_twice_gets_both_gradients() -> None:
    x, weight, bias, *_ = _leaves(Call().tensors(), False)
    (
        causal_conv1d_fn(causal_conv1d_fn(x, weight, bias), weight, bias) + causal_conv1d_fn(x, weight, bias)
    ).sum().backward()
    y, w, b, *_ = _leaves(Call().tensors(), True)
    (causal_conv1d_fn_ref(causal_conv1d_fn_ref(y, w, b), w, b) + causal_conv1d_fn_ref(y, w, b)).sum().backward()
    for found, true in ((x, y), (weight, w), (bias, b)):
        torch.testing.assert_close(found.grad.double(), true.grad, rtol=1e-4, atol=1e-3)


def test_gradient_flows_from_call_to_call_through_the_states() -> None:
    x, weight, bias, *_ = _leaves(Call(seqlen=20).tensors(), False)
    first, state = causal_conv1d_fn(x[:, :, :9], weight, bias, return_final_states=True)
    (first.sum() + causal_conv1d_fn(x[:, :, 9:], weight, bias, initial_states=state).sum()).backward()
    whole, w, b, *_ = _leaves(Call(seqlen=20).tensors(), False)
    causal_conv1d_fn(whole, w, b).sum().backward()
    torch.testing.assert_close(x.grad, whole.grad)
    torch.testing.assert_close(weight.grad, w.grad)


def test_gradient_flows_through_a_given_final_state() -> None:
    x, weight, *_ = _leaves(Call().tensors(), False)
    target = torch.empty(2, 12, 3)
    _, final = causal_conv1d_fn(x, weight, return_final_states=True, final_states_out=target)
    assert final is target
    final.sum().backward()
    expected = torch.zeros(2, 12, 70)
    expected[:, :, -3:] = 1
    assert torch.equal(x.grad, expected)
    assert weight.grad is None or not weight.grad.any()


@pytest.mark.parametrize("last", [False, True])
def test_backward_gives_the_same_bits_in_every_run(last: bool) -> None:
    def gradients() -> list[torch.Tensor]:
        leaves = _leaves(Call(seqlen=777, last=last).tensors(), False)
        causal_conv1d_fn(*leaves, activation="silu").square().sum().backward()
        return [t.grad for t in leaves if t is not None]

    first = gradients()
    for _ in range(5):
        assert all(torch.equal(a, b) for a, b in zip(first, gradients(), strict=True))


def test_twice_differentiated_is_refused() -> None:
    x, weight, *_ = _leaves(Call().tensors(), False)
    out = causal_conv1d_fn(x, weight, activation="silu")
    (grad,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


# --- torch's machinery ----------------------------------------------------------------------------


@pytest.mark.parametrize("extras", [False, True], ids=["plain", "packed"])
def test_opcheck_of_the_convolution(extras: bool) -> None:
    call = Call(2, 3, 9, last=True, states=extras, packed=extras)
    leaves = _leaves(call.tensors(), False)
    torch.library.opcheck(torch.ops.cc1d_lab.conv, (*leaves, extras, True, "auto", "auto"))
    x, weight, bias, seq_idx, states = call.tensors()
    arguments = (torch.randn(2, 3, 9), states, x, weight, bias, seq_idx, states, True, "auto", "auto")
    torch.library.opcheck(torch.ops.cc1d_lab.conv_backward, arguments)


@pytest.mark.parametrize("config", [UPDATES[0], UPDATES[7]], ids=str)
def test_opcheck_of_the_update(config: dict) -> None:
    a = _update_tensors(**config)
    arguments = (a["x"], a["conv_state"], a["weight"], a["bias"], a["cache_seqlens"], a["conv_state_indices"])
    torch.library.opcheck(torch.ops.cc1d_lab.update, (*arguments, True, "auto", "auto"))


@pytest.mark.parametrize("compiler", ["aot_eager", pytest.param("inductor", marks=pytest.mark.full)])
def test_compiles_as_one_graph(compiler: str) -> None:
    def model(x: Any, weight: Any, bias: Any, seq_idx: Any, states: Any) -> Any:
        out, final = causal_conv1d_fn(2 * x, weight, bias, seq_idx, states, True, activation="silu")
        return out.relu(), final

    call = Call(states=True, packed=True, last=True)
    eager, compiled = _leaves(call.tensors(), False), _leaves(call.tensors(), False)
    torch._dynamo.reset()
    results = torch.compile(model, fullgraph=True, backend=compiler)(*compiled), model(*eager)
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)
        assert a.stride() == b.stride()
    for result in results:
        sum(r.sum() for r in result).backward()
    for a, b in zip(compiled, eager, strict=True):
        if a is not None and a.is_floating_point():
            torch.testing.assert_close(a.grad, b.grad)


def test_update_compiles_as_one_graph() -> None:
    arguments = _update_tensors(1, 3)
    other = arguments | {"conv_state": arguments["conv_state"].clone()}
    torch._dynamo.reset()
    compiled = torch.compile(causal_conv1d_update, fullgraph=True, backend="aot_eager")
    for _ in range(3):
        assert torch.equal(compiled(**arguments), causal_conv1d_update(**other))
    assert torch.equal(arguments["conv_state"], other["conv_state"])


@pytest.mark.parametrize("states", [False, True])
def test_the_eager_path_and_the_dispatcher_agree(states: bool) -> None:
    call = Call(states=states, packed=states, last=states)
    eager, dispatched = _leaves(call.tensors(), False), _leaves(call.tensors(), False)
    results = causal_conv1d_fn(*eager, states, None, "silu")
    results = results if states else (results,)
    others = torch.ops.cc1d_lab.conv(*dispatched, states, True, "auto", "auto")
    for a, b in zip(results, others, strict=False):
        assert torch.equal(a, b)
        assert a.stride() == b.stride()
        assert a.requires_grad
        assert b.requires_grad
    for outputs in (results, others[: len(results)]):
        sum(o.square().sum() for o in outputs).backward()
    for a, b in zip(eager, dispatched, strict=True):
        if a is not None and a.is_floating_point():
            assert torch.equal(a.grad, b.grad)
    with torch.no_grad():
        plain = causal_conv1d_fn(*call.tensors(), states, None, "silu")
        assert torch.equal(plain[0] if states else plain, results[0])


def test_fake_tensors_have_shapes_and_no_values() -> None:
    with torch._subclasses.FakeTensorMode():
        x = torch.empty(2, 9, 5).transpose(1, 2)
        out, final = causal_conv1d_fn(x, torch.empty(5, 4), return_final_states=True)
        assert (out.shape, out.stride()) == (x.shape, x.stride())
        assert final.shape == (2, 5, 3)


@pytest.mark.parametrize("grad", [False, True])
def test_autocast_does_what_it_does_to_conv1d(grad: bool) -> None:
    x, weight, bias, *_ = _leaves(Call().tensors(), False) if grad else Call().tensors()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mine = causal_conv1d_fn(x, weight, bias)
        theirs = F.conv1d(x, weight[:, None], bias, padding=3, groups=12)[..., :70]
    assert mine.dtype == theirs.dtype == torch.bfloat16
    torch.testing.assert_close(mine, theirs)
    if grad:
        mine.sum().backward()
        assert x.grad.dtype == torch.float32


@pytest.mark.parametrize("shape", [(0, 4, 8), (2, 0, 8), (2, 4, 0)], ids=str)
def test_empty_sizes_give_empty_results(shape: tuple[int, int, int]) -> None:
    x = torch.randn(shape, requires_grad=True)
    weight, bias = torch.randn(shape[1], 4, requires_grad=True), torch.randn(shape[1], requires_grad=True)
    states = torch.randn(shape[0], shape[1], 3, requires_grad=True)
    out, final = causal_conv1d_fn(x, weight, bias, None, states, True, activation="silu")
    assert out.shape == x.shape
    assert torch.equal(final, states)
    (out.sum() + 2 * final.sum()).backward()
    assert not weight.grad.any()
    assert not bias.grad.any()
    assert (states.grad == 2).all()
    assert causal_conv1d_update(x.detach(), states.detach().clone(), weight.detach()).shape == shape


def test_out_lies_in_memory_as_x_does() -> None:
    whole = torch.randn(2, 30, 40)
    for x in (whole, whole.transpose(1, 2), whole[:, 3:9], whole.transpose(1, 2)[:, 3:9], whole[:, :, 1:]):
        out = causal_conv1d_fn(x, torch.randn(x.shape[1], 4))
        assert out.is_contiguous() or out.transpose(1, 2).is_contiguous()
        assert (out.stride(1) < out.stride(2)) == (x.stride(1) < x.stride(2))
        torch.testing.assert_close(
            out.contiguous(), causal_conv1d_fn(x.contiguous(), torch.ones(x.shape[1], 1)) * 0 + out
        )


@pytest.mark.parametrize(
    "view",
    [
        lambda t: t[:, ::2],
        lambda t: t[:, :, ::3],
        lambda t: t[:1].expand(4, -1, -1),
        lambda t: t[:, :1].expand(-1, 9, -1),
        lambda t: t[:, :, :1].expand(-1, -1, 9),
        lambda t: t.flip(2),
        lambda t: t[:, 1:, 1:],
    ],
)
@pytest.mark.parametrize("last", [False, True])
def test_any_strides_of_x_and_of_its_gradient(view: Callable[[torch.Tensor], torch.Tensor], last: bool) -> None:
    base = torch.randn(2, 21, 34)
    x = view(base.transpose(1, 2) if last else base)
    weight = torch.randn(x.shape[1], 4)
    expected = causal_conv1d_fn_ref(x, weight, activation="silu")
    torch.testing.assert_close(causal_conv1d_fn(x, weight, activation="silu"), expected)
    leaf, twin = x.detach().clone().requires_grad_(), x.detach().clone().requires_grad_()
    dout = view(torch.randn_like(base.transpose(1, 2) if last else base))
    causal_conv1d_fn(leaf, weight, activation="silu").backward(dout)
    causal_conv1d_fn_ref(twin, weight, activation="silu").backward(dout)
    torch.testing.assert_close(leaf.grad, twin.grad, rtol=1e-5, atol=1e-5)


# --- laws, bit for bit ----------------------------------------------------------------------------

LAW = settings(max_examples=25)
layouts = st.booleans()


@LAW
@given(last=layouts, seqlen=st.integers(2, 40), data=st.data())
def test_pieces_with_states_equal_one_call(last: bool, seqlen: int, data: st.DataObject) -> None:
    x, weight, bias, *_ = Call(seqlen=seqlen, last=last).tensors()
    cuts = sorted(data.draw(st.sets(st.integers(1, seqlen - 1), max_size=5)))
    pieces, state = [], torch.zeros(2, 12, 3)
    for begin, end in itertools.pairwise([0, *cuts, seqlen]):
        piece, state = causal_conv1d_fn(x[:, :, begin:end], weight, bias, None, state, True, activation="silu")
        pieces.append(piece)
    whole, final = causal_conv1d_fn(x, weight, bias, None, torch.zeros(2, 12, 3), True, activation="silu")
    assert torch.equal(torch.cat(pieces, 2), whole)
    assert torch.equal(state, final)
    decoded, running = [], torch.zeros(2, 12, 3)
    for begin, end in itertools.pairwise([0, *cuts, seqlen]):
        decoded.append(causal_conv1d_update(x[:, :, begin:end], running, weight, bias, "silu"))
    torch.testing.assert_close(torch.cat(decoded, 2), whole)
    assert torch.equal(running, final)


@LAW
@given(last=layouts, lengths=st.lists(st.integers(1, 20), min_size=1, max_size=6), padding=st.integers(0, 5))
def test_packed_sequences_equal_separate_calls(last: bool, lengths: list[int], padding: int) -> None:
    total = sum(lengths) + padding
    x, weight, bias, _, states = Call(1, seqlen=total, last=last, states=True).tensors()
    numbers = [i % 2 for i, n in enumerate(lengths) for _ in range(n)] + [-1] * padding
    seq_idx = torch.tensor([numbers], dtype=torch.int32)
    packed, final = causal_conv1d_fn(x, weight, bias, seq_idx, states, True, activation="silu")
    begin, initial = 0, states
    for n in lengths:
        alone, last_state = causal_conv1d_fn(
            x[:, :, begin : begin + n], weight, bias, None, initial, True, activation="silu"
        )
        assert torch.equal(packed[:, :, begin : begin + n], alone)
        begin, initial = begin + n, torch.zeros_like(states)
    assert not packed[:, :, begin:].any()
    assert torch.equal(final, last_state)


@LAW
@given(call=st.builds(Call, seqlen=st.integers(1, 30), width=st.just(4), last=layouts, seed=st.integers(0, 99)))
def test_garbage_in_padding_reaches_nothing(call: Call) -> None:
    call = dataclasses.replace(call, packed=True, states=True)
    x, weight, bias, seq_idx, states = call.tensors()

    def run(x: torch.Tensor) -> list[torch.Tensor]:
        leaves = [t.detach().clone().requires_grad_() for t in (x, weight, bias, states)]
        out, final = causal_conv1d_fn(*leaves[:3], seq_idx, leaves[3], True, activation="silu")
        (out.square().sum() + final.sum()).backward()
        return [out.detach(), final.detach(), *(leaf.grad for leaf in leaves)]

    dirty = torch.where((seq_idx < 0)[:, None], torch.tensor(float("nan")), x)
    assert all(torch.equal(a, b) for a, b in zip(run(x), run(dirty), strict=True))


# --- bad input ------------------------------------------------------------------------------------

X, W4, B12 = torch.randn(2, 12, 20), torch.randn(12, 4), torch.randn(12)
SEQ = torch.zeros(2, 20, dtype=torch.int32)
BAD: list[tuple[str, dict[str, Any], type[Exception], str]] = [
    ("x 2-D", {"x": X[0]}, ShapeError, r"x must be 3-D \(batch, dim, seqlen\), got shape \(12, 20\)"),
    ("x 4-D", {"x": X[None]}, ShapeError, r"x must be 3-D .* got shape \(1, 2, 12, 20\)"),
    ("weight 3-D", {"weight": W4[:, None]}, ShapeError, r"weight must be \(dim, width\).*squeeze\(1\)"),
    ("weight dim", {"weight": W4[:5]}, ShapeError, "weight has dim 5, x has dim 12"),
    ("width 0", {"weight": W4[:, :0]}, LimitError, "weight has width 0"),
    ("width of a variant", {"weight": torch.randn(12, 9), "variant": "fwd_channel_last"}, LayoutError, "channel_first"),
    ("width 9", {"weight": torch.randn(12, 9), "variant": "fwd_shared_memory"}, LimitError, "width 9: .* takes 1 to 8"),
    ("bias length", {"bias": B12[:5]}, ShapeError, r"bias must have shape \(12,\), got \(5,\)"),
    ("bias 2-D", {"bias": B12[None]}, ShapeError, r"bias must have shape \(12,\), got \(1, 12\)"),
    ("x int", {"x": X.int()}, DtypeError, "x has dtype torch.int32; allowed: torch.float32"),
    ("x bool", {"x": X.bool()}, DtypeError, "x has dtype torch.bool"),
    ("x complex", {"x": X.cfloat()}, DtypeError, "x has dtype torch.complex64"),
    ("x fp8", {"x": X.to(torch.float8_e4m3fn)}, DtypeError, "x has dtype torch.float8_e4m3fn"),
    ("weight fp64", {"weight": W4.double(), "bias": None}, DtypeError, "weight has dtype torch.float64; allowed with"),
    ("weight int", {"weight": W4.int(), "bias": None}, DtypeError, "weight has dtype torch.int32"),
    ("bias dtype", {"bias": B12.half()}, DtypeError, "bias must have the dtype of weight, torch.float32, got"),
    ("x numpy", {"x": X.numpy()}, TypeError, "x must be a torch.Tensor, got ndarray"),
    ("x list", {"x": [1.0]}, TypeError, "x must be a torch.Tensor, got list"),
    ("x None", {"x": None}, TypeError, "x must be a torch.Tensor, got None"),
    ("weight None", {"weight": None}, TypeError, "weight must be a torch.Tensor, got None"),
    ("x sparse", {"x": X.to_sparse()}, TypeError, "x must be a dense tensor, got torch.sparse_coo"),
    ("x meta", {"x": X.to("meta")}, TypeError, "x is a meta tensor"),
    ("weight meta", {"weight": W4.to("meta")}, TypeError, "weight is a meta tensor"),
    ("activation gelu", {"activation": "gelu"}, ConfigError, "activation: 'gelu' is not known; allowed: None, 'silu'"),
    ("activation SiLU", {"activation": "SiLU"}, ConfigError, "activation: 'SiLU'"),
    ("activation True", {"activation": True}, ConfigError, "activation: True"),
    ("seq_idx int64", {"seq_idx": SEQ.long()}, DtypeError, r"seq_idx must be torch.int32, got torch.int64.*\.int\(\)"),
    (
        "seq_idx 1-D",
        {"seq_idx": SEQ[0]},
        ShapeError,
        r"seq_idx must have shape \(batch, seqlen\) = \(2, 20\), got \(20,\)",
    ),
    ("seq_idx short", {"seq_idx": SEQ[:, 1:]}, ShapeError, r"got \(2, 19\)"),
    ("states length", {"initial_states": X[:, :, :4]}, ShapeError, r"initial_states must have shape .* = \(2, 12, 3\)"),
    ("states batch", {"initial_states": X[:1, :, :3]}, ShapeError, r"got \(1, 12, 3\)"),
    ("states dtype", {"initial_states": X[:, :, :3].half()}, DtypeError, "initial_states must have the dtype of x"),
    (
        "final shape",
        {"return_final_states": True, "final_states_out": torch.empty(2, 12, 4)},
        ShapeError,
        r"final_states_out must have shape \(batch, dim, width - 1\)",
    ),
    (
        "final dtype",
        {"return_final_states": True, "final_states_out": torch.empty(2, 12, 3).half()},
        DtypeError,
        "final_states_out must have the dtype of x",
    ),
    (
        "final overlaps",
        {"return_final_states": True, "final_states_out": X[:, :, 4:7]},
        LayoutError,
        "final_states_out overlaps x",
    ),
    (
        "final expanded",
        {"return_final_states": True, "final_states_out": torch.empty(1, 12, 3).expand(2, 12, 3)},
        LayoutError,
        "final_states_out is expanded",
    ),
    (
        "final wants grad",
        {"return_final_states": True, "final_states_out": torch.empty(2, 12, 3, requires_grad=True)},
        ConfigError,
        "final_states_out requires grad",
    ),
    ("backend", {"backend": "nvidia"}, DeviceError, "backend nvidia: it takes tensors on cuda, x is on cpu"),
    ("backend name", {"backend": "cuda"}, ConfigError, "backend: 'cuda' is not known"),
    ("variant name", {"variant": "fwd_naiv"}, ConfigError, "did you mean 'fwd_naive'"),
    ("variant kind", {"variant": "torch_conv1d"}, ConfigError, "variant torch_conv1d: a baseline is not an operator"),
    ("variant layout", {"variant": "fwd_channel_last"}, LayoutError, "layout channel_first"),
    ("variant dtype", {"variant": "fwd_im2col_wmma"}, DtypeError, "dtype float32"),
]


@pytest.mark.parametrize(("changes", "error", "words"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_bad_input_is_refused_by_name(
    changes: dict[str, Any], error: type[Exception], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_launch(*arguments: object) -> None:
        raise AssertionError("launched")

    arguments = {"x": X, "weight": W4, "bias": B12} | changes
    with monkeypatch.context() as m:
        m.setattr(launch.Plan, "run", no_launch)
        with pytest.raises(error, match=words):
            causal_conv1d_fn(**arguments)
    causal_conv1d_fn(X, W4, B12)  # what comes after works


STATE = torch.zeros(2, 12, 3)
BAD_UPDATES: list[tuple[str, dict[str, Any], type[Exception], str]] = [
    ("x 1-D", {"x": X[0, 0]}, ShapeError, "x must be 3-D"),
    ("state None", {"conv_state": None}, TypeError, "conv_state must be a torch.Tensor, got None"),
    ("state 2-D", {"conv_state": STATE[0]}, ShapeError, r"conv_state must be \(entries, dim = 12, state_len\)"),
    ("state short", {"conv_state": STATE[:, :, :2]}, ShapeError, "conv_state must hold at least 3 steps .* got 2"),
    ("state dim", {"conv_state": STATE[:, :5]}, ShapeError, r"got shape \(2, 5, 3\)"),
    ("state batch", {"conv_state": STATE[:1]}, ShapeError, "conv_state has 1 entries, x has batch 2"),
    ("state dtype", {"conv_state": STATE.half()}, DtypeError, "conv_state must have the dtype of x"),
    ("state expanded", {"conv_state": STATE[:1].expand(2, 12, 3)}, LayoutError, "conv_state is expanded"),
    ("state wants grad", {"conv_state": STATE.clone().requires_grad_()}, ConfigError, "conv_state requires grad"),
    ("state overlaps", {"x": STATE[:, :, :1], "conv_state": STATE}, LayoutError, "conv_state overlaps x"),
    ("weight dim", {"weight": W4[:5]}, ShapeError, "weight has dim 5"),
    ("steps dtype", {"cache_seqlens": torch.zeros(2)}, DtypeError, "cache_seqlens must be torch.int32"),
    ("steps shape", {"cache_seqlens": torch.zeros(3).int()}, ShapeError, r"cache_seqlens must have shape \(batch,\)"),
    ("steps negative", {"cache_seqlens": torch.tensor([3, -1]).int()}, ValueError, "cache_seqlens .* negative, got -1"),
    ("rows dtype", {"conv_state_indices": torch.tensor([0, 1])}, DtypeError, "conv_state_indices must be torch.int32"),
    (
        "rows high",
        {"conv_state_indices": torch.tensor([0, 2]).int()},
        IndexError,
        r"conv_state_indices\[1\] is 2: .* 0 to 1",
    ),
    ("rows low", {"conv_state_indices": torch.tensor([-2, 0]).int()}, RangeError, r"conv_state_indices\[0\] is -2"),
    ("rows twice", {"conv_state_indices": torch.tensor([1, 1]).int()}, ValueError, "names entry 1 more than once"),
    ("activation", {"activation": "relu"}, ConfigError, "activation: 'relu'"),
    ("backend", {"backend": "amd"}, DeviceError, "backend amd"),
    ("variant", {"variant": "update_fast"}, ConfigError, "'update_fast' is not known"),
]


@pytest.mark.parametrize(("changes", "error", "words"), [b[1:] for b in BAD_UPDATES], ids=[b[0] for b in BAD_UPDATES])
@pytest.mark.parametrize("trained", [False, True], ids=["", "bias of a module"])
def test_bad_input_of_an_update_is_refused_by_name(
    trained: bool, changes: dict[str, Any], error: type[Exception], words: str
) -> None:
    arguments = {"x": X[:, :, :1], "conv_state": STATE, "weight": W4} | changes
    if trained:  # outside of no_grad too
        arguments |= {"bias": torch.nn.Parameter(B12)}
    before = STATE.clone()
    with pytest.raises(error, match=words):
        causal_conv1d_update(**arguments)
    assert torch.equal(STATE, before)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ((X, SEQ[0], 3), ShapeError, r"x must be 2-D"),
        ((X[0], SEQ, 3), ShapeError, "cu_seqlens must be 1-D"),
        ((X[0], SEQ[0].float(), 3), DtypeError, "cu_seqlens must be torch.int32 or torch.int64"),
        ((X[0], SEQ[0], -1), ConfigError, "state_len: -1"),
    ],
)
def test_bad_input_of_varlen_states_is_refused_by_name(arguments: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        causal_conv1d_varlen_states(*arguments)


def test_overlap_is_told_from_neighbours() -> None:
    whole = torch.zeros(4, 10, 6)
    assert overlap(whole, whole)
    assert overlap(whole[:, :6], whole[:, 4:])
    assert not overlap(whole[:, :5], whole[:, 5:])
    assert not overlap(whole[:, ::2], whole[:, 1::2])
    assert not overlap(whole[:, :, :3], whole[:, :, 3:])
    assert overlap(whole[:, :, :4], whole[:, :, 2:])
    assert not overlap(whole[:0], whole)
    assert not overlap(whole, torch.zeros(4, 10, 6))


# --- which variant --------------------------------------------------------------------------------


def test_explain_says_which_and_why_not_the_others() -> None:
    found = cc1d_lab.explain(X, W4, B12, activation="silu")
    assert "fwd_naive" in found.others
    assert "channel_first" in found.others["fwd_channel_last"]
    assert found.variant in str(found)
    assert all(name in str(found) for name in found.others)
    assert cc1d_lab.explain(X, torch.randn(12, 33)).variant == "fwd_naive"
    assert cc1d_lab.explain(X.transpose(1, 2).contiguous().transpose(1, 2), W4, op="bwd").variant == "bwd_persistent"
    assert cc1d_lab.explain(X, W4, variant="fwd_naive").reason == "it was asked for"
    with pytest.raises(LayoutError):
        cc1d_lab.explain(X, W4, variant="fwd_channel_last")


def test_a_measured_table_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC1D_TABLE", str(tmp_path / "table.json"))
    row = {"backend": "cpu", "arch": "wave32", "op": "fwd", "layout": "channel_first", "dtype": "float32", "width": 4}
    row |= {"status": "ok", "kind": "kernel", "batch": 2, "dim": 12, "seqlen": 20, "flags": ["noisy"]}
    rows = [
        row | {"variant": "fwd_shared_memory", "tunables": {}, "time_us_p50": 9.0},
        row | {"variant": "fwd_naive", "tunables": {"block": 64}, "time_us_p50": 3.0},
        row | {"variant": "fwd_shared_memory", "tunables": {}, "time_us_p50": 1.0, "seqlen": 2000},
        row | {"variant": "fwd_naive", "tunables": {}, "time_us_p50": 0.1, "status": "wrong"},
        row | {"variant": "fwd_shared_memory", "tunables": {}, "time_us_p50": 0.2, "flags": ["below_launch"]},
        row | {"variant": "fwd_shared_memory", "tunables": {}, "time_us_p50": 0.3, "toolchain": "-ffast-math"},
    ]
    assert choice.save_table(rows) == 2
    found = cc1d_lab.explain(X, W4)
    assert (found.variant, dict(found.tunables)) == ("fwd_naive", {"block": 64})
    assert "measured here: 3 us" in found.reason
    assert cc1d_lab.explain(X.repeat(1, 1, 90), W4).variant == "fwd_shared_memory"
    assert cc1d_lab.explain(X.half(), W4).reason.startswith("the first choice")
    (tmp_path / "table.json").write_text(json.dumps([{"variant": "fwd_naive"}]))
    with pytest.raises(cc1d_lab.errors.StoreError, match="not a table of variants"):
        cc1d_lab.explain(X, W4)


def test_a_table_of_plain_calls_decides_with_what_a_call_fixes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC1D_TABLE", str(tmp_path / "table.json"))
    entry = {"backend": "cpu", "arch": "wave32", "op": "fwd", "layout": "channel_last", "dtype": "bfloat16", "width": 4}
    entry |= {"variant": "fwd_raster", "tunables": {"block": 64, "resident": 512}, "outputs": 480, "time_us": 1.0}
    slower = entry | {"variant": "fwd_channel_last", "tunables": {}, "time_us": 2.0}
    (tmp_path / "table.json").write_text(json.dumps([slower, entry]))
    x = X.bfloat16().transpose(1, 2).contiguous().transpose(1, 2)
    found = cc1d_lab.explain(x, W4, seq_idx=torch.zeros(2, 20, dtype=torch.int32))
    assert (found.variant, found.tunables) == ("fwd_raster", {"block": 64, "steps": 8, "resident": 1024})
    assert cc1d_lab.explain(x, W4).tunables == {"block": 64, "resident": 512}


@pytest.mark.parametrize("tunables", [{"gone": 1}, {"block": 63}])
def test_an_entry_of_a_table_with_tunables_of_another_version_is_passed_over(
    tunables: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC1D_TABLE", str(tmp_path / "table.json"))
    entry = {"backend": "cpu", "arch": "wave32", "op": "fwd", "layout": "channel_first", "dtype": "float32", "width": 4}
    entry |= {"outputs": 480, "variant": "fwd_naive", "time_us": 1.0}
    old = entry | {"tunables": tunables, "time_us": 0.5}
    (tmp_path / "table.json").write_text(json.dumps([old, entry | {"tunables": {"block": 64}}]))
    assert cc1d_lab.explain(X, W4).tunables == {"block": 64}
    (tmp_path / "table.json").write_text(json.dumps([old]))
    assert cc1d_lab.explain(X, W4).reason.startswith("the first choice")


def test_a_table_that_changes_is_taken_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = tmp_path / "table.json"
    monkeypatch.setenv("CC1D_TABLE", str(table))
    entry = {"backend": "cpu", "arch": "wave32", "op": "fwd", "layout": "channel_first", "dtype": "float32", "width": 4}
    entry |= {"outputs": 480, "tunables": {}, "time_us": 1.0}

    def taken(x: torch.Tensor) -> list[str]:
        causal_conv1d_fn(x, W4)
        return [plan.choice.variant for plan in launch._plans.values()]

    launch.forget()
    assert taken(X) == ["fwd_register"]
    table.write_text(json.dumps([entry | {"variant": "fwd_naive"}]))  # as another process would
    with monkeypatch.context() as m:
        m.setattr(choice, "_table", None)
        assert taken(X) == ["fwd_register"], "a call of a known shape does not look"
    assert taken(X[:, :, 1:]) == ["fwd_naive"], "one of a new shape does, and what was planned before is dropped"
    assert taken(X) == ["fwd_naive", "fwd_naive"]
    row = entry | {
        "status": "ok",
        "kind": "kernel",
        "batch": 2,
        "dim": 12,
        "seqlen": 20,
        "time_us_p50": 2.0,
        "flags": [],
    }
    choice.save_table([row | {"variant": "fwd_shared_memory"}])
    assert taken(X) == ["fwd_shared_memory"]
    launch.forget()


def test_plans_are_kept_and_forgotten() -> None:
    launch.forget()
    causal_conv1d_fn(X, W4)
    causal_conv1d_fn(X.clone(), W4)
    assert len(launch._plans) == 1
    causal_conv1d_fn(X[:, :, 1:], W4)
    assert len(launch._plans) == 2
    launch.forget()
    assert not launch._plans

"""What is right: input tensors, the float64 oracle, F.conv1d, the error bound, and how far an output is from them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F

from .case import Case

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "float64": torch.float64}
UNIT_ROUNDOFF = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8, "float64": 2.0**-53}
SMALLEST_SUBNORMAL = {"float32": 2.0**-149, "float16": 2.0**-24, "bfloat16": 2.0**-133, "float64": 2.0**-1074}
SMALLEST_NORMAL_EXPONENT = {"float32": -126, "float16": -14, "bfloat16": -126}
# What the field's tests allow: (rtol, atol). Logged beside our verdict, never the verdict.
FIELD_TOLERANCE = {"float32": (3e-4, 1e-3), "float16": (3e-3, 5e-3), "bfloat16": (1e-2, 5e-2)}
# What S3 allows for the gradients in fp32, absolute: (without SiLU, with it).
S3_TOLERANCE = {"dx": (1e-3, 5e-2), "dweight": (1e-2, 5e-2), "dbias": (1e-2, 5e-2)}
GUARD = 128  # elements before and after a tensor in its buffer; keeps 16-byte alignment in every dtype


@dataclass(frozen=True)
class Inputs:
    """x (batch, dim, seqlen) as a view of `x_buffer`; weight (dim, width); bias (dim) or None.

    `more`: the other inputs of the op by name: seq_idx, initial_states, dout, dfinal_states, and the conv_state that an
    update begins with.
    """

    x: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None
    x_buffer: torch.Tensor
    more: Mapping[str, torch.Tensor] = field(default_factory=dict)


Outputs = dict[str, torch.Tensor]  # what a launch writes, by name


def empty_view(case: Case, device: str, like: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """A (batch, dim, seqlen) view with the layout and view of the case, and the flat buffer that it lies in.

    Every byte of the buffer is 0xff, which is a NaN in each dtype: what is not written shows, and so does what is
    written outside the view.
    """
    sizes = {"dim": case.row_stride or case.dim, "seqlen": case.seqlen}
    starts = {"dim": 0, "seqlen": 0}
    if case.view in ("channel_slice", "sliced_input"):
        sizes["dim"] = max(sizes["dim"], case.dim + 24)
        starts["dim"] = 8
    if case.view == "misaligned":
        contiguous = "seqlen" if case.layout == "channel_first" else "dim"
        sizes[contiguous] += 1
        starts[contiguous] += 1
    n = case.batch * sizes["dim"] * sizes["seqlen"]
    itemsize = torch.empty(0, dtype=like).element_size()
    buffer = torch.full(((n + 2 * GUARD) * itemsize,), 0xFF, dtype=torch.uint8, device=device).view(like)
    block = buffer[GUARD : GUARD + n]
    outer, inner = ("dim", "seqlen") if case.layout == "channel_first" else ("seqlen", "dim")
    if case.view == "batch_second":
        whole = block.view(sizes[outer], case.batch, sizes[inner]).transpose(0, 1)
    else:
        whole = block.view(case.batch, sizes[outer], sizes[inner])
    if case.layout == "channel_last":
        whole = whole.transpose(1, 2)
    return whole.narrow(1, starts["dim"], case.dim).narrow(2, starts["seqlen"], case.seqlen), buffer


def beside(case: Case) -> Case:
    """The case in whose view out, dout and dx lie: that of x, but contiguous beside a sliced input."""
    return replace(case, view="contiguous", row_stride=0) if case.view == "sliced_input" else case


def make_inputs(case: Case, device: str = "cpu", kind: str = "normal", drawn_on: str = "cpu") -> Inputs:
    """Inputs from the case's seed. `kind`: `normal`, or `integers` for the exact probe.

    The same on every device if `drawn_on` the CPU; where that does not matter, a GPU draws its own sooner.
    """
    values = _integers(case, device) if kind == "integers" else _normal(case, drawn_on)
    x, buffer = empty_view(case, device, DTYPES[case.dtype])
    x.copy_(values[0])
    weight = values[1].to(device, DTYPES[case.weight_dtype])
    bias = values[2].to(device, DTYPES[case.weight_dtype]) if case.bias else None
    return Inputs(x, weight, bias, buffer, _more_inputs(case, device, kind == "integers", drawn_on))


def channels_of(case: Case, inputs: Inputs, first: int, count: int) -> tuple[Case, Inputs]:
    """The case and the inputs (views) of `count` channels from `first` on, or of as many as there are."""
    some = slice(first, min(first + count, case.dim))
    more = {name: tensor[:, some] if tensor.dim() == 3 else tensor for name, tensor in inputs.more.items()}
    bias = None if inputs.bias is None else inputs.bias[some]
    part = replace(case, dim=some.stop - first, view="contiguous", row_stride=0)
    return part, Inputs(inputs.x[:, some], inputs.weight[some], bias, inputs.x_buffer, more)


def _more_inputs(case: Case, device: str, integers: bool, drawn_on: str) -> dict[str, torch.Tensor]:
    g = torch.Generator(drawn_on).manual_seed(case.seed + 1)
    whole, states = (case.batch, case.dim, case.seqlen), (case.batch, case.dim, case.state_steps)

    def values(shape: tuple[int, ...]) -> torch.Tensor:
        # Of a gradient -1, 0 or 1: sums of products with x stay exact.
        if integers:
            made = torch.randint(-1, 2, shape, generator=g, device=drawn_on).float()
        else:
            made = torch.randn(shape, generator=g, device=drawn_on)
        return made.to(device, DTYPES[case.dtype])

    found: dict[str, torch.Tensor] = {}
    if case.op == "bwd":
        found["dout"] = empty_view(beside(case), device, DTYPES[case.dtype])[0].copy_(values(whole))
    if case.states:
        found["initial_states"] = values(states)
    if case.states and case.op == "bwd":
        found["dfinal_states"] = values(states)
    if case.op == "update":
        found["conv_state"] = values(states)
    if case.seq_idx:
        found["seq_idx"] = _packed(case, g).to(device)
    return found


def _packed(case: Case, g: torch.Generator) -> torch.Tensor:
    """seq_idx (batch, seqlen): cuts about every 16 steps, some closer than the width; the end of row 0 is padding."""
    seq_idx = (torch.rand(case.batch, case.seqlen, generator=g, device=g.device) < 1 / 16).cumsum(1).int()
    seq_idx[0, case.seqlen - case.seqlen // 8 :] = -1
    return seq_idx


def make_outputs(case: Case, inputs: Inputs) -> tuple[Outputs, dict[str, torch.Tensor]]:
    """What the op writes, and the buffer that each output lies in. Poisoned, but for the state that is moved on."""
    device, dtype, weight_dtype = inputs.x.device.type, inputs.x.dtype, inputs.weight.dtype
    states = (case.batch, case.dim, case.state_steps)
    made: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    if case.op == "bwd":
        made["dx"] = empty_view(beside(case), device, dtype)
        made["dweight"] = _guarded(device, weight_dtype, (case.dim, case.width))
        if case.bias:
            made["dbias"] = _guarded(device, weight_dtype, (case.dim,))
        if case.states:
            made["dinitial_states"] = _guarded(device, dtype, states)
    else:
        made["out"] = empty_view(beside(case), device, dtype)
        if case.states:
            made["final_states"] = _guarded(device, dtype, states)
        if case.op == "update":
            made["conv_state"] = _guarded(device, dtype, states)
            made["conv_state"][0].copy_(inputs.more["conv_state"])
    return {name: view for name, (view, _) in made.items()}, {name: buffer for name, (_, buffer) in made.items()}


def _guarded(device: str, dtype: torch.dtype, shape: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    n = math.prod(shape)
    itemsize = torch.empty(0, dtype=dtype).element_size()
    buffer = torch.full(((n + 2 * GUARD) * itemsize,), 0xFF, dtype=torch.uint8, device=device).view(dtype)
    return buffer[GUARD : GUARD + n].view(shape), buffer


def torch_outputs(case: Case, inputs: Inputs) -> Outputs:
    """What F.conv1d, autograd through it, or a step with it gives, by the names of the outputs; without states."""
    if case.op == "bwd":
        return torch_backward(case, inputs)()
    if case.op == "fwd":
        return {"out": torch_conv1d(case, inputs)}
    steps = torch.cat([inputs.more["conv_state"], inputs.x], dim=2)
    bias = None if inputs.bias is None else inputs.bias.to(inputs.x.dtype)
    seen = steps[:, :, case.state_steps - (case.width - 1) :]
    y = F.conv1d(seen, inputs.weight.to(inputs.x.dtype).unsqueeze(1), bias, groups=case.dim)
    return {"out": F.silu(y) if case.activation == "silu" else y, "conv_state": steps[:, :, case.seqlen :]}


def torch_backward(case: Case, inputs: Inputs) -> Callable[[], Outputs]:
    """Runs F.conv1d forward, and returns what runs its backward alone: what autograd calls, operator by operator.

    Autograd itself works on the stream of the forward, which no CUDA graph can take, and adds its host time.
    """
    x, dout = inputs.x, inputs.more["dout"]
    weight = inputs.weight.to(x.dtype).unsqueeze(1)
    bias = None if inputs.bias is None else inputs.bias.to(x.dtype)
    full = F.conv1d(x, weight, bias, padding=case.width - 1, groups=case.dim)
    y = full[..., : case.seqlen]
    aten, wanted = torch.ops.aten, [True, True, case.bias]
    given = ([1], [case.width - 1], [1], False, [0], case.dim, wanted)  # strides, padding, dilation, transposed ...

    def run() -> Outputs:
        g = aten.silu_backward(dout, y) if case.activation == "silu" else dout
        g = aten.slice_backward(g, full.shape, 2, 0, case.seqlen, 1)
        dx, dweight, dbias = aten.convolution_backward(g, x, weight, [case.dim] if case.bias else None, *given)
        found = {"dx": dx, "dweight": dweight.squeeze(1).to(inputs.weight.dtype)}
        return found | ({"dbias": dbias.to(inputs.weight.dtype)} if case.bias else {})

    return run


def _normal(case: Case, device: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator(device).manual_seed(case.seed)
    x = torch.randn(case.batch, case.dim, case.seqlen, generator=g, device=device)
    weight = torch.randn(case.dim, case.width, generator=g, device=device) * case.width**-0.5
    return x, weight, torch.randn(case.dim, generator=g, device=device) * 0.5


def _integers(case: Case, device: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Small integers that differ from place to place: every partial sum is exact in every dtype, so the result is `==`.

    At most 7 taps are not 0, so that sums stay below 31 * 7 + 31 = 248, which bfloat16 holds exactly.
    """
    b, d, t = (torch.arange(n, dtype=torch.int32, device=device) for n in (case.batch, case.dim, case.seqlen))
    x = (7 * t + 13 * d[:, None] + 5 * b[:, None, None]) % 63 - 31
    w = torch.arange(case.width, device=device)
    spread = torch.zeros(case.width, dtype=torch.bool, device=device)
    spread[torch.linspace(0, case.width - 1, min(case.width, 7)).round().long()] = True
    weight = torch.where(spread, (w + d[:, None] + case.seed) % 3 - 1, 0)
    return x.float(), weight.float(), ((11 * d) % 63 - 31).float()


@dataclass(frozen=True)
class Oracle:
    """The float64 result and the largest error that a correct kernel may make, at each element (batch, dim, seqlen)."""

    y: torch.Tensor
    bound: torch.Tensor


def oracle(case: Case, inputs: Inputs, activation: str | None = None) -> Oracle:
    """Shifted sums in float64, and the bound

        |err| <= 1.1 (width + 2) 2^-24 (|bias| + sum |weight| |x|) + u |y| (1 + 2^-6) [+ 8 * 2^-24 |y| with SiLU] + tiny

    with u the unit roundoff of the output type and tiny its smallest subnormal: one rounding of fp32 for each product
    and sum in any order (Higham, Accuracy and Stability, 3.1; 1.1 is the largest slope of SiLU), then one on store.
    """
    activation = case.activation if activation is None else activation
    x, weight = inputs.x.double(), inputs.weight.double()
    bias = torch.zeros(case.dim, dtype=torch.float64, device=x.device) if inputs.bias is None else inputs.bias.double()
    padded = F.pad(x, (case.width - 1, 0))
    y = bias[None, :, None].expand_as(x).clone()
    magnitude = y.abs()
    for w in range(case.width):
        term = weight[None, :, w, None] * padded[:, :, w : w + case.seqlen]
        y += term
        magnitude += term.abs()
    bound = 1.1 * (case.width + 2) * 2.0**-24 * magnitude
    if activation == "silu":
        y = F.silu(y)
    relative = UNIT_ROUNDOFF[case.dtype] * (1 + 2.0**-6) + (8 * 2.0**-24 if activation == "silu" else 0.0)
    return Oracle(y, bound + relative * y.abs() + SMALLEST_SUBNORMAL[case.dtype])


def torch_conv1d(case: Case, inputs: Inputs) -> torch.Tensor:
    """F.conv1d with groups=dim in the dtype of x, cut to seqlen, then the activation: (batch, dim, seqlen)."""
    weight = inputs.weight.to(inputs.x.dtype).unsqueeze(1)
    bias = None if inputs.bias is None else inputs.bias.to(inputs.x.dtype)
    y = F.conv1d(inputs.x, weight, bias, padding=case.width - 1, groups=case.dim)[..., : case.seqlen]
    return F.silu(y) if case.activation == "silu" else y


def errors(case: Case, out: torch.Tensor, truth: Oracle, name: str = "out") -> dict[str, Any]:
    """How far one output is from the oracle: the error columns of a row, by name. NaN counts as bad."""
    dtype = str(out.dtype).removeprefix("torch.")
    y = truth.y
    err = out.double() - y
    size = err.abs()
    bad = ~(size <= truth.bound)
    ulp_error = err / _ulp(dtype, y)
    relative = torch.where(y != 0, size / y.abs(), 0.0)
    n_bad = int(bad.sum())
    return {
        "max_abs_err": float(size.max()) if size.numel() else 0.0,
        "max_rel_err": float(relative.max()) if relative.numel() else 0.0,
        "bound_ratio": float((size / truth.bound).max()) if size.numel() else 0.0,
        "ulp_mean": float(ulp_error.mean()) if size.numel() else 0.0,
        "ulp_rms": float(ulp_error.square().mean().sqrt()) if size.numel() else 0.0,
        "share_rounded": float((out == y.to(out.dtype)).double().mean()) if size.numel() else 1.0,
        "n_bad": n_bad,
        "first_bad": [int(i) for i in bad.nonzero()[0]] if n_bad else None,
        "n_outside_tolerance": int((~(size <= _tolerance(case, name, dtype, y))).sum()),
    }


def _tolerance(case: Case, name: str, dtype: str, y: torch.Tensor) -> torch.Tensor:
    """What is published for this output: S3's for gradients in fp32, else the field's."""
    if name in S3_TOLERANCE and dtype == "float32":
        return torch.full_like(y, S3_TOLERANCE[name][case.activation == "silu"])
    rtol, atol = FIELD_TOLERANCE[dtype]
    return atol + rtol * y.abs()


def all_errors(case: Case, outputs: Outputs, truths: Mapping[str, Oracle]) -> dict[str, Any]:
    """The error columns of a row: the worst of all outputs, and in `output_errors` those of each, by name."""
    each = {name: errors(case, outputs[name], truth, name) for name, truth in truths.items()}
    main = next(iter(each.values()))
    worst = ("max_abs_err", "max_rel_err", "bound_ratio")
    first = next((e["first_bad"] for e in each.values() if e["n_bad"]), None)
    kept = ("max_abs_err", "bound_ratio", "n_bad", "n_outside_tolerance")
    return {
        **{k: v for k, v in main.items() if k != "n_outside_tolerance"},
        **{k: max((e[k] for e in each.values()), key=lambda v: (math.isnan(v), v)) for k in worst},  # a NaN is worst
        "n_bad": sum(e["n_bad"] for e in each.values()),
        "first_bad": first,
        "field_tolerance": not any(e["n_outside_tolerance"] for e in each.values()),
        "output_errors": {n: {k: e[k] for k in kept} for n, e in each.items()} if len(each) > 1 else None,
    }


def _ulp(dtype: str, y: torch.Tensor) -> torch.Tensor:
    """Distance between neighbours of the output type at |y|, float64."""
    exponent = torch.frexp(y)[1] - 1
    exponent = exponent.clamp(min=SMALLEST_NORMAL_EXPONENT[dtype])
    return torch.ldexp(torch.full_like(y, 2.0 * UNIT_ROUNDOFF[dtype]), exponent)

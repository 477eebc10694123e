"""What each output of an op must be: float64 values, and the largest error that a correct kernel may make in each.

u = 2^-24 is the rounding of fp32, u_out that of an output's type; `tiny` its smallest subnormal. With
m = |bias| + sum |weight| |x|, the magnitude behind a pre-activation s:

    out      1.1 (width + 2) u m [SiLU: + 8 u |out|]                           + u_out |out| (1 + 2^-6) + tiny
    g        |dout| (0.55 (width + 2) u m + 16 u sigmoid(s) (1 + |s|))         with SiLU, else 0: of dout act'(s)
    dx       sum |weight| err(g) + (width + 2) u sum |weight| |g|              + u_out |dx| (1 + 2^-6) + tiny
    dweight  sum |x| err(g) + (n + 2) u sum |x| |g|,  n = batch x seqlen       + u_out |dweight| (1 + 2^-6) + tiny

dbias is dweight with x = 1, dinitial_states is dx at steps below 0, and a gradient through the final state is one more
term. One rounding for each product and sum in any order (Higham, Accuracy and Stability, 3.1); 1.1 is the largest slope
of SiLU and 0.5 that of its derivative. States are copies: exact.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from .case import Case
from .reference import SMALLEST_SUBNORMAL, UNIT_ROUNDOFF, Inputs, Oracle, channels_of, oracle

U32 = 2.0**-24
AT_ONCE = 2**27  # outputs whose intermediate results are in memory together, over ten tensors of 8 bytes each


def truths(case: Case, inputs: Inputs) -> dict[str, Oracle]:
    """The oracle of every output of the case, by name."""
    channels = max(1, AT_ONCE // (case.batch * case.seqlen))
    if case.dim <= channels:
        return _truths(case, inputs)
    parts = [channels_of(case, inputs, first, channels) for first in range(0, case.dim, channels)]
    found = [_truths(*part) for part in parts]
    return {name: _together([part.pop(name) for part in found]) for name in list(found[0])}


def _together(parts: list[Oracle]) -> Oracle:
    dim = 1 if parts[0].y.dim() == 3 else 0
    return Oracle(torch.cat([part.y for part in parts], dim), torch.cat([part.bound for part in parts], dim))


def _truths(case: Case, inputs: Inputs) -> dict[str, Oracle]:
    if case.op == "fwd" and not case.states and not case.seq_idx:
        return {"out": oracle(case, inputs)}
    seen = _look(case, inputs)
    if case.op == "bwd":
        return _gradients(case, inputs, seen)
    found = {"out": _outputs(case, seen)}
    if case.op == "update":
        both = torch.cat([inputs.more["conv_state"].double(), inputs.x.double()], dim=2)
        found["conv_state"] = _exact(case, both[:, :, case.seqlen :])
    elif case.states:
        found["final_states"] = _exact(case, _last_steps(case, inputs, seen))
    return found


@dataclass(frozen=True)
class _Seen:
    """What each step sees. `steps` (batch, dim, width - 1 + seqlen) begins with the state; masks (batch, 1, seqlen)."""

    steps: torch.Tensor
    masks: list[torch.Tensor]
    padding: torch.Tensor
    total: torch.Tensor
    magnitude: torch.Tensor


def _look(case: Case, inputs: Inputs) -> _Seen:
    x, weight, more = inputs.x.double(), inputs.weight.double(), inputs.more
    before = more.get("conv_state" if case.op == "update" else "initial_states")
    before = x.new_zeros(case.batch, case.dim, case.width - 1) if before is None else before.double()
    before = before[:, :, before.shape[2] - (case.width - 1) :]
    steps = torch.cat([before, x], dim=2)
    sequence = _sequence(case, inputs)
    masks = [(sequence[:, w : w + case.seqlen] == sequence[:, case.width - 1 :])[:, None] for w in range(case.width)]
    total = torch.zeros_like(x) if inputs.bias is None else inputs.bias.double()[:, None].expand_as(x).clone()
    magnitude = total.abs()
    for w, mask in enumerate(masks):
        term = weight[:, w, None] * _where(mask, steps[:, :, w : w + case.seqlen])
        total += term
        magnitude += term.abs()
    seq_idx = more.get("seq_idx")
    padding = torch.zeros_like(masks[0]) if seq_idx is None else (seq_idx < 0)[:, None]
    return _Seen(steps, masks, padding, total, magnitude)


def _where(mask: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Values where the mask is set, else 0: a choice, not a product, so that a NaN stays where it is not seen."""
    return torch.where(mask, values, torch.zeros((), dtype=values.dtype, device=values.device))


def _sequence(case: Case, inputs: Inputs) -> torch.Tensor:
    """Number of the sequence of each step, those of the state first: (batch, width - 1 + seqlen)."""
    seq_idx = inputs.more.get("seq_idx")
    if seq_idx is None:
        shape = (case.batch, case.width - 1 + case.seqlen)
        return torch.zeros(shape, dtype=torch.long, device=inputs.x.device)
    return F.pad((seq_idx[:, 1:] != seq_idx[:, :-1]).long().cumsum(1), (case.width, 0))


def _outputs(case: Case, seen: _Seen) -> Oracle:
    silu = case.activation == "silu"
    y = F.silu(seen.total) if silu else seen.total
    bound = 1.1 * (case.width + 2) * U32 * seen.magnitude + (8 * U32 * y.abs() if silu else 0.0)
    return _stored(case.dtype, _where(~seen.padding, y), _where(~seen.padding, bound))


def _stored(dtype: str, y: torch.Tensor, bound: torch.Tensor) -> Oracle:
    """The oracle of a value that is rounded once to `dtype` on store."""
    return Oracle(y, bound + UNIT_ROUNDOFF[dtype] * (1 + 2.0**-6) * y.abs() + SMALLEST_SUBNORMAL[dtype])


def _exact(case: Case, y: torch.Tensor) -> Oracle:
    return Oracle(y, torch.full_like(y, SMALLEST_SUBNORMAL[case.dtype] / 2))


def _tail(case: Case, inputs: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
    """Where in `steps` the final state is taken from, and whether it is: (batch, width - 1) each."""
    device, seq_idx = inputs.x.device, inputs.more.get("seq_idx")
    number = torch.arange(1, case.seqlen + 1, device=device)
    end = torch.full((case.batch,), case.seqlen, device=device)
    if seq_idx is not None:
        end = torch.where(seq_idx >= 0, number, 0).amax(1)
    places = end[:, None] + torch.arange(case.width - 1, device=device)
    sequence = _sequence(case, inputs)
    last = sequence.gather(1, (end + case.width - 2).clamp(min=0)[:, None])
    return places, (sequence.gather(1, places) == last) & (end > 0)[:, None]


def _last_steps(case: Case, inputs: Inputs, seen: _Seen) -> torch.Tensor:
    places, kept = _tail(case, inputs)
    taken = seen.steps.gather(2, places[:, None].expand(case.batch, case.dim, case.width - 1))
    return _where(kept[:, None], taken)


def _gradients(case: Case, inputs: Inputs, seen: _Seen) -> dict[str, Oracle]:
    weight, dout = inputs.weight.double(), inputs.more["dout"].double()
    g, err = dout, torch.zeros_like(dout)
    if case.activation == "silu":
        s = torch.sigmoid(seen.total)
        g = dout * s * (1 + seen.total * (1 - s))
        err = 0.55 * (case.width + 2) * U32 * seen.magnitude + 16 * U32 * s * (1 + seen.total.abs())
        err = dout.abs() * err
    g, err = _where(~seen.padding, g), _where(~seen.padding, err)
    dsteps, size, dsteps_err = (torch.zeros_like(seen.steps) for _ in range(3))
    dweight, dweight_bound = torch.zeros_like(weight), torch.zeros_like(weight)
    n = case.batch * case.seqlen
    for w, mask in enumerate(seen.masks):
        window, column = slice(w, w + case.seqlen), weight[:, w, None]
        dsteps[:, :, window] += _where(mask, column * g)
        size[:, :, window] += _where(mask, (column * g).abs())
        dsteps_err[:, :, window] += _where(mask, column.abs() * err)
        x = _where(mask & ~seen.padding, seen.steps[:, :, window])
        dweight[:, w] = (x * g).sum((0, 2))
        dweight_bound[:, w] = (x.abs() * err + (n + 2) * U32 * (x * g).abs()).sum((0, 2))
    if case.states:
        places, kept = _tail(case, inputs)
        through = _where(kept[:, None], inputs.more["dfinal_states"].double())
        index = places[:, None].expand_as(through)
        dsteps.scatter_add_(2, index, through)
        size.scatter_add_(2, index, through.abs())
    bound = dsteps_err + (case.width + 2) * U32 * size
    start = case.width - 1
    found = {
        "dx": _stored(case.dtype, dsteps[:, :, start:], bound[:, :, start:]),
        "dweight": _stored(case.weight_dtype, dweight, dweight_bound),
    }
    if case.bias:
        dbias_bound = (err + (n + 2) * U32 * g.abs()).sum((0, 2))
        found["dbias"] = _stored(case.weight_dtype, g.sum((0, 2)), dbias_bound)
    if case.states:
        found["dinitial_states"] = _stored(case.dtype, dsteps[:, :, :start], bound[:, :, :start])
    return found

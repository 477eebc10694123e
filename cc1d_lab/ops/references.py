"""The same functions in plain torch: any device and float dtype, float64 too, differentiable. Slow, and short to read.

Sums are taken in float32, or in float64 when x is.
"""

from __future__ import annotations

import itertools
from typing import TypeAlias

import torch
import torch.nn.functional as F

from .arguments import is_silu

Result: TypeAlias = torch.Tensor | tuple[torch.Tensor, torch.Tensor]


def causal_conv1d_fn_ref(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    seq_idx: torch.Tensor | None = None,
    initial_states: torch.Tensor | None = None,
    return_final_states: bool = False,
    final_states_out: torch.Tensor | None = None,
    activation: str | None = None,
) -> Result:
    """What causal_conv1d_fn gives: out (batch, dim, seqlen), and with return_final_states (out, final_states)."""
    silu, width, seqlen = is_silu(activation), weight.shape[1], x.shape[2]
    wide = torch.promote_types(x.dtype, torch.float32)
    before = x.new_zeros(*x.shape[:2], width - 1) if initial_states is None else initial_states
    steps = torch.cat([before, x], dim=2)  # step t stands at t + width - 1
    sequence = _sequence_of_each_step(x, seq_idx, width)
    total = torch.zeros_like(x, dtype=wide)
    total = total if bias is None else total + bias.to(wide)[:, None]
    for w in range(width):
        seen = (sequence[:, w : w + seqlen] == sequence[:, width - 1 :])[:, None]
        taken = steps[:, :, w : w + seqlen].to(wide)
        total = total + weight[:, w, None].to(wide) * torch.where(seen, taken, torch.zeros_like(taken))
    out = F.silu(total) if silu else total
    if seq_idx is not None:
        out = torch.where((seq_idx < 0)[:, None], torch.zeros_like(out), out)
    out = out.to(x.dtype)
    if not return_final_states:
        return out
    final_states = _last_steps(steps, sequence, seq_idx, width)
    if final_states_out is not None:
        final_states = final_states_out.copy_(final_states)
    return out, final_states


def _sequence_of_each_step(x: torch.Tensor, seq_idx: torch.Tensor | None, width: int) -> torch.Tensor:
    """(batch, width - 1 + seqlen): a number for each sequence. The initial state belongs to the first."""
    batch, _, seqlen = x.shape
    if seq_idx is None or seqlen == 0:
        return torch.zeros(batch, width - 1 + seqlen, dtype=torch.long, device=x.device)
    starts = (seq_idx[:, 1:] != seq_idx[:, :-1]).long()
    return F.pad(starts.cumsum(1), (width, 0))


def _last_steps(steps: torch.Tensor, sequence: torch.Tensor, seq_idx: torch.Tensor | None, width: int) -> torch.Tensor:
    """(batch, dim, width - 1): the last steps of the last sequence that is not padding, 0 before its start."""
    batch, dim, length = steps.shape
    if seq_idx is None or seq_idx.shape[1] == 0:
        return steps[:, :, length - (width - 1) :].clone()
    number = torch.arange(1, seq_idx.shape[1] + 1, device=steps.device)
    end = torch.where(seq_idx >= 0, number, 0).amax(1)  # 0: nothing but padding
    places = end[:, None] + torch.arange(width - 1, device=steps.device)  # in `steps`
    last = sequence.gather(1, (end + width - 2).clamp(min=0)[:, None])
    kept = (sequence.gather(1, places) == last) & (end > 0)[:, None]
    taken = steps.gather(2, places[:, None].expand(batch, dim, width - 1))
    return torch.where(kept[:, None], taken, torch.zeros_like(taken))


def causal_conv1d_ref(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    initial_states: torch.Tensor | None = None,
    return_final_states: bool = False,
    final_states_out: torch.Tensor | None = None,
    activation: str | None = None,
) -> Result:
    """causal_conv1d_fn_ref with the argument order of Dao-AILab's reference, which has no seq_idx."""
    return causal_conv1d_fn_ref(
        x, weight, bias, None, initial_states, return_final_states, final_states_out, activation
    )


def causal_conv1d_update_ref(
    x: torch.Tensor,
    conv_state: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    activation: str | None = None,
    cache_seqlens: torch.Tensor | None = None,
    conv_state_indices: torch.Tensor | None = None,
) -> torch.Tensor:
    """What causal_conv1d_update gives and does: out with the shape of x; conv_state moved on in place."""
    if x.dim() == 2:
        return causal_conv1d_update_ref(
            x[..., None], conv_state, weight, bias, activation, cache_seqlens, conv_state_indices
        )[..., 0]
    out = torch.zeros_like(x)
    for b in range(x.shape[0]):
        row = b if conv_state_indices is None else int(conv_state_indices[b])
        if row >= 0:
            steps = None if cache_seqlens is None else int(cache_seqlens[b])
            out[b] = _update_one(x[b], conv_state[row], weight, bias, activation, steps)
    return out


def _update_one(
    x: torch.Tensor,
    state: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    activation: str | None,
    steps: int | None,
) -> torch.Tensor:
    """One batch element: x (dim, seqlen), state (dim, state_len). `steps`: how many a ring has seen; None: linear."""
    width, state_len, seqlen = weight.shape[1], state.shape[1], x.shape[1]
    if steps is None:
        before = state[:, state_len - (width - 1) :]
    else:
        before = state[:, [(steps - (width - 1) + i) % state_len for i in range(width - 1)]]
    out = causal_conv1d_fn_ref(x[None], weight, bias, initial_states=before[None].clone(), activation=activation)
    if steps is None:
        state.copy_(torch.cat([state, x], dim=1)[:, seqlen:])
    else:
        for t in range(seqlen):
            state[:, (steps + t) % state_len] = x[:, t]
    assert isinstance(out, torch.Tensor)
    return out[0]


def causal_conv1d_varlen_states_ref(x: torch.Tensor, cu_seqlens: torch.Tensor, state_len: int) -> torch.Tensor:
    """What causal_conv1d_varlen_states gives: (batch, dim, state_len), by a loop over the sequences."""
    bounds = [int(c) for c in cu_seqlens]
    states = x.new_zeros(len(bounds) - 1, x.shape[1], state_len)
    for i, (begin, end) in enumerate(itertools.pairwise(bounds)):
        n = min(state_len, end - begin)
        states[i, :, state_len - n :] = x[end - n : end].T
    return states

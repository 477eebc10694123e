"""causal_conv1d_fn, causal_conv1d_update and causal_conv1d_varlen_states: names, order, defaults and effects of
Dao-AILab's package, on any variant and backend.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch._C._functorch import peek_interpreter_stack

from ..errors import ConfigError, DtypeError, ShapeError
from . import launch, operators
from .arguments import (
    check_forward,
    check_in_place,
    check_rows,
    check_states,
    check_update,
    is_silu,
)

_PLAIN = (torch.Tensor, torch.nn.Parameter)
_modes = torch._C._len_torch_dispatch_stack
_functions = torch._C._len_torch_function_stack
_any_autocast = torch._C._is_any_autocast_enabled


def _is_plain(x: Tensor, weight: Tensor, *others: Tensor | None) -> bool:
    """Whether eager execution of these tensors is watched by nothing: then the dispatcher has nothing to add."""
    if _modes() or _functions() or peek_interpreter_stack() is not None:
        return False
    if type(x) not in _PLAIN or type(weight) not in _PLAIN:
        return False
    for tensor in others:  # noqa: SIM110  a generator would cost as much as all the rest
        if tensor is not None and type(tensor) not in _PLAIN:
            return False
    return True


def causal_conv1d_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    seq_idx: Tensor | None = None,
    initial_states: Tensor | None = None,
    return_final_states: bool = False,
    final_states_out: Tensor | None = None,
    activation: str | None = None,
    *,
    variant: str = "auto",
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Causal depthwise convolution of x along its last dimension.

    x: (batch, dim, seqlen), float32, float16 or bfloat16 (on the CPU float64 too), any strides. weight: (dim, width),
    bias: (dim) or None, in any of these dtypes. seq_idx: (batch, seqlen) int32; where it differs from the step before,
    a new sequence begins, and where it is negative, out is 0. initial_states: (batch, dim, width - 1), the steps before
    the sequence of seq_idx[:, 0]. activation: None, "silu" or "swish". variant: "auto", a name of `cc1d list variants`,
    or a forward and a backward as "fwd_...+bwd_...". backend: "auto", or the one that x must be for.

    Returns out, with the shape, dtype and order of dimensions in memory of x; with return_final_states
    (out, final_states), the last width - 1 steps of the last sequence, written to final_states_out when that is given.
    Differentiable once, in x, weight, bias and initial_states, through both results. Under autocast, as F.conv1d.
    Raises ShapeError, DtypeError, DeviceError, LimitError, LayoutError or ConfigError (of ValueError, TypeError and
    RuntimeError) naming the argument, or TypeError for what is not a tensor.
    """
    silu = False if activation is None else is_silu(activation)
    compiling = torch.compiler.is_compiling()
    if (compiling or _any_autocast()) and torch.is_autocast_enabled(x.device.type):
        x, weight, bias, initial_states = _autocast(x, weight, bias, initial_states)
    if final_states_out is not None:
        if not return_final_states:
            final_states_out = None
        else:
            check_forward(x, weight, bias, seq_idx, initial_states)
            _check_final_states_out(final_states_out, x, weight, bias, initial_states)
    arguments = (x, weight, bias, seq_idx, initial_states)
    if compiling or not _is_plain(*arguments):
        if not compiling:
            check_forward(*arguments)
        out, final_states = torch.ops.cc1d_lab.conv(*arguments, return_final_states, silu, variant, backend)
        if not return_final_states:
            return out
    elif torch.is_grad_enabled() and _needs_grad(x, weight, bias, initial_states):
        result = operators.EagerConv.apply(*arguments, return_final_states, silu, variant, backend)
        if not return_final_states:
            return result
        out, final_states = result
    else:
        final_states = final_states_out
        if return_final_states and final_states is None:
            check_forward(*arguments)
            final_states = launch.new_states(x, weight.shape[1])
        out = launch.forward(*arguments, final_states, silu, variant, backend)
        return (out, final_states) if return_final_states else out
    if final_states_out is not None:
        final_states = final_states_out.copy_(final_states)
    return out, final_states


def _check_final_states_out(
    final_states_out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, initial_states: Tensor | None
) -> None:
    check_states("final_states_out", final_states_out, x, weight)
    if not torch.compiler.is_compiling():
        check_in_place(
            "final_states_out", final_states_out, x=x, weight=weight, bias=bias, initial_states=initial_states
        )


def _needs_grad(x: Tensor, weight: Tensor, bias: Tensor | None, initial_states: Tensor | None) -> bool:
    if x.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad):
        return True
    return initial_states is not None and initial_states.requires_grad


def _autocast(x: Tensor, *rest: Tensor | None) -> tuple[Tensor, ...]:
    """What autocast does to the arguments of F.conv1d: all but float64 go to its dtype."""
    dtype = torch.get_autocast_dtype(x.device.type)

    def cast(t: Tensor | None) -> Tensor | None:
        wanted = isinstance(t, Tensor) and t.is_floating_point() and t.dtype != torch.float64
        return t.to(dtype) if t is not None and wanted else t

    return tuple(cast(t) for t in (x, *rest))


def causal_conv1d_update(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    cache_seqlens: Tensor | None = None,
    conv_state_indices: Tensor | None = None,
    *,
    variant: str = "auto",
    backend: str = "auto",
) -> Tensor:
    """A decode step, or several: out for x, and conv_state moved on in place. Not differentiable.

    x: (batch, dim) or (batch, dim, seqlen). conv_state: (batch, dim, state_len), state_len >= width - 1, dtype of x,
    any strides; it holds the last steps, newest last. cache_seqlens: (batch,) int32: conv_state is a ring instead, and
    the next step goes to cache_seqlens % state_len. conv_state_indices: (batch,) int32: which entry of conv_state
    belongs to which batch element; -1 is padding, whose out is 0 and which touches no state. Other arguments as in
    causal_conv1d_fn. Returns out with the shape of x.

    Raises as causal_conv1d_fn does; RangeError (an IndexError and a ValueError) for a negative cache_seqlens and for
    indices out of range or named twice, where these are in the CPU's memory. On a GPU they are not looked at: an index
    out of range counts as padding, a negative cache_seqlens modulo state_len, and entries named twice race.
    """
    silu = is_silu(activation)
    if isinstance(x, Tensor) and x.dim() == 2:
        wide = causal_conv1d_update(
            *(x[..., None], conv_state, weight, bias, activation, cache_seqlens, conv_state_indices),
            variant=variant,
            backend=backend,
        )
        return wide[..., 0]
    arguments = (x, conv_state, weight, bias, cache_seqlens, conv_state_indices)
    if conv_state is None:
        check_update(*arguments)
    if torch.compiler.is_compiling():
        return torch.ops.cc1d_lab.update(*arguments, silu, variant, backend)
    plain = _is_plain(*arguments)
    if not plain:
        check_update(*arguments)
    check_in_place("conv_state", conv_state, x=x)
    if plain:
        check_rows(cache_seqlens, conv_state_indices, conv_state.shape[0])
        if not (torch.is_grad_enabled() and _needs_grad(x, weight, bias, None)):
            return launch.update(*arguments, silu, variant, backend)
    return torch.ops.cc1d_lab.update(*arguments, silu, variant, backend)


def causal_conv1d_varlen_states(x: Tensor, cu_seqlens: Tensor, state_len: int) -> Tensor:
    """The last `state_len` steps of each packed sequence: (batch, dim, state_len), 0 before its start.

    x: (total_tokens, dim). cu_seqlens: (batch + 1), int32 or int64, where each sequence begins, and the end. Plain
    tensor operations, on any device, with no wait for it; differentiable. Raises ShapeError, DtypeError or ConfigError.
    """
    if x.dim() != 2:
        raise ShapeError(f"x must be 2-D (total_tokens, dim), got shape {tuple(x.shape)}")
    if cu_seqlens.dim() != 1 or cu_seqlens.shape[0] < 1:
        raise ShapeError(f"cu_seqlens must be 1-D (batch + 1), got shape {tuple(cu_seqlens.shape)}")
    if cu_seqlens.dtype not in (torch.int32, torch.int64):
        raise DtypeError(f"cu_seqlens must be torch.int32 or torch.int64, got {cu_seqlens.dtype}")
    if isinstance(state_len, int) and state_len < 0:
        raise ConfigError(f"state_len: {state_len} must not be negative")
    begin, end = cu_seqlens[:-1, None].long(), cu_seqlens[1:, None].long()
    steps = end - state_len + torch.arange(state_len, device=cu_seqlens.device)
    inside = (steps >= begin)[..., None]
    if x.shape[0] == 0:
        return x.new_zeros(steps.shape[0], state_len, x.shape[1]).transpose(1, 2)
    taken = x[steps.clamp(min=0, max=x.shape[0] - 1)]
    return torch.where(inside, taken, torch.zeros((), dtype=x.dtype, device=x.device)).transpose(1, 2)

"""The torch operators: cc1d_lab::conv, conv_backward and update, with shapes for tracing and gradients.

torch.compile, opcheck, tensor subclasses and modes go through these. `functions` calls the same code directly where
nothing of that is in play.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import launch
from .arguments import check_forward, check_update

_LIBRARY = torch.library.Library("cc1d_lab", "DEF")
_TAGS = (torch.Tag.pt2_compliant_tag, getattr(torch.Tag, "needs_exact_strides", torch.Tag.needs_fixed_stride_order))
_CONV = (
    "Tensor x, Tensor weight, Tensor? bias, Tensor? seq_idx, Tensor? initial_states, "
    "bool final_states, bool silu, str variant, str backend"
)
_BACKWARD = (
    "Tensor dout, Tensor? dfinal_states, Tensor x, Tensor weight, Tensor? bias, Tensor? seq_idx, "
    "Tensor? initial_states, bool silu, str variant, str backend"
)
_UPDATE = (
    "Tensor x, Tensor(a!) conv_state, Tensor weight, Tensor? bias, Tensor? cache_seqlens, "
    "Tensor? conv_state_indices, bool silu, str variant, str backend"
)
# What is not asked for comes back as a tensor of no elements: an operator's outputs can't be None.
_LIBRARY.define(f"conv({_CONV}) -> (Tensor out, Tensor final_states)", tags=_TAGS)
_LIBRARY.define(f"conv_backward({_BACKWARD}) -> (Tensor, Tensor, Tensor, Tensor)", tags=_TAGS)
_LIBRARY.define(f"update({_UPDATE}) -> Tensor", tags=_TAGS)


def _none(x: Tensor) -> Tensor:
    return torch.empty(0, dtype=x.dtype, device=x.device)


def _conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    seq_idx: Tensor | None,
    initial_states: Tensor | None,
    final_states: bool,
    silu: bool,
    variant: str,
    backend: str,
) -> tuple[Tensor, Tensor]:
    if final_states:
        check_forward(x, weight, bias, seq_idx, initial_states)
    last = launch.new_states(x, weight.shape[1]) if final_states else None
    out = launch.forward(x, weight, bias, seq_idx, initial_states, last, silu, variant, backend)
    return out, _none(x) if last is None else last


def _conv_shapes(
    x: Tensor, weight: Tensor, bias: Tensor | None, seq_idx: Any, initial_states: Any, final_states: bool, *rest: Any
) -> tuple[Tensor, Tensor]:
    check_forward(x, weight, bias, seq_idx, initial_states)
    return launch.new_like(x), launch.new_states(x, weight.shape[1]) if final_states else _none(x)


def _conv_backward(
    dout: Tensor, dfinal_states: Tensor | None, x: Tensor, weight: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dx, dweight, dbias, dinitial = launch.backward(dout, dfinal_states, x, weight, *rest)
    return dx, dweight, _none(weight) if dbias is None else dbias, _none(x) if dinitial is None else dinitial


def _backward_shapes(
    dout: Tensor,
    dfinal_states: Tensor | None,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    seq_idx: Tensor | None,
    initial_states: Tensor | None,
    *rest: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dbias = _none(weight) if bias is None else torch.empty(bias.shape, dtype=bias.dtype, device=bias.device)
    dinitial = _none(x) if initial_states is None else launch.new_states(x, weight.shape[1])
    dweight = torch.empty(weight.shape, dtype=weight.dtype, device=weight.device)
    return launch.new_like(x), dweight, dbias, dinitial


def _update_shapes(
    x: Tensor, conv_state: Tensor, weight: Tensor, bias: Any, cache_seqlens: Any, conv_state_indices: Any, *rest: Any
) -> Tensor:
    check_update(x, conv_state, weight, bias, cache_seqlens, conv_state_indices)
    return launch.new_like(x)


for _name, _run, _shapes in (
    ("conv", _conv, _conv_shapes),
    ("conv_backward", _conv_backward, _backward_shapes),
    ("update", launch.update, _update_shapes),
):
    _LIBRARY.impl(_name, _run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"cc1d_lab::{_name}", _shapes, lib=_LIBRARY)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    x, weight, bias, seq_idx, initial_states, ctx.final_states, ctx.silu, ctx.variant, ctx.backend = inputs
    ctx.save_for_backward(x, weight, bias, seq_idx, initial_states)


def _gradients(ctx: Any, dout: Tensor, dfinal_states: Tensor) -> tuple[Any, ...]:
    x, weight, bias, seq_idx, initial_states = ctx.saved_tensors
    dx, dweight, dbias, dinitial = torch.ops.cc1d_lab.conv_backward(
        *(dout, dfinal_states if ctx.final_states else None, x, weight, bias, seq_idx, initial_states),
        *(ctx.silu, ctx.variant, ctx.backend),
    )
    states = None if initial_states is None else dinitial
    return dx, dweight, None if bias is None else dbias, None, states, None, None, None, None


torch.library.register_autograd("cc1d_lab::conv", _gradients, setup_context=_remember, lib=_LIBRARY)


class EagerConv(torch.autograd.Function):
    """The same gradient without the dispatcher's cost. Returns out, or out and final_states."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        seq_idx: Tensor | None,
        initial_states: Tensor | None,
        final_states: bool,
        silu: bool,
        variant: str,
        backend: str,
    ) -> Any:
        """Run the forward variant and keep what the backward needs."""
        ctx.save_for_backward(x, weight, bias, seq_idx, initial_states)
        ctx.silu, ctx.variant, ctx.backend = silu, variant, backend
        ctx.set_materialize_grads(False)
        if not final_states:
            return launch.forward(x, weight, bias, seq_idx, initial_states, None, silu, variant, backend)
        return _conv(x, weight, bias, seq_idx, initial_states, True, silu, variant, backend)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dout: Tensor | None, dfinal_states: Tensor | None = None) -> tuple[Any, ...]:
        """Run the backward variant."""
        x, weight, bias, seq_idx, initial_states = ctx.saved_tensors
        dout = torch.zeros((), dtype=x.dtype, device=x.device).expand(x.shape) if dout is None else dout
        dx, dweight, dbias, dinitial = launch.backward(
            *(dout, dfinal_states, x, weight, bias, seq_idx, initial_states, ctx.silu, ctx.variant, ctx.backend)
        )
        return dx, dweight, dbias, None, dinitial, None, None, None, None

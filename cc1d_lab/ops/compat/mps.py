"""S4's names: causal_conv1d through autograd, and the forward alone."""

from __future__ import annotations

import torch

from ..functions import causal_conv1d_fn


def causal_conv1d(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, activation: str | None = None
) -> torch.Tensor:
    """x (batch, dim, seqlen), weight (dim, width), bias (dim) or None, activation None or "silu" -> out, as x."""
    out = causal_conv1d_fn(x, weight, bias, activation=activation)
    assert isinstance(out, torch.Tensor)
    return out


def causal_conv1d_fwd(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, silu_activation: bool
) -> torch.Tensor:
    """The forward alone: no gradient is recorded."""
    with torch.no_grad():
        return causal_conv1d(x, weight, bias, "silu" if silu_activation else None)

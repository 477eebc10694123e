"""S1's names: causal_conv1d_hip_fn through autograd, causal_conv1d_hip_ref on F.conv1d beside it."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ..arguments import is_silu
from ..functions import causal_conv1d_fn


def causal_conv1d_hip_fn(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, activation: str | None = None
) -> torch.Tensor:
    """x (batch, dim, seqlen), weight (dim, width), bias (dim) or None, activation None or "silu" -> out, as x."""
    out = causal_conv1d_fn(x, weight, bias, activation=activation)
    assert isinstance(out, torch.Tensor)
    return out


def causal_conv1d_hip_ref(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, activation: str | None = None
) -> torch.Tensor:
    """The same on F.conv1d, in the dtype of weight."""
    dim, width = weight.shape
    wide = F.conv1d(x.to(weight.dtype), weight[:, None], bias, padding=width - 1, groups=dim)[..., : x.shape[-1]]
    return (F.silu(wide) if is_silu(activation) else wide).to(x.dtype)

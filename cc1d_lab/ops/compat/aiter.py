"""S0's name: causal_conv1d_fwd writes into an output that the caller has allocated."""

from __future__ import annotations

import torch

from ...errors import DeviceError, DtypeError, ShapeError
from .. import launch
from ..arguments import check_forward, check_in_place


def causal_conv1d_fwd(
    out: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, use_silu: bool
) -> None:
    """Write the convolution of x (batch, dim, seqlen) with weight (dim, width) into `out`, like x, any strides.

    bias: (dim), or a tensor of no elements for none. No gradient is recorded. Raises as causal_conv1d_fn does, and
    LayoutError when `out` overlaps an input.
    """
    given = bias if bias is not None and bias.numel() else None
    check_forward(x, weight, given, None, None)
    if not isinstance(out, torch.Tensor):
        raise TypeError(f"out must be a torch.Tensor, got {type(out).__name__}")
    if out.shape != x.shape:
        raise ShapeError(f"out must have the shape of x, {tuple(x.shape)}, got {tuple(out.shape)}")
    if out.dtype != x.dtype:
        raise DtypeError(f"out must have the dtype of x, {x.dtype}, got {out.dtype}")
    if out.device != x.device:
        raise DeviceError(f"out is on {out.device}, x is on {x.device}: move them to one device")
    check_in_place("out", out, x=x, weight=weight, bias=given)
    with torch.no_grad():
        launch.forward(x, weight, given, None, None, None, bool(use_silu), "auto", "auto", out)

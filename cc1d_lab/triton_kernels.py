"""The forward in Triton, a kernel per layout: a plain good one, to compare with. Needs Triton; nothing is tuned.

    channel_first   a program takes a block of one row, a vector a thread; each tap a load a step on
    channel_last    a program takes a tile (steps x channels), vectors along the channels; each tap a step on

What the shifted loads fetch again comes from the cache.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

# (layout, bytes of an element): elements along seqlen, elements along dim, warps. 16 bytes a thread in each.
BLOCKS = {
    ("channel_first", 2): (1024, 1, 4),
    ("channel_first", 4): (512, 1, 4),
    ("channel_last", 2): (16, 64, 4),
    ("channel_last", 4): (8, 64, 4),
}


@triton.jit
def channel_first(
    x,
    weight,
    bias,
    out,
    dim,
    seqlen,
    chunks,
    x_batch_stride,
    x_dim_stride,
    out_batch_stride,
    out_dim_stride,
    WIDTH: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    SILU: tl.constexpr,
    STEPS: tl.constexpr,
):
    """A block of STEPS steps of one row; blocks along the sequence come first."""
    program = tl.program_id(0)
    row = (program // chunks).to(tl.int64)
    t = (program % chunks) * STEPS + tl.arange(0, STEPS)
    batch, d = row // dim, row % dim
    total = tl.zeros((STEPS,), tl.float32)
    if HAS_BIAS:
        total += tl.load(bias + d).to(tl.float32)
    for w in tl.static_range(WIDTH):
        at = t - (WIDTH - 1) + w
        value = tl.load(x + batch * x_batch_stride + d * x_dim_stride + at, mask=(at >= 0) & (at < seqlen), other=0.0)
        total += value.to(tl.float32) * tl.load(weight + d * WIDTH + w).to(tl.float32)
    if SILU:
        total = total * tl.sigmoid(total)
    place = out + batch * out_batch_stride + d * out_dim_stride + t
    tl.store(place, total.to(out.dtype.element_ty), mask=t < seqlen)


@triton.jit
def channel_last(
    x,
    weight,
    bias,
    out,
    dim,
    seqlen,
    across,
    chunks,
    x_batch_stride,
    x_seq_stride,
    out_batch_stride,
    out_seq_stride,
    WIDTH: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    SILU: tl.constexpr,
    STEPS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """A tile of STEPS steps by CHANNELS channels; tiles in the order of memory."""
    program = tl.program_id(0)
    d = (program % across) * CHANNELS + tl.arange(0, CHANNELS)
    rest = program // across
    t = ((rest % chunks) * STEPS + tl.arange(0, STEPS))[:, None]
    batch = (rest // chunks).to(tl.int64)
    inside = (d < dim)[None, :]
    total = tl.zeros((STEPS, CHANNELS), tl.float32)
    if HAS_BIAS:
        total += tl.load(bias + d, mask=d < dim, other=0.0).to(tl.float32)[None, :]
    for w in tl.static_range(WIDTH):
        at = t - (WIDTH - 1) + w
        place = x + batch * x_batch_stride + at.to(tl.int64) * x_seq_stride + d[None, :]
        value = tl.load(place, mask=(at >= 0) & (at < seqlen) & inside, other=0.0)
        total += value.to(tl.float32) * tl.load(weight + d * WIDTH + w, mask=d < dim, other=0.0).to(tl.float32)[None, :]
    if SILU:
        total = total * tl.sigmoid(total)
    place = out + batch * out_batch_stride + t.to(tl.int64) * out_seq_stride + d[None, :]
    tl.store(place, total.to(out.dtype.element_ty), mask=(t < seqlen) & inside)


def forward(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, layout: str, silu: bool) -> torch.Tensor:
    """x (batch, dim, seqlen) with the stride of `layout` 1; weight (dim, width), contiguous; bias (dim) or None.

    Returns out, of the shape and dtype of x and with the order of its strides. fp32 sums.
    """
    batch, dim, seqlen = x.shape
    out = torch.empty_like(x)
    steps, channels, warps = BLOCKS[layout, x.element_size()]
    chunks = triton.cdiv(seqlen, steps)
    constants = {"WIDTH": weight.shape[1], "HAS_BIAS": bias is not None, "SILU": silu, "STEPS": steps}
    given = (x, weight, weight if bias is None else bias, out, dim, seqlen)
    if layout == "channel_first":
        strides = (x.stride(0), x.stride(1), out.stride(0), out.stride(1))
        channel_first[(batch * dim * chunks,)](*given, chunks, *strides, **constants, num_warps=warps)
    else:
        across = triton.cdiv(dim, channels)
        strides = (x.stride(0), x.stride(2), out.stride(0), out.stride(2))
        grid = (batch * chunks * across,)
        channel_last[grid](*given, across, chunks, *strides, **constants, CHANNELS=channels, num_warps=warps)
    return out

"""What a call may be given. A refusal names the argument, what it got and what is allowed; nothing has run by then."""

from __future__ import annotations

import torch

from ..errors import ConfigError, DeviceError, DtypeError, LayoutError, LimitError, RangeError, ShapeError
from ..kernel import check_tensors

X_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
ACTIVATIONS = (None, "silu", "swish")


def is_silu(activation: object) -> bool:
    """Whether the activation is SiLU, which is also called swish; ConfigError for anything but these and None."""
    if not (activation is None or isinstance(activation, str)) or activation not in ACTIVATIONS:
        raise ConfigError(f"activation: {activation!r} is not known; allowed: None, 'silu', 'swish'")
    return activation is not None


def check_forward(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    seq_idx: torch.Tensor | None,
    initial_states: torch.Tensor | None,
) -> None:
    """Raise TypeError, ShapeError, DtypeError, DeviceError or LimitError unless a forward call is well formed."""
    given = {"x": x, "weight": weight, "bias": bias, "seq_idx": seq_idx, "initial_states": initial_states}
    _check_dense(given)
    check_tensors(x, weight, bias, None)
    _check_floats(x, weight)
    if seq_idx is not None:
        _check_shape("seq_idx", seq_idx, (x.shape[0], x.shape[2]), "(batch, seqlen)")
        _check_int32("seq_idx", seq_idx)
    if initial_states is not None:
        check_states("initial_states", initial_states, x, weight)
    _check_devices(given)


def check_states(name: str, states: torch.Tensor, x: torch.Tensor, weight: torch.Tensor) -> None:
    """`states` must be (batch, dim, width - 1), with the dtype and on the device of x."""
    _check_dense({name: states})
    _check_shape(name, states, (x.shape[0], x.shape[1], weight.shape[1] - 1), "(batch, dim, width - 1)")
    if states.dtype != x.dtype:
        raise DtypeError(f"{name} must have the dtype of x, {x.dtype}, got {states.dtype}")
    _check_devices({"x": x, name: states})


def check_update(
    x: torch.Tensor,
    conv_state: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    cache_seqlens: torch.Tensor | None,
    conv_state_indices: torch.Tensor | None,
) -> None:
    """Raise as check_forward does, for an update with x (batch, dim, seqlen). Looks at no value; check_rows does."""
    given = {"x": x, "conv_state": conv_state, "weight": weight, "bias": bias}
    given |= {"cache_seqlens": cache_seqlens, "conv_state_indices": conv_state_indices}
    _check_dense(given)
    check_tensors(x, weight, bias, None)
    _check_floats(x, weight)
    batch, dim, width = x.shape[0], x.shape[1], weight.shape[1]
    if conv_state.dim() != 3 or conv_state.shape[1] != dim:
        raise ShapeError(f"conv_state must be (entries, dim = {dim}, state_len), got shape {tuple(conv_state.shape)}")
    if conv_state_indices is None and conv_state.shape[0] != batch:
        raise ShapeError(
            f"conv_state has {conv_state.shape[0]} entries, x has batch {batch}: they must be equal, "
            "or conv_state_indices must say which entry is whose"
        )
    shortest = max(width - 1, 0 if cache_seqlens is None else 1)
    if conv_state.shape[2] < shortest:
        raise ShapeError(f"conv_state must hold at least {shortest} steps (width - 1), got {conv_state.shape[2]}")
    if conv_state.dtype != x.dtype:
        raise DtypeError(f"conv_state must have the dtype of x, {x.dtype}, got {conv_state.dtype}")
    for name in ("cache_seqlens", "conv_state_indices"):
        tensor = given[name]
        if tensor is not None:
            _check_shape(name, tensor, (batch,), "(batch,)")
            _check_int32(name, tensor)
    _check_devices(given)


def check_rows(cache_seqlens: torch.Tensor | None, conv_state_indices: torch.Tensor | None, entries: int) -> None:
    """RangeError for a value that is out of range, or an entry that is named twice.

    Only of tensors in the CPU's memory: on a GPU it would have to wait for the device. There the kernel takes an index
    out of range for padding and a negative cache_seqlens modulo state_len; entries named twice race.
    """
    if cache_seqlens is not None and cache_seqlens.device.type == "cpu" and cache_seqlens.numel():
        least = int(cache_seqlens.min())
        if least < 0:
            raise RangeError(f"cache_seqlens must not be negative, got {least}")
    if conv_state_indices is None or conv_state_indices.device.type != "cpu" or not conv_state_indices.numel():
        return
    named = conv_state_indices.tolist()
    for i, row in enumerate(named):
        if not -1 <= row < entries:
            raise RangeError(
                f"conv_state_indices[{i}] is {row}: conv_state has {entries} entries, so 0 to {entries - 1}, "
                "or -1 for padding"
            )
    rows = [row for row in named if row >= 0]
    if len(set(rows)) < len(rows):
        twice = next(row for row in rows if rows.count(row) > 1)
        raise RangeError(f"conv_state_indices names entry {twice} more than once: one state cannot go two ways")


def check_in_place(name: str, target: torch.Tensor, **read: torch.Tensor | None) -> None:
    """`target` is written: each element needs a place of its own, none shared with what is read, and no gradient."""
    if target.requires_grad and torch.is_grad_enabled():
        raise ConfigError(f"{name} requires grad, but it is written in place: pass {name}.detach()")
    if any(stride == 0 and size > 1 for size, stride in zip(target.shape, target.stride(), strict=True)):
        raise LayoutError(
            f"{name} is expanded (strides {target.stride()}): elements share memory, so it can't be written"
        )
    for other, tensor in read.items():
        if tensor is not None and overlap(target, tensor):
            raise LayoutError(f"{name} overlaps {other} in memory: give {name} memory of its own")


def overlap(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors share an element. Views with other strides that interleave count as sharing."""
    if a.numel() == 0 or b.numel() == 0 or a.device != b.device:
        return False
    distance = a.data_ptr() - b.data_ptr()
    if distance >= _span(b) or -distance >= _span(a):
        return False
    if a.shape != b.shape or a.stride() != b.stride() or a.dtype != b.dtype or distance % a.element_size():
        return True
    steps = sorted(zip(a.stride(), a.shape, strict=True), reverse=True)
    return _reaches(abs(distance) // a.element_size(), steps)


def _span(t: torch.Tensor) -> int:
    """Bytes from the first element to the end of the last."""
    return (sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True)) + 1) * t.element_size()


def _reaches(distance: int, steps: list[tuple[int, int]]) -> bool:
    """Whether `distance` is a sum of less than `size` times each stride, either way; strides largest first."""
    if not steps:
        return distance == 0
    (stride, size), rest = steps[0], steps[1:]
    if stride == 0:
        return _reaches(distance, rest)
    low = distance // stride
    return any(abs(n) < size and _reaches(distance - n * stride, rest) for n in (low, low + 1))


# --- one property at a time -----------------------------------------------------------------------


def _check_dense(given: dict[str, torch.Tensor | None]) -> None:
    for name, tensor in given.items():
        if tensor is None and name in ("x", "weight", "conv_state"):
            raise TypeError(f"{name} must be a torch.Tensor, got None")
        if tensor is None:
            continue
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}")
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_nested:
            raise DtypeError(f"{name} must be a dense tensor, got {tensor.layout}, quantized: {tensor.is_quantized}")
        if tensor.device.type == "meta":
            raise DtypeError(f"{name} is a meta tensor, which has no values: allowed are tensors on cpu and cuda")


def _check_floats(x: torch.Tensor, weight: torch.Tensor) -> None:
    doubles = (torch.float64,) if x.device.type == "cpu" else ()
    if x.dtype not in (*X_DTYPES, *doubles):
        names = ", ".join(str(d) for d in (*X_DTYPES, *doubles))
        hint = " (float64 is for gradient checks on the CPU)" if x.dtype == torch.float64 else ""
        raise DtypeError(f"x has dtype {x.dtype}{hint}; allowed: {names}")
    allowed = (torch.float64,) if x.dtype == torch.float64 else X_DTYPES
    if weight.dtype not in allowed:
        raise DtypeError(
            f"weight has dtype {weight.dtype}; allowed with x of {x.dtype}: {', '.join(str(d) for d in allowed)}"
        )
    if weight.shape[1] < 1:
        raise LimitError(f"weight has width {weight.shape[1]}: it must be at least 1")


def _check_shape(name: str, tensor: torch.Tensor, shape: tuple[int, ...], words: str) -> None:
    if tuple(tensor.shape) != shape:
        raise ShapeError(f"{name} must have shape {words} = {shape}, got {tuple(tensor.shape)}")


def _check_int32(name: str, tensor: torch.Tensor) -> None:
    if tensor.dtype != torch.int32:
        raise DtypeError(f"{name} must be torch.int32, got {tensor.dtype}: use {name}.int()")


def _check_devices(given: dict[str, torch.Tensor | None]) -> None:
    x = given["x"]
    for name, tensor in given.items():
        if x is not None and tensor is not None and tensor.device != x.device:
            raise DeviceError(f"{name} is on {tensor.device}, x is on {x.device}: move them to one device")

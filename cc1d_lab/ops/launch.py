"""Calls of compiled kernels on tensors: what is the same from call to call is worked out once and kept as a plan.

A plan holds the loaded library and a filled-in Params; a call allocates outputs, copies Params, sets the pointers and
launches. Plans are kept by dtype, shape, strides and device of every argument, which is all that they depend on.
"""

from __future__ import annotations

import ctypes
import functools
import struct
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import backends, kernel
from ..case import Case
from ..cell import Cell
from ..errors import CheckError, LaunchError
from ..kernel import Params
from . import choice as choice_module
from . import trust
from .arguments import check_forward, check_states, check_update
from .choice import Explanation, backend_for, case_of, choose, forgive, is_named, layout_of, refuse

MAX_PLANS = 4096  # of each kind; beyond that all are forgotten

_plans: dict[Any, Plan] = {}
_POINTERS = struct.Struct(f"@{len(kernel.PLAIN_POINTERS)}P")


@dataclass(frozen=True)
class Plan:
    """A kernel for arguments of one shape. `template` has all of Params but the pointers."""

    launch: Callable[..., bytes | None]
    template: Params
    sizes: bytes  # of the template, what follows the pointers of a plain forward
    workspace_bytes: int
    device: torch.device
    index: int | None  # of the device; None: the CPU
    choice: Explanation
    out_strides: tuple[int, ...]  # of x-like outputs
    dense: bool  # whether x has these strides itself

    def run_plain(self, x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
        """What `run` does, for a forward with these tensors alone, sooner: it packs the bytes of Params itself."""
        given = 0 if bias is None else bias.data_ptr()
        workspace = self._workspace()
        place = 0 if workspace is None else workspace.data_ptr()
        self._launch(_POINTERS.pack(x.data_ptr(), weight.data_ptr(), given, out.data_ptr(), place) + self.sizes)

    def run(self, **tensors: Tensor | None) -> None:
        """Launch on the current stream of the device. LaunchError with the device's words when it is refused."""
        params = Params.from_buffer_copy(self.template)
        tensors["workspace"] = self._workspace()
        for name, tensor in tensors.items():
            if tensor is not None:
                setattr(params, name, tensor.data_ptr() or None)
        self._launch(ctypes.byref(params))

    def _workspace(self) -> Tensor | None:
        if not self.workspace_bytes:
            return None
        # Freed when its run returns, but not reused before the kernels are through: the allocator knows the stream.
        return torch.empty(self.workspace_bytes, dtype=torch.uint8, device=self.device)

    def _launch(self, params: Any) -> None:
        if self.index is None:
            error = self.launch(params, 0)
        elif torch._C._cuda_getDevice() == self.index:
            error = self.launch(params, torch._C._cuda_getCurrentRawStream(self.index))
        else:
            with torch.cuda.device(self.index):
                error = self.launch(params, torch._C._cuda_getCurrentRawStream(self.index))
        if error:
            raise LaunchError(f"{self.choice.variant}: {kernel.describe(error, self.template)}")


def _meta(tensor: Tensor | None) -> tuple[Any, ...] | None:
    return None if tensor is None else (tensor.dtype, tensor.shape, tensor.stride(), tensor.device)


_planned_by: Any = None  # the table that the plans were made by


def _keep(key: Any, plan: Plan) -> Plan:
    global _planned_by
    if len(_plans) >= MAX_PLANS or _planned_by != choice_module.table_state:
        _plans.clear()
    _planned_by = choice_module.table_state
    _plans[key] = plan
    return plan


def _make(case_arguments: tuple[Any, ...], variant: str, backend: str, tensors: dict[str, Tensor | None]) -> Plan:
    x = tensors["x"]
    assert x is not None
    choice, loaded = _choose(case_of(*case_arguments), backend_for(x.device, backend), variant, x.device.index)
    params = kernel.fill(tensors)
    strides, size = strides_like(x), loaded.workspace_bytes(params)
    sizes, dense = bytes(params)[_POINTERS.size :], strides == x.stride()
    return Plan(loaded.library.cc1d_launch, params, sizes, size, x.device, x.device.index, choice, strides, dense)


def _choose(case: Case, backend: str, variant: str, device: int | None) -> tuple[Explanation, kernel.Kernel]:
    """The variant for `case` and its kernel. `auto` passes over what fails its checks, with a warning."""
    while True:
        choice = choose(case, backend, variant)
        try:
            return choice, trust.load(Cell(choice.variant, backend, case, choice.tunables, _arch(backend, device)))
        except CheckError as e:
            if is_named(variant, case.op):
                raise
            refuse(choice.variant, backend, case, str(e))
            warnings.warn(f"{e}; another variant is taken", RuntimeWarning, stacklevel=2)


@functools.cache
def _arch(backend: str, device: int | None) -> str:
    """The arch of the device that a tensor is on."""
    if device is None:
        return backends.get(backend).default_arch()
    with torch.cuda.device(device):
        return backends.get(backend).default_arch()


def drop_plans() -> None:
    """The next call of each shape chooses anew."""
    _plans.clear()


def forget() -> None:
    """Drop all plans, loaded kernels and refusals: the next call chooses anew."""
    _plans.clear()
    trust.forget()
    forgive()


def strides_like(x: Tensor) -> tuple[int, int, int]:
    """Strides of an output for x: dense, with the dimension innermost that is innermost in x."""
    _, dim, seqlen = x.shape
    return (dim * seqlen, 1, dim) if layout_of(x) == "channel_last" else (dim * seqlen, seqlen, 1)


def new_like(x: Tensor) -> Tensor:
    """An output for x (batch, dim, seqlen), not filled."""
    return torch.empty_strided(x.shape, strides_like(x), dtype=x.dtype, device=x.device)


def new_states(x: Tensor, width: int) -> Tensor:
    """(batch, dim, width - 1), not filled, channels contiguous, as Dao-AILab's package has it."""
    batch, dim, _ = x.shape
    shape = (batch, width - 1, dim)
    return torch.empty(shape, dtype=x.dtype, device=x.device).transpose(1, 2)


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    seq_idx: Tensor | None,
    initial_states: Tensor | None,
    final_states: Tensor | None,
    silu: bool,
    variant: str,
    backend: str,
    out: Tensor | None = None,
) -> Tensor:
    """out, new or the given one, and `final_states` filled in when it is given."""
    key = (
        *(x.dtype, x.shape, x.stride(), x.device, weight.dtype, weight.shape, weight.stride(), weight.device),
        *(None if bias is None else (bias.dtype, bias.shape, bias.stride(), bias.device), silu, variant, backend),
        *(() if seq_idx is None else ("seq_idx", _meta(seq_idx))),
        *(() if initial_states is None else ("initial", _meta(initial_states))),
        *(() if final_states is None else ("final", _meta(final_states))),
        *(() if out is None else ("out", _meta(out))),
    )
    plan = _plans.get(key)
    if plan is None:
        check_forward(x, weight, bias, seq_idx, initial_states)
        if final_states is not None:
            check_states("final_states_out", final_states, x, weight)
        backend_for(x.device, backend)
        if x.numel() == 0:
            _fill_empty(final_states, initial_states)
            return new_like(x) if out is None else out
        arguments = ("fwd", x, weight, bias, silu, _any(initial_states, final_states), seq_idx is not None)
        tensors = {"x": x, "weight": weight, "bias": bias, "out": new_like(x) if out is None else out}
        tensors |= {"seq_idx": seq_idx, "initial_states": initial_states, "final_states": final_states}
        plan = _keep(key, _make(arguments, variant, backend, tensors))
    if out is not None:
        result = out
    elif plan.dense:
        result = torch.empty_like(x)
    else:
        result = torch.empty_strided(x.shape, plan.out_strides, dtype=x.dtype, device=x.device)
    if bias is not None and not bias.is_contiguous():
        bias = bias.contiguous()
    if seq_idx is None and initial_states is None and final_states is None:
        plan.run_plain(x, weight, bias, result)
    else:
        states = {"initial_states": initial_states, "final_states": final_states}
        plan.run(x=x, weight=weight, bias=bias, out=result, seq_idx=seq_idx, **states)
    return result


def _any(*tensors: Tensor | None) -> bool:
    return any(t is not None for t in tensors)


def _fill_empty(target: Tensor | None, source: Tensor | None) -> None:
    """What a call with no elements does to a state, or to its gradient: it goes through."""
    if target is not None and source is not None:
        target.copy_(source)
    elif target is not None:
        target.zero_()


def backward(
    dout: Tensor,
    dfinal_states: Tensor | None,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    seq_idx: Tensor | None,
    initial_states: Tensor | None,
    silu: bool,
    variant: str,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """dx, dweight, dbias (None without bias), dinitial_states (None without initial_states)."""
    dx, dweight = new_like(x), torch.empty(weight.shape, dtype=weight.dtype, device=weight.device)
    dbias = None if bias is None else torch.empty(bias.shape, dtype=bias.dtype, device=bias.device)
    dinitial = None if initial_states is None else new_states(x, weight.shape[1])
    if x.numel() == 0:
        for gradient in (dweight, dbias):
            _fill_empty(gradient, None)
        _fill_empty(dinitial, dfinal_states)
        return dx, dweight, dbias, dinitial
    given = {"x": x, "weight": weight, "bias": bias, "seq_idx": seq_idx, "initial_states": initial_states}
    given |= {"dout": dout, "dfinal_states": dfinal_states}
    key = ("bwd", *(_meta(t) for t in given.values()), silu, variant, backend)
    plan = _plans.get(key)
    written = {"dx": dx, "dweight": dweight, "dbias": dbias, "dinitial_states": dinitial}
    if plan is None:
        arguments = ("bwd", x, weight, bias, silu, _any(initial_states, dfinal_states), seq_idx is not None)
        plan = _keep(key, _make(arguments, variant, backend, given | written))
    given["bias"] = bias if bias is None or bias.is_contiguous() else bias.contiguous()
    plan.run(**given, **written)
    return dx, dweight, dbias, dinitial


def update(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    cache_seqlens: Tensor | None,
    conv_state_indices: Tensor | None,
    silu: bool,
    variant: str,
    backend: str,
) -> Tensor:
    """out for x (batch, dim, seqlen); conv_state is moved on in place."""
    given = {"x": x, "conv_state": conv_state, "weight": weight, "bias": bias}
    given |= {"cache_seqlens": cache_seqlens, "conv_state_indices": conv_state_indices}
    key = ("update", *(_meta(t) for t in given.values()), silu, variant, backend)
    plan = _plans.get(key)
    if plan is None:
        check_update(x, conv_state, weight, bias, cache_seqlens, conv_state_indices)
        backend_for(x.device, backend)
        if x.numel() == 0:
            return new_like(x)
        arguments = ("update", x, weight, bias, silu, False, False)
        plan = _keep(key, _make(arguments, variant, backend, given | {"out": new_like(x)}))
    out = new_like(x)
    for name in ("bias", "cache_seqlens", "conv_state_indices"):
        tensor = given[name]
        if tensor is not None:
            given[name] = tensor.contiguous()
    plan.run(**given, out=out)
    return out

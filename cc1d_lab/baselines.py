"""Baselines: what speed is compared with. Each is called as its users do, and judged as F.conv1d is: never `wrong`.

A baseline is an entry in `variants.py` without a source, and here how it is called. What is not installed is
`unsupported`, with what to install.
"""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F

from . import reference, timing
from .case import Case
from .errors import Cc1dError, ToolchainError, one_of
from .reference import Inputs, Outputs

Work = Callable[[], Outputs]  # runs once, on torch's current stream; returns the outputs by name


@dataclass(frozen=True)
class Baseline:
    """`start(case, inputs)` does what a user does once, and returns what is timed. `module` must be importable.

    `remedy`: what to do when it is not. `ops`: what it can do; `states_in`: the ops that it can do with states and
    seq_idx. `exact_probe`: whether a second build without activation is worth while. `convolves`: the copy does not.
    """

    start: Callable[[Case, Inputs], Work]
    module: str = ""
    remedy: str = ""
    ops: tuple[str, ...] = ("fwd",)
    needs_gpu: bool = False
    states_in: tuple[str, ...] = ("fwd", "bwd", "update")
    exact_probe: bool = True
    convolves: bool = True


def why_not(name: str, case: Case, backend: str) -> str:
    """Why the baseline cannot run `case` here, or ''. Says what is possible instead, or what to install."""
    entry = get(name)
    if case.op not in entry.ops:
        return f"op {case.op}: {name} does {', '.join(entry.ops)}"
    if (case.states or case.seq_idx) and case.op not in entry.states_in:
        return f"states, seq_idx: {name} is compared with them for op {', '.join(entry.states_in)} only"
    if entry.needs_gpu and backend == "cpu":
        return f"{name} needs a GPU: there is no CPU backend for it"
    try:
        importlib.import_module(entry.module or "torch")
    except Exception as e:  # a package may break in its own ways, and not only with ImportError
        missing = isinstance(e, ModuleNotFoundError) and e.name == entry.module.partition(".")[0]
        return f"not importable: {'' if missing else f'{_first_line(e)}; '}{entry.remedy}"
    return ""


def refusal(name: str, error: Exception) -> Cc1dError:
    """What an error of a baseline means: the device is broken (LaunchError), or it will not do this case."""
    try:
        if torch.cuda.is_available():
            timing.synchronize("cuda")
    except Cc1dError as broken:
        return broken
    return ToolchainError(f"{name} refuses: {_first_line(error)}")


def get(name: str) -> Baseline:
    """The baseline called `name`; ConfigError with the nearest neighbour when there is none."""
    return BASELINES[one_of("baseline", name, BASELINES)]


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _activation(case: Case) -> str | None:
    return "silu" if case.activation == "silu" else None


# --- torch ----------------------------------------------------------------------------------------


def _torch_conv1d(case: Case, inputs: Inputs) -> Work:
    if case.op == "bwd":
        return reference.torch_backward(case, inputs)
    return lambda: reference.torch_outputs(case, inputs)


def _torch_copy(case: Case, inputs: Inputs) -> Work:
    return lambda: {"out": torch.empty_like(inputs.x).copy_(inputs.x)}


def shifted_sums(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, silu: bool) -> torch.Tensor:
    """The definition as shifted sums in fp32: x and the result (batch, seqlen, dim), weight (dim, width)."""
    seqlen, width = x.shape[1], weight.shape[1]
    wide = x.float()
    y = wide * weight[:, -1].float()
    for back in range(1, min(width, seqlen)):
        y = y + F.pad(wide, (0, 0, back, -back)) * weight[:, width - 1 - back].float()
    if bias is not None:
        y = y + bias.float()
    return (F.silu(y) if silu else y).to(x.dtype)


def shifted_rows(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, silu: bool) -> torch.Tensor:
    """The same for x (batch, dim, seqlen)."""
    seqlen, width = x.shape[2], weight.shape[1]
    wide = x.float()
    y = wide * weight[:, -1:].float()
    for back in range(1, min(width, seqlen)):
        y = y + F.pad(wide, (back, -back)) * weight[:, width - 1 - back, None].float()
    if bias is not None:
        y = y + bias[:, None].float()
    return (F.silu(y) if silu else y).to(x.dtype)


def _torch_compile(case: Case, inputs: Inputs) -> Work:
    function = _compiled(replace(case, seed=0, label="", scaled_from=""))
    silu = case.activation == "silu"
    if case.layout == "channel_first":
        return lambda: {"out": function(inputs.x, inputs.weight, inputs.bias, silu)}
    turned = inputs.x.transpose(1, 2)
    return lambda: {"out": function(turned, inputs.weight, inputs.bias, silu).transpose(1, 2)}


@functools.lru_cache(maxsize=1)  # the cells of a case come one after the other
def _compiled(case: Case) -> Any:
    torch.compiler.reset()  # a function is compiled anew for eight shapes only, and then no more
    function = shifted_rows if case.layout == "channel_first" else shifted_sums
    return torch.compile(function, dynamic=False, fullgraph=True)


# --- Triton ---------------------------------------------------------------------------------------


def _triton_conv1d(case: Case, inputs: Inputs) -> Work:
    from . import triton_kernels

    given = (inputs.x, inputs.weight, inputs.bias, case.layout, case.activation == "silu")
    return lambda: {"out": triton_kernels.forward(*given)}


# --- packages of others ---------------------------------------------------------------------------


def _dao(case: Case, inputs: Inputs) -> Work:
    """Dao-AILab's causal_conv1d, as its docstrings give the arguments."""
    package = importlib.import_module("causal_conv1d")
    activation, more = _activation(case), inputs.more
    if case.op == "update":
        state = more["conv_state"].clone()

        def update() -> Outputs:
            out = package.causal_conv1d_update(inputs.x, state, inputs.weight, inputs.bias, activation)
            return {"out": out, "conv_state": state}

        return update

    if case.op == "bwd":
        # What its autograd calls: the zeroed sums and their casts with it. Autograd itself no CUDA graph can take.
        backward = importlib.import_module("causal_conv1d.cpp_functions").causal_conv1d_bwd_function
        nothing = (None, None, None, None)  # seq_idx, initial_states, dfinal_states, a dx to write into
        given = (inputs.x, inputs.weight, inputs.bias, more["dout"], *nothing, False, activation == "silu")
        return lambda: _gradients(case, backward(*given))
    if not (case.states or case.seq_idx):
        return lambda: {"out": package.causal_conv1d_fn(inputs.x, inputs.weight, inputs.bias, activation=activation)}
    extra = {"seq_idx": more.get("seq_idx"), "return_final_states": case.states}
    if case.states:  # wanted with the channels contiguous
        extra["initial_states"] = more["initial_states"].transpose(1, 2).contiguous().transpose(1, 2)

    def forward() -> Outputs:
        found = package.causal_conv1d_fn(inputs.x, inputs.weight, inputs.bias, activation=activation, **extra)
        return {"out": found[0], "final_states": found[1]} if case.states else {"out": found}

    return forward


def _gradients(case: Case, found: Sequence[torch.Tensor]) -> Outputs:
    """dx, dweight, dbias and whatever comes behind them, by name."""
    return dict(zip(["dx", "dweight", *(["dbias"] if case.bias else [])], found, strict=False))


def _dao_deterministic(case: Case, inputs: Inputs) -> Work:
    """Its backward where the environment asks for the same bits in every run; the extension looks at each call."""
    work, name = _dao(case, inputs), "CAUSAL_CONV1D_DETERMINISTIC"

    def run() -> Outputs:
        before = os.environ.get(name)
        os.environ[name] = "1"
        try:
            return work()
        finally:
            if before is None:
                del os.environ[name]
            else:
                os.environ[name] = before

    return run


def _fla(case: Case, inputs: Inputs) -> Work:
    """flash-linear-attention's causal_conv1d: x (batch, seqlen, dim); returns the output and a final state."""
    package = importlib.import_module("fla.modules.convolution")
    x = inputs.x.transpose(1, 2)
    given = {"x": x, "weight": inputs.weight, "bias": inputs.bias, "activation": _activation(case)}
    if case.op == "fwd":
        return lambda: {"out": package.causal_conv1d(**given)[0].transpose(1, 2)}
    dout = inputs.more["dout"].transpose(1, 2)

    def backward() -> Outputs:
        dx, *others = package.causal_conv1d_bwd(dy=dout, dht=None, **given)  # what its autograd calls
        return _gradients(case, (dx.transpose(1, 2), *others))

    return backward


def _aiter(case: Case, inputs: Inputs) -> Work:
    """AITER: its HIP operator in channel_first, its Triton prefill in channel_last."""
    return _aiter_hip(case, inputs) if case.layout == "channel_first" else _aiter_triton(case, inputs)


def _aiter_hip(case: Case, inputs: Inputs) -> Work:
    function = importlib.import_module("aiter").causal_conv1d_fwd
    bias = inputs.bias if inputs.bias is not None else inputs.x.new_empty(0)

    def forward() -> Outputs:
        out = torch.empty_like(inputs.x)
        function(out=out, x=inputs.x, weight=inputs.weight, bias=bias, use_silu=case.activation == "silu")
        return {"out": out}

    return forward


def _aiter_triton(case: Case, inputs: Inputs) -> Work:
    """x is (dim, batch * seqlen), the sequences one after the other; its cache of states is written, too."""
    function = importlib.import_module("aiter.ops.triton.causal_conv1d").causal_conv1d_fn
    x, (batch, dim, seqlen) = inputs.x, inputs.x.shape
    together = x.transpose(1, 2).view(batch * seqlen, dim).t()
    states = x.new_zeros(batch, case.width - 1, dim).transpose(1, 2)
    given = {
        "conv_states": states,
        "query_start_loc": torch.arange(batch + 1, device=x.device, dtype=torch.int32) * seqlen,
        "seq_lens_cpu": [seqlen] * batch,
        "cache_indices": torch.arange(batch, device=x.device, dtype=torch.int32),
        "has_initial_state": torch.zeros(batch, device=x.device, dtype=torch.bool),
        "activation": _activation(case),
    }

    def forward() -> Outputs:
        out = function(together, inputs.weight, inputs.bias, **given)
        return {"out": out.t().view(batch, seqlen, dim).transpose(1, 2)}

    return forward


BASELINES = {
    "torch_conv1d": Baseline(_torch_conv1d, ops=("fwd", "bwd", "update")),
    "torch_compile": Baseline(_torch_compile, exact_probe=False),
    "torch_copy": Baseline(_torch_copy, convolves=False),
    "triton_conv1d": Baseline(_triton_conv1d, "triton", "pip install triton", needs_gpu=True),
    "dao_causal_conv1d": Baseline(
        _dao,
        "causal_conv1d",
        "pip install causal-conv1d",
        ops=("fwd", "bwd", "update"),
        needs_gpu=True,
        states_in=("fwd",),
    ),
    "dao_deterministic": Baseline(
        _dao_deterministic, "causal_conv1d", "pip install causal-conv1d", ops=("bwd",), needs_gpu=True, states_in=()
    ),
    "fla_causal_conv1d": Baseline(
        _fla, "fla.modules.convolution", "pip install flash-linear-attention", ops=("fwd", "bwd"), needs_gpu=True
    ),
    "aiter_causal_conv1d": Baseline(_aiter, "aiter", "install it from the repository ROCm/aiter", needs_gpu=True),
}

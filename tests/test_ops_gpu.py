"""What only a GPU can show: graphs, compilation, offsets past 2^32, 10,000 repeats, what a call costs the host.

`pytest -m gpu tests/test_ops_gpu.py -s` prints the costs.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_ops import BAD, DTYPES, SAMPLE, UPDATES, Call, _assert_rounded, _leaves, _update_tensors

from cc1d_lab import (
    causal_conv1d_fn,
    causal_conv1d_fn_ref,
    causal_conv1d_update,
    causal_conv1d_update_ref,
    causal_conv1d_varlen_states,
    causal_conv1d_varlen_states_ref,
    variants,
)
from cc1d_lab.errors import DeviceError

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def _needs_a_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU")


def _moved(tensors: Any) -> list[Any]:
    return [t if t is None else t.cuda() for t in tensors]


@pytest.mark.parametrize("last", [False, True], ids=["channel_first", "channel_last"])
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_calls_are_right_on_the_device(dtype: torch.dtype, last: bool) -> None:
    for call in [c for c in SAMPLE if c.dtype == dtype and c.last == last] or [Call(dtype=dtype, last=last)]:
        tensors = _moved(call.tensors())
        mine, truth = _leaves(tensors, False), _leaves(tensors, True)
        activation = "silu" if call.silu else None
        results = causal_conv1d_fn(*mine, call.states, None, activation)
        expected = causal_conv1d_fn_ref(*truth, call.states, None, activation)
        results, expected = (r if isinstance(r, tuple) else (r,) for r in (results, expected))
        for a, b in zip(results, expected, strict=True):
            _assert_rounded(a.detach(), b.detach())
        gradients = [torch.randn_like(r) for r in results]
        torch.autograd.backward(results, gradients)
        torch.autograd.backward(expected, [g.double() for g in gradients])
        for a, b in zip(mine, truth, strict=True):
            if a is not None and a.is_floating_point():
                terms = 20 + call.batch * call.seqlen if a.dim() < 3 else 20
                _assert_rounded(a.grad, b.grad, torch.full_like(b.grad, 3e-7 * terms))


@pytest.mark.parametrize("config", UPDATES, ids=str)
def test_updates_are_right_on_the_device(config: dict) -> None:
    on_cpu = _update_tensors(**config)
    on_gpu = {k: None if t is None else t.cuda() for k, t in on_cpu.items()}
    expected = causal_conv1d_update_ref(**on_cpu, activation="silu")
    torch.testing.assert_close(causal_conv1d_update(**on_gpu, activation="silu").cpu(), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(on_gpu["conv_state"].cpu(), on_cpu["conv_state"])


def test_varlen_states_on_the_device() -> None:
    x, bounds = torch.randn(17, 6, device="cuda"), torch.tensor([0, 1, 3, 17], device="cuda")
    assert torch.equal(causal_conv1d_varlen_states(x, bounds, 4), causal_conv1d_varlen_states_ref(x, bounds, 4))


@pytest.mark.parametrize(("changes", "error", "words"), [b[1:] for b in BAD[:8]], ids=[b[0] for b in BAD[:8]])
def test_bad_input_is_refused_on_the_device(changes: dict, error: type[Exception], words: str) -> None:
    x, weight, bias, *_ = _moved(Call(seqlen=20).tensors())
    moved = {k: v.cuda() if isinstance(v, torch.Tensor) else v for k, v in changes.items()}
    with pytest.raises(error, match=words):
        causal_conv1d_fn(**{"x": x, "weight": weight, "bias": bias, **moved})
    causal_conv1d_fn(x, weight, bias)


def test_devices_that_differ_are_refused() -> None:
    x, weight, *_ = Call().tensors()
    with pytest.raises(DeviceError, match=r"weight is on cpu, x is on cuda:0"):
        causal_conv1d_fn(x.cuda(), weight)
    with pytest.raises(DeviceError, match="backend cpu"):
        causal_conv1d_fn(x.cuda(), weight.cuda(), backend="cpu")
    with pytest.raises(DeviceError, match="conv_state is on cpu"):
        causal_conv1d_update(x[..., :1].cuda(), torch.zeros(2, 12, 3), weight.cuda())


def test_calls_can_be_captured() -> None:
    x, weight, bias, *_ = _leaves(_moved(Call(seqlen=500).tensors()), False)
    state = torch.zeros(2, 12, 3, device="cuda")
    step = torch.randn(2, 12, device="cuda")

    def work() -> tuple[torch.Tensor, ...]:
        out = causal_conv1d_fn(x, weight, bias, activation="silu")
        grads = torch.autograd.grad(out.square().sum(), (x, weight, bias))
        with torch.no_grad():
            return out.detach(), *grads, causal_conv1d_update(step, state, weight, bias, "silu")

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = work()
    with torch.no_grad():
        x.copy_(torch.randn_like(x))
    state.zero_()
    graph.replay()
    torch.cuda.synchronize()
    replayed = [t.clone() for t in captured]
    state.zero_()
    assert all(torch.equal(a, b) for a, b in zip(replayed, work(), strict=True))


@pytest.mark.parametrize("last", [False, True])
def test_compiles_as_one_graph_on_the_device(last: bool) -> None:
    def model(x: Any, weight: Any, bias: Any, seq_idx: Any, states: Any) -> Any:
        out, final = causal_conv1d_fn(2 * x, weight, bias, seq_idx, states, True, activation="silu")
        return out.relu(), final

    tensors = _moved(Call(states=True, packed=True, last=last).tensors())
    eager, compiled = _leaves(tensors, False), _leaves(tensors, False)
    results = torch.compile(model, fullgraph=True)(*compiled), model(*eager)
    for result in results:
        sum(r.sum() for r in result).backward()
    for a, b in zip(results[0], results[1], strict=True):
        torch.testing.assert_close(a, b)
    for a, b in zip(compiled, eager, strict=True):
        if a is not None and a.is_floating_point():
            torch.testing.assert_close(a.grad, b.grad)


@pytest.mark.parametrize("last", [False, True], ids=["channel_first", "channel_last"])
def test_ten_thousand_repeats_give_the_same_bits(last: bool) -> None:
    call = Call(2, 4128, 1134, dtype=torch.bfloat16, weight_dtype=torch.float32, last=last)
    leaves = _leaves(_moved(call.tensors()), False)[:3]
    dout = torch.randn_like(leaves[0])
    first: list[torch.Tensor] = []
    different = torch.zeros((), dtype=torch.long, device="cuda")
    for _ in range(10_000):
        out = causal_conv1d_fn(*leaves, activation="silu")
        found = [out.detach(), *torch.autograd.grad(out, leaves, dout)]
        first = first or found
        for a, b in zip(found, first, strict=True):
            different += (a != b).sum()
    assert int(different) == 0


@pytest.mark.parametrize("last", [False, True], ids=["channel_first", "channel_last"])
def test_more_than_two_to_the_32_elements(last: bool) -> None:
    """A bfloat16 tensor of over 4.3 billion elements; ends and middle against the reference. Needs 40 GB of memory."""
    batch, dim, seqlen = 2, 2056, 2**20 + 1
    assert batch * dim * seqlen > 4.3e9
    shape = (batch, seqlen, dim) if last else (batch, dim, seqlen)
    x = torch.empty(shape, dtype=torch.bfloat16, device="cuda").normal_()
    x = x.transpose(1, 2) if last else x
    weight, bias = torch.randn(dim, 4, device="cuda"), torch.randn(dim, device="cuda")
    layout = "channel_last" if last else "channel_first"
    places = [(b, d, t) for b in (0, 1) for d in (0, dim // 2, dim - 64) for t in (0, seqlen // 2, seqlen - 128)]
    for variant in variants.select("all"):
        if layout not in variant.layouts or variant.executed_flops:
            continue
        out = causal_conv1d_fn(x, weight, bias, activation="silu", variant=variant.name)
        for b, d, t in places:
            begin = max(0, t - 3)
            part, taps = x[b : b + 1, d : d + 64, begin : t + 128].double(), weight[d : d + 64].double()
            truth = causal_conv1d_fn_ref(part, taps, bias[d : d + 64].double(), activation="silu")[:, :, t - begin :]
            _assert_rounded(out[b : b + 1, d : d + 64, t : t + 128].contiguous(), truth)
        del out
    gradient = causal_conv1d_fn(x.requires_grad_(), weight)
    (dx,) = torch.autograd.grad(gradient, x, torch.ones((), dtype=x.dtype, device="cuda").expand_as(x))
    inner = weight.sum(1)
    for b, d, t in places:
        truth = inner[d : d + 64, None].double().expand(64, 100)[None]
        _assert_rounded(dx[b : b + 1, d : d + 64, t : t + 100].detach().contiguous(), truth)
    del gradient, dx, x
    torch.cuda.empty_cache()


# --- what a call costs the host -------------------------------------------------------------------


def _costs_us(calls: dict[str, Callable[[], Any]], rounds: int = 20, repeats: int = 400) -> dict[str, float]:
    """Microseconds a call, best of some rounds with nothing waited for within a round.

    In turns, and with pauses: for seconds after a compilation all calls, F.conv1d's too, took up to twice as long.
    """
    best = dict.fromkeys(calls, float("inf"))
    for _ in range(rounds):
        for name, call in calls.items():
            torch.cuda.synchronize()
            started = time.perf_counter()
            for _ in range(repeats):
                call()
            best[name] = min(best[name], (time.perf_counter() - started) / repeats * 1e6)
        torch.cuda.synchronize()
        time.sleep(0.5)
    return best


def test_a_call_costs_the_host_little() -> None:
    x, weight, bias, *_ = _moved(Call(1, 64, 64, dtype=torch.bfloat16).tensors())
    leaves = [t.clone().requires_grad_() for t in (x, weight, bias)]
    state = torch.zeros(1, 64, 3, dtype=x.dtype, device="cuda")
    filters = weight[:, None].contiguous()
    calls = {
        "causal_conv1d_fn": lambda: causal_conv1d_fn(x, weight, bias, activation="silu"),
        "causal_conv1d_fn, recording": lambda: causal_conv1d_fn(*leaves, activation="silu"),
        "causal_conv1d_update": lambda: causal_conv1d_update(x[..., 0], state, weight, bias, "silu"),
        "torch operator": lambda: torch.ops.cc1d_lab.conv(x, weight, bias, None, None, False, True, "auto", "auto"),
        "F.conv1d + SiLU": lambda: F.silu(F.conv1d(x, filters, bias, padding=3, groups=64)[..., :64]),
    }
    costs = _costs_us(calls)
    for name, cost in costs.items():
        print(f"\n{name:30s}{cost:8.1f} us a call", end="")
    assert costs["causal_conv1d_fn"] <= 15
    assert costs["causal_conv1d_fn, recording"] <= 30


def test_autocast_on_the_device() -> None:
    x, weight, bias, *_ = _moved(Call().tensors())
    for dtype, grad in itertools.product([torch.float16, torch.bfloat16], [False, True]):
        leaf = x.clone().requires_grad_(grad)
        with torch.autocast("cuda", dtype=dtype):
            mine = causal_conv1d_fn(leaf, weight, bias)
            theirs = F.conv1d(leaf, weight[:, None], bias, padding=3, groups=12)[..., :70]
        assert mine.dtype == theirs.dtype == dtype
        torch.testing.assert_close(mine, theirs)

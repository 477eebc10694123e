"""The names of other packages do what theirs do: order of arguments, results, effects, and better errors."""

from __future__ import annotations

import inspect

import pytest
import torch
import torch.nn.functional as F

from cc1d_lab.errors import DtypeError, LayoutError, ShapeError
from cc1d_lab.ops.compat import aiter, causal_conv1d, hip, mps

X, W, B = torch.randn(2, 10, 33), torch.randn(10, 4), torch.randn(10)


def conv(x: torch.Tensor, bias: torch.Tensor | None, silu: bool) -> torch.Tensor:
    y = F.conv1d(x.double(), W[:, None].double(), None if bias is None else bias.double(), padding=3, groups=10)[
        ..., :33
    ]
    return (F.silu(y) if silu else y).to(x.dtype)


@pytest.mark.parametrize(
    ("function", "names"),
    [
        (aiter.causal_conv1d_fwd, "out x weight bias use_silu"),
        (hip.causal_conv1d_hip_fn, "x weight bias activation"),
        (hip.causal_conv1d_hip_ref, "x weight bias activation"),
        (mps.causal_conv1d, "x weight bias activation"),
        (mps.causal_conv1d_fwd, "x weight bias silu_activation"),
        (
            causal_conv1d.causal_conv1d_fn,
            "x weight bias seq_idx initial_states return_final_states final_states_out activation variant backend",
        ),
        (
            causal_conv1d.causal_conv1d_ref,
            "x weight bias initial_states return_final_states final_states_out activation",
        ),
        (
            causal_conv1d.causal_conv1d_update,
            "x conv_state weight bias activation cache_seqlens conv_state_indices variant backend",
        ),
        (causal_conv1d.causal_conv1d_varlen_states, "x cu_seqlens state_len"),
    ],
)
def test_arguments_stand_in_the_known_order(function: object, names: str) -> None:
    parameters = inspect.signature(function).parameters
    assert list(parameters) == names.split()
    for name in ("variant", "backend"):
        if name in parameters:
            assert parameters[name].kind is inspect.Parameter.KEYWORD_ONLY
            assert parameters[name].default == "auto"


@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_aiter_writes_into_out(silu: bool, dtype: torch.dtype) -> None:
    x, out = X.to(dtype), torch.full((2, 33, 10), float("nan"), dtype=dtype).transpose(1, 2)
    for bias in (B, torch.empty(0)):
        assert aiter.causal_conv1d_fwd(out, x, W, bias, silu) is None
        torch.testing.assert_close(out, conv(x, bias if bias.numel() else None, silu))


def test_aiter_refuses_bad_outputs() -> None:
    with pytest.raises(LayoutError, match="out overlaps x"):
        aiter.causal_conv1d_fwd(X, X, W, B, True)
    with pytest.raises(ShapeError, match=r"out must have the shape of x, \(2, 10, 33\), got \(2, 10, 32\)"):
        aiter.causal_conv1d_fwd(X[:, :, 1:].clone(), X, W, B, True)
    with pytest.raises(DtypeError, match="out must have the dtype of x"):
        aiter.causal_conv1d_fwd(torch.empty_like(X).half(), X, W, B, True)
    with pytest.raises(TypeError, match=r"out must be a torch.Tensor, got NoneType"):
        aiter.causal_conv1d_fwd(None, X, W, B, True)


def test_aiter_may_write_beside_its_input() -> None:
    both = torch.randn(2, 20, 33)
    expected = conv(both[:, :10], B, True)
    aiter.causal_conv1d_fwd(both[:, 10:], both[:, :10], W, B, True)
    torch.testing.assert_close(both[:, 10:], expected)


@pytest.mark.parametrize("activation", [None, "silu"])
def test_hip_and_mps_are_differentiable(activation: str | None) -> None:
    found = []
    for function in (hip.causal_conv1d_hip_fn, hip.causal_conv1d_hip_ref, mps.causal_conv1d):
        leaves = [t.clone().requires_grad_() for t in (X, W, B)]
        out = function(*leaves, activation)
        out.square().sum().backward()
        found.append([out.detach(), *(t.grad for t in leaves)])
    for other in found[1:]:
        torch.testing.assert_close(found[0], other, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[0][0], conv(X, B, activation is not None))


@pytest.mark.parametrize("silu", [False, True])
def test_mps_forward_records_no_gradient(silu: bool) -> None:
    out = mps.causal_conv1d_fwd(X.clone().requires_grad_(), W, None, silu)
    assert not out.requires_grad
    torch.testing.assert_close(out, conv(X, None, silu))


class Mixer(torch.nn.Module):
    """The short convolution of a Mamba block, as model code writes it with Dao-AILab's package."""

    def __init__(self, dim: int = 8, width: int = 4) -> None:
        super().__init__()
        self.in_proj = torch.nn.Linear(dim, 2 * dim, bias=False)
        self.conv1d = torch.nn.Conv1d(dim, dim, width, groups=dim, padding=width - 1)
        self.width = width

    def weights(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.conv1d.weight.squeeze(1), self.conv1d.bias

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """hidden: (batch, seqlen, dim)."""
        x, _ = self.in_proj(hidden).transpose(1, 2).chunk(2, dim=1)
        weight, bias = self.weights()
        return causal_conv1d.causal_conv1d_fn(x, weight, bias, activation="silu").transpose(1, 2)

    def prefill_and_step(self, hidden: torch.Tensor, prefill: int) -> torch.Tensor:
        weight, bias = self.weights()
        x, _ = self.in_proj(hidden).transpose(1, 2).chunk(2, dim=1)
        state = F.pad(x[:, :, :prefill], (self.width - prefill, 0))  # as mamba_ssm does: width steps, not width - 1
        pieces = [causal_conv1d.causal_conv1d_fn(x[:, :, :prefill], weight, bias, activation="silu")]
        for t in range(prefill, x.shape[2]):
            step = causal_conv1d.causal_conv1d_update(x[:, :, t], state, weight, bias, "silu")
            pieces.append(step[..., None])
        return torch.cat(pieces, 2).transpose(1, 2)


def test_a_model_written_for_dao_runs() -> None:
    model, hidden = Mixer(), torch.randn(3, 11, 8, requires_grad=True)
    out = model(hidden)
    x = model.in_proj(hidden).transpose(1, 2)[:, :8]
    expected = F.silu(model.conv1d(x)[..., :11]).transpose(1, 2)
    torch.testing.assert_close(out, expected)
    mine = torch.autograd.grad(out.square().sum(), [hidden, *model.parameters()])
    theirs = torch.autograd.grad(expected.square().sum(), [hidden, *model.parameters()])
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(model.prefill_and_step(hidden, 6), expected)

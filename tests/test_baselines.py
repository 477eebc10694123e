"""Baselines: called with the arguments that their packages document, judged as F.conv1d is, missed with a remedy."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from cc1d_lab import baselines, oracle, reference, variants
from cc1d_lab.case import LAYOUTS, Case
from cc1d_lab.cell import Cell
from cc1d_lab.errors import ConfigError, ToolchainError
from cc1d_lab.evaluation import evaluate

Calls = list[dict[str, Any]]


def _install(monkeypatch: pytest.MonkeyPatch, name: str, **functions: Callable[..., Any]) -> None:
    """A made-up package `name`, with its parents."""
    parts = name.split(".")
    for depth in range(1, len(parts) + 1):
        dotted = ".".join(parts[:depth])
        monkeypatch.setitem(sys.modules, dotted, sys.modules.get(dotted) or ModuleType(dotted))
    for function, body in functions.items():
        setattr(sys.modules[name], function, body)


def _silu(y: torch.Tensor, activation: str | None) -> torch.Tensor:
    assert activation in (None, "silu", "swish")
    return F.silu(y) if activation else y


def _conv(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, activation: str | None) -> torch.Tensor:
    """x (batch, dim, seqlen)."""
    dim, width = weight.shape
    return _silu(F.conv1d(F.pad(x, (width - 1, 0)), weight[:, None], bias, groups=dim), activation)


def _assert_right(name: str, case: Case) -> None:
    """What the adapter makes of the package's answers is the convolution."""
    inputs = reference.make_inputs(case)
    found = baselines.get(name).start(case, inputs)()
    for output, truth in oracle.truths(case, inputs).items():
        torch.testing.assert_close(found[output].double(), truth.y, rtol=1e-4, atol=1e-4)


# --- Dao-AILab ----------------------------------------------------------------------------------------------------


def _dao(monkeypatch: pytest.MonkeyPatch) -> Calls:
    calls: Calls = []

    def causal_conv1d_fn(
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None = None,
        seq_idx: torch.Tensor | None = None,
        initial_states: torch.Tensor | None = None,
        return_final_states: bool = False,
        final_states_out: torch.Tensor | None = None,
        activation: str | None = None,
    ) -> Any:
        calls.append({"seq_idx": seq_idx, "initial_states": initial_states})
        assert seq_idx is None or initial_states is None, "initial_states must be None if seq_idx is not None"
        width = weight.shape[1]
        before = initial_states if initial_states is not None else x.new_zeros(*x.shape[:2], width - 1)
        whole = torch.cat([before, x], 2)
        out = _silu(F.conv1d(whole, weight[:, None], bias, groups=len(weight)), activation)
        return (out, whole[:, :, whole.shape[2] - width + 1 :]) if return_final_states else out

    def causal_conv1d_update(
        x: torch.Tensor,
        conv_state: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None = None,
        activation: str | None = None,
        cache_seqlens: torch.Tensor | None = None,
        conv_state_indices: torch.Tensor | None = None,
    ) -> torch.Tensor:
        calls.append({"state": conv_state})
        whole = torch.cat([conv_state, x], 2)
        conv_state.copy_(whole[:, :, x.shape[2] :])
        return _silu(F.conv1d(whole, weight[:, None], bias, groups=len(weight)), activation)

    def causal_conv1d_bwd_function(
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        dout: torch.Tensor,
        seq_idx: torch.Tensor | None,
        initial_states: torch.Tensor | None,
        dfinal_states: torch.Tensor | None,
        dx: torch.Tensor | None,
        return_dinitial_states: bool,
        silu_activation: bool,
    ) -> tuple[torch.Tensor | None, ...]:
        calls.append({"deterministic": os.environ.get("CAUSAL_CONV1D_DETERMINISTIC")})
        assert (seq_idx, initial_states, dfinal_states, dx, return_dinitial_states) == (None, None, None, None, False)
        return *_gradients(x, weight, bias, dout, "silu" if silu_activation else None), None

    _install(monkeypatch, "causal_conv1d", causal_conv1d_fn=causal_conv1d_fn, causal_conv1d_update=causal_conv1d_update)
    _install(monkeypatch, "causal_conv1d.cpp_functions", causal_conv1d_bwd_function=causal_conv1d_bwd_function)
    return calls


def _gradients(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, dout: torch.Tensor, activation: str | None
) -> tuple[torch.Tensor | None, ...]:
    """Of x (batch, dim, seqlen), weight and bias, by autograd."""
    leaves = [None if t is None else t.detach().requires_grad_() for t in (x, weight, bias)]
    with torch.enable_grad():
        out = _conv(*leaves, activation)
    found = iter(torch.autograd.grad(out, [t for t in leaves if t is not None], dout))
    return tuple(None if t is None else next(found) for t in leaves)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("op", ["fwd", "bwd", "update"])
def test_dao_is_called_by_its_documented_names(op: str, layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = _dao(monkeypatch)
    _assert_right("dao_causal_conv1d", Case(2, 8, 5, op=op, layout=layout))
    assert len(calls) == 1


@pytest.mark.parametrize("before", [None, "0"])
def test_dao_is_deterministic_for_its_own_calls_only(before: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = _dao(monkeypatch)
    monkeypatch.delenv("CAUSAL_CONV1D_DETERMINISTIC", raising=False)
    if before:
        monkeypatch.setenv("CAUSAL_CONV1D_DETERMINISTIC", before)
    _assert_right("dao_deterministic", Case(2, 8, 5, op="bwd", bias=False))
    assert calls == [{"deterministic": "1"}]
    assert os.environ.get("CAUSAL_CONV1D_DETERMINISTIC") == before


def test_dao_gets_its_states_with_the_channels_contiguous(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = _dao(monkeypatch)
    _assert_right("dao_causal_conv1d", Case(2, 8, 5, layout="channel_last", states=True, activation="none"))
    assert calls[0]["initial_states"].stride(1) == 1


def test_dao_gets_the_packing_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = _dao(monkeypatch)
    case = Case(2, 8, 32, layout="channel_last", seq_idx=True)
    inputs = reference.make_inputs(case)
    baselines.get("dao_causal_conv1d").start(case, inputs)()
    assert calls[0]["seq_idx"] is inputs.more["seq_idx"]
    assert calls[0]["seq_idx"].dtype == torch.int32


def test_dao_moves_a_state_of_its_own_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = _dao(monkeypatch)
    case = Case(2, 8, 1, op="update")
    inputs = reference.make_inputs(case)
    before = inputs.more["conv_state"].clone()
    found = baselines.get("dao_causal_conv1d").start(case, inputs)()
    assert found["conv_state"] is calls[0]["state"]
    assert torch.equal(inputs.more["conv_state"], before), "the inputs stay what they are"


# --- flash-linear-attention and AITER -----------------------------------------------------------------------------


@pytest.mark.parametrize("op", ["fwd", "bwd"])
def test_fla_gets_the_sequence_before_the_channels(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = []

    def causal_conv1d(
        x: torch.Tensor,
        weight: torch.Tensor | None = None,
        bias: torch.Tensor | None = None,
        residual: torch.Tensor | None = None,
        initial_state: torch.Tensor | None = None,
        output_final_state: bool = False,
        activation: str | None = None,
    ) -> tuple[torch.Tensor, None]:
        assert weight is not None
        assert x.is_contiguous(), "no copy is made of it"
        shapes.append(tuple(x.shape))
        return _conv(x.transpose(1, 2), weight, bias, activation).transpose(1, 2), None

    def causal_conv1d_bwd(
        x: torch.Tensor,
        dy: torch.Tensor,
        dht: torch.Tensor | None,
        weight: torch.Tensor,
        bias: torch.Tensor | None = None,
        residual: torch.Tensor | None = None,
        initial_state: torch.Tensor | None = None,
        activation: str | None = None,
    ) -> tuple[torch.Tensor | None, ...]:
        shapes.append(tuple(x.shape))
        dx, *others = _gradients(x.transpose(1, 2), weight, bias, dy.transpose(1, 2), activation)
        assert dx is not None
        return dx.transpose(1, 2), *others, None, None

    _install(monkeypatch, "fla.modules.convolution", causal_conv1d=causal_conv1d, causal_conv1d_bwd=causal_conv1d_bwd)
    _assert_right("fla_causal_conv1d", Case(2, 8, 5, op=op, layout="channel_last"))
    assert shapes == [(2, 5, 8)]


@pytest.mark.parametrize("bias", [True, False])
def test_aiter_channel_first_writes_out_and_takes_an_empty_bias(bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def causal_conv1d_fwd(
        out: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, use_silu: bool
    ) -> None:
        out.copy_(_conv(x, weight, bias if bias.numel() else None, "silu" if use_silu else None))

    _install(monkeypatch, "aiter", causal_conv1d_fwd=causal_conv1d_fwd)
    _assert_right("aiter_causal_conv1d", Case(2, 8, 5, bias=bias))
    _assert_right("aiter_causal_conv1d", Case(2, 8, 5, bias=bias, activation="none"))


@pytest.mark.parametrize("view", ["contiguous", "channel_slice"])
def test_aiter_channel_last_gets_sequences_one_after_the_other(view: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def causal_conv1d_fn(
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        conv_states: torch.Tensor,
        query_start_loc: torch.Tensor,
        seq_lens_cpu: list[int],
        cache_indices: torch.Tensor | None = None,
        has_initial_state: torch.Tensor | None = None,
        activation: str | None = "silu",
    ) -> torch.Tensor:
        assert x.stride(0) == 1
        assert query_start_loc.tolist() == [0, 5, 10]
        assert query_start_loc.dtype == torch.int32
        assert seq_lens_cpu == [5, 5]
        assert conv_states.shape == (2, 8, 3)
        assert cache_indices is not None
        assert cache_indices.tolist() == [0, 1]
        assert has_initial_state is not None
        assert has_initial_state.tolist() == [False, False]
        out = torch.empty_like(x)
        for begin in (0, 5):
            out[:, begin : begin + 5] = _conv(x[None, :, begin : begin + 5], weight, bias, activation)[0]
        return out

    _install(monkeypatch, "aiter.ops.triton.causal_conv1d", causal_conv1d_fn=causal_conv1d_fn)
    _assert_right("aiter_causal_conv1d", Case(2, 8, 5, layout="channel_last", view=view))
    _assert_right("aiter_causal_conv1d", Case(2, 8, 5, layout="channel_last", activation="none", bias=False))


# --- what is not there, and what will not -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("dao_causal_conv1d", "not importable: pip install causal-conv1d"),
        ("fla_causal_conv1d", "not importable: pip install flash-linear-attention"),
        ("aiter_causal_conv1d", "not importable: install it from the repository ROCm/aiter"),
        ("triton_conv1d", "not importable: pip install triton"),
    ],
)
def test_a_package_that_is_missing_says_what_to_install(name: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(module: str) -> ModuleType:
        root = module.partition(".")[0]
        raise ModuleNotFoundError(f"No module named {root!r}", name=root)

    monkeypatch.setattr(baselines.importlib, "import_module", missing)
    assert baselines.why_not(name, Case(layout="channel_last"), "nvidia") == words


def test_a_package_that_breaks_on_import_says_how(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> ModuleType:
        raise OSError("libcudart.so.12: cannot open shared object file\nand more")

    monkeypatch.setattr(baselines.importlib, "import_module", broken)
    reason = baselines.why_not("dao_causal_conv1d", Case(), "nvidia")
    assert "OSError: libcudart.so.12: cannot open shared object file; pip install causal-conv1d" in reason


@pytest.mark.parametrize(
    ("name", "case", "words"),
    [
        ("fla_causal_conv1d", Case(op="update", layout="channel_last"), "op update: fla_causal_conv1d does fwd, bwd"),
        ("dao_causal_conv1d", Case(op="bwd", states=True), "for op fwd only"),
        ("triton_conv1d", Case(), "needs a GPU"),
    ],
)
def test_what_a_baseline_cannot_is_said_before_it_is_imported(name: str, case: Case, words: str) -> None:
    assert words in baselines.why_not(name, case, "cpu")


def test_a_baseline_that_refuses_a_case_is_unsupported_and_harms_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(case: Case, inputs: reference.Inputs) -> baselines.Work:
        raise RuntimeError("dim must be a multiple of 8\nat line 3")

    monkeypatch.setitem(baselines.BASELINES, "torch_copy", baselines.Baseline(refuse))
    refused, fine = evaluate([Cell(name, "cpu", Case(1, 4, 9)) for name in ("torch_copy", "torch_conv1d")])
    assert refused["status"] == "unsupported"
    assert refused["reason"] == "torch_copy refuses: RuntimeError: dim must be a multiple of 8"
    assert fine["status"] == "ok"


def test_a_device_that_a_baseline_broke_is_not_called_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    assert isinstance(baselines.refusal("triton_conv1d", RuntimeError("no")), ToolchainError)

    def broken() -> None:
        raise RuntimeError("an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "synchronize", broken)
    assert "illegal memory access" in str(baselines.refusal("triton_conv1d", RuntimeError("no")))
    assert not isinstance(baselines.refusal("triton_conv1d", RuntimeError("no")), ToolchainError)


def test_the_registry_and_the_calls_name_the_same_baselines() -> None:
    assert {v.name for v in variants.VARIANTS.values() if v.kind == "baseline"} == set(baselines.BASELINES)
    with pytest.raises(ConfigError, match="did you mean 'torch_compile'"):
        baselines.get("torch_compil")


# --- torch's own ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("seqlen", [2, 19])
def test_shifted_sums_are_the_convolution(seqlen: int, layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **how: function)  # what is compiled, as it stands
    baselines._compiled.cache_clear()
    for case in (Case(2, 6, seqlen, layout=layout), Case(2, 6, seqlen, layout=layout, bias=False, activation="none")):
        _assert_right("torch_compile", case)
    baselines._compiled.cache_clear()


def test_torch_compile_and_the_copy_are_timed_beside_our_kernels() -> None:
    cells = [Cell(name, "cpu", Case(2, 6, 37)) for name in ("torch_compile", "torch_copy", "fwd_naive")]
    compiled, copy, naive = evaluate(cells)
    assert [row["status"] for row in (compiled, copy, naive)] == ["ok"] * 3
    assert all(row["timed_result"] and row["time_us_p50"] > 0 for row in (compiled, copy, naive))
    assert compiled["bound_ratio"] < 1
    assert compiled["integer_probe"] is None, "its second build is not worth its time"
    assert copy["bound_ratio"] is None, "a copy has no error to speak of"

"""Every variant, executed by the emulation: awkward cases, and the laws that a causal convolution obeys."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import Planted, plant

from cc1d_lab import build, kernel, reference, variants
from cc1d_lab.case import Case
from cc1d_lab.cell import Cell
from cc1d_lab.errors import ConfigError, LaunchError
from cc1d_lab.evaluation import evaluate
from cc1d_lab.timing import Policy

KERNELS = [v for v in variants.select("all") if v.name.startswith("fwd_")]
EVERY = [*KERNELS, *variants.select("all", "bwd"), *variants.select("all", "update")]
AWKWARD = {"fwd": (1, 2, 3, 63, 64, 65, 129, 1134), "bwd": (1, 3, 64, 129), "update": (1, 2, 5)}
ONCE = Policy(warmup=0, min_samples=1, max_samples=1)  # one sample is looked at again, as ten are


def _suited(variant: variants.Variant, **values: object) -> list[Case]:
    usual = {"op": variant.op, "batch": 2, "dim": 20 if variant.op == "update" else 21}
    cases = [Case(**{**usual, "layout": layout, **values}) for layout in variant.layouts]
    return [c for c in cases if not variants.why_not(variant, c, "cpu")]


def _assert_ok(variant: variants.Variant, case: Case, arch: str = "") -> None:
    row = evaluate([Cell(variant.name, "cpu", case, arch=arch)], ONCE)[0]
    assert row["status"] == "ok", f"{case.title()}: {row['reason']}"


@pytest.mark.parametrize("view", ["contiguous", "channel_slice", "misaligned"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("variant", EVERY, ids=lambda v: v.name)
def test_variant_is_right_at_awkward_lengths(variant: variants.Variant, dtype: str, view: str) -> None:
    long = (
        (1134,) if (variant.op, dtype, view) == ("bwd", "bfloat16", "misaligned") else ()
    )  # over a chunk; a second each
    for seqlen in (*AWKWARD[variant.op], *long):
        for case in _suited(variant, dtype=dtype, view=view, seqlen=seqlen):
            _assert_ok(variant, case)


@pytest.mark.parametrize("view", ["sliced_input", "batch_second"])
@pytest.mark.parametrize("variant", KERNELS, ids=lambda v: v.name)
def test_variant_is_right_where_x_and_out_lie_otherwise(variant: variants.Variant, view: str) -> None:
    for case in _suited(variant, dtype="float16", view=view, seqlen=150):
        _assert_ok(variant, case)


@pytest.mark.parametrize(
    ("features", "arch"),
    [((), ""), ((), "wave64"), (("states",), "wave64"), (("seq_idx",), ""), (("states", "seq_idx"), "wave64")],
)
def test_rows_of_channels_are_right_however_they_turn(features: tuple[str, ...], arch: str) -> None:
    """Strides of 1, 2, 3 and 4 modulo 4, the last an element behind a boundary; the first and last steps, too.

    Of 97 steps the last tile is alone in a wave of 64 lanes, whose other half takes part in its shuffles.
    """
    more = dict.fromkeys(features, True)
    narrow = ((513, 75, "contiguous"), (514, 96, "contiguous"), (515, 75, "contiguous"), (515, 75, "misaligned"))
    wide = ((257, 75, "contiguous"), (258, 96, "contiguous"), (259, 75, "misaligned"))
    for dtype, shapes in (("bfloat16", narrow), ("float32", wide)):
        for dim, seqlen, view in (*shapes, (shapes[0][0], 97, "contiguous")):
            case = Case(1, dim, seqlen, dtype=dtype, layout="channel_last", view=view, activation="silu", **more)
            _assert_ok(variants.get("fwd_raster"), case, arch)


@pytest.mark.parametrize(("width", "dtype"), [(2, "bfloat16"), (4, "bfloat16"), (4, "float32")])
def test_rows_of_channels_are_right_wherever_in_a_sector_they_begin(width: int, dtype: str) -> None:
    """Every stride modulo its 16 channels, or 8, rows with a gap and without, the last tile full or not."""
    for dim in range(545, 561):
        draw = functools.partial(torch.randint, -3, 4, generator=torch.Generator().manual_seed(dim))
        x, weight, bias = (
            draw(size=size).to(reference.DTYPES[dtype]) for size in ((2, dim, 96 + dim % 2), (dim, width), (dim,))
        )
        padded = torch.nn.functional.pad(x.float(), (width - 1, 0))
        exact = torch.nn.functional.conv1d(padded, weight.float()[:, None], bias.float(), groups=dim)
        for view in ("contiguous", "misaligned"):
            layout = {"dtype": dtype, "layout": "channel_last", "width": width, "view": view}
            assert torch.equal(_conv(variants.get("fwd_raster"), x, weight, bias, **layout).float(), exact), (dim, view)


@pytest.mark.parametrize("features", [(), ("states", "seq_idx")], ids="+".join)
def test_rows_on_vectors_but_off_sectors_are_right_by_either_way(
    features: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The way of small calls, and that of large ones, asked for by a threshold that each call passes."""
    plain = Case(2, 516, 75, dtype="bfloat16", layout="channel_last", activation="silu")
    cases = [replace(plain, dim=dim, **dict.fromkeys(features, True)) for dim in (516, 520)]
    for case in cases:
        _assert_ok(variants.get("fwd_raster"), case)
    large = Planted("large", "fwd_raster", ">= (1 << 23)", ">= 1", cases[0], "fwd_raster.hip")
    monkeypatch.setenv("CC1D_KERNELS", str(plant(large, tmp_path)))
    for case in cases:
        _assert_ok(variants.get("fwd_raster"), case)


@pytest.mark.parametrize("arch", ["wave64", "wave32_gfx12"])
@pytest.mark.parametrize("variant", EVERY, ids=lambda v: v.name)
def test_variant_is_right_at_every_wave_size(variant: variants.Variant, arch: str) -> None:
    for case in _suited(variant, dtype="float16", seqlen=130):
        _assert_ok(variant, case, arch)
        if variant.rank == 5 and variant.features:
            _assert_ok(variant, replace(case, seqlen=45, **dict.fromkeys(variant.features, True)), arch)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("dim", [127, 128, 133, 512, 513])
@pytest.mark.parametrize("variant", [v for v in EVERY if v.layouts == ("channel_last",)], ids=lambda v: v.name)
def test_rows_of_channels_may_begin_anywhere(variant: variants.Variant, dim: int, dtype: str) -> None:
    """From 128 channels on `fwd_raster` and `bwd_persistent` have a kernel for them; from 513 on, in two tiles."""
    unlike = {"row_stride": dim + 25}  # the rows of x and out at other distances from a boundary
    for view, seqlen, more in (
        ("contiguous", 9, {}),
        ("misaligned", 17, {}),
        ("sliced_input", 2, {}),
        ("sliced_input", 10, unlike),
    ):
        for case in _suited(variant, dim=dim, dtype=dtype, view=view, seqlen=seqlen, **more):
            _assert_ok(variant, case)
            if variant.features and view == "misaligned":
                _assert_ok(variant, replace(case, **dict.fromkeys(variant.features, True)))


@pytest.mark.parametrize(
    ("variant", "shape"),
    [
        ("bwd_warp_walk", {"batch": 1, "dim": 256, "seqlen": 16384}),  # eight warps, two turns each
        ("bwd_warp_walk", {"dim": 1024, "seqlen": 131}),  # framed, and a warp for each channel
        ("bwd_warp_walk", {"batch": 6, "dim": 3, "seqlen": 1023}),  # row by row, in four warps
        ("bwd_warp_walk", {"dim": 3, "seqlen": 4099, "view": "sliced_input", "row_stride": 28}),  # element by element
        ("bwd_persistent", {"dim": 2048, "seqlen": 40}),  # all sums of a channel in one block
    ],
)
def test_a_backward_is_right_in_its_other_kernels(variant: str, shape: dict[str, int | str]) -> None:
    for case in _suited(variants.get(variant), dtype="bfloat16", **shape):
        _assert_ok(variants.get(variant), case)


@pytest.mark.parametrize("view", ["contiguous", "misaligned"])
def test_a_backward_row_by_row_is_right_whatever_lies_beyond_its_units(view: str) -> None:
    """From nothing, at 1000, to all but a run, at 1033; 959 and 1034 have too little or too much for two units."""
    variant = variants.get("bwd_warp_walk")
    for seqlen, arch in (
        (959, ""),
        (1000, ""),
        (1017, ""),
        (1025, ""),
        (1033, ""),
        (1034, ""),
        (1535, ""),
        (2049, "wave64"),
    ):
        for case in _suited(variant, dtype="bfloat16", dim=3, seqlen=seqlen, view=view):
            _assert_ok(variant, case, arch)


@pytest.mark.parametrize("dim", [3, 21])
def test_a_banded_product_is_right_whatever_lies_behind_its_last_run(dim: int) -> None:
    """Runs of 256 steps for 3 channels, of up to 1024 for 21, and from nothing to 24 steps behind the last one."""
    lengths = (1, 17, 18, 24, 25, 256, 273, 274, 280, 281, 529, 530, 536, 537, 768, 1024, 1026, 1041, 1042, 1048, 1049)
    for i, seqlen in enumerate(lengths):
        arch = ("wave32", "wave64", "wave32_gfx12")[i % 3]
        for view in ("contiguous", "misaligned"):
            for case in _suited(variants.get("fwd_toeplitz_wmma"), dtype="float16", dim=dim, seqlen=seqlen, view=view):
                _assert_ok(variants.get("fwd_toeplitz_wmma"), case, arch)


@pytest.mark.parametrize("variant", EVERY, ids=lambda v: v.name)
def test_variant_is_right_at_its_widths(variant: variants.Variant) -> None:
    for width in (1, 2, 3, 5, 8):
        for case in _suited(variant, dtype="bfloat16", seqlen=67, width=width):
            _assert_ok(variant, case)


@pytest.mark.parametrize("features", [("states",), ("seq_idx",), ("states", "seq_idx")], ids="+".join)
@pytest.mark.parametrize("variant", [v for v in KERNELS if v.rank == 5], ids=lambda v: v.name)
def test_fast_variant_is_right_with_states_and_packed_sequences(
    variant: variants.Variant, features: tuple[str, ...]
) -> None:
    width = 8 if len(features) == 2 else 4
    for seqlen, view in ((1, "contiguous"), (9, "misaligned"), (65, "channel_slice"), (130, "misaligned")):
        for case in _suited(variant, dtype="bfloat16", seqlen=seqlen, view=view, width=width):
            _assert_ok(variant, replace(case, **dict.fromkeys(features, True)))


def test_naive_takes_a_width_beyond_the_sequence() -> None:
    _assert_ok(variants.get("fwd_naive"), Case(1, 3, 20, width=33))


@pytest.mark.parametrize("variant", EVERY, ids=lambda v: v.name)
def test_weight_may_be_wider_than_x(variant: variants.Variant) -> None:
    cases = _suited(variant, dtype="bfloat16", weight_dtype="float32", seqlen=67)
    assert bool(cases) == variant.mixed_weight, "a variant that would round its weight says that it cannot"
    for case in cases:
        _assert_ok(variant, case)


@pytest.mark.parametrize("variant", EVERY, ids=lambda v: v.name)
def test_every_choice_of_a_tunable_is_right(variant: variants.Variant) -> None:
    for name, tunable in variant.tunables.items():
        for value in tunable.choices:
            for case in _suited(variant, dtype="float16", seqlen=150)[:1]:
                row = evaluate([Cell(variant.name, "cpu", case, {name: value})], ONCE)[0]
                assert row["status"] == "ok", f"{name}={value}: {row['reason']}"


def test_a_choice_that_the_case_does_not_leave_is_an_unsupported_row() -> None:
    wide = Case(1, 8, 40, width=8, dtype="bfloat16", layout="channel_last")
    rows = evaluate([Cell("fwd_raster", "cpu", wide, {"steps": steps}) for steps in (4, 8)])
    assert [(row["status"], row["tunables"]["steps"]) for row in rows] == [("unsupported", 4), ("ok", 8)]
    assert "fwd_raster has 8 alone for bfloat16 of width 8" in rows[0]["reason"]


@pytest.mark.parametrize("given", [{"blok": 64}, {"block": 65}])
def test_a_tunable_that_there_never_is_is_an_error(given: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="fwd_naive tunable"):
        evaluate([Cell("fwd_naive", "cpu", Case(1, 4, 9), given)])


WITHOUT_WORKSPACE = [v for op in ("fwd", "bwd", "update") for v in variants.select("all", op) if len(v.stages) == 1]


@pytest.mark.parametrize("variant", [*WITHOUT_WORKSPACE, variants.get("bwd_naive")], ids=lambda v: v.name)
def test_more_blocks_than_a_grid_can_have_are_refused(variant: variants.Variant) -> None:
    """Modulo 2^32 there would be a few blocks left, and most of the output unwritten."""
    case = Case(2**40 + 3, 1, 1, dtype=variant.dtypes[0], op=variant.op, layout=variant.layouts[0])
    dtype = reference.DTYPES[case.dtype]
    x, taps = torch.full((1, 1, 1), 7.0, dtype=dtype).expand(case.batch, 1, 1), torch.zeros(1, 4, dtype=dtype)
    outputs = {"dx": x, "dout": x, "dweight": taps.clone()} if variant.op == "bwd" else {"out": x}
    outputs |= {"conv_state": x.expand(-1, -1, 3)} if variant.op == "update" else {}
    loaded = kernel.load(build.build(variant, case, {}, "cpu").library)
    launch = kernel.bind(loaded, x, taps, None, outputs.pop("out", None), **outputs)
    with pytest.raises(
        LaunchError, match=r"batch x dim x seqlen takes more blocks .* \(batch 1099511627779, dim 1, seq"
    ):
        launch()
    assert x[0, 0, 0] == 7
    fine = x[:2].clone()
    again = {name: t[:2].clone() if t is x else t for name, t in outputs.items() if name != "conv_state"}
    again |= {"conv_state": torch.zeros(2, 1, 3, dtype=dtype)} if variant.op == "update" else {}
    kernel.bind(loaded, fine, taps, None, None if variant.op == "bwd" else fine.clone(), **again)()


# --- laws, bit for bit ---------------------------------------------------------------------------


@functools.cache
def _loaded(variant: str, case: Case) -> kernel.Kernel:
    return kernel.load(build.build(variants.get(variant), case, {}, "cpu").library)


def _config(variant: variants.Variant, **values: object) -> Case:
    """What the kernel is compiled for; sizes are free at run time."""
    return Case(**{"dtype": variant.dtypes[0], "layout": variant.layouts[0], "activation": "none", **values})


def _conv(
    variant: variants.Variant, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, **values: object
) -> torch.Tensor:
    config = _config(variant, **values)
    case = replace(config, batch=x.shape[0], dim=x.shape[1], seqlen=x.shape[2])
    held = reference.empty_view(case, "cpu", x.dtype)[0]
    held.copy_(x)
    out = reference.empty_view(case, "cpu", x.dtype)[0]
    kernel.bind(_loaded(variant.name, config), held, weight, bias, out)()
    return out


@st.composite
def _problems(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    batch, dim, seqlen = draw(st.integers(1, 3)), draw(st.integers(1, 20)), draw(st.integers(2, 140))
    g = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    return tuple(torch.randn(*shape, generator=g) for shape in ((batch, dim, seqlen), (dim, 4), (dim,)))


LAW = settings(max_examples=25)
each_kernel = pytest.mark.parametrize("variant", KERNELS, ids=lambda v: v.name)


def _typed(variant: variants.Variant, problem: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return tuple(t.to(reference.DTYPES[variant.dtypes[0]]) for t in problem)


@each_kernel
@LAW
@given(problem=_problems(), power=st.integers(-3, 3))
def test_scaling_by_a_power_of_two_scales_the_output(variant: variants.Variant, problem: tuple, power: int) -> None:
    x, weight, bias = _typed(variant, problem)
    x, weight, bias = (torch.where(t.abs() < 0.01, 0.5, t) for t in (x, weight, bias))  # keep away from subnormals
    scaled = _conv(variant, x * 2.0**power, weight, bias * 2.0**power)
    exact = _conv(variant, x, weight, bias) * 2.0**power
    large = exact.abs() > 2.0**-6
    assert torch.equal(scaled[large], exact[large])


@each_kernel
@LAW
@given(problem=_problems(), shift=st.integers(1, 40))
def test_leading_zeros_shift_the_output(variant: variants.Variant, problem: tuple, shift: int) -> None:
    x, weight, bias = _typed(variant, problem)
    later = torch.nn.functional.pad(x, (shift, 0))
    assert torch.equal(_conv(variant, later, weight, bias)[:, :, shift:], _conv(variant, x, weight, bias))


@each_kernel
@LAW
@given(problem=_problems(), data=st.data())
def test_the_future_does_not_reach_the_past(variant: variants.Variant, problem: tuple, data: st.DataObject) -> None:
    x, weight, bias = _typed(variant, problem)
    n = data.draw(st.integers(1, x.shape[2]))
    assert torch.equal(_conv(variant, x[:, :, :n], weight, bias), _conv(variant, x, weight, bias)[:, :, :n])


@each_kernel
@LAW
@given(problem=_problems())
def test_batch_elements_and_channels_are_independent(variant: variants.Variant, problem: tuple) -> None:
    x, weight, bias = _typed(variant, problem)
    together = _conv(variant, x, weight, bias)
    alone = torch.cat([_conv(variant, x[b : b + 1], weight, bias) for b in range(x.shape[0])])
    flipped = _conv(variant, x.flip(1), weight.flip(0).contiguous(), bias.flip(0).contiguous()).flip(1)
    assert torch.equal(together, alone)
    assert torch.equal(together, flipped)


@each_kernel
@LAW
@given(problem=_problems())
def test_width_two_is_width_four_with_leading_zeros(variant: variants.Variant, problem: tuple) -> None:
    x, weight, bias = _typed(variant, problem)
    weight[:, :2] = 0
    assert torch.equal(_conv(variant, x, weight[:, 2:], bias, width=2), _conv(variant, x, weight, bias))


@each_kernel
def test_an_impulse_shows_the_taps(variant: variants.Variant) -> None:
    x, weight, bias = _typed(variant, (torch.zeros(1, 3, 9), torch.tensor([[1.0, 2, 3, 4]] * 3), torch.zeros(3)))
    x[:, :, 2] = 1
    assert _conv(variant, x, weight, bias)[0, 1].tolist() == [0, 0, 4, 3, 2, 1, 0, 0, 0]


def _lying_otherwise(weight: torch.Tensor, bias: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The same weight and bias: taps apart (channels adjacent, or a row apart), channels apart, both, off vectors."""
    dim, width = weight.shape
    yield weight.t().contiguous().t(), bias
    yield torch.stack([weight.t(), *[weight.t().flip(0)] * (width - 1)], 2)[..., 0].t(), bias
    yield torch.cat([weight, weight.flip(0)], 1)[:, :width], bias
    yield torch.stack([weight, weight.flip(0)], 2).flatten(1)[:, ::2], bias
    yield torch.cat([weight.new_zeros(1), weight.flatten()])[1:].view(dim, width), bias
    yield weight, torch.cat([bias.new_zeros(1), bias])[1:]


@pytest.mark.parametrize("dim", [16, 515])
@each_kernel
def test_weight_and_bias_may_lie_anyhow(variant: variants.Variant, dim: int) -> None:
    g = torch.Generator().manual_seed(5)
    x, weight, bias = _typed(variant, tuple(torch.randn(*n, generator=g) for n in ((2, dim, 64), (dim, 4), (dim,))))
    usual = _conv(variant, x, weight, bias)
    for other in _lying_otherwise(weight, bias):
        assert torch.equal(_conv(variant, x, *other), usual), [t.stride() for t in other]


@pytest.mark.parametrize("state_len", [3, 4])
def test_weight_and_bias_of_a_decoding_step_may_lie_anyhow(state_len: int) -> None:
    loaded = _loaded("update_words", Case(op="update", seqlen=1, dtype="bfloat16"))
    g = torch.Generator().manual_seed(5)
    shapes = ((3, 16, 1), (16, 4), (16,), (5, 16, state_len))
    x, weight, bias, state = (torch.randn(*n, generator=g).bfloat16() for n in shapes)
    for indices in (None, torch.tensor([4, -1, 0], dtype=torch.int32)):
        results = []
        for w, b in ((weight, bias), *_lying_otherwise(weight, bias)):
            out, moved = torch.empty_like(x), state.clone()
            kernel.bind(loaded, x, w, b, out, conv_state=moved, conv_state_indices=indices)()
            results.append((out, moved))
        assert not torch.equal(results[0][1], state)
        assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(other, results[0], strict=True))


def test_products_are_not_rounded_to_sixteen_bits() -> None:
    """255 * 253 - 254 * 254 = -1: the operands are exact in bfloat16, the products only in fp32."""
    x = torch.tensor([[[255.0, 254.0]]], dtype=torch.bfloat16)
    weight = torch.tensor([[253.0, -254.0]], dtype=torch.bfloat16)
    for variant in KERNELS:
        config = {"dtype": "bfloat16", "width": 2}
        assert _conv(variant, x, weight, torch.zeros(1, dtype=torch.bfloat16), **config)[0, 0, 1] == -1

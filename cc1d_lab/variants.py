"""The registry: what can be compared. Adding a variant is one `.hip` file and one entry here.

The name of an entry is the stem of its file in `hip_kernels/`, the name of its first kernel, its name in YAML,
in rows, in charts and in test ids.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from .case import DTYPES, EVERY_DTYPE, LAYOUTS, Case
from .errors import ConfigError, one_of

FEATURES = ("states", "seq_idx")
HALF = ("float16", "bfloat16")
EMULATED_FLOPS_PER_S = 2e9  # matrix-core emulation, measured on two cores: 3-6 GFLOP/s
EMULATED_OUTPUTS_PER_S = 1e7  # lower end of what the tile kernels reach in emulation
EMULATED_SECONDS = (
    5.0  # a cell of which a launch would take longer in emulation is not run: it is launched some ten times
)


@dataclass(frozen=True)
class Tunable:
    """A compile-time knob: it reaches the kernel as -DCC1D_<NAME>=<value>.

    `fixed`: the value that a case takes whatever the choices, or None where they hold. `of_float32`: the
    default for float32, where it is another one.
    """

    default: int
    choices: tuple[int, ...]
    fixed: Callable[[Case], int | None] = lambda case: None
    of_float32: int | None = None

    def default_of(self, case: Case) -> int:
        """The value for a case that fixes none."""
        return self.of_float32 if self.of_float32 is not None and case.dtype == "float32" else self.default


@dataclass(frozen=True)
class Variant:
    """An algorithm. `kind` is `kernel` (ours, compiled), `baseline` (what speed is compared with) or `helper`.

    `op`: fwd, bwd or update; `any` for helpers and baselines that serve all. `features`: what it can do beyond the
    plain call: `states`, `seq_idx`. `rank`: which one `auto` prefers among those that can do a call; 0 is never chosen.
    `wide_rank`: the rank from width 5 on, where it differs.
    `executed_flops(case)` counts what is really computed where that is far above `case.flops()`, `im2col_bytes(case)`
    the matrix that im2col puts into device memory.
    `expected_pct`: the share of the copy that was expected of its idea, where that was written down before the kernel.
    `caveat` is what a user who swaps the variant in should know; it stands in every row.
    """

    name: str
    summary: str
    kind: str = "kernel"
    op: str = "fwd"
    features: tuple[str, ...] = ()
    rank: int = 0
    wide_rank: int = 0
    dtypes: tuple[str, ...] = DTYPES
    layouts: tuple[str, ...] = LAYOUTS
    widths: tuple[int, int] = (1, 8)
    counts_in_31_bits: bool = False  # its 16-byte vectors, and the steps of a row
    mixed_weight: bool = True  # whether weight may have another dtype than x
    stages: tuple[str, ...] = ("conv",)
    tunables: Mapping[str, Tunable] = field(default_factory=dict)
    executed_flops: Callable[[Case], int] | None = None
    im2col_bytes: Callable[[Case], int] | None = None
    expected_pct: float | None = None
    caveat: str = ""

    def rank_for(self, width: int) -> int:
        """The rank among those that can do a call of this width."""
        return self.wide_rank if self.wide_rank and width > 4 else self.rank

    @property
    def source(self) -> str | None:
        """File name of the kernel below hip_kernels/, or None for a baseline."""
        return None if self.kind == "baseline" else f"{self.name}.hip"


def _dense_gemm_flops(case: Case) -> int:
    rows, dim = _round16(case.seqlen) * case.batch, _round16(case.dim)
    return 2 * rows * dim * dim * case.width


def _im2col_bytes(case: Case) -> int:
    """The matrix of `width` shifted copies, its steps and channels in whole tiles."""
    return case.batch * _round16(case.seqlen) * case.width * _round16(case.dim) * case.itemsize


def _diagonal_blocks_flops(case: Case) -> int:
    """Of the dense product, the blocks of 16 x 16 channels that are not all zero."""
    return 2 * case.batch * _round16(case.seqlen) * _round16(case.dim) * 16 * case.width


def _banded_flops(case: Case) -> int:
    """A product of 16 x 16 x 16 with the segments of a tile of 256 outputs, one with those before; aligned rows."""
    tiles = case.batch * case.dim * -(-case.seqlen // 256)
    return tiles * (2 if case.width > 1 else 1) * 2 * 16**3


def _raster_block(case: Case) -> int | None:
    return 64 if case.width > 4 and case.itemsize == 2 else None


def _raster_steps(case: Case) -> int | None:
    if case.width > 4 and case.seq_idx and case.itemsize == 2:
        return 12
    return 8 if case.width > 4 or case.states or case.seq_idx else None


def _raster_resident(case: Case) -> int | None:
    if case.width > 4:
        return 640 if case.seq_idx or case.itemsize == 4 else 896
    if case.states or case.seq_idx:
        return 1024 if case.itemsize == 2 else 896
    return None


def _round16(n: int) -> int:
    return -(-n // 16) * 16


_BLOCKS = (64, 128, 256, 512)

_ENTRIES = (
    Variant(
        "fwd_naive",
        "a thread per output element, taps straight from global memory",
        features=FEATURES,
        rank=1,
        dtypes=EVERY_DTYPE,
        widths=(1, 4096),
        tunables={"block": Tunable(256, _BLOCKS)},
    ),
    Variant(
        "fwd_shared_memory",
        "a block per (batch, channel) walks the sequence; chunks with their halo pass through shared memory",
        features=FEATURES,
        rank=3,
        dtypes=EVERY_DTYPE,
        layouts=("channel_first",),
        widths=(1, 8),
        tunables={"block": Tunable(128, (64, 128, 256)), "vectors": Tunable(1, (1, 2, 4))},
    ),
    Variant(
        "fwd_channel_last",
        "a 64 x 64 (sequence x channel) tile in shared memory, vectors along the channels",
        features=FEATURES,
        rank=3,
        dtypes=EVERY_DTYPE,
        layouts=("channel_last",),
        widths=(1, 8),
        tunables={"block": Tunable(128, (64, 128, 256)), "tile_seqlen": Tunable(64, (16, 32, 64, 128))},
    ),
    Variant(
        "fwd_im2col_wmma",
        "im2col, depthwise weight expanded to dense, 16x16x16 matrix-core GEMM, bias and activation",
        dtypes=HALF,
        widths=(1, 8),
        mixed_weight=False,
        stages=("im2col", "expand_weight", "gemm", "bias"),
        tunables={"block": Tunable(256, (64, 128, 256))},
        executed_flops=_dense_gemm_flops,
        im2col_bytes=_im2col_bytes,
        caveat="a NaN or Inf in one channel reaches every channel (0 * Inf in the dense weight)",
    ),
    Variant(
        "fwd_im2col_fused_wmma",
        "im2col in shared memory, products with the diagonal blocks of the dense weight, bias, activation: one kernel",
        dtypes=HALF,
        widths=(1, 8),
        mixed_weight=False,
        tunables={"block": Tunable(128, (128, 256)), "channels": Tunable(32, (16, 32))},
        executed_flops=_diagonal_blocks_flops,
        caveat="a NaN or Inf in one channel reaches the 16 channels of its block (0 * Inf in the dense weight)",
    ),
    Variant(
        "fwd_toeplitz_wmma",
        "a banded 16x16 matrix of a channel's taps times its sequence in segments of 16, on the matrix cores",
        dtypes=HALF,
        layouts=("channel_first",),
        widths=(1, 8),
        counts_in_31_bits=True,
        mixed_weight=False,
        expected_pct=85,
        rank=4,
        wide_rank=6,
        tunables={"block": Tunable(128, (64, 128)), "tiles": Tunable(2, (1, 2))},
        executed_flops=_banded_flops,
    ),
    Variant(
        "fwd_register",
        "a 16-byte vector a thread, halo by shuffle, blocks along the sequence first, aligned frames for odd lengths",
        features=FEATURES,
        expected_pct=97,
        rank=5,
        layouts=("channel_first",),
        widths=(1, 8),
        counts_in_31_bits=True,
        tunables={
            "block": Tunable(256, _BLOCKS),
            "vectors": Tunable(1, (1, 2), lambda case: 2 if case.states or case.width > 4 else None),
        },
    ),
    Variant(
        "fwd_raster",
        "a small tile a thread, all loads first, tiles in raster order, halo from the cache",
        features=FEATURES,
        expected_pct=95,
        rank=5,
        layouts=("channel_last",),
        widths=(1, 8),
        tunables={
            "block": Tunable(128, (64, 128, 256), _raster_block),
            "across": Tunable(32, (32, 64)),
            "steps": Tunable(4, (2, 4, 8, 16), _raster_steps, of_float32=2),
            "bytes": Tunable(8, (8, 16)),
            "resident": Tunable(1280, (512, 768, 896, 1024, 1280, 1536), _raster_resident, of_float32=1536),
        },
    ),
    Variant(
        "bwd_naive",
        "a thread per dx, a block per (channel, tap) for dweight; everything from global memory",
        op="bwd",
        features=FEATURES,
        rank=1,
        dtypes=EVERY_DTYPE,
        widths=(1, 4096),
        stages=("dx", "dweight"),
        tunables={"block": Tunable(256, _BLOCKS)},
    ),
    Variant(
        "bwd_two_stage",
        "a block per (batch, channel) walks the sequence: dx and partial sums; then a reduction in fixed order",
        op="bwd",
        features=FEATURES,
        rank=3,
        dtypes=EVERY_DTYPE,
        layouts=("channel_first",),
        widths=(1, 8),
        stages=("partial", "reduce"),
        tunables={"block": Tunable(128, (64, 128, 256)), "vectors": Tunable(1, (1, 2))},
    ),
    Variant(
        "bwd_channel_last",
        "a 64 x 64 (sequence x channel) tile in shared memory: dx and partial sums; then a reduction in fixed order",
        op="bwd",
        features=FEATURES,
        rank=3,
        dtypes=EVERY_DTYPE,
        layouts=("channel_last",),
        widths=(1, 8),
        stages=("partial", "reduce"),
        tunables={"block": Tunable(128, (128,))},
    ),
    Variant(
        "bwd_warp_walk",
        "a warp walks stretches of a channel from the end, both halos pass from lane to lane, sums stay in registers",
        op="bwd",
        expected_pct=92,
        rank=5,
        layouts=("channel_first",),
        widths=(1, 8),
        counts_in_31_bits=True,
        stages=("walk", "reduce"),
        tunables={
            "block": Tunable(256, (64, 128, 256)),
            "steps": Tunable(32, (16, 24, 32)),
        },
    ),
    Variant(
        "bwd_persistent",
        "as many warps as fit walk equal runs of steps, a few channels a thread; windows and sums stay in registers",
        op="bwd",
        expected_pct=90,
        rank=5,
        layouts=("channel_last",),
        widths=(1, 8),
        stages=("walk", "reduce"),
        tunables={
            "block": Tunable(64, (64, 128)),
            "across": Tunable(32, (32, 64)),
            "walkers": Tunable(1584, (512, 768, 1536, 1584, 3072)),  # 12 on each of 132 multiprocessors
        },
    ),
    Variant(
        "update_naive",
        "a thread per (batch, channel): the outputs of a few steps, then the state moved on in place",
        op="update",
        rank=1,
        dtypes=EVERY_DTYPE,
        widths=(1, 4096),
        stages=("update",),
        tunables={"block": Tunable(64, (64, 128, 256))},
    ),
    Variant(
        "update_words",
        "a few channels of one batch element a thread: its state moves as whole words",
        op="update",
        rank=5,
        widths=(1, 8),
        stages=("update",),
        tunables={"block": Tunable(128, (64, 128, 256)), "channels": Tunable(4, (2, 4, 8))},
    ),
    Variant(
        "torch_conv1d",
        "F.conv1d with groups=dim, the slice and the activation: what PyTorch users run",
        kind="baseline",
        op="any",
        widths=(1, 4096),
    ),
    Variant(
        "torch_compile",
        "torch.compile of shifted sums: what PyTorch's compiler makes of the definition",
        kind="baseline",
        widths=(1, 64),
    ),
    Variant(
        "torch_copy",
        "a copy of x by the runtime, in the layout of the case: no convolution at all",
        kind="baseline",
        widths=(1, 4096),
    ),
    Variant("triton_conv1d", "a plain Triton kernel per layout: a shifted load a tap", kind="baseline", widths=(1, 64)),
    Variant(
        "dao_causal_conv1d",
        "Dao-AILab's package causal_conv1d",
        kind="baseline",
        op="any",
        features=FEATURES,
        widths=(2, 4),
    ),
    Variant(
        "dao_deterministic",
        "the same, with CAUSAL_CONV1D_DETERMINISTIC=1: no atomic sums",
        kind="baseline",
        op="bwd",
        widths=(2, 4),
    ),
    Variant(
        "fla_causal_conv1d",
        "flash-linear-attention's causal_conv1d",
        kind="baseline",
        op="any",
        layouts=("channel_last",),
        widths=(1, 64),
    ),
    Variant("aiter_causal_conv1d", "AITER's causal_conv1d", kind="baseline", widths=(2, 4)),
    Variant(
        "copy", "a vector a thread: the ceiling", kind="helper", op="any", tunables={"block": Tunable(256, _BLOCKS)}
    ),
    Variant("empty", "an empty kernel: the cost of a launch", kind="helper", op="any"),
)

VARIANTS: dict[str, Variant] = {v.name: v for v in _ENTRIES}


def get(name: str) -> Variant:
    """The entry called `name`; ConfigError with the nearest neighbour when there is none."""
    return VARIANTS[one_of("variant", name, VARIANTS)]


def select(names: str | list[str] | tuple[str, ...], op: str = "fwd") -> list[Variant]:
    """Entries by name; `all` stands for every kernel of `op`, not for baselines and helpers."""
    wanted = [names] if isinstance(names, str) else list(names)
    found: list[Variant] = []
    for name in wanted:
        new = [v for v in VARIANTS.values() if (v.kind, v.op) == ("kernel", op)] if name == "all" else [get(name)]
        found += [v for v in new if v not in found]
    return found


def fixed(variant: Variant, case: Case) -> dict[str, int]:
    """The tunables that the case leaves no choice of."""
    return {name: value for name, t in variant.tunables.items() if (value := t.fixed(case)) is not None}


def defaults(variant: Variant, case: Case) -> dict[str, int]:
    """The tunables of a variant where none is given: what the case fixes, else the default."""
    return {name: t.default_of(case) for name, t in variant.tunables.items()} | fixed(variant, case)


def resolve_tunables(variant: Variant, given: Mapping[str, int], case: Case | None = None) -> dict[str, int]:
    """Defaults overlaid with `given`; ConfigError for an unknown knob, or what is no choice (of the case, if given)."""
    if reason := _fixed_otherwise(variant, given, case):
        raise ConfigError(reason)
    usual = defaults(variant, case) if case else {name: t.default for name, t in variant.tunables.items()}
    return usual | dict(given)


def _fixed_otherwise(variant: Variant, given: Mapping[str, int], case: Case | None) -> str:
    """Which of the given tunables the case leaves no choice of, or ''. ConfigError for what is never one."""
    for name, value in given.items():
        tunable = variant.tunables[one_of(f"{variant.name} tunable", name, variant.tunables)]
        fixed = tunable.fixed(case) if case else None
        if value not in (*tunable.choices, fixed):
            raise ConfigError(f"{variant.name} tunable {name}: {value!r} is not among {tunable.choices}")
        if case and fixed not in (None, value):
            kind = " with ".join([f"{case.dtype} of width {case.width}", *(f for f in FEATURES if getattr(case, f))])
            return (
                f"tunable {name}={value}: {variant.name} has {fixed} alone for {kind}; give that, or leave {name} out"
            )
    return ""


def why_not(variant: Variant, case: Case, backend: str, tunables: Mapping[str, int] | None = None) -> str:
    """Why `variant` cannot run `case` on `backend`, or '' when it can. Says what is possible instead.

    `tunables`: those that are given. ConfigError for one that the variant does not have, or not with this value.
    """
    reason = cannot(variant, case, backend) or _fixed_otherwise(variant, tunables or {}, case)
    return reason or (_too_much_work(variant, case) if backend == "cpu" else "")


def takers(
    chosen: Iterable[Variant], backend: str, cases: Callable[[Variant], Iterable[Case]]
) -> tuple[list[tuple[Variant, Case]], dict[str, str]]:
    """Which of the chosen are compiled for which of their cases; and of each that never is, why not."""
    taken: list[tuple[Variant, Case]] = []
    reasons: dict[str, str] = {}
    for variant in chosen:
        for case in cases(variant):
            compiled = variant.kind == "kernel"
            reason = why_not(variant, case, backend) if compiled else f"a {variant.kind} has no source"
            if reason:
                reasons.setdefault(variant.name, reason)
            else:
                taken.append((variant, case))
    served = {variant.name for variant, _ in taken}
    return taken, {name: reason for name, reason in reasons.items() if name not in served}


def nothing(verb: str, reasons: Mapping[str, str]) -> ConfigError:
    """The error for when nobody is left, with the reason of each."""
    return ConfigError(f"nothing to {verb}: {'; '.join(f'{name}: {reason}' for name, reason in reasons.items())}")


def cannot(variant: Variant, case: Case, backend: str) -> str:
    """`why_not` without the limit on what is worth emulating: what a variant is not able to do."""
    lacking = [name for name in FEATURES if getattr(case, name) and name not in variant.features]
    checks = (
        (variant.op in (case.op, "any"), f"op {case.op}: {variant.name} does {variant.op}"),
        (not lacking, f"{' and '.join(lacking)}: {variant.name} has no {' or '.join(lacking)}"),
        (case.dtype != "float64" or backend == "cpu", "dtype float64: for gradient checks, on the cpu backend alone"),
        (case.dtype in variant.dtypes, f"dtype {case.dtype}: {variant.name} takes {', '.join(variant.dtypes)}"),
        (case.layout in variant.layouts, f"layout {case.layout}: {variant.name} takes {', '.join(variant.layouts)}"),
        (
            variant.widths[0] <= case.width <= variant.widths[1],
            f"width {case.width}: {variant.name} takes {variant.widths[0]} to {variant.widths[1]}",
        ),
        (
            not variant.counts_in_31_bits or vectors(case) < 2**31,
            f"outputs {case.outputs}: {variant.name} counts vectors of 16 bytes, and only to {2**31}",
        ),
        (
            not variant.counts_in_31_bits or case.seqlen < 2**31,
            f"seqlen {case.seqlen}: {variant.name} counts steps only to {2**31}",
        ),
        (
            variant.mixed_weight or case.weight_dtype == case.dtype,
            f"weight {case.weight_dtype} with x {case.dtype}: {variant.name} takes both in one dtype",
        ),
    )
    for fine, reason in checks:
        if not fine:
            return reason
    return ""


def vectors(case: Case) -> int:
    """16-byte vectors that the rows of a channel-first x touch, at most."""
    return case.batch * case.dim * (case.seqlen * case.itemsize // 16 + 2)


def _too_much_work(variant: Variant, case: Case) -> str:
    if variant.kind == "baseline":
        return ""
    flops = (variant.executed_flops or Case.flops)(case)
    seconds = max(flops / EMULATED_FLOPS_PER_S, case.outputs / EMULATED_OUTPUTS_PER_S)
    if seconds <= EMULATED_SECONDS:
        return ""
    return f"about {seconds:.0f} s a launch in CPU emulation ({flops / 1e9:.0f} GFLOP), limit {EMULATED_SECONDS:.0f} s"

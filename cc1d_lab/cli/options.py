"""Options that verbs share, and the cells that they stand for."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import click

from .. import backends, variants
from ..case import ACTIVATIONS, DTYPES, LAYOUTS, OPS, VIEWS, Case
from ..cell import Cell
from ..errors import ConfigError, ToolchainError, one_of

ALIASES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
_DEFAULT = Case()
Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def full_dtype(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
    """Callback of an option: dtypes by their full names; ConfigError when there is none of that name."""
    if isinstance(value, tuple):
        return tuple(full_dtype(ctx, param, v) for v in value)
    if value == "float64":
        raise ConfigError(f"dtype: float64 is only for gradient checks of the operator; allowed: {_names(DTYPES)}")
    return value and one_of("dtype", ALIASES.get(value, value), DTYPES)


def _pairs(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> tuple[tuple[str, int], ...]:
    pairs = tuple(_pair(value) for value in values)
    for name in dict(pairs):
        given = [str(number) for other, number in pairs if other == name]
        if len(given) > 1:
            raise ConfigError(f"--set {name}: given more than once, as {' and '.join(given)}")
    return pairs


def _pair(value: str) -> tuple[str, int]:
    name, equals, number = value.partition("=")
    if not (name and equals and number.isdecimal()):
        raise ConfigError(f"--set {value!r}: must be KNOB=INTEGER, such as block=128")
    return name.replace("-", "_"), int(number)


def _names(allowed: Iterable[str]) -> str:
    return ", ".join(allowed)


_SHAPE = (
    click.option("--batch", type=int, default=_DEFAULT.batch, show_default=True),
    click.option("--dim", type=int, default=_DEFAULT.dim, show_default=True, help="Channels."),
    click.option("--seqlen", type=int, default=_DEFAULT.seqlen, show_default=True),
    click.option("--width", type=int, default=_DEFAULT.width, show_default=True, help="Taps of the filter."),
)
_REST = (
    click.option(
        "--dtype", callback=full_dtype, default=_DEFAULT.dtype, show_default=True, help=_names([*DTYPES, *ALIASES])
    ),
    click.option("--weight-dtype", callback=full_dtype, help="Of weight and bias, when not that of x."),
    click.option("--layout", help=f"{_names(LAYOUTS)}; the first that the variant takes when not given."),
    click.option("--activation", help=f"{_names(ACTIVATIONS)}.  [default: none]"),
    click.option("--use-silu", is_flag=True, help="The same as --activation silu."),
    click.option("--no-bias", is_flag=True, help="Leave the bias out."),
    click.option("--view", default=_DEFAULT.view, show_default=True, help=f"How x lies in memory: {_names(VIEWS)}."),
    click.option("--row-stride", type=int, default=0, help="Channels of the buffer that a channel_slice is cut from."),
    click.option("--seed", type=int, default=0, show_default=True, help="Of the random inputs."),
    click.option(
        "--set",
        "knobs",
        metavar="KNOB=VALUE",
        callback=_pairs,
        multiple=True,
        help="A tunable, such as block=128. Repeatable.",
    ),
)
variant_option = click.option(
    "--variant", "names", multiple=True, default=["all"], show_default=True, help="Repeatable. `cc1d list variants`."
)
arch_option = click.option(
    "--arch", default="", help="gfx942, sm_90, wave64 (cpu), ...; that of the device by default."
)


toolchain_option = click.option(
    "--toolchain",
    "toolchains",
    multiple=True,
    default=[""],
    metavar="TEXT",
    help="[COMPILER] [FLAGS] instead of the backend's compiler, after its flags: 'clang++ -O1'. Repeatable.",
)


def _backend_help(default: str) -> str:
    return f"{_names(backends.BACKENDS)}. Repeatable. Default: {default}."


def cell_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options of `check` and `bench`: variants, backends, one case, tunables."""
    backend = click.option("--backend", "where", multiple=True, help=_backend_help("the first that can run here"))
    for option in reversed((variant_option, backend, arch_option, toolchain_option, *_SHAPE, *_REST)):
        function = option(function)
    return function


def cells(
    names: tuple[str, ...],
    where: tuple[str, ...],
    arch: str,
    toolchains: tuple[str, ...],
    knobs: tuple[tuple[str, int], ...],
    **case: Any,
) -> list[Cell]:
    """A cell per backend, variant and toolchain. ConfigError for what is unknown, ToolchainError without a backend."""
    chosen = select(names)
    tunables = dict(knobs)
    _check_knobs(chosen, tunables)
    return [
        Cell(variant.name, backend, _case(variant, case), _own(variant, tunables), arch, toolchain=toolchain)
        for backend in where or (backends.first_runnable(),)
        for variant in chosen
        for toolchain in (toolchains if variant.source else [""])
        if require(backend, arch)
    ]


def cell(
    variant: variants.Variant, backend: str, arch: str, toolchain: str, knobs: Iterable[tuple[str, int]], **case: Any
) -> Cell:
    """The cell of one variant, whose every tunable must be the variant's own. ConfigError for what is unknown."""
    _check_knobs([variant], dict(knobs))
    where = backends.get(backend).name
    backends.check_arch(where, arch)
    return Cell(variant.name, where, _case(variant, case), dict(knobs), arch, toolchain=toolchain)


def select(names: tuple[str, ...], ops: Iterable[str] = ("fwd",)) -> list[variants.Variant]:
    """Kernels and baselines by name; `all` is every kernel of `ops`."""
    known = [v.name for v in variants.VARIANTS.values() if v.kind != "helper"]
    for name in names:
        one_of("variant", name, ["all", *known])
    return list({v.name: v for op in ops for v in variants.select(list(names), op)}.values())


def op_of(variant: variants.Variant) -> str:
    """The op of a case for `variant`; fwd for one that does any."""
    return variant.op if variant.op in OPS else "fwd"


def require(backend: str, arch: str = "") -> bool:
    """True; ToolchainError with the remedy when `backend` cannot run here, ConfigError when `arch` is another's."""
    backends.check_arch(backends.get(backend).name, arch)
    reason = backends.why_not_run(backends.get(backend))
    if reason:
        raise ToolchainError(f"backend {backend}: {reason}")
    return True


def _check_knobs(chosen: list[variants.Variant], tunables: dict[str, int]) -> None:
    known = sorted({name for variant in chosen for name in variant.tunables})
    for name in tunables:
        one_of("tunable", name, known)
    for variant in chosen:
        variants.resolve_tunables(variant, _own(variant, tunables))


def _own(variant: variants.Variant, tunables: dict[str, int]) -> dict[str, int]:
    return {name: value for name, value in tunables.items() if name in variant.tunables}


def _case(variant: variants.Variant, given: dict[str, Any]) -> Case:
    fields = dict(given)
    silu, no_bias = fields.pop("use_silu"), fields.pop("no_bias")
    if silu and fields["activation"] not in (None, "silu"):
        raise ConfigError(f"--use-silu, --activation {fields['activation']}: they contradict; leave one out")
    fields["activation"] = "silu" if silu else fields["activation"] or "none"
    fields["layout"] = fields["layout"] or variant.layouts[0]
    fields["op"] = "fwd" if variant.op == "any" else variant.op
    fields["weight_dtype"] = fields["weight_dtype"] or ""
    return Case(**fields | {"bias": not no_bias})

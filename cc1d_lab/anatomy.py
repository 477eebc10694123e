"""Tables and charts of machine code, for the notebook: what `cc1d inspect` knows, of many kernels at once."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from . import backends, build, machine_code, occupancy, plots, variants, work
from .case import Case
from .cell import Cell
from .errors import ConfigError
from .machine_code import CLASSES, Inspection

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

# One for each of CLASSES.
_COLOURS = (
    *("#4c78a8", "#e45756", "#9ecae9", "#bab0ac", "#54a24b", "#88d27a", "#b6992d"),
    *("#f2cf5b", "#d67195", "#b279a2", "#79706e", "#d8b5a5", "#fcbfd2", "#e4e4e4"),
)
REGISTERS = ("vgprs", "agprs", "sgprs", "lds_bytes", "scratch_bytes", "spills", "code_bytes")


def kernels(
    names: Iterable[str] = ("all",), arches: Iterable[str] = ("all",), backend: str = "amd", **case: Any
) -> list[Inspection]:
    """Build variants for archs, in parallel, and look at every kernel. Nothing is run.

    `case`: fields of Case; the layout is the first that a variant takes when it is not given. Variants that do not take
    the case are left out. Raises ToolchainError without a compiler or disassembler, CompileError.
    """
    chosen = variants.select(list(names), case.get("op", "fwd"))
    taken, reasons = variants.takers(chosen, backend, lambda v: [Case(**{"layout": v.layouts[0], **case})])
    if not taken:
        raise variants.nothing("inspect", reasons)
    cells = [Cell(v.name, backend, one, arch=arch) for v, one in taken for arch in backends.arches(backend, arches)]
    built = {}
    for cell, outcome in build.build_all(cells):
        if isinstance(outcome, Exception):
            raise outcome
        built[cell.variant, cell.arch] = outcome
    return [i for c in cells for i in machine_code.inspect(c, built[c.variant, c.arch])]


def registers(found: Iterable[Inspection]) -> pd.DataFrame:
    """Registers, shared memory, spills, size and occupancy, a line per kernel and arch."""
    import pandas as pd

    lines = [
        {"variant": i.cell.variant, "kernel": i.kernel.name, "arch": i.cell.arch}
        | {name: getattr(i.kernel, name) for name in REGISTERS}
        | {"waves": _waves(i), "limited_by": i.occupancy.limited_by if i.occupancy else None}
        for i in found
    ]
    return pd.DataFrame(lines)


def _waves(i: Inspection) -> str | None:
    return f"{i.occupancy.waves_per_simd:g} of {i.occupancy.most}" if i.occupancy else None


def instructions(found: Iterable[Inspection]) -> pd.DataFrame:
    """Instructions by class, memory by width and floating-point operations as they stand in the code, and per loop."""
    import pandas as pd

    lines = []
    for i in found:
        body = [x for loop in machine_code.loops(i.instructions) for x in loop]
        memory = " ".join(f"{n}x{name}" for name, n in machine_code.memory(i.instructions).items())
        lines.append(
            {"variant": i.cell.variant, "kernel": i.kernel.name, "arch": i.cell.arch, "all": len(i.instructions)}
            | {name: n for name, n in i.histogram().items() if name in ("valu", "matrix", "salu", "lds", "wait")}
            | {"memory": memory, "float_ops": machine_code.float_ops(i.instructions), "in_loops": len(body)}
        )
    return pd.DataFrame(lines)


def per_output(found: Iterable[Inspection]) -> pd.DataFrame:
    """Arithmetic and bytes per output on the main path of each kernel, and what the problem itself needs.

    Counts are lower bounds: `cc1d_lab.work` says how they are made.
    """
    import pandas as pd

    names = ("variant", "arch")
    return pd.DataFrame(
        {name: getattr(i.cell, name) for name in names} | {"kernel": i.kernel.name} | work.table(i) for i in found
    )


def bounds(arches: Iterable[str] = ("all",), **case: Any) -> pd.DataFrame:
    """The shortest time that the vendors' peak numbers allow for a case, per product. Not a measurement."""
    import pandas as pd

    wanted = backends.arches("amd", arches)
    lines = []
    for name, product in occupancy.PRODUCTS.items():
        if product.arch in wanted:
            b = occupancy.bound(name, Case(**case))
            peaks = {"compute_units": product.compute_units, "clock_mhz": product.clock_mhz}
            lines.append(
                {"product": name, "arch": product.arch, **peaks, "stated_gbps": product.bandwidth_gbps}
                | {"bound_us": b.time_us, "set_by": b.set_by, "source": product.source}
            )
    return pd.DataFrame(lines)


def occupancy_chart(found: Iterable[Inspection]) -> Figure:
    """Share of the wave slots that each variant can fill, by arch; of its kernels, the one that fills fewest."""
    import pandas as pd

    lines = [
        (i.cell.arch, i.cell.variant, 100 * i.occupancy.waves_per_simd / i.occupancy.most) for i in found if i.occupancy
    ]
    frame = pd.DataFrame(lines, columns=["arch", "variant", "share"])
    worst = frame.groupby(["arch", "variant"], sort=False)["share"].min().unstack()
    figure, axes = plots.single("Occupancy: waves that fit, % of the slots of a SIMD", (9.0, 3.6))
    worst.plot.bar(ax=axes, color=[plots.style(v).color for v in worst.columns], width=0.8, legend=False)
    axes.set(ylim=(0, 105), xlabel="", ylabel="% of wave slots")
    axes.tick_params(axis="x", rotation=0)
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return figure


def mix_chart(found: Iterable[Inspection], arch: str) -> Figure:
    """Share of each class of instructions in the code of each kernel, for one arch."""
    import pandas as pd

    mine = [i for i in found if i.cell.arch == arch]
    if not mine:
        raise ConfigError(f"arch: {arch!r} was not inspected")
    labels = [i.cell.variant if i.kernel.name == i.cell.variant else f"{i.cell.variant}: {i.kernel.name}" for i in mine]
    counts = pd.DataFrame([i.histogram() for i in mine], index=labels)[::-1]
    shares = counts.div(counts.sum(axis=1), axis=0) * 100
    figure, axes = plots.single(f"Instructions in the code, {arch}", (9.0, 1.4 + 0.34 * len(mine)))
    used = [name for name in CLASSES if counts[name].any()]
    colours = dict(zip(CLASSES, _COLOURS, strict=True))
    shares[used].plot.barh(ax=axes, stacked=True, color=[colours[n] for n in used], width=0.8, legend=False)
    axes.set(xlim=(0, 100), xlabel="% of instructions, as they stand in the code")
    figure.legend(loc="outside lower center", ncols=7, frameon=False, fontsize=9)
    return figure


def inner_loops(found: Iterable[Inspection], arch: str, left: str, right: str) -> pd.DataFrame:
    """The longest innermost loop of two variants, side by side; all of the code of a variant that has no loop."""
    import pandas as pd

    mine = [i for i in found if i.cell.arch == arch]
    columns = {name: _hottest([i for i in mine if i.cell.variant == name]) for name in (left, right)}
    for name, lines in columns.items():
        if not lines:
            raise ConfigError(f"variant: {name!r} was not inspected for {arch!r}")
    return pd.DataFrame(list(zip_longest(*columns.values(), fillvalue="")), columns=list(columns))


def _hottest(found: list[Inspection]) -> list[str]:
    bodies = [loop for i in found for loop in machine_code.loops(i.instructions)]
    longest = max(bodies or [i.instructions for i in found] or [()], key=len)
    return [str(i) for i in longest]

"""What compilers and flags change: tables and a chart of the rows that were executed, and what AMD code objects say."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from . import backends, build, code_object, experiment, machine_code, plots, special, tables, variants
from .case import Case
from .cell import Cell
from .errors import Cc1dError

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

DEFAULT = "default"
AMD_COMPILERS = ("hipcc", "clang++", "clang++-19", "clang++-20", "clang++-21", "clang++-22")
# One with matrix instructions, and of each pass one that is easily spilled.
SAMPLE = ("fwd_im2col_wmma", "fwd_shared_memory", "fwd_register", "bwd_two_stage")


def executed(rows: pd.DataFrame) -> pd.DataFrame:
    """A line per backend and toolchain: how many cells are right, the worst error, what special values came out right.

    `wrong` counts cells outside the bound or failing a probe; `err/bound` is the worst of all that ran. `subnormal`,
    `large`, `inf`, `nan`: cells in which x of that kind gives what the oracle says, of those that ran.
    """
    import pandas as pd

    return pd.DataFrame([_line(names, part) for names, part in _groups(rows, "backend", "toolchain")])


def _line(names: tuple[str, ...], part: pd.DataFrame) -> dict[str, Any]:
    ran = part[part["status"].isin(("ok", "wrong"))]
    good = ran[ran["status"] == "ok"]
    kinds = {kind: [v[kind] for v in ran["special_values"] if isinstance(v, dict)] for kind in special.KINDS}
    kinds["nan"] = [tables.yes(v) for v in ran["nan_stays"] if tables.known(v)]
    reasons = part[~part["status"].isin(("ok", "wrong", "unsupported"))]
    return {
        "backend": names[0],
        "toolchain": names[1],
        **{status: int((part["status"] == status).sum()) for status in ("ok", "wrong")},
        "failed": len(reasons),
        "err/bound": tables.worst_error(ran),
        "ulp rms (ok)": float(good["ulp_rms"].median()) if len(good) else None,
        **{kind: f"{sum(found)} of {len(found)}" for kind, found in kinds.items()},
    }


def by_variant(rows: pd.DataFrame) -> pd.DataFrame:
    """(backend, variant) x toolchain: the worst err/bound of its cells, after their status where it is not `ok`."""
    import pandas as pd

    ran = tables.kernels(rows[rows["status"] != "unsupported"])
    lines: dict[tuple[str, str], dict[str, str]] = {}
    for (backend, variant, toolchain), part in _groups(ran, "backend", "variant", "toolchain"):
        bad = sorted({s for s in part["status"] if s != "ok"})
        worst = tables.worst_error(part)
        line = lines.setdefault((backend, variant), {"backend": backend, "variant": variant})
        line[toolchain] = " ".join([*bad, *([f"{worst:.2g}"] if worst is not None else [])])
    return pd.DataFrame(lines.values()).fillna("")


def chart(rows: pd.DataFrame) -> Figure:
    """The worst error of each variant as a share of its bound, by backend and toolchain; right of 1 is wrong."""
    mine = tables.kernels(rows[rows["bound_ratio"].notna()])
    places = {names: -i for i, (names, _) in enumerate(_groups(mine, "backend", "toolchain"))}
    figure, axes = plots.single("Worst error by compiler and flags", (9.0, 1.6 + 0.4 * len(places)))
    for (variant,), part in _groups(mine, "variant"):
        worst = {names: float(c["bound_ratio"].max()) for names, c in _groups(part, "backend", "toolchain")}
        colour = plots.style(variant).color
        axes.scatter(list(worst.values()), [places[n] for n in worst], color=colour, label=variant, s=42, alpha=0.8)
    axes.axvline(1.0, color="#b00020", linewidth=1.2)
    lost = tables.not_finite(tables.kernels(rows))
    note = f"; {lost} wrong cell{'s' if lost > 1 else ''} not drawn: no finite error" if lost else ""
    axes.set(xscale="log", xlabel=f"worst |error| / bound; right of the line is wrong{note}")
    axes.set_yticks(list(places.values()), [": ".join(names) for names in places])
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return figure


def _groups(rows: pd.DataFrame, *keys: str) -> list[tuple[tuple[str, ...], pd.DataFrame]]:
    """Rows by `keys`: the default toolchain first, variants in the order of the registry."""
    named = rows.assign(toolchain=[tables.text(t) or DEFAULT for t in rows["toolchain"]])
    ranks = {DEFAULT: ""} | {name: f"{i:03d}" for i, name in enumerate(variants.VARIANTS)}
    order = ["backend", "toolchain", "variant"]
    return tables.families(named.sort_values(order, key=lambda column: column.replace(ranks), kind="stable"), keys)


# --- code objects for AMD -------------------------------------------------------------------------------


def amd_toolchains(name: str = "flags") -> list[str]:
    """The flags that experiment `name` has for amd, with each compiler for AMD GPUs that is here."""
    flags = experiment.load(name).toolchains.get("amd", [""])
    found = [compiler for compiler in AMD_COMPILERS if _is_here(compiler)]
    return [f"{compiler} {given}".strip() for compiler in found for given in flags]


def _is_here(compiler: str) -> bool:
    try:
        backends.toolchain("amd", "gfx942", compiler)
    except Cc1dError:
        return False
    return True


def code_objects(
    toolchains: Sequence[str], arches: Iterable[str] = ("all",), names: Sequence[str] = SAMPLE, dtype: str = "bfloat16"
) -> pd.DataFrame:
    """A line per arch and toolchain: what the code objects of the variants `names` state between them. Nothing is run.

    `matrix` counts matrix instructions; `fp32 subnormals`, `fp16 subnormals` are what the kernel descriptors start with
    (kept; or inputs, outputs, both: those that are flushed); `instructions` their number, and `of the first` as a share
    of what the first toolchain of that arch made, where both built all. `failed` has the compiler's first error.
    """
    import pandas as pd

    cells = {
        (arch, toolchain): [_cell(name, arch, toolchain, dtype) for name in names]
        for arch in backends.arches("amd", arches)
        for toolchain in toolchains
    }
    outcomes = {build.build_key(cell): o for cell, o in build.build_all(c for each in cells.values() for c in each)}
    lines: list[dict[str, Any]] = []
    first: dict[str, int] = {}
    for (arch, toolchain), each in cells.items():
        found = [(cell, outcomes[build.build_key(cell)]) for cell in each]
        stated = _stated(found)
        count = stated["instructions"] if stated["built"] == f"{len(each)} of {len(each)}" else 0
        usual = first.setdefault(arch, count)
        share = f"{100 * count / usual:.0f} %" if count and usual else ""
        lines.append({"arch": arch, "toolchain": toolchain or DEFAULT, **stated, "of the first": share})
    return pd.DataFrame(lines)


def _cell(name: str, arch: str, toolchain: str, dtype: str) -> Cell:
    variant = variants.get(name)
    case = Case(dtype=dtype, layout=variant.layouts[0], op="fwd" if variant.op == "any" else variant.op)
    return Cell(name, "amd", case, arch=arch, toolchain=toolchain)


def _stated(found: Sequence[tuple[Cell, build.Built | Exception]]) -> dict[str, Any]:
    errors = [str(outcome).splitlines()[0] for _, outcome in found if isinstance(outcome, Exception)]
    built = [(cell, outcome) for cell, outcome in found if isinstance(outcome, build.Built)]
    kernels = [k for cell, outcome in built for k in machine_code.inspect(cell, outcome)]
    told = [d for cell, o in built for d in code_object.descriptors(o.library, cell.arch).values()]
    return {
        "built": f"{len(built)} of {len(found)}",
        "scratch": sum(k.kernel.scratch_bytes for k in kernels),
        "spills": sum(k.kernel.spills for k in kernels),
        "matrix": sum(i.kind == "matrix" for k in kernels for i in k.instructions),
        "fp32 subnormals": ", ".join(sorted({d.denormals_32 for d in told})),
        "fp16 subnormals": ", ".join(sorted({d.denormals_16_64 for d in told})),
        "instructions": sum(len(k.instructions) for k in kernels),
        "failed": errors[0][:120] if errors else "",
    }

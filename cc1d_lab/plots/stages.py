"""Where the time of variants with several kernels goes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from matplotlib.patches import Patch

from .. import tables
from .sheet import case_label, clean, duration, make_sheet, nothing, styled, without_helpers

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_STAGE_LOOK = (
    ("#0b4f8a", ""),
    ("#c6dbef", "///"),
    ("#e08214", "..."),
    ("#4d4d4d", ""),
    ("#d9d9d9", "xx"),
    ("#1b7837", "\\\\"),
)


@styled
def stages(df: pd.DataFrame, limit: int = 16) -> Figure:
    """Share of each device stage in the sum of the stages, a bar per ok row with several; the largest `limit` cases.

    The number at the end of a bar is the sum of the stages' medians. It may exceed the time of the
    whole pipeline, in which one stage finds warm what the one before it wrote.
    """
    title = "Where the time goes: device stages"
    df = without_helpers(df)
    staged = tables.ok(df)
    staged = staged[[isinstance(v, dict) and bool(v) for v in staged["stage_us"]]] if len(staged) else staged
    if staged.empty:
        return nothing(title, df, "no ok row has several stages: nothing to draw")
    picked = staged.assign(_sum=[sum(v.values()) for v in staged["stage_us"]]).sort_values("_sum", ascending=False)
    rows = [row for _, row in picked.head(limit).iterrows()]
    names = list(dict.fromkeys(name for row in rows for name in row["stage_us"]))
    sheet = make_sheet(title, staged, 1, (9.5, 1.0 + 0.34 * len(rows)), entries=len(names))
    several = len(tables.devices(staged)) > 1
    _stage_bars(sheet.panels[0], rows, names, several)
    variants = ", ".join(clean(name, 26) for name in tables.order(picked["variant"]))
    sheet.notes.append(f"{variants}; each stage timed alone")
    if len(picked) > limit:
        sheet.notes.append(f"the {limit} slowest of {len(picked)} rows")
    return sheet.finish(_stage_handles(names))


def _stage_bars(axes: Axes, rows: list[Any], names: list[str], several: bool) -> None:
    for place, row in enumerate(rows):
        total, left = sum(row["stage_us"].values()) or 1.0, 0.0
        for index, name in enumerate(names):
            share = 100 * row["stage_us"].get(name, 0.0) / total
            colour, hatch = _STAGE_LOOK[index % len(_STAGE_LOOK)]
            axes.barh(place, share, left=left, height=0.7, color=colour, hatch=hatch, edgecolor="white", linewidth=0.6)
            left += share
        axes.text(101, place, duration(total), va="center", fontsize=9)
    axes.set_yticks(range(len(rows)), [clean(case_label(row, several), 70) for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(0, 116)
    axes.set_xticks(range(0, 101, 20))
    axes.set_xlabel("share of the sum of the stages (%), and that sum")
    axes.grid(visible=False, axis="y")


def _stage_handles(names: list[str]) -> list[Patch]:
    looks = [_STAGE_LOOK[i % len(_STAGE_LOOK)] for i in range(len(names))]
    return [
        Patch(facecolor=c, hatch=h, edgecolor="white", label=clean(n, 26))
        for n, (c, h) in zip(names, looks, strict=True)
    ]

"""How each cell ended."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import matplotlib
import numpy
import seaborn as sns
from matplotlib.patches import Patch

from .. import tables
from .sheet import case_label, clean, make_sheet, nothing, styled, without_helpers

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Colour, letter and whether the letter is white, for each status.
STATUS_LOOK: dict[str, tuple[str, str, bool]] = {
    "ok": ("#d9ecd9", "o", False),
    "unsupported": ("#e6e6ea", "u", False),
    "wrong": ("#8e0f20", "W", True),
    "build_failed": ("#e6c26a", "B", False),
    "launch_failed": ("#c98f2b", "L", False),
    "crashed": ("#3d3d3d", "C", True),
    "timeout": ("#7d8bb0", "T", True),
}


@styled
def status_matrix(df: pd.DataFrame, limit: int = 60) -> Figure:
    """Status of each variant (across) in each case (down), as colour and letter. Beyond `limit` cases, those with the
    worst endings are shown and the others counted."""
    title = "Status of every cell"
    df = without_helpers(df)
    if df.empty:
        return nothing(title, df, "no rows: nothing to draw")
    names = tables.order(df["variant"])
    cases = tables.by_case(df)
    shown = sorted(cases, key=lambda c: _severity(c[1]))[:limit] if len(cases) > limit else cases
    several = len(tables.devices(df)) > 1
    cells = [[_worst_status(part[part["variant"] == name]) for name in names] for _, part in shown]
    labels = [clean(case_label(part.iloc[0], several), 78) for _, part in shown]
    sheet = make_sheet(title, df, 1, (3.9 + 0.07 * max(map(len, labels)) + 0.55 * len(names), 1.3 + 0.21 * len(shown)))
    _matrix(sheet.panels[0], cells, labels, [clean(name, 26) for name in names])
    sheet.notes += ["blank: not part of the run"]
    if len(cases) > limit:
        sheet.notes.append(f"{len(cases) - limit} cases with better endings are not shown")
    return sheet.finish(_status_handles(cells))


def _severity(part: pd.DataFrame) -> int:
    return min((tables.SEVERITY.index(s) if s in tables.SEVERITY else 0) for s in part["status"])


def _worst_status(rows: pd.DataFrame) -> str:
    present = set(rows["status"])
    return next((s for s in tables.SEVERITY if s in present), "")


def _matrix(axes: Axes, cells: list[list[str]], labels: list[str], names: list[str]) -> None:
    kinds = list(STATUS_LOOK)
    values = numpy.array([[kinds.index(s) if s else math.nan for s in line] for line in cells])
    letters = [[STATUS_LOOK[s][1] if s else "" for s in line] for line in cells]
    colours = [look[0] for look in STATUS_LOOK.values()]
    sns.heatmap(
        values,
        ax=axes,
        cmap=matplotlib.colors.ListedColormap(colours),
        vmin=-0.5,
        vmax=len(kinds) - 0.5,
        cbar=False,
        annot=letters,
        fmt="",
        annot_kws={"fontsize": 9, "fontweight": "bold"},
        linewidths=0.8,
        linecolor="white",
        xticklabels=names,
        yticklabels=labels,
    )
    axes.grid(visible=False)
    axes.tick_params(axis="x", labeltop=True, labelbottom=False, rotation=30)
    axes.tick_params(axis="y", rotation=0)
    for label in axes.get_xticklabels():
        label.set(ha="left", rotation_mode="anchor")


def _status_handles(cells: list[list[str]]) -> list[Patch]:
    present = {status for line in cells for status in line}
    return [
        Patch(facecolor=colour, edgecolor="#666666", label=f"{letter}  {status.replace('_', ' ')}")
        for status, (colour, letter, _) in STATUS_LOOK.items()
        if status in present
    ]

"""Where the time of S2's program goes, from host to host, and what is left of it with each proposal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from .. import shares, tables
from ..programs import NAIVE
from .sheet import clean, duration, lost_note, make_sheet, nothing, styled

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Colour and hatch of what is drawn as one, bottom to top of a printed page: neighbours differ in greyscale.
_LOOK = {
    "transpose or copy on the host": ("#fdd0a2", ""),
    "allocation, free": ("#8c510a", ""),
    "copy in": ("#9ecae1", "///"),
    "im2col": ("#0b4f8a", ""),
    "expand_weight": ("#e7d4e8", "xx"),
    "gemm": ("#1b7837", ".."),
    "bias": ("#d9f0d3", "--"),
    "conv": ("#111111", ""),
    "copy back": ("#c6dbef", "\\\\\\"),
    "verification": ("#762a83", "++"),
    "launching and waiting": ("#eeeeee", "oo"),
}
_DRAWN_AS = {
    "transpose in": "transpose or copy on the host",
    "transpose out": "transpose or copy on the host",
    "host copy in": "transpose or copy on the host",
    "host copy out": "transpose or copy on the host",
    "allocation": "allocation, free",
    "free": "allocation, free",
}


@styled
def pipeline(df: pd.DataFrame) -> Figure:
    """Stacked bars of the stages of each program, a line of panels per case: milliseconds, and % of their sum.

    The tick across a bar is the time of the whole program by the wall clock: short of the bar's end where stages
    overlap. Beside it stand that time and, on a GPU, how many times faster than naive it is. Of programs with and
    without verification those without are drawn; pass the others alone to see them.
    """
    title = "Where the time goes, from host to host"
    df = shares.programs(df)
    silent = df[~df["verified"].astype(bool)]
    df = silent if len(silent) else df
    timed = tables.ok(df)
    if timed.empty:
        return nothing(title, df, "no program is ok and timed: nothing to draw")
    parts = shares.cases(timed)
    rows = max(len(part) for _, part in parts)
    drawn = [look for look in _LOOK if any(look in _segments(row) for _, row in timed.iterrows())]
    sheet = make_sheet(title, df, 2 * len(parts), (6.2, 1.1 + 0.26 * rows), columns=2, entries=len(drawn) + 3)
    for number, (configuration, part) in enumerate(parts):
        left, right = sheet.panels[2 * number : 2 * number + 2]
        _bars(left, part, False)
        _bars(right, part, True)
        left.set_title(clean(configuration, 58))
        right.set_yticklabels([])
    handles: list[Any] = [Patch(facecolor=_LOOK[n][0], hatch=_LOOK[n][1], edgecolor="#777777", label=n) for n in drawn]
    handles.append(Line2D([], [], color="#b2182b", marker="|", markersize=12, markeredgewidth=2, linestyle=""))
    handles[-1].set_label("whole program")
    sheet.notes += ["a stage of the device contains the wait for its launch", *lost_note(df, "not drawn")]
    return sheet.finish(handles)


def _label(row: Any, part: pd.DataFrame) -> str:
    """The time, and on a GPU how many times faster that is than naive."""
    naive = part[part["program"] == NAIVE]["time_us_p50"]
    if row["backend"] == "cpu" or naive.empty or row["program"] == NAIVE:
        return duration(row["time_us_p50"])
    return f"{duration(row['time_us_p50'])}, {tables.number(float(naive.iloc[0]) / row['time_us_p50'])}×"


def _segments(row: Any) -> dict[str, float]:
    """Microseconds by what is drawn as one, in the order of the legend."""
    found = dict.fromkeys(_LOOK, 0.0)
    for stage, time_us in row["stage_us"].items():
        look = _DRAWN_AS.get(stage, stage if stage in _LOOK else "conv")
        found[look] += time_us
    return {look: time_us for look, time_us in found.items() if time_us > 0}


def _bars(axes: Axes, part: pd.DataFrame, relative: bool) -> None:
    for place, (_, row) in enumerate(part.iterrows()):
        segments, left = _segments(row), 0.0
        unit = sum(segments.values()) / 100 if relative else 1e3
        for look, time_us in segments.items():
            colour, hatch = _LOOK[look]
            axes.barh(place, time_us / unit, 0.72, left, color=colour, hatch=hatch, edgecolor="#777777", linewidth=0.5)
            left += time_us / unit
        if not relative:
            whole = row["time_us_p50"] / unit
            axes.plot([whole], [place], "|", color="#b2182b", markersize=13, markeredgewidth=2, zorder=5)
            axes.annotate(_label(row, part), (max(left, whole), place), (5, 0), textcoords="offset points", va="center")
    axes.set_yticks(range(len(part)), [clean(shares.name(row), 44) for _, row in part.iterrows()], fontsize=8.5)
    axes.set_ylim(len(part) - 0.4, -0.6)
    axes.set_xlim(0, 100 if relative else 1.25 * axes.dataLim.x1)
    axes.set_xlabel("share of the sum of the stages (%)" if relative else "time (ms)")
    axes.grid(visible=False, axis="y")

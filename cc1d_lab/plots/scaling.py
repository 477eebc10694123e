"""Time against bytes with the fitted lines, what is left over, and cliffs at awkward sizes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from .. import scaling as fits
from .. import tables
from .sheet import (
    CEILING,
    WRONG,
    clean,
    columns_for,
    flag_note,
    lost_note,
    make_sheet,
    marker_handles,
    nothing,
    number,
    panels_of,
    style,
    styled,
    variant_handles,
    without_helpers,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@styled
def scaling(df: pd.DataFrame) -> Figure:
    """Median time against bytes, a mark per aligned row, and the line a + b * bytes of each variant; a panel per dtype
    and layout. Both axes are logarithmic, so that a line with a fixed cost bends.
    """
    title = "Time against bytes: a + b * bytes"
    df = without_helpers(df)
    used = fits.timed(df)
    used = used[[fits.aligned(row) for _, row in used.iterrows()]] if len(used) else used
    if used.empty:
        return nothing(title, df, "no aligned row is ok and timed: nothing to draw")
    panels = panels_of(used)
    names = tables.order(used["variant"])
    sheet = make_sheet(title, df, len(panels), (4.6, 3.4), columns_for(panels), entries=len(names))
    for axes, (label, part) in zip(sheet.panels, panels, strict=True):
        _lines(axes, part)
        _log_axes(axes, used)
        axes.set_title(label)
    sheet.notes += [
        "least squares, weighted by the spread of the samples",
        *flag_note(used),
        *lost_note(df, "left out"),
    ]
    return sheet.finish(variant_handles(names))


def _lines(axes: Axes, part: pd.DataFrame) -> None:
    for key, family in fits.families(part):
        look, sizes = style(key["variant"]), family["bytes"].astype(float)
        faces = ["white" if tables.flags(row) else look.color for _, row in family.iterrows()]
        axes.scatter(
            sizes / 1e6, family["time_us_p50"], marker=look.marker, s=26, c=faces, edgecolors=look.color, zorder=3
        )
        if line := fits.line_of(family):
            low, high = math.log(sizes.min()), math.log(sizes.max())
            steps = [math.exp(low + (high - low) * i / 60) for i in range(61)]
            ours = [(size / 1e6, line.at(size)) for size in steps if line.at(size) > 0]
            axes.plot(*zip(*ours, strict=True), color=look.color, linestyle=look.linestyle, linewidth=1.4, zorder=2)
    axes.set_xlabel("bytes (MB)")
    axes.set_ylabel("median time (µs)")


def _log_axes(axes: Axes, used: pd.DataFrame) -> None:
    times = used["time_us_p50"].astype(float)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_ylim(times.min() / 1.6, times.max() * 1.6)
    for axis, values in ((axes.xaxis, used["bytes"].astype(float)), (axes.yaxis, times)):
        wide = values.max() > 100 * values.min()
        axis.set_major_locator(LogLocator(subs=(1.0,) if wide else (1.0, 2.0, 5.0)))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(number))


@styled
def residuals(df: pd.DataFrame) -> Figure:
    """By how many % each aligned row is above its line (slower than the line says), by the axis that was varied."""
    title = "What the line leaves over"
    df = without_helpers(df)
    left = fits.residuals(df)
    if left.empty:
        return nothing(title, df, "no family has a line: nothing to draw")
    panels = panels_of(left)
    names = tables.order(left["variant"])
    sheet = make_sheet(title, df, len(panels), (4.6, 2.9), columns_for(panels), entries=len(names))
    for axes, (label, part) in zip(sheet.panels, panels, strict=True):
        _residual_panel(axes, part)
        axes.set_title(label)
    sheet.notes += ["above 0: slower than the line", "shade: 15 %"]
    return sheet.finish(marker_handles(names))


def _residual_panel(axes: Axes, part: pd.DataFrame) -> None:
    axis_of = part["label"].where(part["label"].isin(fits.AXES), "other")
    places = {name: i for i, name in enumerate(n for n in (*fits.AXES, "other") if (axis_of == n).any())}
    for number_, variant in enumerate(names := tables.order(part["variant"])):
        mine, look = part[part["variant"] == variant], style(variant)
        shift = 0.6 * ((number_ + 0.5) / len(names) - 0.5)
        x = [places[name] + shift for name in axis_of[mine.index]]
        axes.scatter(x, mine["residual_pct"], marker=look.marker, s=22, color=look.color, alpha=0.8, linewidths=0)
    axes.axhspan(-fits.CLIFF_PCT, fits.CLIFF_PCT, color="#eeeeee", zorder=0)
    axes.axhline(0, color=CEILING, linewidth=1)
    axes.set_xticks(list(places.values()), list(places))
    axes.set_xlim(-0.5, len(places) - 0.5)
    axes.set_ylabel("time above the line (%)")
    axes.set_xlabel("what was varied")
    axes.grid(visible=False, axis="x")
    _symmetric(axes, part["residual_pct"].abs().max())


def _symmetric(axes: Axes, largest: float) -> None:
    """Linear while all is within 60 %, logarithmic beyond."""
    if largest > 60:
        axes.set_yscale("symlog", linthresh=20)
        axes.set_ylim(-1.4 * largest, 1.4 * largest)
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(number))
    else:
        axes.set_ylim(-max(1.15 * largest, 20), max(1.15 * largest, 20))


@styled
def cliffs(df: pd.DataFrame) -> Figure:
    """Throughput at awkward sizes in % of that of the aligned neighbour; below the line at 85 % is a cliff."""
    title = "Awkward sizes against their aligned neighbours"
    df = without_helpers(df)
    found = fits.cliffs(df)
    if found.empty:
        return nothing(title, df, "no awkward row has an aligned neighbour: nothing to draw")
    names = tables.order(found["variant"])
    order = sorted(range(len(found)), key=lambda i: (*_reading_order(found["awkward"].iloc[i]), i))
    found = found.iloc[order]
    panels = [part for _, part in found.groupby(["device", "layout", "dtype"])]
    rows = max(part["awkward"].nunique() for part in panels)
    columns = next(n for n in (3, 2, 1) if len(panels) % n == 0)
    sheet = make_sheet(title, df, len(panels), (4.4, 1.2 + 0.3 * rows), columns, entries=len(names) + 2)
    for axes, part in zip(sheet.panels, panels, strict=True):
        _cliff_panel(axes, part)
        where = [part["device"].iloc[0]] if found["device"].nunique() > 1 else []
        axes.set_title(clean(" · ".join([*where, part["layout"].iloc[0], part["dtype"].iloc[0]])))
    handles: list[Any] = marker_handles(names)
    limit = 100 - fits.CLIFF_PCT
    handles.append(Line2D([], [], color=WRONG, linestyle="--", linewidth=1.3, label=f"{limit:.0f} %: a cliff"))
    sheet.notes += [] if tables.emulated(df) else ["right is better"]
    sheet.notes += ["hollow: a cliff", f"{int(found['cliff'].sum())} of {len(found)} are cliffs"]
    return sheet.finish(handles)


def _reading_order(awkward: str) -> tuple[int, int]:
    """seqlen before dim before view, small before large."""
    name, value = awkward.split(" ", 1)
    return ("seqlen", "dim", "view").index(name), int(value) if value.isdigit() else 0


def _cliff_panel(axes: Axes, part: pd.DataFrame) -> None:
    places = {name: i for i, name in enumerate(dict.fromkeys(part["awkward"]))}
    for variant in tables.order(part["variant"]):
        mine, look = part[part["variant"] == variant], style(variant)
        faces = ["white" if cliff else look.color for cliff in mine["cliff"]]
        y = [places[name] for name in mine["awkward"]]
        x = 100 - mine["below_pct"]
        axes.scatter(x, y, marker=look.marker, s=38, c=faces, edgecolors=look.color, linewidths=1.3, zorder=3)
    axes.axvline(100, color=CEILING, linestyle=(0, (8, 3)), linewidth=1.2)
    axes.axvline(100 - fits.CLIFF_PCT, color=WRONG, linestyle="--", linewidth=1.3)
    axes.set_yticks(list(places.values()), [clean(name, 24) for name in places], fontsize=9)
    axes.set_ylim(len(places) - 0.5, -0.5)
    axes.set_xlim(0, max(115.0, 105 - float(part["below_pct"].min())))
    axes.set_xlabel("throughput, % of the aligned neighbour's")

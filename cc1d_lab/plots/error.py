"""Errors against the float64 oracle, alone and against throughput."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from .. import tables
from .sheet import (
    WRONG,
    clean,
    columns_for,
    lost_note,
    make_sheet,
    marker_handles,
    nothing,
    number,
    panels_of,
    style,
    styled,
    without_helpers,
    wrong_handle,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@styled
def error(df: pd.DataFrame) -> Figure:
    """Error per variant and dtype: share of the error bound used (1 is the limit), and rms error in ULP.

    A point is a case. The last place of each panel is F.conv1d itself, in the same dtype.
    """
    title = "Error against the float64 oracle"
    df = without_helpers(df)
    seen = df[df["status"].isin(("ok", "wrong")) & df["bound_ratio"].notna()]
    ours = seen[seen["variant"] != tables.BASELINE]
    if ours.empty:
        return nothing(title, df, "no row was compared with the oracle: nothing to draw")
    dtypes = [d for d in ("float32", "float16", "bfloat16") if (ours["dtype"] == d).any()]
    dtypes += sorted(set(map(tables.text, ours["dtype"])) - set(dtypes))
    names = tables.order(ours["variant"])
    sheet = make_sheet(
        title, df, 2 * len(dtypes), (1.9 + 0.48 * len(names), 3.1), columns=len(dtypes), entries=len(names) + 2
    )
    for column, dtype in enumerate(dtypes):
        part = ours[ours["dtype"] == dtype]
        top, bottom = sheet.panels[column], sheet.panels[len(dtypes) + column]
        _error_strip(top, part, names, "bound_ratio")
        _error_strip(bottom, part, names, "ulp_rms")
        top.set_title(clean(dtype))
        top.axhline(1.0, color=WRONG, linestyle="--", linewidth=1.3)
        top.text(0.01, 1.0, "limit", color=WRONG, fontsize=9, va="bottom", transform=top.get_yaxis_transform())
        _bound_axis(top, top.dataLim.y1)
        _ulp_axis(bottom)
    sheet.panels[0].set_ylabel("largest |error| / bound")
    sheet.panels[len(dtypes)].set_ylabel("rms error (ULP)")
    handles: list[Any] = [*marker_handles(names), _reference_handle()]
    handles += [wrong_handle()] if (ours["status"] == "wrong").any() else []
    sheet.notes += ["a point is a case", "dotted: 0.29 ULP, correct rounding in 16-bit types"]
    sheet.notes += [*_not_finite_note(df), *lost_note(df, "not compared", ("ok", "wrong"))]
    return sheet.finish(handles)


def _not_finite_note(df: pd.DataFrame) -> list[str]:
    """Rows whose error is a NaN or infinite: they have no place on an axis."""
    count = tables.not_finite(df)
    return [f"not drawn: {count} wrong with an error that is not finite"] if count else []


def _reference_handle() -> Line2D:
    return Line2D(
        [],
        [],
        color="#333333",
        marker="d",
        linestyle="",
        markerfacecolor="white",
        markersize=7,
        label="F.conv1d itself",
    )


def _error_strip(axes: Axes, part: pd.DataFrame, names: list[str], column: str) -> None:
    for place, name in enumerate(names):
        rows, look = part[(part["variant"] == name) & part[column].notna()], style(name)
        fine, bad = tables.ok(rows)[column].astype(float), rows[rows["status"] == "wrong"][column].astype(float)
        axes.scatter(
            _spread(place, len(fine)), fine, marker=look.marker, s=24, color=look.color, alpha=0.75, linewidths=0
        )
        axes.scatter(_spread(place, len(bad)), bad, marker="x", s=52, color=WRONG, linewidths=2, zorder=5)
    reference = _reference(part, f"torch_{column}")
    x = _spread(len(names), len(reference))
    axes.scatter(x, reference, marker="d", s=34, facecolors="white", edgecolors="#333333", linewidths=1)
    labels = [clean(_short(name), 18) for name in names]
    axes.set_xticks(range(len(names) + 1), [*labels, "F.conv1d"], rotation=35, ha="right", rotation_mode="anchor")
    axes.set_xlim(-0.6, len(names) + 0.6)
    axes.grid(visible=False, axis="x")


def _short(variant: str) -> str:
    return variant.split("_", 1)[1] if variant.startswith(("fwd_", "bwd_")) else variant


def _spread(place: float, count: int) -> list[float]:
    """`count` positions around `place`, always the same ones."""
    return [place + 0.4 * ((i * 0.618) % 1 - 0.5) for i in range(count)]


def _reference(part: pd.DataFrame, column: str) -> list[float]:
    """F.conv1d's own error, once per case."""
    found = [case[column].dropna() for _, case in tables.by_case(part)]
    return [float(values.iloc[0]) for values in found if len(values)]


def _bound_axis(axes: Axes, top: float) -> None:
    """Linear to the limit, logarithmic above it: ok rows are told apart, and wrong ones stay on the chart."""
    if top <= 1.5:
        axes.set_ylim(0, 1.2 if top <= 1.1 else 1.6)
        axes.yaxis.set_major_locator(MaxNLocator(6))
    else:
        decades = max(math.ceil(math.log10(top)), 1)
        axes.set_yscale("symlog", linthresh=1, linscale=max(1.2 * decades, 1.5))
        axes.set_ylim(0, 10 ** (decades + 0.15))
        axes.set_yticks([0, 0.25, 0.5, 0.75, 1, *(10.0**d for d in _thin(decades))])
        axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(number))


def _thin(decades: int) -> list[int]:
    return list(range(1, decades + 1, max(1, decades // 4)))


def _ulp_axis(axes: Axes) -> None:
    axes.axhline(12**-0.5, color="#777777", linestyle=":", linewidth=1.2)
    top = max(axes.dataLim.y1, 0.5)
    low = axes.dataLim.minposy
    if top > 20 and low > 0:
        axes.set_yscale("log")
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        axes.set_ylim(0, top * 1.15)
    axes.yaxis.set_major_formatter(FuncFormatter(number))


@styled
def error_vs_throughput(df: pd.DataFrame) -> Figure:
    """Largest error / bound against GB/s: a point per variant and case.

    Wrong rows have no time: they stand on the left edge.
    """
    title = "Error against throughput"
    df = without_helpers(df)
    seen = df[df["status"].isin(("ok", "wrong")) & df["bound_ratio"].notna()]
    timed = tables.ok(seen)
    timed = timed[timed["gbps"].notna()]
    if timed.empty:
        return nothing(title, df, "no row is ok and timed: nothing to draw")
    panels = panels_of(seen)
    names = tables.order(timed["variant"])
    sheet = make_sheet(title, df, len(panels), (4.3, 3.1), columns_for(panels), entries=len(names) + 1)
    for axes, (label, part) in zip(sheet.panels, panels, strict=True):
        _trade_panel(axes, part, names)
        axes.set_title(label)
        _gbps_axis(axes, timed["gbps"].astype(float))
    handles: list[Any] = marker_handles(names)
    handles += [wrong_handle("wrong (no time)")] if (seen["status"] == "wrong").any() else []
    sheet.notes += ["right and low is better" if not tables.emulated(df) else "a point is a case"]
    sheet.notes += [*_not_finite_note(df), *lost_note(df, "without a time")]
    return sheet.finish(handles)


def _trade_panel(axes: Axes, part: pd.DataFrame, names: list[str]) -> None:
    for name in names:
        rows, look = tables.ok(part[part["variant"] == name]), style(name)
        rows = rows[rows["gbps"].notna()]
        x, y = rows["gbps"].astype(float), rows["bound_ratio"].astype(float)
        axes.scatter(x, y, marker=look.marker, s=30, color=look.color, alpha=0.8, linewidths=0, zorder=3)
    bad = part[part["status"] == "wrong"]["bound_ratio"].astype(float)
    left = axes.get_yaxis_transform()
    axes.scatter([0.02] * len(bad), bad, marker="x", s=52, color=WRONG, linewidths=2, transform=left, zorder=5)
    axes.axhline(1.0, color=WRONG, linestyle="--", linewidth=1.3)
    axes.set_xlabel("throughput (GB/s)")
    axes.set_ylabel("largest |error| / bound")
    _bound_axis(axes, part["bound_ratio"].astype(float).max())


def _gbps_axis(axes: Axes, values: pd.Series[Any]) -> None:
    low, top = values[values > 0].min(), values.max()
    if top / low > 30:
        axes.set_xscale("log")
        axes.set_xlim(low / 3, top * 2)
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        axes.set_xlim(0, top * 1.1)
    axes.xaxis.set_major_formatter(FuncFormatter(number))

"""Speed against sequence length, and as a share of the measured copy."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullLocator

from .. import tables
from .sheet import (
    CASE_FAMILY,
    CEILING,
    WRONG,
    Style,
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
    wrong_handle,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@styled
def throughput(df: pd.DataFrame) -> Figure:
    """GB/s (counted bytes / median time) against seqlen: a line per variant and shape, a panel per dtype and layout.

    The band spans the 20th to 80th percentile of the samples. The dashed grey line is the measured copy of the same
    bytes, on a GPU only.
    """
    title = "Throughput against sequence length"
    df = without_helpers(df)
    timed = tables.ok(df)
    timed = timed[timed["gbps"].notna() & timed["time_us_p50"].notna()]
    if timed.empty:
        return nothing(title, df, "no row is ok and timed: nothing to draw")
    panels = panels_of(df)
    ceiling = timed[(timed["backend"] != "cpu") & timed["copy_gbps"].notna()]
    names = tables.order(timed["variant"])
    sheet = make_sheet(title, df, len(panels), (4.3, 3.1), columns_for(panels), entries=len(names) + 2)
    for axes, (label, part) in zip(sheet.panels, panels, strict=True):
        _throughput_panel(axes, part)
        axes.set_title(label)
    _share_limits(sheet.panels, timed)
    handles: list[Any] = variant_handles(names)
    if len(ceiling):
        handles.append(Line2D([], [], color=CEILING, linestyle=(0, (8, 3)), linewidth=1.4, label="measured copy"))
    if (df["status"] == "wrong").any():
        handles.append(wrong_handle("wrong (no time)"))
    sheet.notes += ["band: 20th to 80th percentile", *flag_note(timed), *lost_note(df, "not part of any line")]
    return sheet.finish(handles)


def _throughput_panel(axes: Axes, part: pd.DataFrame) -> None:
    for (variant, *_), family in tables.families(part, ("variant", "tunables", "toolchain", "run_id", *CASE_FAMILY)):
        _throughput_line(axes, style(variant), _only_timed(family).sort_values("seqlen"))
    _ceiling_lines(axes, tables.ok(part))
    _wrong_crosses(axes, part[part["status"] == "wrong"])
    axes.set_xlabel("seqlen (elements)")
    axes.set_ylabel("throughput (GB/s)")


def _only_timed(family: pd.DataFrame) -> pd.DataFrame:
    """The same rows without the numbers of those that are not ok: a line breaks there, it does not bridge them."""
    return family.assign(gbps=family["gbps"].astype(float).where(family["status"] == "ok"))


def _throughput_line(axes: Axes, look: Style, family: pd.DataFrame) -> None:
    seqlen, gbps = family["seqlen"].astype(float), family["gbps"].astype(float)
    slow = _gbps_at(family, "time_us_p80")
    fast = _gbps_at(family, "time_us_p20")
    axes.fill_between(seqlen, slow, fast, color=look.color, alpha=0.18, linewidth=0)
    faces = ["white" if tables.flags(row) else look.color for _, row in family.iterrows()]
    axes.plot(seqlen, gbps, color=look.color, linestyle=look.linestyle, linewidth=1.7, zorder=3)
    axes.scatter(seqlen, gbps, marker=look.marker, s=30, c=faces, edgecolors=look.color, linewidths=1.2, zorder=4)


def _gbps_at(family: pd.DataFrame, column: str) -> pd.Series[Any]:
    """GB/s at a percentile of the time; at the median where that percentile was not kept."""
    time_us = family[column].fillna(family["time_us_p50"]).astype(float)
    return family["gbps"].astype(float) * family["time_us_p50"].astype(float) / time_us


def _ceiling_lines(axes: Axes, timed: pd.DataFrame) -> None:
    gpu = timed[(timed["backend"] != "cpu") & timed["copy_gbps"].notna()]
    for _, family in tables.families(gpu, ("backend", *CASE_FAMILY)):
        line = family.groupby("seqlen")["copy_gbps"].max()
        axes.plot(line.index, line.to_numpy(float), color=CEILING, linestyle=(0, (8, 3)), linewidth=1.4, zorder=2)
        if len(line) == 1:
            axes.scatter(line.index, line.to_numpy(float), marker="_", s=120, color=CEILING, zorder=2)


def _wrong_crosses(axes: Axes, bad: pd.DataFrame) -> None:
    """Crosses on the lower edge: a wrong row has no time, but must be seen."""
    for variant in tables.order(bad["variant"]):
        seqlen = bad[bad["variant"] == variant]["seqlen"].astype(float)
        edge = axes.get_xaxis_transform()
        axes.scatter(
            seqlen, [0.03] * len(seqlen), marker="x", s=52, color=WRONG, linewidths=2, transform=edge, zorder=5
        )


def _share_limits(panels: list[Axes], timed: pd.DataFrame) -> None:
    values = timed["gbps"].astype(float)
    top = max(values.max(), timed[timed["backend"] != "cpu"]["copy_gbps"].astype(float).max(skipna=True) or 0.0, 1e-9)
    top = values.max() if math.isnan(top) else top
    low = values[values > 0].min()
    for axes in panels:
        _seqlen_axis(axes, timed["seqlen"])
        if top / low > 30:
            axes.set_yscale("log")
            axes.set_ylim(low / 2, top * 2)
            axes.yaxis.set_minor_locator(NullLocator())
        else:
            axes.set_ylim(0, top * 1.1)
        axes.yaxis.set_major_formatter(FuncFormatter(number))


def _seqlen_axis(axes: Axes, seqlens: pd.Series[Any]) -> None:
    """A logarithmic axis with ticks at measured seqlens, as many as fit."""
    values = sorted({float(v) for v in seqlens})
    axes.set_xscale("log", base=2)
    axes.set_xlim(values[0] / 1.5, values[-1] * 1.5)
    room = math.log(values[-1] / values[0] * 2.25) / 9
    ticks: list[float] = []
    for value in reversed(values):
        if not ticks or math.log(ticks[-1] / value) >= room:
            ticks.append(value)
    axes.set_xticks(ticks, [number(t) for t in ticks])
    axes.xaxis.set_minor_locator(NullLocator())


@styled
def share_of_copy(df: pd.DataFrame) -> Figure:
    """Percent of the measured copy of as many bytes, a line per case, a mark per variant; a panel per dtype and layout.

    Only rows that are ok and have such a copy beside them, so nothing from the CPU emulation.
    """
    title = "Share of the copy's speed"
    df = without_helpers(df)
    timed = tables.ok(df)
    timed = timed[(timed["backend"] != "cpu") & timed["pct_copy"].notna()]
    if timed.empty:
        return nothing(title, df, "no row is ok and has a measured copy beside it")
    panels = panels_of(timed)
    names = tables.order(timed["variant"])
    rows = max(len({_shape_label(row) for _, row in part.iterrows()}) for _, part in panels)
    sheet = make_sheet(title, timed, len(panels), (4.6, 0.9 + 0.3 * rows), columns_for(panels), entries=len(names) + 1)
    for axes, (label, part) in zip(sheet.panels, panels, strict=True):
        _share_panel(axes, part)
        axes.set_title(label)
    handles: list[Any] = marker_handles(names)
    handles.append(Line2D([], [], color=CEILING, linestyle=(0, (8, 3)), linewidth=1.4, label="measured copy"))
    sheet.notes += ["batch x dim x seqlen", "right is better", *_noise_note(timed), *flag_note(timed)]
    return sheet.finish(handles)


def _noise_note(timed: pd.DataFrame) -> list[str]:
    noise = timed["noise_pct"].dropna()
    return [f"the same copy timed twice (A/A) differs by up to {noise.max():.2f} %"] if len(noise) else []


def _shape_label(row: Any) -> str:
    """The shape, and what sets it apart from a plain forward of width 4."""
    parts = [f"{row['batch']} x {row['dim']} x {row['seqlen']}"]
    parts += [str(row["op"])] if row["op"] != "fwd" else []
    parts += [f"width {row['width']}"] if row["width"] != 4 else []
    parts += [str(row["view"])] if row["view"] != "contiguous" else []
    parts += [name for name in ("states", "seq_idx") if tables.yes(row[name])]
    return ", ".join(parts)


def _share_panel(axes: Axes, part: pd.DataFrame) -> None:
    part = part.sort_values(["bytes", "seqlen"], ascending=False)
    shapes = [_shape_label(row) for _, row in part.iterrows()]
    places = {shape: place for place, shape in enumerate(dict.fromkeys(shapes))}
    part = part.assign(_place=[places[shape] for shape in shapes])
    for variant in tables.order(part["variant"]):
        mine, look = part[part["variant"] == variant], style(variant)
        faces = ["white" if tables.flags(row) else look.color for _, row in mine.iterrows()]
        share = mine["pct_copy"].astype(float)
        axes.scatter(share, mine["_place"], marker=look.marker, s=36, c=faces, edgecolors=look.color, zorder=3)
    axes.axvline(100, color=CEILING, linestyle=(0, (8, 3)), linewidth=1.4)
    axes.set_yticks(list(places.values()), list(places), fontsize=8)
    axes.set_xlim(0, max(110.0, 1.05 * float(part["pct_copy"].max())))
    axes.set_xlabel("% of the copy's speed")

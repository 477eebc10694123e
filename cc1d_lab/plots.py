"""Rows -> charts. A chart takes a DataFrame of rows and returns a matplotlib Figure; no file is read or written.

Every figure names its device and its units, says in a note what it leaves out, and carries a banner when rows were made
in CPU emulation. A row that is not `ok` is never part of a line: it is drawn as a cross, or counted in the note.
A variant has one colour, one marker and one dash pattern everywhere, so that charts also read in greyscale.
"""

from __future__ import annotations

import functools
import io
import math
import textwrap
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import matplotlib
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from . import tables
from .tables import speedup_table
from .variants import VARIANTS

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure

__all__ = [
    "error",
    "error_vs_throughput",
    "speedup_table",
    "stages",
    "status_matrix",
    "style",
    "throughput",
    "to_png",
    "to_svg",
]

# Alternating dark and light, so that neighbours in the registry differ in greyscale too.
_COLOURS = ("#0b4f8a", "#e08214", "#1b7837", "#c51b7d", "#5e3c99", "#35978f", "#8c510a", "#4d4d4d")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h")
_DASHES = ((), (5, 2), (1, 1.5), (6, 2, 1, 2), (3, 1, 1, 1, 1, 1))
_WRONG = "#b2182b"
_CEILING = "#555555"
_CASE_FAMILY = ("batch", "dim", "width", "weight_dtype", "bias", "activation", "view", "row_stride", "seed", "label")
_DTYPE_ORDER = {"float32": "0", "float16": "1", "bfloat16": "2"}
_PANEL = ("device", "backend", "arch", "layout", "dtype")

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


@dataclass(frozen=True)
class Style:
    """How a variant looks, in every chart."""

    color: str
    marker: str
    dashes: tuple[float, ...]

    @property
    def linestyle(self) -> Any:
        """As matplotlib wants it."""
        return (0, self.dashes) if self.dashes else "-"


def style(variant: str) -> Style:
    """The look of a variant, from its place in the registry. A stranger gets one from its name."""
    names = list(VARIANTS)
    place = names.index(variant) if variant in names else len(names) + zlib.crc32(variant.encode()) % 97
    return Style(_COLOURS[place % len(_COLOURS)], _MARKERS[place % len(_MARKERS)], _DASHES[place % len(_DASHES)])


def to_png(figure: Figure, dpi: int = 144) -> bytes:
    """The figure as a PNG with a palette: a third of the size of full colour, and looks the same."""
    from PIL import Image

    raw = io.BytesIO()
    figure.savefig(raw, format="png", dpi=dpi)
    small = io.BytesIO()
    picture = Image.open(raw).convert("RGB")
    picture.quantize(256, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(small, "PNG", optimize=True)
    return small.getvalue()


def to_svg(figure: Figure) -> bytes:
    """The figure as SVG, text as outlines. The same rows give the same bytes."""
    out = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "cc1d_lab", "svg.fonttype": "path"}):
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return out.getvalue()


def _clean(value: Any, limit: int = 60) -> str:
    """Text that is safe in a chart: one line, no mathtext, of bounded length."""
    plain = "".join(c if c.isprintable() else " " for c in tables.text(value))
    short = plain if len(plain) <= limit else plain[: limit - 1] + "…"
    return short.replace("$", r"\$")


def number(value: float, _position: Any = None) -> str:
    """A number as a reader wants it on an axis: 0.25, 12, 8192, 3e+05."""
    return f"{value:.0f}" if 10 <= abs(value) < 1e5 else f"{value:.3g}"


_RC = {
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.labelsize": 10,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "grid.color": "#e3e3e3",
    "axes.edgecolor": "#9a9a9a",
}


def _styled(chart: Callable[..., Figure]) -> Callable[..., Figure]:
    @functools.wraps(chart)
    def wrapper(*args: Any, **kwargs: Any) -> Figure:
        settings: dict[Any, Any] = {**sns.axes_style("whitegrid"), **_RC}
        with matplotlib.rc_context(settings):
            return chart(*args, **kwargs)

    return wrapper


@dataclass
class _Sheet:
    """A figure with a head (title, banner), a grid of panels and a foot (legend, notes)."""

    figure: Figure
    panels: list[Axes]
    foot: SubFigure
    notes: list[str] = field(default_factory=list)

    def finish(self, handles: Sequence[Any] = ()) -> Figure:
        """Write legend and notes, and return the figure."""
        width, height = self.foot.get_figure(root=True).get_size_inches()[0], _foot_height(self.foot)
        columns = max(1, min(len(handles), int(width / 1.9)))
        if handles:
            self.foot.legend(handles=list(handles), loc="upper center", ncols=columns, frameon=False, handlelength=3.2)
        lines = textwrap.wrap("  ·  ".join(self.notes), int(width * 14))
        self.foot.text(0.01, 0.06 / height, "\n".join(lines), fontsize=9, color="#444444", va="bottom")
        return self.figure


def _foot_height(foot: SubFigure) -> float:
    return float(foot.bbox.height / foot.get_figure(root=True).dpi)


def _sheet(
    title: str, df: pd.DataFrame, panels: int, size: tuple[float, float], columns: int = 3, entries: int = 8
) -> _Sheet:
    """A sheet with `panels` axes of `size` inches. `entries` is the number of legend entries to leave room for."""
    banner = tables.emulated(df)
    ncols = min(columns, max(panels, 1))
    nrows = math.ceil(max(panels, 1) / ncols)
    width = max(size[0] * ncols, 7.0)
    legend_rows = math.ceil(entries / max(1, int(width / 1.9))) if entries else 0
    heights = [0.62 + 0.34 * banner, size[1] * nrows, 0.5 + 0.23 * legend_rows]
    figure = Figure(figsize=(width, sum(heights)), layout="constrained", facecolor="white")
    figure.set_label(title)
    parts: Any = figure.subfigures(3, 1, height_ratios=heights)
    head, body, foot = parts
    _write_head(head, title, df, banner, heights[0])
    axes = list(body.subplots(nrows, ncols, squeeze=False).flat)
    for spare in axes[panels or 1 :]:
        spare.set_axis_off()
    return _Sheet(figure, axes[: panels or 1], foot)


def _write_head(head: SubFigure, title: str, df: pd.DataFrame, banner: bool, height: float) -> None:
    where = "; ".join(tables.devices(df)) or "no device"
    head.text(0.01, 1 - 0.1 / height, _clean(title, 110), fontsize=13, weight="bold", va="top")
    head.text(0.01, 1 - 0.36 / height, _clean(where, 130), fontsize=9.5, color="#444444", va="top")
    if banner:
        box = {"boxstyle": "square,pad=0.35", "facecolor": "#ffe9a8", "edgecolor": "#a67c00", "linewidth": 1}
        head.text(0.015, 0.13 / height, tables.CPU_BANNER, fontsize=10, weight="bold", va="bottom", bbox=box)


def _nothing(title: str, df: pd.DataFrame, why: str) -> Figure:
    sheet = _sheet(title, df, 1, (7.0, 1.6), entries=0)
    axes = sheet.panels[0]
    axes.set_axis_off()
    axes.text(0.5, 0.5, why, ha="center", va="center", fontsize=11, color="#555555")
    return sheet.finish()


def _without_helpers(df: pd.DataFrame) -> pd.DataFrame:
    df = tables.placed(df)
    return df[~df["variant"].isin([name for name, v in VARIANTS.items() if v.kind == "helper"])]


def _panels(df: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Rows cut by device, layout and dtype, without the cuts in which nothing was compared. What all panels share is
    left out of their titles."""
    seen = df[df["status"].isin(("ok", "wrong"))]
    cut = [name for name in _PANEL if len(set(map(tables.text, seen[name]))) > 1] or ["dtype"]
    keys = {key for key, _ in tables.families(seen, cut)}
    parts = [(key, part) for key, part in tables.families(df, cut) if key in keys]
    parts.sort(key=lambda p: [_DTYPE_ORDER.get(value, value) for value in p[0]])
    return [(_panel_title(dict(zip(cut, key, strict=True))), part) for key, part in parts]


def _panel_title(key: dict[str, str]) -> str:
    if key.get("backend") == "cpu":
        key["backend"] = "cpu emulation"
    return "\n".join(textwrap.wrap(_clean(" · ".join(v for v in key.values() if v), 90), 44)[:2])


def _columns(panels: list[tuple[str, pd.DataFrame]]) -> int:
    """How many panels stand side by side: one for each dtype when that fills the rows."""
    dtypes = len({tables.text(part["dtype"].iloc[0]) for _, part in panels})
    return dtypes if dtypes in (2, 3) and len(panels) % dtypes == 0 else min(3, len(panels))


def _lost_note(df: pd.DataFrame, what: str, shown: Sequence[str] = ("ok",)) -> list[str]:
    """What is left out, by status."""
    counts = {s: n for s, n in tables.status_counts(df).items() if s not in shown}
    if not counts:
        return []
    return [f"{what}: " + ", ".join(f"{n} {_clean(s.replace('_', ' '), 24)}" for s, n in counts.items())]


def _variant_handles(names: Iterable[str]) -> list[Line2D]:
    handles = []
    for name in tables.order(names):
        look = style(name)
        label = "torch_conv1d (F.conv1d)" if name == tables.BASELINE else _clean(name, 26)
        handles.append(
            Line2D([], [], color=look.color, marker=look.marker, linestyle=look.linestyle, markersize=6, label=label)
        )
    return handles


def _wrong_handle(label: str = "wrong") -> Line2D:
    return Line2D([], [], color=_WRONG, marker="x", linestyle="", markersize=8, markeredgewidth=2, label=label)


# ---- throughput against seqlen


@_styled
def throughput(df: pd.DataFrame) -> Figure:
    """GB/s (counted bytes / median time) against seqlen: a line per variant and shape, a panel per dtype and layout.

    The band spans the 20th to 80th percentile of the samples. The dashed grey line is the measured copy of the same
    bytes, on a GPU only.
    """
    title = "Throughput against sequence length"
    df = _without_helpers(df)
    timed = tables.ok(df)
    timed = timed[timed["gbps"].notna() & timed["time_us_p50"].notna()]
    if timed.empty:
        return _nothing(title, df, "no row is ok and timed: nothing to draw")
    panels = _panels(df)
    ceiling = timed[(timed["backend"] != "cpu") & timed["copy_gbps"].notna()]
    names = tables.order(timed["variant"])
    sheet = _sheet(title, df, len(panels), (4.3, 3.1), _columns(panels), entries=len(names) + 2)
    for axes, (label, part) in zip(sheet.panels, panels, strict=True):
        _throughput_panel(axes, part)
        axes.set_title(label)
    _share_limits(sheet.panels, timed)
    handles: list[Any] = _variant_handles(names)
    if len(ceiling):
        handles.append(Line2D([], [], color=_CEILING, linestyle=(0, (8, 3)), linewidth=1.4, label="measured copy"))
    if (df["status"] == "wrong").any():
        handles.append(_wrong_handle("wrong (no time)"))
    sheet.notes += ["band: 20th to 80th percentile", *_flag_note(timed), *_lost_note(df, "not part of any line")]
    return sheet.finish(handles)


def _throughput_panel(axes: Axes, part: pd.DataFrame) -> None:
    for (variant, *_), family in tables.families(part, ("variant", "tunables", "run_id", *_CASE_FAMILY)):
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
    for _, family in tables.families(gpu, ("backend", *_CASE_FAMILY)):
        line = family.groupby("seqlen")["copy_gbps"].max()
        axes.plot(line.index, line.to_numpy(float), color=_CEILING, linestyle=(0, (8, 3)), linewidth=1.4, zorder=2)
        if len(line) == 1:
            axes.scatter(line.index, line.to_numpy(float), marker="_", s=120, color=_CEILING, zorder=2)


def _wrong_crosses(axes: Axes, bad: pd.DataFrame) -> None:
    """Crosses on the lower edge: a wrong row has no time, but must be seen."""
    for variant in tables.order(bad["variant"]):
        seqlen = bad[bad["variant"] == variant]["seqlen"].astype(float)
        edge = axes.get_xaxis_transform()
        axes.scatter(
            seqlen, [0.03] * len(seqlen), marker="x", s=52, color=_WRONG, linewidths=2, transform=edge, zorder=5
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


def _flag_note(timed: pd.DataFrame) -> list[str]:
    doubtful = sum(1 for _, row in timed.iterrows() if tables.flags(row))
    return [f"hollow: {doubtful} with a doubtful time (flags)"] if doubtful else []


# ---- error


@_styled
def share_of_copy(df: pd.DataFrame) -> Figure:
    """Percent of the measured copy of as many bytes, a line per case, a mark per variant; a panel per dtype and layout.

    Only rows that are ok and have such a copy beside them, so nothing from the CPU emulation.
    """
    title = "Share of the copy's speed"
    df = _without_helpers(df)
    timed = tables.ok(df)
    timed = timed[(timed["backend"] != "cpu") & timed["pct_copy"].notna()]
    if timed.empty:
        return _nothing(title, df, "no row is ok and has a measured copy beside it")
    panels = _panels(timed)
    names = tables.order(timed["variant"])
    rows = max(part.groupby(["batch", "dim", "seqlen", "width"]).ngroups for _, part in panels)
    sheet = _sheet(title, timed, len(panels), (4.6, 0.9 + 0.3 * rows), _columns(panels), entries=len(names) + 1)
    for axes, (label, part) in zip(sheet.panels, panels, strict=True):
        _share_panel(axes, part)
        axes.set_title(label)
    handles: list[Any] = _marker_handles(names)
    handles.append(Line2D([], [], color=_CEILING, linestyle=(0, (8, 3)), linewidth=1.4, label="measured copy"))
    sheet.notes += ["right is better", *_flag_note(timed)]
    return sheet.finish(handles)


def _share_panel(axes: Axes, part: pd.DataFrame) -> None:
    part = part.sort_values(["bytes", "seqlen"], ascending=False)
    shapes = part["batch"].astype(str) + " x " + part["dim"].astype(str) + " x " + part["seqlen"].astype(str)
    places = {shape: place for place, shape in enumerate(dict.fromkeys(shapes))}
    for variant, mine in part.groupby("variant", sort=False):
        look = style(str(variant))
        axes.plot(
            mine["pct_copy"], [places[s] for s in shapes[mine.index]], look.marker, color=look.color, markersize=6
        )
    axes.axvline(100, color=_CEILING, linestyle=(0, (8, 3)), linewidth=1.4)
    axes.set_yticks(list(places.values()), list(places), fontsize=8)
    axes.set_xlim(0, 110)
    axes.set_xlabel("% of the copy's speed (batch x dim x seqlen)")


@_styled
def error(df: pd.DataFrame) -> Figure:
    """Error per variant and dtype: share of the error bound used (1 is the limit), and rms error in ULP.

    A point is a case. The last place of each panel is F.conv1d itself, in the same dtype.
    """
    title = "Error against the float64 oracle"
    df = _without_helpers(df)
    seen = df[df["status"].isin(("ok", "wrong")) & df["bound_ratio"].notna()]
    ours = seen[seen["variant"] != tables.BASELINE]
    if ours.empty:
        return _nothing(title, df, "no row was compared with the oracle: nothing to draw")
    dtypes = [d for d in ("float32", "float16", "bfloat16") if (ours["dtype"] == d).any()]
    dtypes += sorted(set(map(tables.text, ours["dtype"])) - set(dtypes))
    names = tables.order(ours["variant"])
    sheet = _sheet(
        title, df, 2 * len(dtypes), (1.9 + 0.48 * len(names), 3.1), columns=len(dtypes), entries=len(names) + 2
    )
    for column, dtype in enumerate(dtypes):
        part = ours[ours["dtype"] == dtype]
        top, bottom = sheet.panels[column], sheet.panels[len(dtypes) + column]
        _error_strip(top, part, names, "bound_ratio")
        _error_strip(bottom, part, names, "ulp_rms")
        top.set_title(_clean(dtype))
        top.axhline(1.0, color=_WRONG, linestyle="--", linewidth=1.3)
        top.text(0.01, 1.0, "limit", color=_WRONG, fontsize=9, va="bottom", transform=top.get_yaxis_transform())
        _bound_axis(top, top.dataLim.y1)
        _ulp_axis(bottom)
    sheet.panels[0].set_ylabel("largest |error| / bound")
    sheet.panels[len(dtypes)].set_ylabel("rms error (ULP)")
    handles: list[Any] = [*_marker_handles(names), _reference_handle()]
    handles += [_wrong_handle()] if (ours["status"] == "wrong").any() else []
    sheet.notes += ["a point is a case", "dotted: 0.29 ULP, correct rounding in 16-bit types"]
    sheet.notes += _lost_note(df, "not compared", ("ok", "wrong"))
    return sheet.finish(handles)


def _marker_handles(names: Iterable[str]) -> list[Line2D]:
    handles = _variant_handles(names)
    for handle in handles:
        handle.set_linestyle("")
    return handles


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
        axes.scatter(_spread(place, len(bad)), bad, marker="x", s=52, color=_WRONG, linewidths=2, zorder=5)
    reference = _reference(part, f"torch_{column}")
    x = _spread(len(names), len(reference))
    axes.scatter(x, reference, marker="d", s=34, facecolors="white", edgecolors="#333333", linewidths=1)
    labels = [_clean(_short(name), 18) for name in names]
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


# ---- error against throughput


@_styled
def error_vs_throughput(df: pd.DataFrame) -> Figure:
    """Largest error / bound against GB/s: a point per variant and case.

    Wrong rows have no time: they stand on the left edge.
    """
    title = "Error against throughput"
    df = _without_helpers(df)
    seen = df[df["status"].isin(("ok", "wrong")) & df["bound_ratio"].notna()]
    timed = tables.ok(seen)
    timed = timed[timed["gbps"].notna()]
    if timed.empty:
        return _nothing(title, df, "no row is ok and timed: nothing to draw")
    panels = _panels(seen)
    names = tables.order(timed["variant"])
    sheet = _sheet(title, df, len(panels), (4.3, 3.1), _columns(panels), entries=len(names) + 1)
    for axes, (label, part) in zip(sheet.panels, panels, strict=True):
        _trade_panel(axes, part, names)
        axes.set_title(label)
        _gbps_axis(axes, timed["gbps"].astype(float))
    handles: list[Any] = _marker_handles(names)
    handles += [_wrong_handle("wrong (no time)")] if (seen["status"] == "wrong").any() else []
    sheet.notes += ["right and low is better" if not tables.emulated(df) else "a point is a case"]
    sheet.notes += _lost_note(df, "without a time")
    return sheet.finish(handles)


def _trade_panel(axes: Axes, part: pd.DataFrame, names: list[str]) -> None:
    for name in names:
        rows, look = tables.ok(part[part["variant"] == name]), style(name)
        rows = rows[rows["gbps"].notna()]
        x, y = rows["gbps"].astype(float), rows["bound_ratio"].astype(float)
        axes.scatter(x, y, marker=look.marker, s=30, color=look.color, alpha=0.8, linewidths=0, zorder=3)
    bad = part[part["status"] == "wrong"]["bound_ratio"].astype(float)
    left = axes.get_yaxis_transform()
    axes.scatter([0.02] * len(bad), bad, marker="x", s=52, color=_WRONG, linewidths=2, transform=left, zorder=5)
    axes.axhline(1.0, color=_WRONG, linestyle="--", linewidth=1.3)
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


# ---- status


@_styled
def status_matrix(df: pd.DataFrame, limit: int = 60) -> Figure:
    """Status of each variant (across) in each case (down), as colour and letter. Beyond `limit` cases, those with the
    worst endings are shown and the others counted."""
    title = "Status of every cell"
    df = _without_helpers(df)
    if df.empty:
        return _nothing(title, df, "no rows: nothing to draw")
    names = tables.order(df["variant"])
    cases = sorted(tables.by_case(df), key=lambda c: _severity(c[1]) if len(tables.by_case(df)) > limit else 0)
    shown = cases[:limit]
    several = len(tables.devices(df)) > 1
    cells = [[_worst_status(part[part["variant"] == name]) for name in names] for _, part in shown]
    labels = [_clean(_case_label(part.iloc[0], several), 78) for _, part in shown]
    sheet = _sheet(title, df, 1, (3.9 + 0.07 * max(map(len, labels)) + 0.55 * len(names), 1.3 + 0.21 * len(shown)))
    _matrix(sheet.panels[0], cells, labels, [_clean(name, 26) for name in names])
    sheet.notes += ["blank: not part of the run"]
    if len(cases) > limit:
        sheet.notes.append(f"{len(cases) - limit} cases with better endings are not shown")
    return sheet.finish(_status_handles(cells))


def _case_label(row: Any, with_device: bool) -> str:
    place = f"{tables.text(row['backend'])}: " if with_device else ""
    return place + tables.configuration(row)


def _severity(part: pd.DataFrame) -> int:
    return min((tables.SEVERITY.index(s) if s in tables.SEVERITY else 0) for s in part["status"])


def _worst_status(rows: pd.DataFrame) -> str:
    present = set(rows["status"])
    return next((s for s in tables.SEVERITY if s in present), "")


def _matrix(axes: Axes, cells: list[list[str]], labels: list[str], names: list[str]) -> None:
    kinds = list(STATUS_LOOK)
    values = [[kinds.index(s) if s else math.nan for s in line] for line in cells]
    letters = [[STATUS_LOOK[s][1] if s else "" for s in line] for line in cells]
    colours = [look[0] for look in STATUS_LOOK.values()]
    sns.heatmap(
        _masked(values),
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


def _masked(values: list[list[float]]) -> Any:
    import numpy

    return numpy.asarray(values, dtype=float)


def _status_handles(cells: list[list[str]]) -> list[Patch]:
    present = {status for line in cells for status in line}
    return [
        Patch(facecolor=colour, edgecolor="#666666", label=f"{letter}  {status.replace('_', ' ')}")
        for status, (colour, letter, _) in STATUS_LOOK.items()
        if status in present
    ]


# ---- stages

_STAGE_LOOK = (
    ("#0b4f8a", ""),
    ("#c6dbef", "///"),
    ("#e08214", "..."),
    ("#4d4d4d", ""),
    ("#d9d9d9", "xx"),
    ("#1b7837", "\\\\"),
)


@_styled
def stages(df: pd.DataFrame, limit: int = 16) -> Figure:
    """Share of each device stage in the sum of the stages, a bar per ok row with several; the largest `limit` cases.

    The number at the end of a bar is the sum of the stages' medians. It may exceed the time of the
    whole pipeline, in which one stage finds warm what the one before it wrote.
    """
    title = "Where the time goes: device stages"
    df = _without_helpers(df)
    staged = tables.ok(df)
    staged = staged[[isinstance(v, dict) and bool(v) for v in staged["stage_us"]]] if len(staged) else staged
    if staged.empty:
        return _nothing(title, df, "no ok row has several stages: nothing to draw")
    picked = staged.assign(_sum=[sum(v.values()) for v in staged["stage_us"]]).sort_values("_sum", ascending=False)
    rows = [row for _, row in picked.head(limit).iterrows()]
    names = list(dict.fromkeys(name for row in rows for name in row["stage_us"]))
    sheet = _sheet(title, staged, 1, (9.5, 1.0 + 0.34 * len(rows)), entries=len(names))
    several = len(tables.devices(staged)) > 1
    _stage_bars(sheet.panels[0], rows, names, several)
    variants = ", ".join(_clean(name, 26) for name in tables.order(picked["variant"]))
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
        axes.text(101, place, _duration(total), va="center", fontsize=9)
    axes.set_yticks(range(len(rows)), [_clean(_case_label(row, several), 70) for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(0, 116)
    axes.set_xticks(range(0, 101, 20))
    axes.set_xlabel("share of the sum of the stages (%), and that sum")
    axes.grid(visible=False, axis="y")


def _duration(time_us: float) -> str:
    return f"{tables.number(time_us)} µs" if time_us < 1e4 else f"{tables.number(time_us / 1e3)} ms"


def _stage_handles(names: list[str]) -> list[Patch]:
    looks = [_STAGE_LOOK[i % len(_STAGE_LOOK)] for i in range(len(names))]
    return [
        Patch(facecolor=c, hatch=h, edgecolor="white", label=_clean(n, 26))
        for n, (c, h) in zip(names, looks, strict=True)
    ]

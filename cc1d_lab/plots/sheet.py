"""What all charts share: looks, sheets with a head and a foot, panels, legend handles, notes, bytes of a picture."""

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

from .. import tables
from ..variants import VARIANTS

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure

# Alternating dark and light, so that neighbours in the registry differ in greyscale too.
_COLOURS = ("#0b4f8a", "#e08214", "#1b7837", "#c51b7d", "#5e3c99", "#35978f", "#8c510a", "#4d4d4d")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h")
_DASHES = ((), (5, 2), (1, 1.5), (6, 2, 1, 2), (3, 1, 1, 1, 1, 1))
WRONG = "#b2182b"
CEILING = "#555555"
# What the rows of one line have in common, beside their panel.
CASE_FAMILY = (
    *("op", "batch", "dim", "width", "weight_dtype", "bias", "activation"),
    *("state_len", "states", "seq_idx", "view", "row_stride", "seed", "label"),
)
_DTYPE_ORDER = {"float32": "0", "float16": "1", "bfloat16": "2"}
_PANEL = ("device", "backend", "arch", "layout", "dtype")


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


def clean(value: Any, limit: int = 60) -> str:
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


def styled(chart: Callable[..., Figure]) -> Callable[..., Figure]:
    """A decorator: the chart is drawn with the settings of the house, whatever the caller has set."""

    @functools.wraps(chart)
    def wrapper(*args: Any, **kwargs: Any) -> Figure:
        settings: dict[Any, Any] = {**sns.axes_style("whitegrid"), **_RC}
        with matplotlib.rc_context(settings):
            return chart(*args, **kwargs)

    return wrapper


@dataclass
class Sheet:
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


def make_sheet(
    title: str, df: pd.DataFrame, panels: int, size: tuple[float, float], columns: int = 3, entries: int = 8
) -> Sheet:
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
    return Sheet(figure, axes[: panels or 1], foot)


def _write_head(head: SubFigure, title: str, df: pd.DataFrame, banner: bool, height: float) -> None:
    where = "; ".join(tables.devices(df)) or "no device"
    head.text(0.01, 1 - 0.1 / height, clean(title, 110), fontsize=13, weight="bold", va="top")
    head.text(0.01, 1 - 0.36 / height, clean(where, 130), fontsize=9.5, color="#444444", va="top")
    if banner:
        box = {"boxstyle": "square,pad=0.35", "facecolor": "#ffe9a8", "edgecolor": "#a67c00", "linewidth": 1}
        head.text(0.015, 0.13 / height, tables.CPU_BANNER, fontsize=10, weight="bold", va="bottom", bbox=box)


def single(title: str, size: tuple[float, float]) -> tuple[Figure, Axes]:
    """A figure of one panel, without head and foot, and that panel."""
    figure = Figure(figsize=size, layout="constrained", facecolor="white")
    figure.set_label(title)
    axes = figure.subplots()
    axes.set_title(title, loc="left", fontsize=12, weight="bold")
    axes.grid(color="#e3e3e3")
    axes.set_axisbelow(True)
    return figure, axes


def nothing(title: str, df: pd.DataFrame, why: str) -> Figure:
    """A sheet that says why there is no chart."""
    sheet = make_sheet(title, df, 1, (7.0, 1.6), entries=0)
    axes = sheet.panels[0]
    axes.set_axis_off()
    axes.text(0.5, 0.5, why, ha="center", va="center", fontsize=11, color="#555555")
    return sheet.finish()


def without_helpers(df: pd.DataFrame) -> pd.DataFrame:
    """The rows without the copy and the empty launch, which are not compared but compared with."""
    df = tables.placed(df)
    return df[~df["variant"].isin([name for name, v in VARIANTS.items() if v.kind == "helper"])]


def panels_of(df: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
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
    return "\n".join(textwrap.wrap(clean(" · ".join(v for v in key.values() if v), 90), 44)[:2])


def columns_for(panels: list[tuple[str, pd.DataFrame]]) -> int:
    """How many panels stand side by side: one for each dtype when that fills the rows."""
    dtypes = len({tables.text(part["dtype"].iloc[0]) for _, part in panels})
    return dtypes if dtypes in (2, 3) and len(panels) % dtypes == 0 else min(3, len(panels))


def lost_note(df: pd.DataFrame, what: str, shown: Sequence[str] = ("ok",)) -> list[str]:
    """What is left out, by status."""
    counts = {s: n for s, n in tables.status_counts(df).items() if s not in shown}
    if not counts:
        return []
    return [f"{what}: " + ", ".join(f"{n} {clean(s.replace('_', ' '), 24)}" for s, n in counts.items())]


def variant_handles(names: Iterable[str]) -> list[Line2D]:
    """Legend entries of variants: line and marker, in the order of the registry."""
    handles = []
    for name in tables.order(names):
        look = style(name)
        label = "torch_conv1d (F.conv1d)" if name == tables.BASELINE else clean(name, 26)
        handles.append(
            Line2D([], [], color=look.color, marker=look.marker, linestyle=look.linestyle, markersize=6, label=label)
        )
    return handles


def wrong_handle(label: str = "wrong") -> Line2D:
    """The legend entry of the crosses."""
    return Line2D([], [], color=WRONG, marker="x", linestyle="", markersize=8, markeredgewidth=2, label=label)


def flag_note(timed: pd.DataFrame) -> list[str]:
    """How many times are doubtful, as a note; none when none is."""
    doubtful = sum(1 for _, row in timed.iterrows() if tables.flags(row))
    return [f"hollow: {doubtful} with a doubtful time (flags)"] if doubtful else []


def marker_handles(names: Iterable[str]) -> list[Line2D]:
    """Legend entries of variants without a line."""
    handles = variant_handles(names)
    for handle in handles:
        handle.set_linestyle("")
    return handles


def case_label(row: Any, with_device: bool) -> str:
    """A row's configuration in words, with its backend where there are several."""
    place = f"{tables.text(row['backend'])}: " if with_device else ""
    return place + tables.configuration(row)


def duration(time_us: float) -> str:
    """A time with a unit that a reader wants: us below 10 ms."""
    return f"{tables.number(time_us)} µs" if time_us < 1e4 else f"{tables.number(time_us / 1e3)} ms"

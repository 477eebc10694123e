"""S2's pictures of a profile: device time by kernel and copy, host time by API call, and what each kernel waits for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from .sheet import CEILING, clean, duration, make_sheet, nothing, number, styled

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

_LOOK = {"kernel": ("#0b4f8a", ""), "copy": ("#e08214", "///"), "api": ("#35978f", "")}
_SHARES = {"memory_pct": ("#0b4f8a", "", "memory"), "compute_pct": ("#e08214", "///", "arithmetic")}


@styled
def device_times(df: pd.DataFrame, limit: int = 12) -> Figure:
    """Share of each kernel and each kind of copy in the time that the device was busy; the longest `limit`.

    `df`: records of `Profile.times` with backend, arch and device. Bars end with the sum and the number of calls.
    """
    return _bars("Device time by kernel and copy", df, ("kernel", "copy"), limit)


@styled
def api_times(df: pd.DataFrame, limit: int = 12) -> Figure:
    """Share of each call of the HIP or CUDA API in the host time spent in that API; the longest `limit`.

    `df` as for `device_times`. A call that waits for the device holds the device's time too.
    """
    return _bars("Host time by API call", df, ("api",), limit)


def _bars(title: str, df: pd.DataFrame, what: tuple[str, ...], limit: int) -> Figure:
    found = df[df["what"].isin(what) & (df["total_us"] > 0)].sort_values("total_us", ascending=False)
    if found.empty:
        return nothing(title, df, "the profiler gave no such times: nothing to draw")
    total, shown = found["total_us"].sum(), found.head(limit)
    sheet = make_sheet(title, df, 1, (9.0, 0.9 + 0.36 * len(shown)), entries=len(what))
    axes = sheet.panels[0]
    for place, (_, row) in enumerate(shown.iterrows()):
        share, (colour, hatch) = 100 * row["total_us"] / total, _LOOK[row["what"]]
        axes.barh(place, share, height=0.7, color=colour, hatch=hatch, edgecolor="white")
        calls = f"{row['calls']} call{'s' if row['calls'] > 1 else ''}"
        axes.text(share + 0.8, place, f"{share:.1f} %, {duration(row['total_us'])} in {calls}", va="center")
    axes.set_yticks(range(len(shown)), [clean(name, 44) for name in shown["name"]])
    axes.set(xlim=(0, 135), ylim=(len(shown) - 0.4, -0.6), xlabel=f"% of {duration(total)}")
    axes.set_xticks(range(0, 101, 20))
    sheet.notes.append("one cell under a profiler, which slows the host down")
    if len(found) > limit:
        rest = 100 * found["total_us"].iloc[limit:].sum() / total
        sheet.notes.append(f"{len(found) - limit} shorter ones left out, {number(rest)} % together")
    handles = [Patch(facecolor=_LOOK[w][0], hatch=_LOOK[w][1], edgecolor="white", label=w) for w in what]
    return sheet.finish(handles if len(what) > 1 else ())


@styled
def bottlenecks(df: pd.DataFrame, limit_pct: float) -> Figure:
    """How near each kernel came to the peak of the memory and of arithmetic, with the verdict.

    `df`: Bottleneck records with backend, arch and device. `limit_pct`: below it in both, a kernel waits for latency.
    """
    title = "What each kernel waits for"
    if df.empty or "verdict" not in df:
        return nothing(title, df, "the profiler gave no counters: nothing to draw")
    sheet = make_sheet(title, df, 1, (9.0, 1.0 + 0.62 * len(df)), entries=3)
    axes = sheet.panels[0]
    for place, (_, row) in enumerate(df.iterrows()):
        for offset, (column, (colour, hatch, _)) in zip((-0.19, 0.19), _SHARES.items(), strict=True):
            axes.barh(place + offset, row[column], height=0.36, color=colour, hatch=hatch, edgecolor="white")
            axes.text(row[column] + 0.8, place + offset, f"{row[column]:.0f} %", va="center", fontsize=9)
    axes.axvline(limit_pct, color=CEILING, linestyle=(0, (4, 2)), linewidth=1)
    axes.set_yticks(range(len(df)), [f"{clean(r['kernel'], 40)}\nwaits for {r['verdict']}" for _, r in df.iterrows()])
    axes.set(xlim=(0, 115), ylim=(len(df) - 0.4, -0.6), xlabel="% of peak")
    sheet.notes += _counters(df)
    return sheet.finish(_handles(limit_pct))


def _counters(df: pd.DataFrame) -> list[str]:
    pairs = (("memory", "memory_is"), ("arithmetic", "compute_is"))
    return [f"{what}: {clean(', '.join(dict.fromkeys(df[column])), 110)}" for what, column in pairs]


def _handles(limit_pct: float) -> list[Any]:
    bars = [Patch(facecolor=c, hatch=h, edgecolor="white", label=name) for c, h, name in _SHARES.values()]
    line = Line2D([], [], color=CEILING, linestyle=(0, (4, 2)), label=f"{number(limit_pct)} %: below, latency")
    return [*bars, line]

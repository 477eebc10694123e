"""Time against size: rows fitted as a + b * bytes, and cliffs at awkward sizes. Rows in, tables out.

For rows with the median time t_i and the bytes n_i, a (microseconds) and b (microseconds a byte) minimise
sum ((t_i - a - b n_i) / s_i)^2 with s_i the spread of t_i: half the distance of the 20th and the 80th percentile, at
least SPREAD_FLOOR of t_i (weighted least squares; Press et al., Numerical Recipes, 15.2). 1 / b is what the kernel
moves once it runs, a is what a call costs before.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from . import tables

if TYPE_CHECKING:
    import pandas as pd

SPREAD_FLOOR = 0.005  # of the time: what repeats of a whole run differ by, however quiet one run is
FEWEST_POINTS = 4
LEAST_RANGE = 2.0  # bytes of the largest over those of the smallest: below, b is not determined
AXES = ("batch", "dim", "seqlen", "width")
ALIGNED = 256  # a dim or seqlen that this divides is not awkward
NEAR = 0.05  # an aligned neighbour is at most so far away
CLIFF_PCT = 15.0  # a row that is more than this below its neighbour is flagged
_FAMILY = (
    *("backend", "arch", "device", "variant", "tunables", "toolchain"),
    *("op", "dtype", "weight_dtype", "layout", "cache_state"),
)
_SAME = ("bias", "activation", "state_len", "states", "seq_idx", "seed")


@dataclass(frozen=True)
class Line:
    """a + b * bytes: `a_us` microseconds, `b_us` microseconds a byte, their standard errors, and chi2 a degree of
    freedom, which is near 1 when the residuals are what the spread lets expect. Where it is above 1, the errors are
    sqrt(chi2) times as wide: the rows differ from the line by more than their spread says.
    """

    a_us: float
    b_us: float
    a_error_us: float
    b_error_us: float
    chi2: float

    def at(self, size: float) -> float:
        """The time of `size` bytes, microseconds."""
        return self.a_us + self.b_us * size

    @property
    def gbps(self) -> float:
        """What is moved beyond the fixed cost, GB/s (1e9); infinite where more bytes take no more time."""
        return 1e-3 / self.b_us if self.b_us > 0 else math.inf


def fit(sizes: Sequence[float], times_us: Sequence[float], spreads_us: Sequence[float]) -> Line | None:
    """The line through (bytes, microseconds), weighted by 1 / spread^2.

    None where a line is not determined: fewer than FEWEST_POINTS points, or sizes within a factor of LEAST_RANGE.
    """
    if len(sizes) < FEWEST_POINTS or max(sizes) < LEAST_RANGE * min(sizes):
        return None
    weights = [1.0 / max(s, SPREAD_FLOOR * t) ** 2 for s, t in zip(spreads_us, times_us, strict=True)]
    total = math.fsum(weights)
    mean = math.fsum(w * n for w, n in zip(weights, sizes, strict=True)) / total
    # Around the mean, a and b do not depend on each other, and nothing is lost to cancellation.
    sxx = math.fsum(w * (n - mean) ** 2 for w, n in zip(weights, sizes, strict=True))
    b = math.fsum(w * (n - mean) * t for w, n, t in zip(weights, sizes, times_us, strict=True)) / sxx
    a = math.fsum(w * t for w, t in zip(weights, times_us, strict=True)) / total - b * mean
    chi2 = math.fsum(w * (t - a - b * n) ** 2 for w, n, t in zip(weights, sizes, times_us, strict=True))
    chi2 /= len(sizes) - 2
    wider = math.sqrt(max(chi2, 1.0))
    return Line(a, b, wider * math.sqrt(1 / total + mean**2 / sxx), wider * math.sqrt(1 / sxx), chi2)


def timed(df: pd.DataFrame) -> pd.DataFrame:
    """The rows that a fit may use: ok, with a time and with bytes, and of kernels or baselines alone."""
    found = tables.ok(df)
    found = found[found["time_us_p50"].notna() & found["bytes"].notna() & found["program"].isna()]
    return found[found["kind"] != "helper"]


def aligned(row: Any) -> bool:
    """Whether the sizes of a row are convenient: dim and seqlen multiples of ALIGNED or powers of two, x contiguous."""
    convenient = all(row[name] % ALIGNED == 0 or (row[name] & (row[name] - 1)) == 0 for name in ("dim", "seqlen"))
    return convenient and tables.text(row["view"]) in ("", "contiguous")


def families(df: pd.DataFrame) -> list[tuple[dict[str, str], pd.DataFrame]]:
    """Aligned timed rows by device, variant and build, dtype, layout and cache: what one line is fitted to."""
    found = timed(df)
    found = found[[aligned(row) for _, row in found.iterrows()]] if len(found) else found
    return [(dict(zip(_FAMILY, key, strict=True)), part) for key, part in tables.families(found, _FAMILY)]


def line_of(part: pd.DataFrame) -> Line | None:
    """The line of rows of one family."""
    spread = (part["time_us_p80"].astype(float) - part["time_us_p20"].astype(float)).fillna(0.0) / 2
    return fit(part["bytes"].astype(float).tolist(), part["time_us_p50"].astype(float).tolist(), spread.tolist())


def fits(df: pd.DataFrame) -> pd.DataFrame:
    """A row per family and axis: a in us, 1 / b in GB/s, their standard errors, and the largest residual in %.

    The axis `all` takes every aligned row; `batch`, `dim`, `seqlen` and `width` those rows whose label names the axis.
    A line that is not determined has nulls: width hardly changes the bytes, so its residuals from `all` tell more.
    """
    columns = ("variant", "dtype", "layout", "axis", "points", "a_us", "a_error_us", "gbps", "gbps_error_pct", "chi2")
    records = []
    for key, part in families(df):
        whole = line_of(part)
        for axis in ("all", *AXES):
            mine = part if axis == "all" else part[part["label"] == axis]
            if len(mine):
                named = {name: key[name] for name in ("variant", "dtype", "layout")}
                records.append({**named, "axis": axis, **_fit_record(mine, line_of(mine), whole)})
    return _on_one_device(tables.frame(records, (*columns, "residual_pct", "residual_from_all_pct", "device")))


def _fit_record(part: pd.DataFrame, line: Line | None, whole: Line | None) -> dict[str, Any]:
    found: dict[str, Any] = {"points": len(part), "device": tables.device_name(part.iloc[0])}
    if whole:
        found["residual_from_all_pct"] = max((_residual_pct(row, whole) for _, row in part.iterrows()), key=abs)
    if line:
        found |= {"a_us": line.a_us, "a_error_us": line.a_error_us, "gbps": line.gbps, "chi2": line.chi2}
        found["gbps_error_pct"] = 100 * line.b_error_us / line.b_us if line.b_us > 0 else None
        found["residual_pct"] = max((_residual_pct(row, line) for _, row in part.iterrows()), key=abs)
    return found


def _residual_pct(row: Any, line: Line) -> float:
    expected = line.at(float(row["bytes"]))
    return 100 * (float(row["time_us_p50"]) - expected) / expected


def residuals(df: pd.DataFrame) -> pd.DataFrame:
    """A row per aligned timed row of a family with a line: by how many % its time is above the line (below: negative).

    The columns of the row stay; `expected_us` and `residual_pct` come to them.
    """
    import pandas as pd

    parts = []
    for _, part in families(df):
        if line := line_of(part):
            expected = part["bytes"].astype(float).map(line.at)
            off = 100 * (part["time_us_p50"].astype(float) - expected) / expected
            parts.append(part.assign(expected_us=expected, residual_pct=off))
    return (
        pd.concat(parts, ignore_index=True) if parts else tables.frame([], (*df.columns, "expected_us", "residual_pct"))
    )


# --- cliffs ---------------------------------------------------------------------------------------


def cliffs(df: pd.DataFrame) -> pd.DataFrame:
    """A row per awkward timed row with an aligned neighbour: GB/s of both, and by how many % it is below.

    A neighbour differs in one thing alone: dim or seqlen by at most NEAR, or the view, which is then contiguous.
    `cliff`: more than CLIFF_PCT below. Of several neighbours the nearest counts.
    """
    found = timed(df)
    records = [
        _cliff_record(row, neighbour)
        for _, part in tables.families(found, (*_FAMILY, *_SAME))
        for _, row in part.iterrows()
        if not aligned(row) and (neighbour := _neighbour(row, part)) is not None
    ]
    columns = ("awkward", "variant", "dtype", "layout", "shape", "neighbour", "gbps", "neighbour_gbps", "below_pct")
    return tables.frame(records, (*columns, "spread_pct", "cliff", "backend", "device"))


def worst_first(df: pd.DataFrame) -> pd.DataFrame:
    """`cliffs` for a reader: the deepest first."""
    return _on_one_device(cliffs(df).sort_values("below_pct", ascending=False, ignore_index=True))


def _on_one_device(frame: pd.DataFrame) -> pd.DataFrame:
    """The same table, without the column of the device when there is but one."""
    return frame if frame["device"].nunique() > 1 else frame.drop(columns="device")


def _neighbour(row: Any, part: pd.DataFrame) -> Any:
    """The nearest aligned row that differs from `row` in one of dim, seqlen and view; None when there is none."""
    nearest, least = None, NEAR
    for _, other in part.iterrows():
        apart = _distance(row, other)
        if aligned(other) and apart is not None and apart <= least:
            nearest, least = other, apart
    return nearest


def _distance(row: Any, other: Any) -> float | None:
    """How far two rows are from each other, relative; None when they differ in more than one thing."""
    if row["batch"] != other["batch"] or row["width"] != other["width"]:
        return None
    changed = [name for name in ("dim", "seqlen", "view") if row[name] != other[name]]
    if len(changed) != 1:
        return None
    name = changed[0]
    return 0.0 if name == "view" else float(abs(row[name] - other[name]) / other[name])


def _cliff_record(row: Any, neighbour: Any) -> dict[str, Any]:
    mine, theirs = (float(r["bytes"]) / float(r["time_us_p50"]) / 1e3 for r in (row, neighbour))
    below = 100 * (1 - mine / theirs)
    spread = max(_spread_pct(row), _spread_pct(neighbour))
    changed = next(name for name in ("dim", "seqlen", "view") if row[name] != neighbour[name])
    return {
        "awkward": f"{changed} {row[changed]}",
        **{name: tables.text(row[name]) for name in ("variant", "dtype", "layout", "backend")},
        "shape": "x".join(tables.text(row[name]) for name in AXES),
        "neighbour": f"{changed} {neighbour[changed]}",
        "gbps": mine,
        "neighbour_gbps": theirs,
        "below_pct": below,
        "spread_pct": spread,
        "cliff": below > CLIFF_PCT,
        "device": tables.device_name(row),
    }


def _spread_pct(row: Any) -> float:
    if not tables.known(row["time_us_p80"]) or not tables.known(row["time_us_p20"]):
        return 0.0
    return 100 * float(row["time_us_p80"] - row["time_us_p20"]) / float(row["time_us_p50"])


def sentences(df: pd.DataFrame) -> list[str]:
    """How many awkward sizes fall off a cliff, and which: for a reader, from the rows alone."""
    found = cliffs(df)
    if found.empty:
        return ["No awkward size has an aligned neighbour among the timed rows."]
    bad = found[found["cliff"]]
    said = [f"{len(bad)} of {len(found)} awkward rows are more than {CLIFF_PCT:.0f} % below their aligned neighbour."]
    for variant in tables.order(bad["variant"]):
        mine = bad[bad["variant"] == variant]
        names = ", ".join(dict.fromkeys(mine["awkward"]))
        said.append(f"{variant}: {len(mine)}, at {names}; at most {mine['below_pct'].max():.0f} % below.")
    return said + ([f"{tables.CPU_BANNER}."] if tables.emulated(df) else [])

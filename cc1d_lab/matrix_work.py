"""What matrix cores are given to do: useful and issued operations, and what is put into device memory on the way."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import tables

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = (
    *("configuration", "variant", "time_us", "pct_copy"),
    *("useful_gflop", "issued_gflop", "issued_per_useful", "useful_tflops", "issued_tflops"),
    *("im2col_mb", "workspace_mb", "moved_mb"),
)


def matrix_work(df: pd.DataFrame) -> pd.DataFrame:
    """A line per row of a kernel that issues more operations than are useful; without a time where the row has none.

    GFLOP are 1e9 operations of one launch, TFLOP/s are those over the median time, MB are 1e6 bytes. `im2col_mb` is the
    matrix that im2col writes to device memory, `workspace_mb` all that the stages keep there between them, `moved_mb`
    the fewest bytes that the case must move.
    """
    ours = tables.kernels(df)
    records = [
        _record(row)
        for _, part in tables.by_case(ours[ours["executed_flops"].notna()])
        for _, row in part.iterrows()
        if row["status"] != "unsupported"
    ]
    return tables.frame(records, COLUMNS)


def _record(row: Any) -> dict[str, Any]:
    seconds = row["time_us_p50"] * 1e-6 if row["status"] == "ok" and tables.known(row["time_us_p50"]) else None
    return {
        "configuration": tables.configuration(row),
        "variant": " ".join(p for p in (tables.text(row["variant"]), tables.knobs(row)) if p),
        "time_us": row["time_us_p50"] if seconds else None,
        "pct_copy": row["pct_copy"] if seconds else None,
        "useful_gflop": row["flops"] / 1e9,
        "issued_gflop": row["executed_flops"] / 1e9,
        "issued_per_useful": row["executed_flops"] / row["flops"],
        "useful_tflops": row["flops"] / seconds / 1e12 if seconds else None,
        "issued_tflops": row["executed_flops"] / seconds / 1e12 if seconds else None,
        "im2col_mb": _mega(row["im2col_bytes"]),
        "workspace_mb": _mega(row["workspace_bytes"]),
        "moved_mb": _mega(row["bytes"]),
    }


def _mega(n: Any) -> float | None:
    return n / 1e6 if tables.known(n) else None

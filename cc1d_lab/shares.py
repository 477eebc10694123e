"""Rows of the pipeline study -> tables: where the time of a program goes, and how far each proposal helps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import tables
from .programs import NAIVE, PROPOSALS, proposals

if TYPE_CHECKING:
    import pandas as pd

# What a stage is part of; every stage that is not named here is a kernel.
PARTS = {
    "transpose in": "host",
    "transpose out": "host",
    "host copy in": "host",
    "host copy out": "host",
    "allocation": "allocation",
    "free": "allocation",
    "copy in": "copies",
    "copy back": "copies",
    "verification": "verification",
    "launching and waiting": "waiting",
}
SHARES = ("host", "allocation", "copies", "kernels", "verification", "waiting")
S2_SHARES = {"allocation": 20.0, "copies": 70.0, "kernels": 10.0}  # % of the time, S2's profile of the naive program


def part_of(stage: str) -> str:
    """Which of SHARES a stage counts for."""
    return PARTS.get(stage, "kernels")


def programs(df: pd.DataFrame) -> pd.DataFrame:
    """The rows of the pipeline study among others."""
    return df[df["program"].notna()]


def name(row: Any) -> str:
    """The program of a row, and whether the host verifies."""
    return f"{row['program']}, verified" if tables.yes(row["verified"]) else str(row["program"])


def cases(df: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """(configuration, rows) of each case of the study, as the host has it: programs differ in the device's layout."""
    mine = programs(df).assign(layout="channel_first")
    return [(_title(part.iloc[0]), _in_order(part)) for _, part in tables.by_case(mine)]


def _in_order(part: pd.DataFrame) -> pd.DataFrame:
    """naive first, then the proposals one by one, then several together."""
    ranks = {program: tuple(list(PROPOSALS).index(p) for p in proposals(program)) for program in part["program"]}
    keys = part["program"].map(lambda program: (len(ranks[program]), ranks[program]))
    return part.assign(_key=keys).sort_values(["verified", "_key"], kind="stable").drop(columns="_key")


def _title(row: Any) -> str:
    return tables.configuration({**row, "layout": ""})


def shares(df: pd.DataFrame) -> pd.DataFrame:
    """A line per timed program: its time in ms, and % of the sum of its stages by what they are part of.

    `overlap` is how much longer the stages are together than the program, in % of the program: 0 without streams.
    """
    columns = ("configuration", "program", "time_ms", *SHARES, "overlap")
    records: list[dict[str, Any]] = []
    for configuration, part in cases(tables.ok(df)):
        for _, row in part.iterrows():
            records.append({"configuration": configuration, "program": name(row), **_shares_of(row)})
    return tables.frame(records, columns)


def _shares_of(row: Any) -> dict[str, float]:
    total = sum(row["stage_us"].values())
    found = dict.fromkeys(SHARES, 0.0)
    for stage, time_us in row["stage_us"].items():
        found[part_of(stage)] += 100 * time_us / total
    overlap = max(0.0, 100 * (total / row["time_us_p50"] - 1)) if "streams" in proposals(row["program"]) else 0.0
    return {"time_ms": row["time_us_p50"] / 1e3, **found, "overlap": overlap}


def gains(df: pd.DataFrame) -> pd.DataFrame:
    """A line per program: how many times faster than `naive` it is in the same case, and what it follows.

    `clearly` is no where the 20 to 80 percentile ranges of the two overlap. No factor for `cpu`: emulation says nothing
    of speed.
    """
    records: list[dict[str, Any]] = []
    for configuration, part in cases(df):
        for _, same in tables.families(part, ("verified",)):
            start = tables.ok(same[same["program"] == NAIVE])
            first = start.iloc[0] if len(start) else None
            records += [{"configuration": configuration, **_gain(row, first)} for _, row in same.iterrows()]
    columns = ("configuration", "program", "time_ms", "times_faster", "clearly", "status", "what_it_does")
    return tables.frame(records, columns)


def _gain(row: Any, naive: Any) -> dict[str, Any]:
    timed = row["status"] == "ok"
    ranked = timed and naive is not None and row["backend"] != "cpu"
    faster = naive["time_us_p50"] / row["time_us_p50"] if ranked else None
    apart = ranked and (row["time_us_p80"] < naive["time_us_p20"] or row["time_us_p20"] > naive["time_us_p80"])
    return {
        "program": name(row),
        "time_ms": row["time_us_p50"] / 1e3 if timed else None,
        "times_faster": faster,
        "clearly": ("yes" if apart else "no") if ranked else "–",
        "status": row["status"] if timed else f"{row['status']}: {tables.text(row['reason'])}",
        "what_it_does": "; ".join(PROPOSALS[p] for p in proposals(row["program"])) or "S2's program as it stands",
    }


def sentences(df: pd.DataFrame) -> list[str]:
    """What the rows say in words: the shares of the naive program beside S2's, for each case."""
    found = []
    for _, line in shares(df).iterrows():
        if line["program"] == NAIVE:
            mine = ", ".join(f"{part} {line[part]:.0f} %" for part in SHARES if line[part] >= 0.5)
            device = sum(line[part] for part in S2_SHARES)
            alone = ", ".join(f"{part} {100 * line[part] / device:.0f} %" for part in S2_SHARES)
            found.append(
                f"{line['configuration']}: {line['time_ms']:.2f} ms: {mine}. Without the host's own work: {alone}."
            )
    theirs = ", ".join(f"{part} {share:.0f} %" for part, share in S2_SHARES.items())
    found.append(f"S2 reports of its own run, on another machine and without the host's own work: {theirs}.")
    return found + ([f"{tables.CPU_BANNER}."] if tables.emulated(df) else [])

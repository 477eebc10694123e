"""Rows -> tables, as DataFrames and sentences: what notebooks and the report print. No file, no chart.

Rows that are not `ok` are counted and named, never averaged and never ranked. Rows of the CPU backend are never
ranked either: their times are those of an emulation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from .case import DTYPES, Case
from .errors import ConfigError
from .results import STATUSES
from .variants import VARIANTS, defaults, resolve_tunables

if TYPE_CHECKING:
    import pandas as pd

BASELINE = "torch_conv1d"
CPU_BANNER = "CPU emulation: says nothing of speed on a GPU"
# Worst first: what a cell of a matrix shows when several rows fall on it.
SEVERITY = ("crashed", "timeout", "wrong", "launch_failed", "build_failed", "unsupported", "ok")
_PLACE = ("backend", "arch", "device")
_CASE_KEYS = (
    *("op", "batch", "dim", "seqlen", "width", "dtype", "weight_dtype", "layout", "bias", "activation"),
    *("state_len", "states", "seq_idx", "view", "row_stride", "seed", "label"),
)


def known(value: Any) -> bool:
    """Whether a value was measured: not None and not NaN."""
    return value is not None and not (isinstance(value, float) and math.isnan(value))


def text(value: Any) -> str:
    """A value as a string, empty for what was not measured."""
    return str(value) if known(value) else ""


def yes(value: Any) -> bool:
    """True only for a measured true."""
    return known(value) and bool(value)


def order(names: Iterable[Any]) -> list[str]:
    """Variant names in the order of the registry, strangers after them by name."""
    rank = {name: i for i, name in enumerate(VARIANTS)}
    return sorted({text(n) for n in names}, key=lambda n: (rank.get(n, len(rank)), n))


def ok(df: pd.DataFrame) -> pd.DataFrame:
    """The rows whose status is `ok`."""
    return df[df["status"] == "ok"]


def kernels(df: pd.DataFrame) -> pd.DataFrame:
    """The rows of our kernels: neither baselines nor helpers."""
    kind = df["kind"].where(df["kind"].notna(), df["variant"].map(_kind))
    return df[kind == "kernel"]


def ours(df: pd.DataFrame) -> pd.DataFrame:
    """The rows of our kernels, and of whole programs of the pipeline study."""
    return df[df["program"].notna() | df.index.isin(kernels(df).index)]


def _kind(variant: Any) -> str:
    return VARIANTS[variant].kind if variant in VARIANTS else "kernel"


def number(value: Any) -> str:
    """A number with three digits that count, a dash for what was not measured: 0.0123, 1.23, 12.3, 123, 12345."""
    if not known(value):
        return "–"
    size = abs(float(value))
    digits = 0 if size >= 100 else 1 if size >= 10 else 2
    return f"{value:.{digits}f}" if 1 <= size < 1e7 else f"{value:.3g}"


def emulated(df: pd.DataFrame) -> bool:
    """Whether any row was made in CPU emulation."""
    return bool((df["backend"] == "cpu").any())


def flags(row: Any) -> list[str]:
    """What makes a row's time doubtful; kept as a list, or as text with commas."""
    value = row["flags"]
    if isinstance(value, (list, tuple)):
        return [str(v) for v in value]
    return [part.strip() for part in text(value).split(",") if part.strip()]


def configuration(row: Any) -> str:
    """The case of a row in one line: shape, types, layout and what is out of the ordinary."""
    shape = "x".join(text(row[name]) for name in ("batch", "dim", "seqlen", "width"))
    op = "" if text(row["op"]) == "fwd" else text(row["op"])
    parts = [text(row["label"]), op, shape, text(row["dtype"]), text(row["layout"])]
    if text(row["weight_dtype"]) not in ("", text(row["dtype"])):
        parts.append(f"weight {text(row['weight_dtype'])}")
    parts.append("bias" if yes(row["bias"]) else "no bias")
    parts.append("SiLU" if row["activation"] == "silu" else "no activation")
    parts += [name for name in ("states", "seq_idx") if yes(row.get(name))]
    parts += [text(row["view"])] if text(row["view"]) not in ("", "contiguous") else []
    parts += [f"seed {row['seed']}"] if known(row["seed"]) and row["seed"] else []
    return " ".join(p for p in parts if p)


def knobs(row: Any) -> str:
    """The tunables of a row that differ from the registry's defaults, and its toolchain, as `block=128 clang++ -O1`."""
    return " ".join(p for p in (_tunables(row), text(row.get("toolchain"))) if p)


def _tunables(row: Any) -> str:
    given = row["tunables"]
    if not isinstance(given, dict):
        return text(given)
    usual = usual_tunables(row)
    return " ".join(f"{k}={v}" for k, v in given.items() if usual.get(k) != v)


def usual_tunables(row: Any) -> dict[str, int]:
    """The tunables that the registry has for the variant and the case of a row, when none is given."""
    entry = VARIANTS.get(text(row["variant"]))
    if not entry:
        return {}
    try:
        return defaults(entry, _case(row))
    except (ConfigError, TypeError, ValueError):  # of a row that is damaged, or of another version
        return resolve_tunables(entry, {})


def _case(row: Any) -> Case:
    """The case of a row, whose numbers may be numpy's; what is not known has its default."""
    usual = Case().to_dict().items()
    return Case(**{name: type(value)(row[name]) for name, value in usual if known(row.get(name))})


def devices(df: pd.DataFrame) -> list[str]:
    """The devices of the rows, each as `name (backend, arch)`."""
    seen = placed(df)[list(_PLACE)].astype(object).drop_duplicates()
    return [device_name(row) for _, row in seen.iterrows()]


def placed(df: pd.DataFrame) -> pd.DataFrame:
    """The same rows, with arch and device also where a cell did not get as far as a device.

    They are taken from the other rows of the backend, when these agree.
    """
    for name in ("arch", "device"):
        for backend, values in df.groupby("backend")[name]:
            there = {v for v in values.dropna() if v}
            lost = (df["backend"] == backend) & ~df[name].isin(there)
            if len(there) == 1 and lost.any():
                df = df.assign(**{name: df[name].astype(object).mask(lost, there.pop())})
    return df


def device_name(row: Any) -> str:
    """`name (backend, arch)` of a row."""
    inside = ", ".join(p for p in (text(row["backend"]), text(row["arch"])) if p)
    return f"{text(row['device']) or 'unknown device'} ({inside})"


def families(df: pd.DataFrame, keys: Iterable[str]) -> list[tuple[tuple[str, ...], pd.DataFrame]]:
    """Rows grouped by `keys`, in order of appearance; lists, dicts and nulls in the keys are allowed.

    Tunables are alike where the same are given: what the registry has for a width is no choice.
    """
    if df.empty:
        return []
    names = list(keys)
    df = placed(df) if "device" in names else df
    told = df[names].astype(object).map(text)
    if "tunables" in names:
        told["tunables"] = [_tunables(row) for _, row in df.iterrows()]
    group = told.agg("\x1f".join, axis=1)
    return [(tuple(str(key).split("\x1f")), part) for key, part in df.groupby(group, sort=False)]


def by_case(df: pd.DataFrame) -> list[tuple[tuple[str, ...], pd.DataFrame]]:
    """Rows grouped as they were measured, one case on one device, in the order of a reader: small shapes first."""
    return sorted(families(df, (*_PLACE, *_CASE_KEYS)), key=lambda group: _reading_order(group[1].iloc[0]))


def _reading_order(row: Any) -> tuple[Any, ...]:
    dtype = DTYPES.index(row["dtype"]) if row["dtype"] in DTYPES else len(DTYPES)
    sizes = tuple(int(row[name]) if known(row[name]) else 0 for name in ("batch", "dim", "width", "seqlen"))
    return (text(row["backend"]), text(row["layout"]), dtype, text(row["label"]), *sizes, configuration(row))


def frame(records: list[dict[str, Any]], columns: Iterable[str]) -> pd.DataFrame:
    """A table of records with these columns, in this order, also when there are none."""
    import pandas as pd

    return pd.DataFrame(records, columns=list(columns))


def not_finite(df: pd.DataFrame) -> int:
    """How many rows have outputs outside the bound, and an error that is a NaN or infinite: null in a row."""
    return int(((df["n_bad"].astype(float) > 0) & df["bound_ratio"].isna()).sum())


def worst_error(df: pd.DataFrame) -> float | None:
    """The largest error over its bound of all rows, infinite where one is not finite; None where none was compared."""
    return math.inf if not_finite(df) else _worst(df["bound_ratio"])


def _worst(values: pd.Series[Any]) -> float | None:
    numbers = values.dropna()
    return float(numbers.max()) if len(numbers) else None


def _median(values: pd.Series[Any]) -> float | None:
    numbers = values.dropna()
    return float(numbers.astype(float).median()) if len(numbers) else None


def status_counts(df: pd.DataFrame) -> dict[str, int]:
    """Number of rows of each status that occurs, in the order of the ladder."""
    counts = {text(status): int(n) for status, n in df["status"].value_counts().items()}
    return {
        status: int(counts[status]) for status in (*STATUSES, *sorted(set(counts) - set(STATUSES))) if status in counts
    }


def summary(df: pd.DataFrame) -> pd.DataFrame:
    """A row per device, variant, dtype and layout: how many cells ended how, the worst error, typical speed.

    Medians run over the ok cells of the line, whose shapes differ: they describe, they do not rank.
    """
    columns = ["device", "variant", "dtype", "layout", "ok", "wrong", "unsupported", "failed"]
    columns += ["bound_ratio", "time_us", "gbps", "pct_copy"]
    records = [_summary_record(part) for _, part in families(df, (*_PLACE, "variant", "dtype", "layout"))]
    table = frame(records, columns)
    return _sorted(table, "device", "variant", "dtype", "layout")


def _summary_record(part: pd.DataFrame) -> dict[str, Any]:
    first, fine, counts = part.iloc[0], ok(part), status_counts(part)
    named = {status: counts.get(status, 0) for status in ("ok", "wrong", "unsupported")}
    checked = part[part["status"].isin(("ok", "wrong"))]
    return {
        "device": device_name(first),
        **{name: text(first[name]) for name in ("variant", "dtype", "layout")},
        **named,
        "failed": len(part) - sum(named.values()),
        "bound_ratio": worst_error(checked),
        "time_us": _median(fine["time_us_p50"]),
        "gbps": _median(fine["gbps"]),
        "pct_copy": None if emulated(part) else _median(fine["pct_copy"]),
    }


def reasons(df: pd.DataFrame) -> pd.DataFrame:
    """What did not run, grouped by status and reason: how many cells, of which variants, and one log."""
    lost = df[~df["status"].isin(("ok", "wrong"))]
    groups = families(lost, ("status", "reason"))
    records: list[dict[str, Any]] = [
        {
            "status": status,
            "reason": reason or "no reason given",
            "cells": len(part),
            "variants": ", ".join(order(part["variant"])),
            "log": next((text(v) for v in part["log"] if text(v)), ""),
        }
        for (status, reason), part in groups
    ]
    records.sort(key=lambda r: (SEVERITY.index(str(r["status"])) if r["status"] in SEVERITY else -1, -int(r["cells"])))
    return frame(records, ("status", "cells", "variants", "reason", "log"))


def wrong(df: pd.DataFrame) -> pd.DataFrame:
    """Kernels and programs that are wrong: by how much, how many outputs, where first, and which probes failed."""
    records = [
        {
            "variant": text(row["variant"]),
            "configuration": " ".join(p for p in (configuration(row), knobs(row), text(row["program"])) if p),
            "device": device_name(row),
            "bound_ratio": row["bound_ratio"],
            "max_abs_err": row["max_abs_err"],
            "n_bad": row["n_bad"],
            "first_bad": text(row["first_bad"]),
            "probes_failed": ", ".join(name for name in PROBES if known(row[name]) and not yes(row[name])),
            "reason": text(row["reason"]),
        }
        for _, row in ours(df[df["status"] == "wrong"]).iterrows()
    ]
    columns = ("variant", "configuration", "device", "bound_ratio", "max_abs_err", "n_bad", "first_bad")
    return frame(records, (*columns, "probes_failed", "reason"))


PROBES = ("integer_probe", "causality", "gaps_untouched", "repeatable", "timed_result")


def checks(df: pd.DataFrame) -> pd.DataFrame:
    """A row per variant and dtype: how many of the checked cells passed each check, as `passed/checked`.

    `nan_stays` is a property to know of a variant and does not make it wrong.
    """
    checked = df[df["status"].isin(("ok", "wrong"))]
    records = []
    for (variant, dtype), part in families(checked, ("variant", "dtype")):
        records.append(
            {
                "variant": variant,
                "dtype": dtype,
                "checked": len(part),
                "error_bound": _passed(part["n_bad"], lambda n: n == 0),
                **{probe: _passed(part[probe], bool) for probe in (*PROBES, "nan_stays")},
                "verdict": "reference" if ours(part).empty else "wrong" if "wrong" in set(part["status"]) else "ok",
            }
        )
    return _sorted(frame(records, ("variant", "dtype", "checked", "error_bound", *PROBES, "nan_stays", "verdict")))


def _passed(values: pd.Series[Any], passes: Callable[[Any], bool]) -> str:
    seen = [v for v in values if known(v)]
    return f"{sum(1 for v in seen if passes(v))}/{len(seen)}" if seen else "not checked"


def _sorted(table: pd.DataFrame, *keys: str) -> pd.DataFrame:
    """By `keys` (variant and dtype if none): variants as in the registry, dtypes from wide to narrow."""
    ranks = {"variant": order(table["variant"]), "dtype": list(DTYPES)}

    def place(column: pd.Series[Any]) -> pd.Series[Any]:
        known_names = ranks.get(str(column.name), [])
        return column.map(lambda v: (known_names.index(v) if v in known_names else len(known_names), str(v)))

    return table.sort_values(list(keys) or ["variant", "dtype"], key=place, ignore_index=True)


def ulp_statistics(df: pd.DataFrame) -> pd.DataFrame:
    """A row per variant and dtype over the ok cells: signed ULP mean, rms, share correctly rounded, F.conv1d beside.

    Signed ULP separates roundings: to nearest has mean 0 and rms 0.29 in 16-bit types, truncation has mean -0.5.
    """
    ours = ("bound_ratio", "ulp_mean", "ulp_rms", "share_rounded")
    records = []
    for (variant, dtype), part in families(ok(df), ("variant", "dtype")):
        record: dict[str, Any] = {"variant": variant, "dtype": dtype, "cells": len(part)}
        for prefix, side in (("", "ours"), ("torch_", "F.conv1d")):
            record |= {f"{name} {side}": _typical(name, part[prefix + name]) for name in ours}
        records.append(record)
    columns = [f"{name} {side}" for side in ("ours", "F.conv1d") for name in ours]
    return _sorted(frame(records, ("variant", "dtype", "cells", *columns)))


def _typical(name: str, values: pd.Series[Any]) -> float | None:
    return _worst(values) if name == "bound_ratio" else _median(values)


def tolerance_verdicts(df: pd.DataFrame) -> pd.DataFrame:
    """Our verdict against the field's published tolerance, a row per variant and dtype.

    `missed`: cells that we call wrong and that the field's tolerance lets pass.
    """
    checked = df[df["status"].isin(("ok", "wrong")) & df["field_tolerance"].notna()]
    records = []
    for (variant, dtype), part in families(checked, ("variant", "dtype")):
        field, fine = part["field_tolerance"].map(yes), part["status"] == "ok"
        records.append(
            {
                "variant": variant,
                "dtype": dtype,
                "ok here, passes there": int((fine & field).sum()),
                "ok here, fails there": int((fine & ~field).sum()),
                "wrong here, fails there": int((~fine & ~field).sum()),
                "missed": int((~fine & field).sum()),
            }
        )
    columns = ("ok here, passes there", "ok here, fails there", "wrong here, fails there", "missed")
    return _sorted(frame(records, ("variant", "dtype", *columns)))


def speedup_table(df: pd.DataFrame) -> pd.DataFrame:
    """Configuration, our time, PyTorch's time, speed-up, standard deviation in %, correct: a line per kernel row.

    Times are medians in microseconds of rows of the same group. There is no speed-up on `cpu`: an emulation
    against a tuned library says nothing. A row that is not ok has no time.
    """
    columns = ("configuration", "variant", "backend", "time_us", "torch_us", "speedup", "std_pct", "correct")
    records = []
    for _, part in by_case(df):
        baseline = ok(part[part["variant"] == BASELINE])["time_us_p50"].dropna()
        torch_us = float(baseline.iloc[0]) if len(baseline) else None
        ours = kernels(part)
        for variant in order(ours["variant"]):
            rows = ours[ours["variant"] == variant]
            records += [_speedup_record(row, torch_us) for _, row in rows.iterrows() if row["status"] != "unsupported"]
    return frame(records, columns)


def _speedup_record(row: Any, torch_us: float | None) -> dict[str, Any]:
    fine = row["status"] == "ok" and known(row["time_us_p50"])
    ranked = fine and torch_us is not None and row["backend"] != "cpu"
    return {
        "configuration": configuration(row),
        "variant": " ".join(p for p in (text(row["variant"]), knobs(row)) if p),
        "backend": text(row["backend"]),
        "time_us": row["time_us_p50"] if fine else None,
        "torch_us": torch_us,
        "speedup": torch_us / row["time_us_p50"] if ranked and torch_us else None,
        "std_pct": row["time_std_pct"] if fine else None,
        "correct": {"ok": "yes", "wrong": "no"}.get(row["status"], f"not known: {row['status']}"),
    }


def ratios(df: pd.DataFrame) -> pd.DataFrame:
    """Every kernel against the copy and each baseline of its group, a line per ok row on a GPU; never for `cpu`.

    `pct_copy`, % of the copy's speed; then a column per baseline that the rows have: its median time over ours.
    `noise_pct`: what two equal members of the group differed by; a ratio closer to 1 than that says nothing.
    """
    timed = ok(df[(df["backend"] != "cpu") & df["time_us_p50"].notna()])
    names = order(timed["variant"][timed["kind"] == "baseline"])
    records = []
    for _, part in by_case(timed):
        theirs = {name: _median(part[part["variant"] == name]["time_us_p50"]) for name in names}
        for _, row in kernels(part).sort_values("time_us_p50").iterrows():
            records.append(
                {
                    "configuration": configuration(row),
                    "variant": " ".join(p for p in (text(row["variant"]), knobs(row)) if p),
                    **{name: row[name] for name in ("time_us_p50", "pct_copy", "noise_pct")},
                    **{name: us / row["time_us_p50"] if us else None for name, us in theirs.items()},
                    "flags": ", ".join(flags(row)),
                }
            )
    return frame(records, ("configuration", "variant", "time_us_p50", "pct_copy", *names, "noise_pct", "flags"))


def gradient_accuracy(df: pd.DataFrame) -> pd.DataFrame:
    """S3's accuracy table: per configuration, variant and gradient the largest difference from float64 and how many
    elements are outside the error bound, and outside the tolerance that S3 (fp32) or the field (16 bits) publishes.
    """
    columns = ("configuration", "variant", "gradient", "max_abs_err", "outside_bound", "outside_tolerance", "status")
    records = []
    for row in _backward(df):
        for name, errors in (row["output_errors"] or {}).items():
            found = (errors["max_abs_err"], errors["n_bad"], errors["n_outside_tolerance"], row["status"])
            records.append(dict(zip(columns, (configuration(row), row["variant"], name, *found), strict=True)))
    return frame(records, columns)


def gradient_speed(df: pd.DataFrame) -> pd.DataFrame:
    """S3's performance table: mean and least milliseconds, GB/s of the fewest bytes that must move, % of a copy."""
    columns = ("configuration", "variant", "backend", "mean_ms", "min_ms", "gbps", "pct_copy")
    records = []
    for row in _backward(ok(df)):
        if known(row["time_us_mean"]):
            times = (row["time_us_mean"] / 1e3, min(row["samples_us"]) / 1e3, row["gbps"], row["pct_copy"])
            names = (configuration(row), text(row["variant"]), text(row["backend"]))
            records.append(dict(zip(columns, (*names, *times), strict=True)))
    return frame(records, columns)


def _backward(df: pd.DataFrame) -> list[Any]:
    """The rows of op bwd that have been checked, in reading order."""
    checked = df[(df["op"] == "bwd") & df["output_errors"].map(lambda found: isinstance(found, dict))]
    return [row for _, part in by_case(checked) for _, row in part.iterrows()]


def fastest(df: pd.DataFrame) -> pd.DataFrame:
    """Which kernel wins how many cases, a line per GPU, dtype and layout. Never for `cpu`.

    A case counts when at least two kernels are ok and not flagged; it is a tie when the 20-80 percentile ranges
    of the first two overlap, or they are nearer to each other than two equal members of the group were.
    Rows of a toolchain of their own take no part.
    """
    ranked = kernels(ok(df[df["backend"] != "cpu"]))
    ranked = ranked[ranked["time_us_p50"].notna()]
    if len(ranked):
        ranked = ranked[[not flags(row) and not text(row["toolchain"]) for _, row in ranked.iterrows()]]
    records = []
    for _, part in families(ranked, (*_PLACE, "dtype", "layout")):
        winners = [w for _, case in by_case(part) if (w := _winner(case))]
        if winners:
            records.append(_fastest_record(part, winners))
    return frame(records, ("device", "dtype", "layout", "variant", "wins", "ties", "cases", "pct_copy"))


def _winner(case: pd.DataFrame) -> str:
    """The fastest kernel of a case, `tie`, or '' when there is nothing to compare."""
    best = case.sort_values("time_us_p50").drop_duplicates("variant")
    if len(best) < 2:
        return ""
    first, second = best.iloc[0], best.iloc[1]
    apart = known(first["time_us_p80"]) and known(second["time_us_p20"])
    noise = first["noise_pct"] if known(first["noise_pct"]) else 0.0
    ahead = second["time_us_p50"] > first["time_us_p50"] * (1 + noise / 100)
    return text(first["variant"]) if ahead and apart and first["time_us_p80"] < second["time_us_p20"] else "tie"


def _fastest_record(part: pd.DataFrame, winners: list[str]) -> dict[str, Any]:
    named = [w for w in winners if w != "tie"]
    best = max(order(named), key=named.count) if named else ""
    first = part.iloc[0]
    return {
        "device": device_name(first),
        "dtype": text(first["dtype"]),
        "layout": text(first["layout"]),
        "variant": best,
        "wins": named.count(best),
        "ties": winners.count("tie"),
        "cases": len(winners),
        "pct_copy": _median(part[part["variant"] == best]["pct_copy"]) if best else None,
    }


def verdict(df: pd.DataFrame) -> tuple[str, list[str]]:
    """How the run went: `good`, `bad` or `empty`, and the sentences that say it, made from the rows alone."""
    mine = ours(df)
    if mine.empty:
        return "empty", ["No cell of a kernel was evaluated."]
    counts = status_counts(mine)
    level = "good" if set(counts) <= {"ok", "unsupported"} and counts.get("ok") else "bad"
    return level, [_counts_sentence(len(mine), counts, devices(mine)), *_wrong_sentence(mine), *_speed_sentences(mine)]


def _counts_sentence(total: int, counts: dict[str, int], names: list[str]) -> str:
    parts = [f"{n} {status.replace('_', ' ')}" for status, n in counts.items() if status != "ok"]
    rest = f"; {', '.join(parts)}" if parts else ""
    return f"{counts.get('ok', 0)} of {total} cells are ok{rest}. Measured on {', '.join(names)}."


def _wrong_sentence(ours: pd.DataFrame) -> list[str]:
    bad = ours[ours["status"] == "wrong"]
    if bad.empty:
        return []
    names = [f"{variant} ({(bad['variant'] == variant).sum()})" for variant in order(bad["variant"])]
    return [f"Wrong results from {', '.join(names)}: they have no time and take part in no comparison of speed."]


def baseline_sentence(df: pd.DataFrame) -> str:
    """How often F.conv1d itself is outside the error bound that kernels are held to, or '' when it was not compared."""
    compared = [case["torch_bound_ratio"].dropna() for _, case in by_case(df)]
    ratios = [float(values.iloc[0]) for values in compared if len(values)]
    if not ratios:
        return ""
    outside = sum(ratio > 1 for ratio in ratios)
    where = f"outside the bound in {outside} of {len(ratios)} cases, at most {max(ratios):.3g} times it"
    return f"F.conv1d in the same dtype is {where}."


def _speed_sentences(ours: pd.DataFrame) -> list[str]:
    sentences = [_fastest_sentence(row) for _, row in fastest(ours).iterrows()]
    return sentences + ([f"{CPU_BANNER}; variants are not ranked by it."] if emulated(ours) else [])


def _fastest_sentence(row: Any) -> str:
    where = f"{row['dtype']} {row['layout']} on {row['device']}"
    ties = f", {row['ties']} too close to call" if row["ties"] else ""
    if not row["variant"]:
        return f"{where}: no kernel is ahead in any of {row['cases']} cases{ties}."
    copy = f", median {row['pct_copy']:.0f} % of the measured copy" if known(row["pct_copy"]) else ""
    return f"{where}: {row['variant']} is fastest in {row['wins']} of {row['cases']} cases{ties}{copy}."

"""Made-up rows for the tests of charts, notebooks and reports: plausible, of every status, no device needed."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cc1d_lab.case import Case
from cc1d_lab.cell import Cell
from cc1d_lab.results import Row, append, new_row
from cc1d_lab.variants import VARIANTS, defaults, select, why_not

COPY_GBPS = {"cpu": 8.0, "nvidia": 3000.0, "amd": 4000.0}
PLACES = {"cpu": ("wave64", "made-up processor"), "nvidia": ("sm_90", "made-up GPU"), "amd": ("gfx942", "made-up GPU")}
_PROBES = ("integer_probe", "causality", "gaps_untouched", "repeatable", "nan_stays", "field_tolerance")
_SHARE = {
    "fwd_naive": 0.23,
    "fwd_shared_memory": 0.8,
    "fwd_channel_last": 0.7,
    "fwd_im2col_wmma": 0.01,
    "torch_conv1d": 0.11,
}


def make_rows(
    backends: Iterable[str] = ("cpu", "nvidia"),
    seqlens: Iterable[int] = (128, 512, 2048, 8192),
    dtypes: Iterable[str] = ("float32", "float16", "bfloat16"),
    layouts: Iterable[str] = ("channel_first", "channel_last"),
    faults: bool = True,
) -> list[Row]:
    """Rows of all kernels and of F.conv1d. With `faults`, some are wrong, crashed, timed out or failed to build."""
    axes = itertools.product(backends, layouts, dtypes, seqlens)
    rows = [
        make_row(name, backend, Case(batch=2, dim=256, seqlen=seqlen, dtype=dtype, layout=layout))
        for backend, layout, dtype, seqlen in axes
        for name in [*(v.name for v in select("all")), "torch_conv1d"]
    ]
    return _with_faults(rows) if faults else rows


def _with_faults(rows: list[Row]) -> list[Row]:
    hit = [i for i, row in enumerate(rows) if row["status"] == "ok" and row["kind"] == "kernel"]
    for index, status in zip(hit[1::7], itertools.cycle(("wrong", "crashed", "timeout", "build_failed")), strict=False):
        rows[index] = spoil(rows[index], status)
    return rows


def make_row(variant: str, backend: str, case: Case, **changes: Any) -> Row:
    """One row: ok with plausible numbers, or unsupported with the registry's own reason. `changes` overrides."""
    entry = VARIANTS[variant]
    arch, device = PLACES[backend]
    cell = Cell(variant, backend, case, defaults(entry, case), arch)
    values: dict[str, Any] = {
        "schema_version": 1,
        "run_id": "r1",
        "cell_id": cell.cell_id,
        "experiment": "made_up",
        "variant": variant,
        "kind": entry.kind,
        "backend": backend,
        "arch": arch,
        "device": device,
        **case.to_dict(),
        "tunables": dict(cell.tunables),
        "caveat": entry.caveat,
        "bytes": case.bytes(),
        "flops": case.flops(),
    }
    reason = why_not(entry, case, backend)
    outcome = {"status": "unsupported", "reason": reason} if reason else _measured(cell, random.Random(cell.cell_id))
    return new_row(**{**values, **outcome, **changes})


def _measured(cell: Cell, rng: random.Random) -> dict[str, Any]:
    case, gpu = cell.case, cell.backend != "cpu"
    copy_us = 2.0 + case.bytes() / COPY_GBPS[cell.backend] / 1e3
    p50 = copy_us / _SHARE.get(cell.variant, 0.5) * rng.uniform(0.95, 1.05)
    timing = {
        "timing_mode": "graph" if gpu else "wall",
        "time_us_p20": p50 * 0.98,
        "time_us_p50": p50,
        "time_us_p80": p50 * 1.03,
        "time_std_pct": rng.uniform(0.3, 3.0),
        "samples_us": [p50 * rng.uniform(0.97, 1.04) for _ in range(10)],
        "gbps": case.bytes() / p50 / 1e3,
        "stop_reason": "precise",
        "stage_us": _stages(cell, p50),
    }
    ceiling = {
        "copy_time_us": copy_us,
        "copy_gbps": case.bytes() / copy_us / 1e3,
        "copy_kind": "kernel",
        "pct_copy": 100 * copy_us / p50,
    }
    return {"status": "ok", **_errors(case, rng), **timing, **(ceiling if gpu else {})}


def _stages(cell: Cell, total_us: float) -> dict[str, float] | None:
    stages = VARIANTS[cell.variant].stages
    shares = (0.1, 0.02, 0.8, 0.08)
    return {name: total_us * share for name, share in zip(stages, shares, strict=False)} if len(stages) > 1 else None


def _errors(case: Case, rng: random.Random) -> dict[str, Any]:
    half = case.dtype != "float32"
    ours = {
        "max_abs_err": 1e-3 if half else 3e-7,
        "max_rel_err": 4e-3 if half else 2e-6,
        "bound_ratio": rng.uniform(0.9, 0.99) if half else rng.uniform(0.25, 0.5),
        "ulp_mean": rng.uniform(-0.01, 0.01),
        "ulp_rms": rng.uniform(0.285, 0.295) if half else rng.uniform(0.4, 0.7),
        "share_rounded": 0.999 if half else rng.uniform(0.6, 0.8),
        "n_bad": 0,
    }
    theirs = {f"torch_{name}": value for name, value in ours.items()}
    theirs |= {"torch_bound_ratio": 60.0 if half else 0.6, "torch_ulp_rms": 0.8 if half else 0.7, "torch_n_bad": 90}
    passed = dict.fromkeys(_PROBES, True)
    return {**ours, **theirs, **passed}


def spoil(row: Row, status: str) -> Row:
    """The same cell with another ending: its times are gone, and `wrong` has errors."""
    lost = {name: None for name in row if name.startswith(("time_us", "samples", "gbps", "pct_copy", "stage_us"))}
    if status == "wrong":
        found = {"bound_ratio": 341.5, "n_bad": 17, "first_bad": [0, 3, 127], "causality": False, "max_abs_err": 0.7}
        return {**row, **lost, **found, "status": status, "reason": "17 outputs outside the bound"}
    errors = {name: None for name in row if "err" in name or "bound" in name or "ulp" in name or "share" in name}
    probes = dict.fromkeys((*_PROBES, "n_bad"))
    log = f"logs/{row['cell_id']}.log"
    return {**row, **lost, **errors, **probes, "status": status, "reason": f"made-up {status}", "log": log}


def make_run(path: Path, rows: Iterable[Row] | None = None, **info: Any) -> Path:
    """A run directory with rows.jsonl and run.json, as the runner leaves it. Returns `path`."""
    path.mkdir(parents=True, exist_ok=True)
    for row in make_rows() if rows is None else rows:
        append(path / "rows.jsonl", row)
    values = {
        "run_id": "r1",
        "experiment": "made_up",
        "started": "2024-01-01T10:00:00+00:00",
        "finished": "2024-01-01T10:01:00+00:00",
        "backend": ["cpu", "nvidia"],
        "environment": {
            "CXX": {"value": "g++", "origin": "default"},
            "MAX_JOBS": {"value": "2", "origin": "environment"},
        },
        "packages": {"torch": "2.13.0", "numpy": "2.1.0"},
        "git": {"commit": "0123abc", "dirty": True},
        "compilers": {"cpu": {"path": "g++", "version": "g++ 12.2.0", "flags": ["-O3", "-fopenmp"]}},
        "yaml": "name: made_up\nvariants: all\n",
        "policy": {"warmup": 1, "min_samples": 3, "budget_s": 0.3},
        "devices": {"cpu": {"name": "made-up processor", "cores": 2}},
    }
    (path / "run.json").write_text(json.dumps({**values, **info}))
    return path

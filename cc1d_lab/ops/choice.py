"""Which variant runs a call: the one that is named, the fastest in the table of this machine, or the highest rank.

The table is a JSON list beside the build cache; `save_table` makes it from measured rows.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .. import backends, build, files, variants
from ..case import Case
from ..errors import ConfigError, DeviceError, DtypeError, LayoutError, LimitError, StoreError
from ..results import Row, believable
from ..variants import Variant
from .arguments import check_forward, is_silu

# What a table is looked up by; among its entries that agree, the one with the nearest number of outputs counts.
TABLE_KEY = ("backend", "arch", "op", "layout", "dtype", "width")
_ERRORS = {"dtype": DtypeError, "weight": DtypeError, "layout": LayoutError, "width": LimitError, "outputs": LimitError}


@dataclass(frozen=True)
class Explanation:
    """Which variant a call gets, why, and why not the others (name -> reason)."""

    variant: str
    tunables: Mapping[str, int]
    backend: str
    reason: str
    others: Mapping[str, str]

    def __str__(self) -> str:
        lines = [f"{self.variant} on {self.backend}: {self.reason}"]
        return "\n".join(lines + [f"  not {name}: {why}" for name, why in self.others.items()])


# What `auto` no longer takes in this process, with the reason: (variant, backend, what a kernel is compiled for).
_refused: dict[tuple[str, str, Case], str] = {}


def refuse(variant: str, backend: str, case: Case, reason: str) -> None:
    """`auto` passes this variant over from now on, for what is compiled as `case` is."""
    _refused[variant, backend, compiled_as(case)] = reason


def forgive() -> None:
    """Take back what was refused."""
    _refused.clear()


def compiled_as(case: Case) -> Case:
    """A small case that the same library serves, large enough for several blocks, halos and an odd end."""
    steps = 3 if case.op == "update" else 131 if case.layout == "channel_last" else 1131
    dim = 70 if case.layout == "channel_last" else 5
    if case.width > 16:  # fwd_naive and its like: the cost goes with the width, that of a backward with its square
        dim, steps = 3, 40
    return dataclasses.replace(case, batch=2, dim=dim, seqlen=steps, view="contiguous", row_stride=0, label="", seed=0)


def is_named(name: str, op: str) -> bool:
    """Whether `name` names a variant of `op`, so that there is nothing to choose."""
    return _named(name, op) is not None


def choose(case: Case, backend: str, name: str) -> Explanation:
    """The variant for `case`. `name`: `auto`, a variant, or a forward and a backward as `fwd_...+bwd_...`.

    Raises ConfigError for a name that is not known, and LimitError, LayoutError, DtypeError or ConfigError with the
    reason when the named variant cannot do the case.
    """
    named = _named(name, case.op)
    if named:
        reason = variants.cannot(named, case, backend)
        if reason:
            raise _ERRORS.get(reason.split()[0], ConfigError)(f"variant {named.name}: {reason}")
        return Explanation(named.name, {}, backend, "it was asked for", {})
    reasons = {
        v.name: variants.cannot(v, case, backend) or _refused.get((v.name, backend, compiled_as(case)), "")
        for v in variants.select("all", case.op)
    }
    able = [v for v in variants.select("all", case.op) if not reasons[v.name] and v.rank]
    if not able:
        lacks = "; ".join(f"{k}: {v}" for k, v in reasons.items() if v)
        raise LimitError(f"no variant can do {case.title()}: {lacks}")
    measured = _in_table(case, backend, able)
    if measured:
        best, tunables, reason = measured
    else:
        best, tunables = max(able, key=lambda v: v.rank_for(case.width)), {}
        reason = "the first choice for this layout; there is no measurement of it (cc1d tune makes one)"
    others = {name: why or _why_second(variants.get(name), best) for name, why in reasons.items() if name != best.name}
    return Explanation(best.name, tunables, backend, reason, others)


def _why_second(variant: Variant, best: Variant) -> str:
    return f"it can, but {best.name} is preferred" if variant.rank else "it can, but is only for comparison"


def _named(name: str, op: str) -> Variant | None:
    """The variant of `op` among those that `name` names; None: choose."""
    if name == "auto":
        return None
    for part in name.split("+"):
        variant = variants.get(part)
        if variant.kind != "kernel":
            raise ConfigError(f"variant {part}: a {variant.kind} is not an operator; `cc1d list variants` has them")
        if variant.op == op:
            return variant
    return None


def backend_for(device: torch.device, backend: str) -> str:
    """The backend that serves `device`; DeviceError when `backend` names another one."""
    if device.type not in ("cpu", "cuda"):
        raise DeviceError(f"x is on {device}: allowed are cpu and cuda (which is also what torch calls AMD GPUs)")
    serving = "cpu" if device.type == "cpu" else "amd" if torch.version.hip else "nvidia"
    if backend not in ("auto", serving):
        wanted = backends.get(backend)
        raise DeviceError(
            f"backend {wanted.name}: it takes tensors on {wanted.torch_device}, x is on {device}; "
            f"move x, or use backend='{serving}'"
        )
    return serving


def layout_of(x: torch.Tensor) -> str:
    """channel_last where neighbouring channels lie closer together than neighbouring steps."""
    return "channel_last" if x.stride(1) < x.stride(2) else "channel_first"


def case_of(
    op: str, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, silu: bool, states: bool, packed: bool
) -> Case:
    """The case that a call is an instance of."""
    batch, dim, seqlen = (max(1, n) for n in x.shape)
    return Case(
        *(batch, dim, seqlen, weight.shape[1]),
        dtype=str(x.dtype).removeprefix("torch."),
        weight_dtype=str(weight.dtype).removeprefix("torch."),
        layout=layout_of(x),
        bias=bias is not None,
        activation="silu" if silu else "none",
        op=op,
        states=states,
        seq_idx=packed,
    )


def explain(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    seq_idx: torch.Tensor | None = None,
    initial_states: torch.Tensor | None = None,
    return_final_states: bool = False,
    activation: str | None = None,
    *,
    op: str = "fwd",
    variant: str = "auto",
    backend: str = "auto",
) -> Explanation:
    """Which variant causal_conv1d_fn would use for these arguments, why, and why not the others.

    `op`: fwd, or bwd for its gradient. Raises what causal_conv1d_fn raises. Nothing is compiled or launched.
    """
    check_forward(x, weight, bias, seq_idx, initial_states)
    states = initial_states is not None or return_final_states
    case = case_of(op, x, weight, bias, is_silu(activation), states, seq_idx is not None)
    return choose(case, backend_for(x.device, backend), variant)


# --- the table ------------------------------------------------------------------------------------


def table_path() -> Path:
    """CC1D_TABLE, else `auto.json` in the cache."""
    given = os.environ.get("CC1D_TABLE")
    return Path(given) if given else build.cache_dir() / "auto.json"


def _in_table(case: Case, backend: str, able: list[Variant]) -> tuple[Variant, dict[str, int], str] | None:
    table = _table(table_path())
    if not table:
        return None
    key = {"backend": backend, "arch": backends.get(backend).default_arch()} | {
        k: getattr(case, k) for k in TABLE_KEY[2:]
    }
    names = {v.name: v for v in able}
    agreeing = [e for e in table if e["variant"] in names and all(e[k] == v for k, v in key.items())]
    # What the call fixes holds whatever was measured, which may have been a call without seq_idx.
    agreeing = [e | {"tunables": e["tunables"] | variants.fixed(names[e["variant"]], case)} for e in agreeing]
    found = [e for e in agreeing if _is_of_this_version(names[e["variant"]], e["tunables"], case)]
    if not found:
        return None
    nearest = min(found, key=lambda e: (abs(math.log2(e["outputs"] / case.outputs)), e["time_us"]))
    reason = f"measured here: {nearest['time_us']:.3g} us for {nearest['outputs']} outputs"
    return names[nearest["variant"]], nearest["tunables"], reason


def _is_of_this_version(variant: Variant, tunables: Mapping[str, int], case: Case) -> bool:
    """Whether the variant still has these tunables for the case: a table outlives the package that measured it."""
    try:
        variants.resolve_tunables(variant, tunables, case)
    except ConfigError:
        return False
    return True


_Stamp = tuple[int, int, int] | None
table_state: tuple[Path, _Stamp] | None = None  # the table that was last looked at, and which state of it


def _table(path: Path) -> list[dict[str, Any]]:
    """Entries of a table, as the file is now; none where there is no file. StoreError for one that is not a table."""
    global table_state
    try:
        status = path.stat()
        stamp: _Stamp = (status.st_ino, status.st_mtime_ns, status.st_size)
    except OSError:
        stamp = None
    table_state = (path, stamp)
    return _read_table(path, stamp) if stamp else []


@functools.lru_cache(maxsize=4)
def _read_table(path: Path, stamp: _Stamp) -> list[dict[str, Any]]:
    try:
        entries = json.loads(path.read_text())
        return [{k: e[k] for k in (*TABLE_KEY, "outputs", "variant", "tunables", "time_us")} for e in entries]
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise StoreError(f"{path}: not a table of variants ({e}); remove it, or make one with cc1d tune") from e


def save_table(rows: Iterable[Row], path: Path | None = None) -> int:
    """Write the fastest kernel of every measured case; returns the number of entries.

    This process takes it up at once, another that runs with its next call of a new shape.
    """
    from . import launch  # which imports this module

    best: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows:
        if row["kind"] != "kernel" or not believable(row):
            continue
        outputs = row["batch"] * row["dim"] * row["seqlen"]
        entry = {k: row[k] for k in (*TABLE_KEY, "variant", "tunables")} | {
            "outputs": outputs,
            "time_us": row["time_us_p50"],
        }
        key = (*(row[k] for k in TABLE_KEY), outputs)
        if key not in best or entry["time_us"] < best[key]["time_us"]:
            best[key] = entry
    files.write(path or table_path(), json.dumps(list(best.values()), indent=1))
    launch.drop_plans()
    return len(best)

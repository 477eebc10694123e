"""Rows: their columns, and how they are kept. One JSON line per row; a killed run loses no acknowledged row."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .case import CASE_FIELDS
from .errors import StoreError

if TYPE_CHECKING:
    import pandas as pd

Row = dict[str, Any]
SCHEMA_VERSION = 1
STATUSES = ("ok", "wrong", "unsupported", "build_failed", "launch_failed", "crashed", "timeout")

# What each column means, its unit, and the order in which columns stand. A value that was not measured is null.
COLUMNS: dict[str, str] = {
    "schema_version": "version of this table of columns",
    "run_id": "the run that measured the row",
    "cell_id": "digest of experiment cell: variant, backend, case, tunables, toolchain",
    "experiment": "name of the experiment",
    "variant": "the algorithm",
    "kind": "kernel, baseline or helper; pipeline for a whole program",
    "program": "the program of the pipeline study: naive, or the proposals that it follows; null for a kernel alone",
    "verified": "whether that program computes on the host too, and compares",
    "backend": "amd, nvidia or cpu (emulation)",
    "arch": "gfx942, sm_90, ...; wave32 or wave64 on cpu",
    "device": "name of the device; the processor on cpu",
    **dict.fromkeys(CASE_FIELDS, "see Case"),
    "tunables": "compile-time knobs, by name",
    "toolchain": "compiler and flags, where they are not those of the backend",
    "caveat": "what a user who swaps the variant in should know",
    "status": "ok, wrong, unsupported, build_failed, launch_failed, crashed or timeout",
    "reason": "why the status is not ok",
    "log": "path of the log, relative to the run where there is one",
    "max_abs_err": "largest |out - oracle|, over all outputs",
    "max_rel_err": "largest |out - oracle| / |oracle|, where the oracle is not 0",
    "bound_ratio": "largest |out - oracle| / bound; above 1 is wrong",
    "ulp_mean": "mean signed error in units in the last place of the output type",
    "ulp_rms": "root mean square of the same",
    "share_rounded": "share of outputs that equal the correctly rounded oracle",
    "n_bad": "number of outputs outside the bound",
    "first_bad": "index of the first of them: [batch, dim, seqlen] in out",
    "output_errors": "max_abs_err, bound_ratio, n_bad, n_outside_tolerance by name of the output; null for one",
    "integer_probe": "integer inputs give the exact integers, bit for bit",
    "causality": "changing x after t leaves out up to t unchanged, bit for bit",
    "gaps_untouched": "memory around and between the outputs was not written, inputs were not changed",
    "repeatable": "a second run gives the same bits; on cpu in reverse order of threads and blocks",
    "nan_stays": "a NaN reaches the width outputs of its own channel and no other (gradients: what they are made of)",
    "special_values": "by kind (subnormal, large, inf): whether x of that kind gives what the oracle says",
    "field_tolerance": "whether the published tolerance of the field would have passed this output",
    "torch_max_abs_err": "max_abs_err of F.conv1d in the same dtype",
    "torch_max_rel_err": "max_rel_err of F.conv1d",
    "torch_bound_ratio": "bound_ratio of F.conv1d",
    "torch_ulp_mean": "ulp_mean of F.conv1d",
    "torch_ulp_rms": "ulp_rms of F.conv1d",
    "torch_share_rounded": "share_rounded of F.conv1d",
    "torch_n_bad": "n_bad of F.conv1d",
    "timing_mode": "stream (launches in a stream), graph (graph replay) or wall (cpu)",
    "cache_state": "cold (rotating buffers beyond the cache) or warm (one set of buffers, or cpu)",
    "time_us_p20": "20th percentile of the samples, microseconds a launch",
    "time_us_p50": "median of the samples",
    "time_us_p80": "80th percentile of the samples",
    "time_us_mean": "mean of the samples",
    "time_std_pct": "standard deviation of the samples, % of their mean",
    "samples_us": "the raw samples, in the order taken",
    "launches_per_sample": "launches behind one sample",
    "stop_reason": "why sampling stopped: precise, budget or count",
    "timed_result": "after timing: the launches that were timed, on fresh inputs and poisoned outputs, do the work",
    "stage_us": "median time of each device stage alone, by name, null for one; of a program in the run nearest p50",
    "bytes": "fewest bytes the case must move",
    "flops": "useful floating-point operations",
    "executed_flops": "floating-point operations issued, where the algorithm does more than the useful ones",
    "workspace_bytes": "device memory that the stages of a kernel keep between them",
    "im2col_bytes": "of it, the matrix that im2col writes and the product reads; null for a variant without one",
    "gbps": "bytes / time_us_p50, GB/s (1e9)",
    "tflops": "flops / time_us_p50, TFLOP/s",
    "copy_time_us": "median time of the faster copy of the same bytes, in the same group",
    "copy_kind": "which copy that was: runtime or kernel",
    "copy_gbps": "what that copy reached, GB/s",
    "pct_copy": "copy_time_us / time_us_p50, %",
    "noise_pct": "A/A: difference of two medians of the same copy kernel in the same group, %",
    "copy_pct_of_best": "copy_gbps in % of the most that a device of this name reached before at this size, here",
    "empty_time_us": "median time of an empty launch, in the same group",
    "flags": "what makes the time doubtful: noisy, above_ceiling, below_launch (faster than copy, than nothing), "
    "throttled, slow_device, inputs_changed (by some member of the group), not_the_work (of a baseline: timed_result), "
    "host_time (no graph takes its launches: the host's time is in it)",
    "build_s": "seconds the compiler took (0 when cached)",
    "digest": "digest of the build",
    "vgprs": "vector registers (registers on nvidia)",
    "sgprs": "scalar registers",
    "lds_bytes": "static shared memory of a block, bytes",
    "spills": "registers spilled",
    "code_bytes": "size of the machine code",
    "clock_mhz": "lowest clock of the device seen under load while the group was timed",
    "memory_clock_mhz": "the same of its memory",
    "temperature_c": "highest temperature seen",
    "throttle": "what held the clocks down meanwhile, by the driver's names; null where it does not tell",
    "time_unix": "when the row was made, seconds since 1970",
}


def new_row(**values: Any) -> Row:
    """A row with every column, null where `values` has none. KeyError on a column that does not exist."""
    unknown = set(values) - set(COLUMNS)
    if unknown:
        raise KeyError(f"not a column: {', '.join(sorted(unknown))}")
    return {name: plain(values.get(name)) for name in COLUMNS}


def plain(value: Any) -> Any:
    """A value as JSON has it, without NaN and infinity: a number that is not finite was not measured."""
    if isinstance(value, dict):
        return {name: plain(inner) for name, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def believable(row: Row) -> bool:
    """Whether a row has a time that something may be chosen for: not faster than a copy, nor than an empty launch,
    and not of a toolchain of its own, since what is chosen is compiled with the backend's.
    """
    impossible = {"above_ceiling", "below_launch"} & set(row["flags"] or ())
    return row["status"] == "ok" and bool(row["time_us_p50"]) and not (impossible or row.get("toolchain"))


def append(path: Path, row: Row) -> None:
    """Add one row to a JSON-lines file: one write, flushed to disk. Safe beside other writers.

    Raises StoreError, naming the path, when the disk refuses.
    """
    line = (json.dumps(row, allow_nan=False) + "\n").encode()
    try:
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            if os.write(fd, line) != len(line):
                raise OSError("short write")
            os.fsync(fd)
        finally:
            os.close(fd)
    except OSError as e:
        raise StoreError(f"{path}: cannot append a row: {e}") from e


def cut_torn_line(path: Path) -> None:
    """Remove what a killed writer left of its last line, so that the next row begins on a line of its own."""
    text = path.read_bytes()
    whole = text.rfind(b"\n") + 1
    if whole < len(text):
        os.truncate(path, whole)


def read(path: Path) -> list[Row]:
    """All whole rows of a file, with every column. A torn last line, left by a killed writer, is skipped."""
    try:
        text = path.read_text()
    except OSError as e:
        remedy = "; `cc1d run EXPERIMENT` makes such a directory" if isinstance(e, FileNotFoundError) else ""
        raise StoreError(f"{path}: cannot be read: {e.strerror}{remedy}") from e
    except UnicodeDecodeError as e:
        raise StoreError(f"{path}: not text: {e}") from e
    return list(_parse(path, text.splitlines(keepends=True)))


def _parse(path: Path, lines: list[str]) -> Iterator[Row]:
    for number, line in enumerate(lines, 1):
        if number == len(lines) and not line.endswith("\n"):
            return
        try:
            row = json.loads(line)
            version = row["schema_version"]
        except (ValueError, KeyError, TypeError) as e:
            raise StoreError(f"{path}:{number}: not a row: {line[:60]!r}") from e
        if version != SCHEMA_VERSION:
            raise StoreError(f"{path}:{number}: schema version {version}, this package reads {SCHEMA_VERSION}")
        yield dict.fromkeys(COLUMNS) | row


def load_rows(source: str | Path | Iterable[Row]) -> pd.DataFrame:
    """Rows as a DataFrame with every column. `source`: a run directory, a rows.jsonl, or rows."""
    import pandas as pd

    if isinstance(source, (str, Path)):
        path = Path(source)
        source = read(path / "rows.jsonl" if path.is_dir() else path)
    return pd.DataFrame(list(source), columns=list(COLUMNS))

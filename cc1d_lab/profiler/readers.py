"""What a profiler wrote -> Profile.

Formats: rocprofv3's CSV (rocm.docs.amd.com, ROCprofiler-SDK, "Using rocprofv3", output file fields), of which ROCm 6
and 7 have columns in other orders; Nsight Compute's `--csv --page raw` (docs.nvidia.com, Nsight Compute CLI, a line of
units below the heading); the trace of torch.profiler (Chrome's trace event format).
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from ..errors import StoreError

# Below this share of a peak neither memory nor arithmetic is what a kernel waits for: the rule of Nsight Compute's
# speed-of-light section.
LIMIT = 60.0
TIMES = "times"  # name of the pass without counters, and of the folder that it leaves
PERMISSION = (
    "the driver keeps performance counters for root: `sudo`, or set NVreg_RestrictProfilingToAdminUsers=0 for the "
    "nvidia module; in a container `--cap-add=SYS_ADMIN`"
)
NVIDIA_MEMORY = "gpu__compute_memory_throughput.avg.pct_of_peak_sustained_elapsed"
NVIDIA_COMPUTE = "sm__throughput.avg.pct_of_peak_sustained_elapsed"
NVIDIA_METRICS = (
    "gpu__time_duration.sum",
    *("dram__bytes_read.sum", "dram__bytes_write.sum", "dram__throughput.avg.pct_of_peak_sustained_elapsed"),
    *("lts__t_sector_hit_rate.pct", "sm__warps_active.avg.pct_of_peak_sustained_active"),
    *("smsp__issue_active.avg.pct_of_peak_sustained_active", NVIDIA_MEMORY, NVIDIA_COMPUTE),
)
# Derived counters, one group a pass, since not all of them fit in one. FETCH_SIZE and WRITE_SIZE are in KiB, the others
# in percent (rocm.docs.amd.com, "MI300 and MI200 series performance counters and metrics", derived metrics).
AMD_COUNTERS = (("FETCH_SIZE", "WRITE_SIZE"), ("MemUnitBusy", "MemUnitStalled"), ("VALUBusy", "OccupancyPercent"))


@dataclass(frozen=True)
class Span:
    """What happened `calls` times under one name, `total_us` microseconds together."""

    name: str
    calls: int
    total_us: float

    @property
    def mean_us(self) -> float:
        """Microseconds a call."""
        return self.total_us / self.calls


@dataclass(frozen=True)
class Profile:
    """Time by kernel, by copy (device time) and by call of the HIP or CUDA API (host time); counters by kernel, means.

    Spans are sorted, the longest first. `missing` says what the profiler would not give, and why.
    """

    kernels: tuple[Span, ...] = ()
    copies: tuple[Span, ...] = ()
    api: tuple[Span, ...] = ()
    counters: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    missing: tuple[str, ...] = ()

    def times(self) -> list[dict[str, Any]]:
        """A record for each kernel, copy and API call: what, name, calls, total_us."""
        kinds = {"kernel": self.kernels, "copy": self.copies, "api": self.api}
        return [{"what": what} | asdict(span) for what, found in kinds.items() for span in found]


@dataclass(frozen=True)
class Bottleneck:
    """What a kernel waits for: `memory`, `compute`, or `latency` when it is near neither peak (percent of each).

    `memory_is` and `compute_is` name the counters behind the two shares.
    """

    kernel: str
    verdict: str
    memory_pct: float
    compute_pct: float
    memory_is: str
    compute_is: str


def read(folder: Path) -> Profile:
    """What a profiler left in `folder` and below it. StoreError when there is nothing that can be read."""
    trace, table = folder / "trace.json", folder / "ncu.csv"
    try:
        found = read_trace(trace) if trace.exists() else read_rocprof(folder)
    except (ValueError, TypeError, AttributeError, csv.Error) as e:
        raise StoreError(f"{folder}: a damaged file of rocprofv3: {e}") from e
    if table.exists():
        try:
            found = replace(found, counters=read_ncu(table.read_text(errors="replace")))
        except StoreError as e:
            found = replace(found, missing=(str(e),))
    if not (found.kernels or found.counters):
        why = "; ".join(found.missing) or "no output of rocprofv3, ncu or torch.profiler in it"
        raise StoreError(f"{folder}: {why}; run `cc1d profile` first")
    return found


def _of(folder: Path, pattern: str) -> list[Path]:
    return sorted(folder.rglob(pattern))


def short_name(name: str) -> str:
    """A kernel without return type, namespaces, template and call arguments: `vectorized_elementwise_kernel`."""
    depth, bare = 0, ""
    for c in name.removesuffix(".kd").replace("(anonymous namespace)", ""):
        if c == "(" and not depth and bare:
            break
        depth += (c == "<") - (c == ">")
        bare += c if not depth and c != ">" else ""
    return bare.split()[-1].split("::")[-1] if bare.split() else name


# --- rocprofv3 -------------------------------------------------------------------------------------------------------


def read_rocprof(folder: Path) -> Profile:
    """The traces, statistics and counters of one or several passes of rocprofv3 below `folder`.

    Times are those of the pass in `times`, where there is such a folder: counting makes kernels slower. A trace counts
    before the statistics of the same thing, which hold what it sums up to.
    """
    times = folder / TIMES if (folder / TIMES).is_dir() else folder
    return Profile(
        _rocprof_spans(times, "kernel", "Kernel_Name", short_name),
        _rocprof_spans(times, "memory_copy", "Direction", _direction),
        _rocprof_spans(times, "hip_api", "Function", str),
        _rocprof_counters(folder),
    )


def _rocprof_spans(folder: Path, what: str, column: str, rename: Callable[[str], str]) -> tuple[Span, ...]:
    found = [
        (rename(row[column]), *_interval(row)) for path in _of(folder, f"*{what}_trace.csv") for row in _rows(path)
    ]
    if not found:
        stats = [row for path in _of(folder, f"*{what}_stats.csv") for row in _rows(path)]
        found = [(rename(row["Name"]), int(row["Calls"]), float(row["TotalDurationNs"]) / 1e3) for row in stats]
    return spans(found)


def _interval(row: Mapping[str, str]) -> tuple[int, float]:
    return 1, (int(row["End_Timestamp"]) - int(row["Start_Timestamp"])) / 1e3


def _direction(name: str) -> str:
    return name.removeprefix("MEMORY_COPY_").replace("_", " ").lower()


def _rocprof_counters(folder: Path) -> dict[str, dict[str, float]]:
    """Means over the dispatches of each kernel; `duration_us` of the passes that counted is one of them."""
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for path in _of(folder, "*counter_collection.csv"):
        for row in _rows(path):
            kernel = found[short_name(row["Kernel_Name"])]
            kernel[row["Counter_Name"]].append(float(row["Counter_Value"]))
            if row.get("End_Timestamp"):  # ROCm 6.2 has none
                kernel["duration_us"].append(_interval(row)[1])
    return {name: {c: fmean(values) for c, values in counters.items()} for name, counters in found.items()}


def _rows(path: Path) -> Iterator[dict[str, str]]:
    """The rows of a CSV file; StoreError that names the file and the column when one that is needed is missing."""
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        for row in reader:
            yield _Row(row, path)


class _Row(dict[str, str]):
    def __init__(self, row: Mapping[str, str], path: Path) -> None:
        super().__init__(row)
        self._path = path

    def __missing__(self, column: str) -> str:
        raise StoreError(f"{self._path}: no column {column!r} among {', '.join(self)}: not a format of rocprofv3")


def spans(found: Iterable[tuple[str, int, float]]) -> tuple[Span, ...]:
    """(name, calls, microseconds) summed by name, the longest first."""
    sums: dict[str, list[float]] = {}
    for name, calls, time_us in found:
        total = sums.setdefault(name, [0, 0.0])
        total[0] += calls
        total[1] += time_us
    made = [Span(name, int(calls), time_us) for name, (calls, time_us) in sums.items()]
    return tuple(sorted(made, key=lambda s: -s.total_us))


# --- nvidia ----------------------------------------------------------------------------------------------------------

_NUMBER = re.compile(r"[-+]?\.?\d[\d,.]*(?:e[-+]?\d+)?$", re.IGNORECASE)
_TO_US = {"ns": 1e-3, "nsecond": 1e-3, "us": 1.0, "usecond": 1.0, "ms": 1e3, "msecond": 1e3, "s": 1e6, "second": 1e6}
_TO_BYTES = {"byte": 1.0, "Kbyte": 1e3, "Mbyte": 1e6, "Gbyte": 1e9}


def read_ncu(text: str) -> dict[str, dict[str, float]]:
    """Means over the launches of each kernel, by metric; times in us, sizes in bytes, whatever units ncu chose.

    StoreError, with what ncu said, when there is no table.
    """
    lines = text.splitlines()
    start = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), None)
    if start is None:
        said = "; ".join(line.removeprefix("==ERROR== ") for line in lines if line.startswith("==ERROR=="))
        said = PERMISSION if "ERR_NVGPUCTRPERM" in said else said
        raise StoreError(f"ncu gave no table{': ' + said if said else ''}")
    table = list(csv.DictReader(line for line in lines[start:] if not line.startswith("==")))
    units = table[0] if table and not table[0]["ID"] else {}
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in table[1 if units else 0 :]:
        for metric, value in row.items():
            if "__" in metric and _NUMBER.match(value or ""):  # others are n/a, or names
                found[short_name(row["Kernel Name"])][metric].append(_plain(value, units.get(metric, "")))
    return {name: {m: fmean(values) for m, values in metrics.items()} for name, metrics in found.items()}


def _plain(value: str, unit: str) -> float:
    return float(value.replace(",", "")) * (_TO_US.get(unit) or _TO_BYTES.get(unit) or 1.0)


# Categories of a trace's events: kernels, copies, calls of the runtime.
_KERNELS, _COPIES, _CALLS = ("kernel",), ("gpu_memcpy", "gpu_memset"), ("cuda_runtime", "cuda_driver", "hip_runtime")


def trace_times(path: Path) -> list[dict[str, Any]]:
    """cat, name and dur (us) of each kernel, copy and call of the runtime in a trace of torch.profiler."""
    try:
        events = json.loads(path.read_text())["traceEvents"]
        mine = [e for e in events if e.get("ph") == "X" and e.get("cat") in (*_KERNELS, *_COPIES, *_CALLS)]
        return [{"ph": "X"} | {name: e[name] for name in ("cat", "name", "dur")} for e in mine]
    except (ValueError, LookupError, TypeError, AttributeError) as e:
        raise StoreError(f"{path}: not a trace of torch.profiler: {e}") from e


def read_trace(path: Path) -> Profile:
    """A trace of torch.profiler: kernels, copies and calls of the CUDA or HIP runtime."""
    events = trace_times(path)

    def of(categories: Iterable[str], rename: Callable[[str], str]) -> tuple[Span, ...]:
        return spans((rename(e["name"]), 1, float(e["dur"])) for e in events if e["cat"] in categories)

    return Profile(of(_KERNELS, short_name), of(_COPIES, _copy_name), of(_CALLS, str))


def _copy_name(name: str) -> str:
    found = re.search(r"(Memcpy|Memset)(?: (\w+))?", name)
    kinds = {"HtoD": "host to device", "DtoH": "device to host", "DtoD": "device to device"}
    return kinds.get(found[2] or "", found[0].lower()) if found else name


# --- the bottleneck --------------------------------------------------------------------------------------------------


def bottlenecks(profile: Profile, peak_gbps: float | None = None) -> list[Bottleneck]:
    """A verdict for each kernel that has counters, in the order of the kernels' times.

    `peak_gbps`: the stated bandwidth of an AMD product (1e9 bytes a second); without it the memory's share is how long
    its unit was busy, which a kernel can reach without moving much.
    """
    order = {span.name: i for i, span in enumerate(profile.kernels)}
    names = sorted(profile.counters, key=lambda name: order.get(name, len(order)))
    found = [_bottleneck(name, profile.counters[name], peak_gbps) for name in names]
    return [b for b in found if b]


def _bottleneck(kernel: str, counters: Mapping[str, float], peak_gbps: float | None) -> Bottleneck | None:
    memory, memory_is = _memory(counters, peak_gbps)
    compute, compute_is = _first(counters, (NVIDIA_COMPUTE, "VALUBusy"))
    if math.isnan(memory) or math.isnan(compute):
        return None
    high = max(memory, compute)
    verdict = "latency" if high < LIMIT else "memory" if memory >= compute else "compute"
    return Bottleneck(kernel, verdict, memory, compute, memory_is, compute_is)


def _memory(counters: Mapping[str, float], peak_gbps: float | None) -> tuple[float, str]:
    duration = counters.get("duration_us", 0.0)
    if peak_gbps and duration and {"FETCH_SIZE", "WRITE_SIZE"} <= set(counters):
        moved = 1024 * (counters["FETCH_SIZE"] + counters["WRITE_SIZE"])
        return 100 * moved / duration / 1e3 / peak_gbps, "FETCH_SIZE + WRITE_SIZE of the stated bandwidth"
    return _first(counters, (NVIDIA_MEMORY, "MemUnitBusy"))


def _first(counters: Mapping[str, float], names: Iterable[str]) -> tuple[float, str]:
    return next(((counters[name], name) for name in names if name in counters), (math.nan, ""))

"""Call a vendor's profiler around one cell. What each pass prints is kept beside what it writes."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from .. import backends, build, rocm, variants
from ..cell import Cell
from ..errors import ConfigError, ToolchainError
from ..occupancy import PRODUCTS
from ..paths import kernels_dir
from .readers import AMD_COUNTERS, NVIDIA_METRICS, PERMISSION, TIMES, Profile, read

PASS_LIMIT_S = 300
MARK = "profile.json"  # what a folder with a profile has; `cc1d profile` writes its findings there
PICTURES = ("kernels.png", "api.png", "bottleneck.png")  # what it draws there


def to_json(cell: Cell) -> str:
    """A cell as one argument of the target."""
    return json.dumps(asdict(cell))


@dataclass(frozen=True)
class Pass:
    """One run of the target. Without one that is `needed` there is no profile; the others add counters."""

    name: str
    command: list[str]
    needed: bool = False


def profile(cell: Cell, folder: Path) -> Profile:
    """Profile `cell`, leaving the profiler's files in `folder`, from which an earlier profile is removed first.

    ConfigError on the cpu backend, for a baseline and for a folder with other things in it. ToolchainError without the
    profiler, or when a needed pass fails.
    """
    tool = find(cell)
    build.build_cell(cell)  # its error says more than a profiler's
    _make_empty(folder)
    missing = tuple(reason for step in passes(cell, tool, folder) if (reason := _run(step, folder)))
    found = read(folder)
    return replace(found, missing=missing or found.missing)


def _make_empty(folder: Path) -> None:
    """An empty folder that is marked as ours. What is removed is what an earlier profile left, nothing else."""
    names = {path.name for path in folder.iterdir()} if folder.exists() else set()
    others = names - _left_behind() if MARK in names else names
    if others:
        raise ConfigError(
            f"out: {folder} holds other things than a profile ({min(others)}); name a folder that is new or empty"
        )
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / MARK).write_text("{}\n")


def _left_behind() -> set[str]:
    """Names of all that a profile leaves in its folder."""
    names = [TIMES, "counters", *map("_".join, AMD_COUNTERS)]
    return {MARK, "trace.json", "ncu.csv", *PICTURES, *names, *(f"{name}.log" for name in names)}


def check_backend(backend: str) -> None:
    """Raise ConfigError for a backend whose times mean nothing."""
    if backend == "cpu":
        raise ConfigError(
            "backend cpu: nothing to profile: the emulation runs on this processor, and where its time goes says "
            "nothing of a GPU; use --backend amd or nvidia on a machine with that GPU"
        )


def find(cell: Cell) -> str:
    """Path of the profiler for a cell. ConfigError where there is nothing to profile; ToolchainError without one."""
    check_backend(cell.backend)
    if variants.get(cell.variant).source is None:
        raise ConfigError(f"variant {cell.variant}: profile is for our kernels; see `cc1d list variants`")
    return tool_of(cell.backend)


def tool_of(backend: str) -> str:
    """Path of the profiler of a backend: rocprofv3 for amd, ncu for nvidia. ToolchainError with the remedy."""
    name, roots, remedy = _TOOLS[backend]
    candidates = [str(Path(os.environ[r], "bin", name)) for r in roots[:-1] if os.environ.get(r)]
    candidates += [name, str(Path(roots[-1], "bin", name))]
    found = next((path for c in candidates if (path := shutil.which(c))), None)
    if found is None:
        raise ToolchainError(f"no {name}: tried {', '.join(candidates)}; {remedy}")
    return found


# Name of the tool, variables that name the folder it lies below and where it is without them, remedy.
_TOOLS = {
    "amd": (
        "rocprofv3",
        ("ROCM_PATH", "HIP_PATH", str(rocm.OPT / "rocm")),
        "install ROCm 6.2 or newer with its package `rocprofiler-sdk`, or set ROCM_PATH",
    ),
    "nvidia": (
        "ncu",
        ("CUDA_HOME", "/usr/local/cuda"),
        "install Nsight Compute (it comes with the CUDA toolkit, package `nsight-compute`) or set CUDA_HOME",
    ),
}


def passes(cell: Cell, tool: str, folder: Path) -> Iterator[Pass]:
    """The runs of the target that make a profile: times first, then counters."""
    target = [sys.executable, "-m", "cc1d_lab.profiler.target", to_json(cell)]
    if cell.backend == "amd":
        tracing = ["--kernel-trace", "--memory-copy-trace", "--hip-trace", "--stats"]
        yield Pass(TIMES, [*_rocprof(tool, folder, TIMES), *tracing, "--", *target], needed=True)
        for group in AMD_COUNTERS:
            name = "_".join(group)
            yield Pass(name, [*_rocprof(tool, folder, name), *_of_kernels(cell), "--pmc", *group, "--", *target])
        return
    yield Pass(TIMES, [*target, str(folder / "trace.json")], needed=True)
    yield Pass("counters", [tool, *_ncu(cell, folder), *target])


def _rocprof(tool: str, folder: Path, name: str) -> list[str]:
    return [tool, "--output-format", "csv", "-d", str(folder / name), "-o", "cell"]


def _of_kernels(cell: Cell) -> list[str]:
    return ["--kernel-include-regex", kernel_pattern(cell)]


def _ncu(cell: Cell, folder: Path) -> list[str]:
    return [
        *("--csv", "--page", "raw", "--print-units", "base", "--target-processes", "all"),
        *("--kernel-name-base", "function", "--kernel-name", f"regex:{kernel_pattern(cell)}"),
        *("--metrics", ",".join(NVIDIA_METRICS), "--log-file", str(folder / "ncu.csv")),
    ]


def kernel_pattern(cell: Cell) -> str:
    """A regular expression for the kernels of a cell: those in the source of its variant."""
    text = (kernels_dir() / f"{cell.variant}.hip").read_text()
    names = re.findall(r"__global__[^;{}]*?\bvoid\s+(\w+)\s*\(", text)
    return "^(" + "|".join(names) + r")\b"


def _run(step: Pass, folder: Path) -> str:
    """Why a pass gave nothing, or ''; what it has half written is removed. ToolchainError when it is needed."""
    log = folder / f"{step.name}.log"
    try:
        reason = _failure(folder, log) if _call(step.command, log) else ""
    except (OSError, subprocess.TimeoutExpired) as e:
        reason = str(e)
    if reason and step.needed:
        raise ToolchainError(f"{step.command[0]}: {reason}; log: {log}")
    if reason:
        shutil.rmtree(folder / step.name, ignore_errors=True)
    return f"{step.name}: {reason}" if reason else ""


def _call(command: list[str], log: Path) -> int:
    """The exit code of a command. One that takes too long, or is interrupted, ends with all that it started."""
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        return process.wait(PASS_LIMIT_S)
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise


def _failure(folder: Path, log: Path) -> str:
    """The line of a failed pass that says why. ncu writes it into its table."""
    texts = [path.read_text(errors="replace") for path in (log, *folder.glob("*ncu.csv"))]
    if any("ERR_NVGPUCTRPERM" in text for text in texts):
        return PERMISSION
    lines = [line.strip() for text in texts for line in text.splitlines() if line.strip()]
    telling = [line for line in lines if re.search(r"error|fatal|cannot|failed", line, re.IGNORECASE)]
    return (telling or lines or ["it ended without a word"])[-1][:300]


def peak_gbps(backend: str) -> float | None:
    """Stated bandwidth of this machine's AMD product, in 1e9 bytes a second, where its name is in the table."""
    if backend != "amd" or backends.why_not_run(backends.get(backend)):
        return None
    device = backends.get(backend).device_name()
    names = sorted(PRODUCTS, key=len, reverse=True)
    found = next((n for n in names if n.removesuffix(" die") in device), None)
    return PRODUCTS[found].bandwidth_gbps if found else None

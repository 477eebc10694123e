"""Where a run comes from: environment, packages, compilers, devices, the state of the checkout."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from typing import Any

from . import backends, build
from .errors import Cc1dError
from .paths import checkout

# Every variable that is honoured, and what holds when it is not set.
HONOURED = {
    "CXX": "g++, else clang++: compiler of the cpu backend",
    "MAX_JOBS": "compilers at once: one per core",
    "HIP_PATH": "where hipcc is: searched in PATH and /opt/rocm",
    "ROCM_PATH": "the same, looked at first",
    "GPU_ARCH": "arch to build for: that of the device, else gfx942",
    "PYTORCH_ROCM_ARCH": "the same, where GPU_ARCH is not set",
    "CUDA_HOME": "where nvcc is: searched in PATH and /usr/local/cuda",
    "TORCH_CUDA_ARCH_LIST": "arch to build for, its first entry: that of the device, else sm_90",
    "ROCR_VISIBLE_DEVICES": "devices that may be used: all",
    "HIP_VISIBLE_DEVICES": "devices that may be used: all",
    "CUDA_VISIBLE_DEVICES": "devices that may be used: all",
    "XDG_CACHE_HOME": "parent of the build cache: ~/.cache",
    "CC1D_CACHE": "the build cache itself: cc1d_lab below XDG_CACHE_HOME",
    "CC1D_KERNELS": "folder of the .hip files: the one that comes with the package",
    "CC1D_TIME_LIMIT": "seconds that a step (check, time) of a cell may take: 120",
    "CC1D_TABLE": "what `cc1d tune` found and `auto` takes: auto.json in the cache",
    "CC1D_UNCHECKED": "set, operators load a kernel untried: it is first tried in a process of its own",
    "NO_COLOR": "no colours: colours on a terminal",
    "CI": "runs in continuous integration: no",
}
PACKAGES = ("torch", "numpy", "pandas", "matplotlib", "seaborn", "papermill", "nbconvert", "jupyterlab", "pydantic")
COMPARED = ("triton", "causal_conv1d", "flash-linear-attention", "fla-core", "amd-aiter")


def fingerprint(names: list[str]) -> dict[str, Any]:
    """environment, packages, compilers, devices and git, as they stand in run.json."""
    return {
        "environment": environment(),
        "packages": {name: _package(name) for name in ("cc1d_lab", *PACKAGES, *COMPARED)},
        "platform": {"python": platform.python_version(), "system": platform.platform()},
        "compilers": {name: _told(build.describe, name) for name in names},
        "devices": {name: _told(lambda n: backends.get(n).device_name(), name) for name in names},
        "git": git_state(),
    }


def environment() -> dict[str, dict[str, str]]:
    """The variables that steer this package: value, and where it came from."""
    return {
        name: {"value": os.environ.get(name, ""), "origin": "environment" if name in os.environ else "default"}
        for name in HONOURED
    }


def git_state() -> dict[str, Any]:
    """Commit of the checkout, and whether it has changes that are not committed; null outside one."""
    root = checkout()
    if root is None:
        return {"commit": None, "dirty": None}
    return {"commit": _git(root, "rev-parse", "HEAD"), "dirty": bool(_git(root, "status", "--porcelain"))}


def _git(root: Any, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _package(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _told(ask: Any, name: str) -> Any:
    """What `ask` answers, or why it cannot: provenance never stops a run."""
    try:
        return ask(name)
    except (Cc1dError, RuntimeError, AssertionError) as e:
        return f"not available: {str(e).splitlines()[0]}"

"""A kernel is loaded into the caller's process only when its library has passed its checks in another one.

The mark of that lies in the entry of the build cache, so it is done once for each build: a wrong kernel is an error
instead of garbage, and one that crashes or hangs ends a worker instead of the caller.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import tempfile
from pathlib import Path
from typing import Any

from .. import build, kernel
from ..cell import Cell
from ..errors import CheckError, WorkerError
from ..worker import Worker
from .choice import compiled_as

_kernels: dict[tuple[Any, ...], kernel.Kernel] = {}
_failed: dict[tuple[Any, ...], str] = {}


def load(cell: Cell) -> kernel.Kernel:
    """The kernel of a cell; compiled, tried and loaded when it is not yet.

    Raises CheckError when it fails its checks, WorkerError when it cannot be tried, and ToolchainError or CompileError
    when it cannot be built. With CC1D_UNCHECKED set it is not tried: for a GPU that only one process may use.
    """
    key = build.build_key(cell)
    if key not in _kernels:
        built = build.build_cell(cell)
        if not (build.has_passed(built) or os.environ.get("CC1D_UNCHECKED")):
            _failed[key] = _failed.get(key) or _try_out(cell)
            if _failed[key]:
                raise CheckError(_failed[key])
        _kernels[key] = kernel.load(built.library)
    return _kernels[key]


def _try_out(cell: Cell) -> str:
    """What is wrong with the kernel of a cell, or ''."""
    name = f"variant {cell.variant} on {cell.backend} {cell.arch}"
    if multiprocessing.current_process().daemon:
        raise WorkerError(
            f"{name}: not tried yet, and a daemonic process cannot start another to try it in: make one such call in "
            "the main process first, or set CC1D_UNCHECKED=1"
        )
    small = dataclasses.replace(cell, case=compiled_as(cell.case))
    with tempfile.TemporaryDirectory(prefix="cc1d-") as logs, Worker(Path(logs)) as worker:
        row = worker.try_out(small)
    if row["status"] == "unsupported":
        raise WorkerError(
            f"{name}: not tried yet, and no process of its own can do that now ({row['reason']}): make one such call "
            "before the device is full, or set CC1D_UNCHECKED=1"
        )
    if row["status"] == "ok":
        return ""
    return (
        f"{name}: {row['status']} when it was tried in a process of its own ({row['reason']}), so it was not run here; "
        f"`cc1d check --variant {cell.variant} --backend {cell.backend}` says more"
    )


def forget() -> None:
    """Drop the loaded kernels and what failed."""
    _kernels.clear()
    _failed.clear()

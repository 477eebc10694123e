"""From cells of the pipeline study to rows: the kernels are checked as everywhere, then the program's own result.

A program is timed by the wall clock, from a tensor on the host to one on the host; the programs of a case run in
interleaved rounds.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from .. import backends, build, evaluation, kernel, oracle, reference, timing
from ..case import Case
from ..cell import Cell
from ..errors import Cc1dError, LaunchError
from ..evaluation import Phase
from ..measurement import Ready
from ..programs import UNIFIED_BYTES, proposals, why_not
from ..reference import Inputs, Oracle
from ..results import Row, plain
from ..timing import Policy
from . import memory
from .program import Program, Stages

REST = "launching and waiting"  # the part of a program's time that is in none of its stages


@dataclass(frozen=True)
class _Ready:
    """A program that gave the right result: its row so far, and the result, which the last run must repeat."""

    row: Row
    program: Program
    first: torch.Tensor


def evaluate_each(cells: list[Cell], policy: Policy | None, phase: Phase = lambda cell_id, what: None) -> Iterator[Row]:
    """Rows of the programs of one case, each as it is known; `phase` is told what begins."""
    kernels: dict[str, Row | Ready] = {}
    ready: dict[str, _Ready] = {}
    case, inputs, truths = _problem(cells[0].case, backends.get(cells[0].backend).torch_device)
    try:
        for cell in cells:
            found = _check(cell, kernels, case, inputs, truths, phase)
            if isinstance(found, _Ready):
                ready[cell.cell_id] = found
            else:
                yield found
        if ready:
            phase("", "time")
            yield from _time_all(ready, policy or timing.POLICIES["cpu" if cells[0].backend == "cpu" else "gpu"])
    finally:
        for one in ready.values():
            one.program.close()


def _problem(case: Case, device: str) -> tuple[Case, Inputs, Mapping[str, Oracle]]:
    """The case as the host has it, channel first, its inputs, and what is right: computed on `device`, in float64."""
    plain = dataclasses.replace(case, layout="channel_first")
    return plain, reference.make_inputs(plain), oracle.truths(plain, reference.make_inputs(plain, device))


def _check(
    cell: Cell,
    kernels: dict[str, Row | Ready],
    case: Case,
    inputs: Inputs,
    truths: Mapping[str, Oracle],
    phase: Phase,
) -> Row | _Ready:
    reason = why_not(cell.program, cell.case, cell.backend) or _too_large(cell)
    if reason:
        return evaluation.base_row(cell, status="unsupported", reason=reason)
    alone = dataclasses.replace(cell, program="", verify=False)
    if alone.cell_id not in kernels:
        kernels[alone.cell_id] = evaluation.check(alone, lambda _, what: phase(cell.cell_id, what))
    found = kernels[alone.cell_id]
    if not isinstance(found, Ready):
        return _program_row(found, cell)
    phase(cell.cell_id, "check")
    try:
        return _first_run(cell, found.row, case, inputs, truths)
    except (Cc1dError, torch.cuda.OutOfMemoryError) as e:
        return evaluation.failed_row(cell, e if isinstance(e, Cc1dError) else LaunchError(str(e).splitlines()[0]))


def _too_large(cell: Cell) -> str:
    """Why unified memory is not for this case, or ''."""
    if "unified" not in proposals(cell.program):
        return ""
    needed = 2 * cell.case.outputs * cell.case.itemsize
    limit = min(UNIFIED_BYTES, memory.free_bytes() // 2)
    return "" if needed <= limit else f"unified memory: {needed} bytes, limit {limit}: a study of small sizes"


def _first_run(cell: Cell, row: Row, case: Case, inputs: Inputs, truths: Mapping[str, Oracle]) -> Row | _Ready:
    """Run once on poisoned memory and compare."""
    on_gpu = backends.get(cell.backend).torch_device != "cpu"
    loaded = kernel.load(build.build_cell(cell).library)
    with contextlib.ExitStack() as unless_ready:
        program = Program(cell.program, cell.case, loaded, inputs, on_gpu, cell.verify)
        unless_ready.enter_context(program)
        program.run(poison=True)
        errors = reference.all_errors(case, {"out": program.out.to(truths["out"].y.device)}, truths)
        row = _program_row(row | plain(errors), cell)
        verdict = f"{errors['n_bad']} outputs outside the bound" if errors["n_bad"] else _own_verdict(cell, program)
        if verdict:
            return row | {"status": "wrong", "reason": f"the program's result: {verdict}"}
        unless_ready.pop_all()
    return _Ready(row, program, program.out.clone())


def _own_verdict(cell: Cell, program: Program) -> str:
    return "its own verification on the host failed" if cell.verify and not program.verified else ""


def _program_row(row: Row, cell: Cell) -> Row:
    """A kernel's row as the row of the program that runs it."""
    return row | {"cell_id": cell.cell_id, "kind": "pipeline", "program": cell.program, "verified": cell.verify}


# --- how long it takes ----------------------------------------------------------------------------


def _time_all(ready: Mapping[str, _Ready], policy: Policy) -> Iterator[Row]:
    stages: dict[str, list[Stages]] = {cell_id: [] for cell_id in ready}
    members = {cell_id: [_launch(one.program, stages[cell_id])] for cell_id, one in ready.items()}
    times = timing.measure(members, policy, "cpu")  # by the wall clock, on a GPU too
    for cell_id, one in ready.items():
        if torch.equal(one.program.out.view(torch.int16), one.first.view(torch.int16)):
            yield one.row | _time_columns(times[cell_id], stages[cell_id])
        else:
            yield one.row | {"status": "wrong", "reason": "the program's result changed from run to run"}


def _launch(program: Program, stages: list[Stages]) -> Callable[[int], None]:
    return lambda stream: stages.append(program.run())


def _time_columns(time: timing.Timing, stages: list[Stages]) -> dict[str, Any]:
    return {
        "time_us_p20": time.p20,
        "time_us_p50": time.p50,
        "time_us_p80": time.p80,
        "time_us_mean": time.mean,
        "time_std_pct": time.std_pct,
        "samples_us": list(time.samples_us),
        "launches_per_sample": 1,
        "stop_reason": time.stop_reason,
        "timing_mode": "wall",
        "cache_state": "warm",
        "stage_us": _typical(time, stages),
        "flags": ["noisy"] if time.std_pct > 5 else [],
    }


def _typical(time: timing.Timing, stages: list[Stages]) -> Stages:
    """The stages of the run whose time is nearest to the median: medians of the stages would not add up to any run."""
    counted = zip(time.samples_us, stages[-len(time.samples_us) :], strict=True)  # those before were warming up
    total, found = min(counted, key=lambda run: abs(run[0] - time.p50))
    return found | {REST: max(0.0, total - sum(found.values()))}

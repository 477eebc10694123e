"""evaluate: the one path from a group of cells to rows. Build, check, and only then time.

Each cell is checked alone; those that are right are timed together, in interleaved rounds, with the copy and the empty
launch.
"""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from . import backends, baselines, build, kernel, oracle, recheck, reference, special, timing, variants
from .case import Case
from .cell import Cell
from .errors import Cc1dError, CompileError, ConfigError, LaunchError, ToolchainError
from .measurement import Ready, ceiling_case, time_group
from .recheck import Call, Launcher, bits, copy_inputs
from .reference import Inputs, Outputs
from .results import SCHEMA_VERSION, Row, new_row
from .timing import Launch, Policy

Phase = Callable[[str, str], None]  # told the cell_id and what begins: build, check or time


def evaluate(cells: list[Cell], policy: Policy | None = None) -> list[Row]:
    """Rows of a group, in the order of `cells`, which must share backend, arch and case. In this process.

    A cell that cannot be built or run, or is wrong, gives a row that says so; nothing is raised for it.
    Raises ConfigError when the cells are not one group.
    """
    rows = {row["cell_id"]: row for row in evaluate_each(cells, policy)}
    return [rows[c.cell_id] for c in cells]


def evaluate_each(cells: list[Cell], policy: Policy | None, phase: Phase = lambda cell_id, what: None) -> Iterator[Row]:
    """`evaluate`, row by row as each is known; `phase` is told what begins (an empty cell_id: the timing of all)."""
    if len({c.group_key for c in cells}) > 1:
        raise ConfigError("evaluate takes the cells of one case on one backend; use runner.run_cells for several")
    if cells and cells[0].program:
        raise ConfigError(f"program: {cells[0].program!r} is for pipeline.evaluation; here kernels are evaluated alone")
    ready: dict[str, Ready] = {}
    for cell in cells:
        found = check(cell, phase)
        if isinstance(found, Ready):
            ready[cell.cell_id] = found
        else:
            yield found
    _problem.cache_clear()
    if ready:
        phase("", "time")
        yield from time_group(cells[0], ready, policy).values()


def needed_builds(cell: Cell) -> list[Cell]:
    """What must be compiled to evaluate a cell: itself, its twin for the exact probe, the copy to compare with."""
    twin = dataclasses.replace(cell, case=without_activation(cell.case))
    own = [cell, twin] if variants.get(cell.variant).source else []
    copies = [Cell(n, cell.backend, ceiling_case(cell.case), {}, cell.arch) for n in ("copy", "empty")]
    return own if cell.backend == "cpu" else own + copies


def base_row(cell: Cell, **values: Any) -> Row:
    """What is known of a cell before anything is done."""
    variant = variants.get(cell.variant)
    case = cell.case
    return new_row(
        schema_version=SCHEMA_VERSION,
        cell_id=cell.cell_id,
        variant=cell.variant,
        kind="pipeline" if cell.program else variant.kind,
        program=cell.program or None,
        verified=cell.verify if cell.program else None,
        backend=cell.backend,
        tunables=variants.defaults(variant, case) | dict(cell.tunables),
        toolchain=cell.toolchain or None,
        caveat=variant.caveat,
        bytes=case.bytes(),
        flops=case.flops(),
        executed_flops=variant.executed_flops(case) if variant.executed_flops else None,
        im2col_bytes=variant.im2col_bytes(case) if variant.im2col_bytes else None,
        time_unix=time.time(),
        **case.to_dict(),
        **{"arch": cell.arch, **values},
    )


def failed_row(cell: Cell, error: Exception) -> Row:
    """The row of a cell that could not be built or launched."""
    status = "launch_failed" if isinstance(error, LaunchError) else "build_failed"
    if isinstance(error, ToolchainError):
        status = "unsupported"
    reason = error.reason if isinstance(error, CompileError) else str(error)
    return base_row(cell, status=status, reason=reason, log=getattr(error, "log", None))


def check(cell: Cell, phase: Phase = lambda cell_id, what: None) -> Row | Ready:
    """Build and check one cell. A Row when it is not `ok`, else what is needed to time it."""
    variant = variants.get(cell.variant)
    backend = backends.get(cell.backend)
    reason = variants.why_not(variant, cell.case, cell.backend, cell.tunables) or backends.why_not_run(backend)
    if variant.source is None:
        reason = reason or baselines.why_not(cell.variant, cell.case, cell.backend)
    if cell.case.dtype == "float64":
        reason = reason or "dtype float64: there is nothing to hold it against; gradcheck takes it"
    if reason:
        return base_row(cell, status="unsupported", reason=reason)
    phase(cell.cell_id, "build")
    where = {"arch": cell.arch or backend.default_arch(), "device": backend.device_name()}
    try:
        if variant.source:
            # Before the library is loaded: one linked with fast math may change the arithmetic of its process.
            _problem(cell.case, backend.torch_device)
            special.problems(cell.case, backend.torch_device)
        candidate = _baseline(cell) if variant.source is None else _compiled(cell)
        phase(cell.cell_id, "check")
        findings = _examine(cell.case, backend.torch_device, candidate) if candidate.convolves else {}
        if variant.source:
            findings["special_values"] = _special_values(cell.case, backend.torch_device, candidate)
    except (Cc1dError, torch.cuda.OutOfMemoryError) as e:
        return failed_row(cell, e if isinstance(e, Cc1dError) else LaunchError(str(e).splitlines()[0])) | where
    except Exception as e:
        if variant.source:
            raise
        return failed_row(cell, baselines.refusal(cell.variant, e)) | where
    row = base_row(cell, **where, **candidate.columns, **findings)
    verdict = _verdict(findings) if variant.kind == "kernel" else ""
    if verdict:
        return row | {"status": "wrong", "reason": verdict}
    if variant.kind == "kernel":
        build.mark_passed(build.build_cell(cell), cell.title())
    return Ready(row | {"status": "ok"}, candidate.timed, candidate.convolves)


def quick_check(cell: Cell) -> Row:
    """A row without times that says whether the library of a cell may be trusted; marks it if so.

    Every output against its bound (float64: that of fp32 sums), the same bits in a second run, nothing else written, no
    later x in an earlier out. No twin and no F.conv1d. `unsupported` when the device has no room for that. Runs in this
    process: a worker calls it.
    """
    try:
        given = reference.make_inputs(cell.case, backends.get(cell.backend).torch_device)
    except RuntimeError as e:  # no context on the device, or no memory
        return base_row(cell, status="unsupported", reason=str(e).splitlines()[0])
    try:
        built = build.build_cell(cell)
        reason = _quick_verdict(cell, kernel.load(built.library), given)
    except Cc1dError as e:
        return failed_row(cell, e)
    if not reason:
        build.mark_passed(built, cell.title())
    return base_row(cell, status="wrong" if reason else "ok", reason=reason or None)


def _quick_verdict(cell: Cell, loaded: kernel.Kernel, given: Inputs) -> str:
    case, launcher = cell.case, _launcher(loaded)
    schedule = _set_schedule(loaded) if cell.backend == "cpu" else lambda order: None
    candidate = _Candidate(launcher, launcher, launcher, {}, schedule)
    inputs = copy_inputs(case, given)
    out, clean = _run(case, launcher, inputs)
    for name, truth in oracle.truths(case, given).items():
        bad = ~((out[name].double() - truth.y).abs() <= truth.bound)
        if bool(bad.any()):
            first = [int(i) for i in bad.nonzero()[0]]
            return f"{int(bad.sum())} of {bad.numel()} elements of {name} are outside the bound, the first at {first}"
    findings = {
        "n_bad": 0,
        "integer_probe": True,
        "gaps_untouched": clean and _same_bits(given.x_buffer, inputs.x_buffer),
        "repeatable": _is_repeatable(case, candidate, inputs, out),
        "causality": _is_causal(case, candidate, inputs, out),
    }
    return _verdict(findings)


# --- how a cell is launched -----------------------------------------------------------------------


@dataclass(frozen=True)
class _Candidate:
    """What is checked and timed. `integer_launcher` is the same algorithm without activation, for the exact probe;
    `timed` differs from `launcher` where the check needs a step that users do not run.
    """

    launcher: Launcher
    integer_launcher: Launcher | None
    timed: Launcher
    columns: Mapping[str, Any]
    schedule: Callable[[int], None] = lambda order: None
    convolves: bool = True


def _compiled(cell: Cell) -> _Candidate:
    built = build.build_cell(cell)
    plain = build.build_cell(dataclasses.replace(cell, case=without_activation(cell.case)))
    columns = {"digest": built.digest, "build_s": built.seconds, **built.resources}
    loaded = kernel.load(built.library)
    columns["workspace_bytes"] = loaded.workspace_bytes(_sizes(cell.case))
    schedule = _set_schedule(loaded) if cell.backend == "cpu" else lambda order: None
    launcher = _launcher(loaded)
    return _Candidate(launcher, _launcher(kernel.load(plain.library)), launcher, columns, schedule)


def _sizes(case: Case) -> kernel.Params:
    return kernel.Params(batch=case.batch, dim=case.dim, seqlen=case.seqlen)


def _launcher(loaded: kernel.Kernel) -> Launcher:
    def bind(inputs: Inputs, outputs: Outputs) -> Launch:
        out, more = outputs.get("out"), {**inputs.more, **outputs}  # the state of an update is an output
        more.pop("out", None)
        return kernel.bind(loaded, inputs.x, inputs.weight, inputs.bias, out, **more)

    return bind


def _set_schedule(loaded: kernel.Kernel) -> Callable[[int], None]:
    """The emulation's order of threads and blocks: 0 ascending, 1 descending."""

    def set_order(order: int) -> None:
        loaded.library.cc1d_schedule(ctypes.c_int(order), ctypes.c_uint(0))

    return set_order


def _baseline(cell: Cell) -> _Candidate:
    entry = baselines.get(cell.variant)

    def checked(case: Case) -> Launcher:
        def fill(inputs: Inputs, outputs: Outputs) -> None:
            for name, found in entry.start(case, inputs)().items():
                outputs[name].copy_(found)

        return lambda inputs, outputs: _discard(functools.partial(fill, inputs, outputs))

    def timed(inputs: Inputs, outputs: Outputs) -> Launch:
        return Call(entry.start(cell.case, inputs))

    plain = checked(without_activation(cell.case)) if entry.exact_probe else None
    return _Candidate(checked(cell.case), plain, timed, {}, convolves=entry.convolves)


def _discard(work: Callable[[], Any]) -> Launch:
    """`work`, a torch operation, as a launch: torch's current stream is the one it goes to."""

    def launch(stream: int = 0) -> None:
        work()

    return launch


def without_activation(case: Case) -> Case:
    """The same case with activation none: what the integer probe runs."""
    return dataclasses.replace(case, activation="none")


# --- whether it is right --------------------------------------------------------------------------


@dataclass(frozen=True)
class _Problem:
    """What every cell of a group is held against. `theirs` are the error columns of F.conv1d.

    `integers_exact`: of each output its values, and where fp32 holds them (None: everywhere).
    """

    inputs: Inputs
    truths: dict[str, reference.Oracle]
    theirs: dict[str, Any]
    integers: Inputs
    integers_exact: dict[str, tuple[torch.Tensor, torch.Tensor | None]]


@functools.lru_cache(maxsize=1)  # the cells of a group come one after the other
def _problem(case: Case, device: str) -> _Problem:
    inputs = reference.make_inputs(case, device)
    truths = oracle.truths(case, inputs)
    plain = without_activation(case)
    integers = reference.make_inputs(plain, device, "integers")
    exact = {name: _exact(case, name, truth) for name, truth in oracle.truths(plain, integers).items()}
    return _Problem(inputs, truths, _their_errors(case, inputs, truths), integers, exact)


def _exact(case: Case, name: str, truth: reference.Oracle) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Sums of gradients are exact only where fp32 can hold them: to about 500,000 steps."""
    if name not in ("dweight", "dbias"):
        return truth.y.to(reference.DTYPES[case.dtype]), None
    held = truth.y.abs() < 2**24 - 31 * case.batch * case.seqlen
    return truth.y.to(reference.DTYPES[case.weight_dtype]), held


def _their_errors(case: Case, inputs: Inputs, truths: Mapping[str, reference.Oracle]) -> dict[str, Any]:
    if case.states or case.seq_idx:
        return {}  # F.conv1d has neither
    theirs = reference.all_errors(case, reference.torch_outputs(case, inputs), truths)
    return {f"torch_{k}": v for k, v in theirs.items() if k not in ("first_bad", "field_tolerance", "output_errors")}


def _examine(case: Case, device: str, candidate: _Candidate) -> dict[str, Any]:
    """All checks of a cell: columns by name. Whether it is right, `_verdict` says."""
    problem = _problem(case, device)
    inputs = copy_inputs(case, problem.inputs)  # the kernel gets a copy: it may be one that writes its input
    out, clean = _run(case, candidate.launcher, inputs)
    return {
        **reference.all_errors(case, out, problem.truths),
        **problem.theirs,
        "gaps_untouched": clean and recheck.all_same(recheck.inputs_same(problem.inputs, inputs)),
        "repeatable": _is_repeatable(case, candidate, inputs, out),
        "causality": _is_causal(case, candidate, inputs, out),
        "integer_probe": _is_exact(case, candidate.integer_launcher, problem) if candidate.integer_launcher else None,
        "nan_stays": _nan_stays(case, candidate, inputs),
    }


def _verdict(findings: Mapping[str, Any]) -> str:
    if findings["n_bad"]:
        return (
            f"{findings['n_bad']} outputs outside the bound, the first at {findings['first_bad']}, "
            f"up to {findings['bound_ratio']:.3g} times the bound"
        )
    reasons = {
        "integer_probe": "integer inputs do not give the exact integers",
        "causality": "an output changes with a later x",
        "gaps_untouched": "memory outside the output was written, or an input was changed",
        "repeatable": "a second run, on cpu in reverse order of threads and blocks, gives other bits: a race",
    }
    return "; ".join(reason for name, reason in reasons.items() if not findings[name])


def _run(case: Case, launcher: Launcher, inputs: Inputs) -> tuple[Outputs, bool]:
    """Launch once on poisoned outputs. Returns them, and whether everything around them is untouched."""
    outputs, buffers = reference.make_outputs(case, inputs)
    launcher(inputs, outputs)(timing.current_stream(inputs.x.device.type))
    timing.synchronize(inputs.x.device.type)
    results = {name: out.clone() for name, out in outputs.items()}
    for out in outputs.values():  # what belongs to the kernel is poisoned again; the rest must still be
        bits(out).fill_(-1)
    return results, all(bool((buffer.view(torch.uint8) == 0xFF).all()) for buffer in buffers.values())


def _same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return bool(torch.equal(bits(a), bits(b)))


def _is_repeatable(case: Case, candidate: _Candidate, inputs: Inputs, out: Outputs) -> bool:
    candidate.schedule(1)
    try:
        again = _run(case, candidate.launcher, inputs)[0]
        return all(_same_bits(again[name], first) for name, first in out.items())
    finally:
        candidate.schedule(0)


def _is_causal(case: Case, candidate: _Candidate, inputs: Inputs, out: Outputs) -> bool:
    """Change x from a step on, and see that what comes before it stays. At the start, the middle and the end.

    Of a backward the mirror image: change dout before a step, and see that dx from it on stays.
    """
    backward = case.op == "bwd"
    name = "dx" if backward else "out"
    for start in sorted({1, case.seqlen // 2, case.seqlen - 1} & set(range(1, case.seqlen))):
        before, after = (slice(None), slice(None), slice(0, start)), (slice(None), slice(None), slice(start, None))
        changed = copy_inputs(case, inputs)
        target, where = (changed.more["dout"], before) if backward else (changed.x, after)
        target[where] = -3 * target[where] - 1
        kept = after if backward else before
        if not _same_bits(_run(case, candidate.launcher, changed)[0][name][kept], out[name][kept]):
            return False
    return True


def _is_exact(case: Case, launcher: Launcher, problem: _Problem) -> bool:
    """Integers give the exact integers, where there are such."""
    found = _run(case, launcher, copy_inputs(case, problem.integers))[0]
    for name, (exact, held) in problem.integers_exact.items():
        same = found[name] == exact
        if not bool((same if held is None else same | ~held).all()):
            return False
    return True


def _nan_stays(case: Case, candidate: _Candidate, inputs: Inputs) -> bool:
    """A NaN at the start, the middle and the end of the middle channel reaches what the definition says, and no more.

    In a plain forward that is the outputs t to t + width - 1 of that channel.
    """
    changed, middle = copy_inputs(case, inputs), case.dim // 2
    for t in {0, case.seqlen // 2, case.seqlen - 1}:
        changed.x[:, middle, t] = float("nan")
    found = _run(case, candidate.launcher, changed)[0]
    for name, truth in oracle.truths(*reference.channels_of(case, changed, middle, 1)).items():
        wanted, places = _nan_places(truth.y), _nan_places(found[name])
        here = places.narrow(1 if places.dim() == 3 else 0, middle, 1)
        if not torch.equal(here, wanted) or int(places.sum()) > int(wanted.sum()):  # the other channels have none
            return False
    return True


def _special_values(case: Case, device: str, candidate: _Candidate) -> dict[str, bool]:
    def run(small: Case, inputs: Inputs) -> Outputs:
        return _run(small, candidate.launcher, copy_inputs(small, inputs))[0]

    return special.findings(case, device, run)


def _nan_places(t: torch.Tensor) -> torch.Tensor:
    """Where a NaN is; in dweight and dbias only in which channels, since 0 times NaN may be left out or not."""
    return t.isnan() if t.dim() == 3 else t.reshape(len(t), -1).isnan().any(1)

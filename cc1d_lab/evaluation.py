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

from . import backends, build, kernel, oracle, reference, timing, variants
from .case import Case
from .cell import Cell
from .errors import Cc1dError, CompileError, ConfigError, LaunchError, ToolchainError
from .reference import Inputs, Outputs
from .results import SCHEMA_VERSION, Row, new_row
from .timing import Launch, Policy

Launcher = Callable[[Inputs, Outputs], Launch]  # inputs, outputs -> a launch
Phase = Callable[[str, str], None]  # told the cell_id and what begins: build, check or time


@dataclass(frozen=True)
class Ready:
    """A cell that passed its checks: its row so far, and how to make a launch for given tensors."""

    row: Row
    launcher: Launcher


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
        yield from _time_group(cells[0], ready, policy).values()


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
        kind=variant.kind,
        backend=cell.backend,
        tunables=dict(variants.resolve_tunables(variant, cell.tunables)),
        caveat=variant.caveat,
        bytes=case.bytes(),
        flops=case.flops(),
        executed_flops=variant.executed_flops(case) if variant.executed_flops else None,
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
    reason = variants.why_not(variant, cell.case, cell.backend) or backends.why_not_run(backend)
    if cell.case.dtype == "float64":
        reason = reason or "dtype float64: there is nothing to hold it against; gradcheck takes it"
    if reason:
        return base_row(cell, status="unsupported", reason=reason)
    phase(cell.cell_id, "build")
    where = {"arch": cell.arch or backend.default_arch(), "device": backend.device_name()}
    try:
        candidate = _baseline(cell) if variant.source is None else _compiled(cell)
        phase(cell.cell_id, "check")
        findings = _examine(cell.case, backend.torch_device, candidate)
    except (Cc1dError, torch.cuda.OutOfMemoryError) as e:
        return failed_row(cell, e if isinstance(e, Cc1dError) else LaunchError(str(e).splitlines()[0])) | where
    row = base_row(cell, **where, **candidate.columns, **findings)
    verdict = _verdict(findings) if variant.kind == "kernel" else ""
    if verdict:
        return row | {"status": "wrong", "reason": verdict}
    if variant.kind == "kernel":
        build.mark_passed(build.build_cell(cell), cell.title())
    return Ready(row | {"status": "ok"}, candidate.timed)


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
    inputs = _copy_of(case, given)
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
    integer_launcher: Launcher
    timed: Launcher
    columns: Mapping[str, Any]
    schedule: Callable[[int], None] = lambda order: None


def _compiled(cell: Cell) -> _Candidate:
    built = build.build_cell(cell)
    plain = build.build_cell(dataclasses.replace(cell, case=without_activation(cell.case)))
    columns = {"digest": built.digest, "build_s": built.seconds, **built.resources}
    loaded = kernel.load(built.library)
    schedule = _set_schedule(loaded) if cell.backend == "cpu" else lambda order: None
    launcher = _launcher(loaded)
    return _Candidate(launcher, _launcher(kernel.load(plain.library)), launcher, columns, schedule)


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
    def checked(case: Case) -> Launcher:
        def fill(inputs: Inputs, outputs: Outputs) -> None:
            for name, found in reference.torch_outputs(case, inputs).items():
                outputs[name].copy_(found)

        return lambda inputs, outputs: _discard(functools.partial(fill, inputs, outputs))

    def timed(inputs: Inputs, outputs: Outputs) -> Launch:
        if cell.case.op == "bwd":
            return _discard(reference.torch_backward(cell.case, inputs))
        return _discard(lambda: reference.torch_outputs(cell.case, inputs))

    return _Candidate(checked(cell.case), checked(without_activation(cell.case)), timed, {})


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
    """What every cell of a group is held against. `theirs` are the error columns of F.conv1d."""

    inputs: Inputs
    truths: dict[str, reference.Oracle]
    theirs: dict[str, Any]
    integers: Inputs
    integers_truths: dict[str, reference.Oracle]


@functools.lru_cache(maxsize=1)  # the cells of a group come one after the other
def _problem(case: Case, device: str) -> _Problem:
    inputs = reference.make_inputs(case, device)
    truths = oracle.truths(case, inputs)
    plain = without_activation(case)
    integers = reference.make_inputs(plain, device, "integers")
    return _Problem(inputs, truths, _their_errors(case, inputs, truths), integers, oracle.truths(plain, integers))


def _their_errors(case: Case, inputs: Inputs, truths: Mapping[str, reference.Oracle]) -> dict[str, Any]:
    if case.states or case.seq_idx:
        return {}  # F.conv1d has neither
    theirs = reference.all_errors(case, reference.torch_outputs(case, inputs), truths)
    return {f"torch_{k}": v for k, v in theirs.items() if k not in ("first_bad", "field_tolerance", "output_errors")}


def _examine(case: Case, device: str, candidate: _Candidate) -> dict[str, Any]:
    """All checks of a cell: columns by name. Whether it is right, `_verdict` says."""
    problem = _problem(case, device)
    inputs = _copy_of(case, problem.inputs)  # the kernel gets a copy: it may be one that writes its input
    out, clean = _run(case, candidate.launcher, inputs)
    return {
        **reference.all_errors(case, out, problem.truths),
        **problem.theirs,
        "gaps_untouched": clean and _same_bits(problem.inputs.x_buffer, inputs.x_buffer),
        "repeatable": _is_repeatable(case, candidate, inputs, out),
        "causality": _is_causal(case, candidate, inputs, out),
        "integer_probe": _is_exact(case, candidate, problem),
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
        out.view(_INT[out.element_size()]).fill_(-1)
    return results, all(bool((buffer.view(torch.uint8) == 0xFF).all()) for buffer in buffers.values())


_INT = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def _copy_of(case: Case, inputs: Inputs) -> Inputs:
    """The same inputs in a buffer of their own, with the same strides and alignment."""
    x, buffer = reference.empty_view(case, inputs.x.device.type, inputs.x.dtype)
    x.copy_(inputs.x)
    more = dict(inputs.more)
    if "dout" in more:
        beside = reference.beside(case)
        more["dout"] = reference.empty_view(beside, inputs.x.device.type, inputs.x.dtype)[0].copy_(more["dout"])
    return dataclasses.replace(inputs, x=x, x_buffer=buffer, more=more)


def _same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return bool(torch.equal(a.view(_INT[a.element_size()]), b.view(_INT[b.element_size()])))


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
        changed = _copy_of(case, inputs)
        target, where = (changed.more["dout"], before) if backward else (changed.x, after)
        target[where] = -3 * target[where] - 1
        kept = after if backward else before
        if not _same_bits(_run(case, candidate.launcher, changed)[0][name][kept], out[name][kept]):
            return False
    return True


def _is_exact(case: Case, candidate: _Candidate, problem: _Problem) -> bool:
    """Integers give the exact integers, but for sums that fp32 cannot hold (of gradients, over 500,000 steps)."""
    found = _run(case, candidate.integer_launcher, _copy_of(case, problem.integers))[0]
    for name, truth in problem.integers_truths.items():
        held = truth.y.abs() < 2**24 - 31 * case.batch * case.seqlen if name in ("dweight", "dbias") else None
        same = found[name] == truth.y.to(found[name].dtype)
        if not bool((same if held is None else same | ~held).all()):
            return False
    return True


def _nan_stays(case: Case, candidate: _Candidate, inputs: Inputs) -> bool:
    """A NaN at the start, the middle and the end of the middle channel reaches what the definition says, and no more.

    In a plain forward that is the outputs t to t + width - 1 of that channel.
    """
    changed = _copy_of(case, inputs)
    for t in {0, case.seqlen // 2, case.seqlen - 1}:
        changed.x[:, case.dim // 2, t] = float("nan")
    found, truths = _run(case, candidate.launcher, changed)[0], oracle.truths(case, changed)
    return all(torch.equal(_nan_places(found[name]), _nan_places(truth.y)) for name, truth in truths.items())


def _nan_places(t: torch.Tensor) -> torch.Tensor:
    """Where a NaN is; in dweight and dbias only in which channels, since 0 times NaN may be left out or not."""
    return t.isnan() if t.dim() == 3 else t.reshape(len(t), -1).isnan().any(1)


# --- how fast it is -------------------------------------------------------------------------------


def _time_group(first: Cell, ready: Mapping[str, Ready], policy: Policy | None) -> dict[str, Row]:
    case, backend = first.case, backends.get(first.backend)
    on_gpu = backend.torch_device != "cpu"
    policy = policy or timing.POLICIES["gpu" if on_gpu else "cpu"]
    sets = _input_sets(case, backend.torch_device)
    members = {cell_id: [found.launcher(i, o) for i, o in sets] for cell_id, found in ready.items()}
    stages = {cell_id: _stages(launches[0]) for cell_id, launches in members.items()}
    if on_gpu:
        members |= _ceilings(first, len(sets), backend.torch_device)
    times = timing.measure(members, policy, backend.torch_device, cold=len(sets) > 1)
    stage_times = {cell_id: timing.measure(s, policy, backend.torch_device) for cell_id, s in stages.items() if s}
    state = timing.device_state(backend.torch_device)
    return {
        cell_id: found.row | _time_columns(case, cell_id, times, stage_times.get(cell_id)) | state
        for cell_id, found in ready.items()
    }


def _input_sets(case: Case, device: str) -> list[tuple[Inputs, Outputs]]:
    """Inputs and outputs to rotate over: on a GPU over three times its cache, so that every launch finds it cold."""
    wanted = timing.cold_sets(case.bytes(), device)
    inputs = reference.make_inputs(case, device)
    return [(_copy_of(case, inputs), reference.make_outputs(case, inputs)[0]) for _ in range(wanted)]


def _stages(launch: Launch) -> dict[str, list[Launch]]:
    """The stages of a kernel as launches of their own; none for a single stage."""
    if not isinstance(launch, kernel.Bound) or len(launch.kernel.stages) == 1:
        return {}
    return {name: [launch.stage(i)] for i, name in enumerate(launch.kernel.stages)}


def ceiling_case(case: Case) -> Case:
    """The case that the copy kernel is compiled for: as many bytes, lying side by side."""
    steps = case.seqlen + (case.width - 1 if case.states or case.op == "update" else 0)
    if case.op == "bwd":
        steps = -(-3 * steps // 2)  # three tensors are moved, not two
    plain = dataclasses.replace(case, op="fwd", states=False, seq_idx=False, seqlen=steps)
    return dataclasses.replace(plain, layout="channel_first", view="contiguous", row_stride=0)


def _ceilings(first: Cell, sets: int, device: str) -> dict[str, list[Launch]]:
    """Copies of as many bytes, by the runtime and by our own kernel, and an empty launch."""
    plain = ceiling_case(first.case)
    inputs = reference.make_inputs(plain, device)
    pairs = [(_copy_of(plain, inputs), reference.empty_view(plain, device, inputs.x.dtype)[0]) for _ in range(sets)]
    own = {
        name: kernel.load(build.build(variants.get(name), plain, {}, first.backend, first.arch).library)
        for name in ("copy", "empty")
    }
    return {
        "copy_kernel": [kernel.bind(own["copy"], i.x, i.weight, i.bias, o) for i, o in pairs],
        "copy_runtime": [_discard(functools.partial(o.copy_, i.x)) for i, o in pairs],
        "empty": [kernel.bind(own["empty"], i.x, i.weight, i.bias, o) for i, o in pairs],
    }


def _time_columns(
    case: Case, cell_id: str, times: Mapping[str, timing.Timing], stages: Mapping[str, timing.Timing] | None
) -> dict[str, Any]:
    mine = times[cell_id]
    seconds = mine.p50 * 1e-6
    columns: dict[str, Any] = {
        "time_us_p20": mine.p20,
        "time_us_p50": mine.p50,
        "time_us_p80": mine.p80,
        "time_us_mean": mine.mean,
        "time_std_pct": mine.std_pct,
        "samples_us": list(mine.samples_us),
        "launches_per_sample": mine.launches_per_sample,
        "stop_reason": mine.stop_reason,
        "timing_mode": mine.mode,
        "cache_state": mine.cache_state,
        "stage_us": {name: t.p50 for name, t in stages.items()} if stages else None,
        "gbps": case.bytes() / seconds / 1e9,
        "tflops": case.flops() / seconds / 1e12,
    }
    copies = {kind: times[f"copy_{kind}"].p50 for kind in ("kernel", "runtime") if f"copy_{kind}" in times}
    flags = ["noisy"] if mine.std_pct > 5 else []
    if copies:
        kind = min(copies, key=lambda k: copies[k])
        columns |= {
            "copy_kind": kind,
            "copy_time_us": copies[kind],
            "copy_gbps": case.bytes() / copies[kind] / 1e3,
            "pct_copy": 100 * copies[kind] / mine.p50,
            "empty_time_us": times["empty"].p50,
        }
        flags += ["above_ceiling"] if mine.p50 * 1.03 < copies[kind] else []
        flags += ["below_launch"] if mine.p50 < times["empty"].p50 else []
    return columns | {"flags": flags}

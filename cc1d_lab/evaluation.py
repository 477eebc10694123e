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

from . import backends, baselines, build, ceilings, kernel, oracle, recheck, reference, sensors, timing, variants
from .case import Case
from .cell import Cell
from .errors import Cc1dError, CompileError, ConfigError, LaunchError, ToolchainError
from .recheck import Call, Launcher, Recheck, bits, copy_inputs
from .reference import Inputs, Outputs
from .results import SCHEMA_VERSION, Row, new_row
from .timing import Launch, Policy

NOISY_PCT = 5.0
ABOVE_CEILING = 1.03  # more than this over the copy's speed is doubted
Phase = Callable[[str, str], None]  # told the cell_id and what begins: build, check or time


@dataclass(frozen=True)
class Ready:
    """A cell that passed its checks: its row so far, and how to make a launch for given tensors."""

    row: Row
    launcher: Launcher
    convolves: bool = True


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
    if variant.source is None:
        reason = reason or baselines.why_not(cell.variant, cell.case, cell.backend)
    if cell.case.dtype == "float64":
        reason = reason or "dtype float64: there is nothing to hold it against; gradcheck takes it"
    if reason:
        return base_row(cell, status="unsupported", reason=reason)
    phase(cell.cell_id, "build")
    where = {"arch": cell.arch or backend.default_arch(), "device": backend.device_name()}
    try:
        candidate = _baseline(cell) if variant.source is None else _compiled(cell)
        phase(cell.cell_id, "check")
        findings = _examine(cell.case, backend.torch_device, candidate) if candidate.convolves else {}
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
    return Ready(row | {"status": "ok"}, candidate.timed, candidate.convolves)


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
    """Integers give the exact integers, but for sums that fp32 cannot hold (of gradients, over 500,000 steps)."""
    found = _run(case, launcher, copy_inputs(case, problem.integers))[0]
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
    changed = copy_inputs(case, inputs)
    for t in {0, case.seqlen // 2, case.seqlen - 1}:
        changed.x[:, case.dim // 2, t] = float("nan")
    found, truths = _run(case, candidate.launcher, changed)[0], oracle.truths(case, changed)
    return all(torch.equal(_nan_places(found[name]), _nan_places(truth.y)) for name, truth in truths.items())


def _nan_places(t: torch.Tensor) -> torch.Tensor:
    """Where a NaN is; in dweight and dbias only in which channels, since 0 times NaN may be left out or not."""
    return t.isnan() if t.dim() == 3 else t.reshape(len(t), -1).isnan().any(1)


# --- how fast it is -------------------------------------------------------------------------------


def _time_group(first: Cell, ready: Mapping[str, Ready], policy: Policy | None) -> dict[str, Row]:
    case, device = first.case, backends.get(first.backend).torch_device
    policy = policy or timing.POLICIES["cpu" if device == "cpu" else "gpu"]
    sets = _input_sets(case, device, policy)
    members = {cell_id: [found.launcher(i, o) for i, o in sets] for cell_id, found in ready.items()}
    stages = {cell_id: _stages(launches[0]) for cell_id, launches in members.items()}
    copies = [] if device == "cpu" else _copies(first, len(sets), device)
    ceiling = _ceilings(first, copies) if copies else {}
    faults = _Faults(ready, members, Recheck(case, sets), copies)
    watch = sensors.Watch()
    times = timing.measure(members | ceiling, policy, device, watch if copies else None, faults.look)
    stage_times = {cell_id: timing.measure(s, policy, device) for cell_id, s in stages.items() if s}
    shared = watch.columns() | faults.columns() | _ceiling_columns(first, times, faults.broken)
    return {
        cell_id: _timed_row(found.row, times[cell_id], stage_times.get(cell_id), shared, faults.of(cell_id))
        for cell_id, found in ready.items()
    }


class _Faults:
    """What is found wrong with the members of a group once they are timed, by name."""

    def __init__(
        self, ready: Mapping[str, Ready], members: Mapping[str, list[Launch]], against: Recheck, copies: _Copies
    ) -> None:
        self._ready, self._members, self._against, self._copies = ready, members, against, copies
        self._found: dict[str, str] = {}
        self._inputs_changed: bool | None = None
        self.broken: list[str] = []  # copies that do not copy

    def look(self, name: str, run: timing.Run) -> None:
        """Examine a member. The inputs are looked at first of all: whoever changed them, all times are doubtful."""
        if self._inputs_changed is None:
            self._inputs_changed = self._against.inputs_changed()
        if name in self._ready:
            found = self._ready[name]
            exact = found.row["kind"] == "kernel"
            subject = recheck.Subject(found.launcher, self._members[name], exact, found.convolves)
            self._found[name] = self._against.fault(subject, run)
        elif name != "empty" and not _copied(run, self._copies):
            self.broken.append(name)

    def of(self, name: str) -> str:
        """What is wrong with a member, or ''."""
        return self._found[name]

    def columns(self) -> dict[str, Any]:
        """What goes for all rows of the group."""
        return {"flags": ["inputs_changed"] if self._inputs_changed else []}


def _timed_row(
    row: Row,
    mine: timing.Timing,
    stages: Mapping[str, timing.Timing] | None,
    shared: dict[str, Any],
    fault: str,
) -> Row:
    """The row of a timed cell. A kernel that did not do the work that was timed is wrong, and has no time."""
    if fault and row["kind"] == "kernel":
        return row | {"status": "wrong", "reason": f"after timing: {fault}", "timed_result": False}
    columns = _time_columns(row, mine, stages, shared)
    doubts = ["not_the_work"] if fault else []
    return row | shared | columns | {"timed_result": not fault, "flags": [*columns["flags"], *doubts]}


def _input_sets(case: Case, device: str, policy: Policy) -> list[tuple[Inputs, Outputs]]:
    """Fresh inputs, and outputs, to rotate over: cold on a GPU, over three times its cache in all."""
    wanted = timing.cold_sets(case.bytes(), device) if policy.cache == "cold" else 1
    inputs = reference.make_inputs(dataclasses.replace(case, seed=case.seed + recheck.FRESH_SEED), device)
    return [(copy_inputs(case, inputs), reference.make_outputs(case, inputs)[0]) for _ in range(wanted)]


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


_Copies = list[tuple[Inputs, torch.Tensor]]  # of each set: what is copied, and where to


def _copies(first: Cell, sets: int, device: str) -> _Copies:
    plain = ceiling_case(first.case)
    inputs = reference.make_inputs(plain, device)
    return [(copy_inputs(plain, inputs), reference.empty_view(plain, device, inputs.x.dtype)[0]) for _ in range(sets)]


def _ceilings(first: Cell, copies: _Copies) -> dict[str, list[Launch]]:
    """Copies of as many bytes, by the runtime and by our own kernel, that one a second time, and an empty launch."""
    plain = ceiling_case(first.case)
    own = {
        name: kernel.load(build.build(variants.get(name), plain, {}, first.backend, first.arch).library)
        for name in ("copy", "empty")
    }
    return {
        "copy_kernel": [kernel.bind(own["copy"], i.x, i.weight, i.bias, o) for i, o in copies],
        "copy_runtime": [_discard(functools.partial(o.copy_, i.x)) for i, o in copies],
        "copy_again": [kernel.bind(own["copy"], i.x, i.weight, i.bias, o) for i, o in copies],
        "empty": [kernel.bind(own["empty"], i.x, i.weight, i.bias, o) for i, o in copies],
    }


def _copied(run: timing.Run, copies: _Copies) -> bool:
    """Whether what was timed as a copy copies."""
    for _, out in copies:
        bits(out).fill_(-1)
    run.queue()
    return recheck.all_same((bits(out) == bits(inputs.x)).all() for inputs, out in copies)


def _ceiling_columns(first: Cell, times: Mapping[str, timing.Timing], broken: list[str]) -> dict[str, Any]:
    """What the copies and the empty launch of a group say; nothing on the CPU, or where no copy copies."""
    copies = {kind: times[f"copy_{kind}"] for kind in ("kernel", "runtime") if f"copy_{kind}" in times}
    sound = {kind: t for kind, t in copies.items() if f"copy_{kind}" not in broken}
    if not sound:
        return {}
    kind = min(sound, key=lambda k: sound[k].p50)
    case, best = first.case, sound[kind]
    gbps = case.bytes() / best.p50 / 1e3
    device = backends.get(first.backend).device_name()
    return {
        "copy_kind": kind,
        "copy_time_us": best.p50,
        "copy_gbps": gbps,
        "noise_pct": 100 * abs(times["copy_again"].p50 / times["copy_kernel"].p50 - 1),
        "empty_time_us": times["empty"].p50,
        "copy_pct_of_best": ceilings.compare(device, case.bytes(), gbps) if best.cache_state == "cold" else None,
    }


def _time_columns(
    row: Row, mine: timing.Timing, stages: Mapping[str, timing.Timing] | None, shared: Mapping[str, Any]
) -> dict[str, Any]:
    copy = shared.get("copy_time_us")
    return {
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
        "gbps": row["bytes"] / mine.p50 / 1e3,
        "tflops": row["flops"] / mine.p50 / 1e6,
        "pct_copy": 100 * copy / mine.p50 if copy else None,
        "flags": [*shared["flags"], *_doubts(mine, shared)],
    }


def _doubts(mine: timing.Timing, shared: Mapping[str, Any]) -> list[str]:
    """What makes a time doubtful: better than a copy of as many bytes, better than nothing at all, an odd device."""
    of_best = shared.get("copy_pct_of_best")
    doubts = {
        "noisy": mine.std_pct > NOISY_PCT,
        "above_ceiling": mine.p50 * ABOVE_CEILING < shared.get("copy_time_us", 0.0),
        "below_launch": mine.p50 < shared.get("empty_time_us", 0.0),
        "throttled": bool(shared.get("throttle")),
        "slow_device": of_best is not None and of_best < ceilings.SLOW_PCT,
    }
    return [name for name, doubtful in doubts.items() if doubtful]

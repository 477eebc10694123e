"""How fast the cells of a group are: timed together, in interleaved rounds, with copies and an empty launch.

What comes out is doubted before it is believed: `recheck` looks at the launches that were timed, and `flags` name what
cannot be, or what was odd about the device.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from . import backends, build, ceilings, kernel, recheck, reference, sensors, timing, variants
from .case import Case
from .cell import Cell
from .recheck import Call, Launcher, Recheck, bits, copy_inputs
from .reference import Inputs, Outputs
from .results import Row
from .timing import Launch, Policy

NOISY_PCT = 5.0
ABOVE_CEILING = 1.03  # more than this over the copy's speed is doubted


@dataclass(frozen=True)
class Ready:
    """A cell that passed its checks: its row so far, and how to make a launch for given tensors.

    `convolves`: no for the baseline that only copies.
    """

    row: Row
    launcher: Launcher
    convolves: bool = True


def time_group(first: Cell, ready: Mapping[str, Ready], policy: Policy | None) -> dict[str, Row]:
    """The rows of a group's ready cells with their times, by cell_id. `first` is any of its cells.

    `policy` None: cold and in graphs on a GPU, a few samples on the CPU. Raises whatever a launch raises.
    """
    case, device = first.case, backends.get(first.backend).torch_device
    policy = policy or timing.POLICIES["cpu" if device == "cpu" else "gpu"]
    sets = _input_sets(case, device, policy)
    members = {cell_id: [found.launcher(i, o) for i, o in sets] for cell_id, found in ready.items()}
    stages = {cell_id: _stages(launches) for cell_id, launches in members.items()}
    copies = [] if device == "cpu" else _copies(first, len(sets), device)
    ceiling = _ceilings(first, copies) if copies else {}
    faults = _Faults(ready, members, Recheck(case, sets), copies)
    watch = sensors.Watch()
    times = timing.measure(members | ceiling, policy, device, watch if copies else None, faults.look)
    stage_times = {cell_id: timing.measure(s, policy, device) for cell_id, s in stages.items() if s}
    shared = watch.columns() | faults.columns() | _ceiling_columns(first, times, faults.broken)
    return {
        cell_id: _timed_row(
            found.row, times[cell_id], stage_times.get(cell_id), shared, faults.of(cell_id), policy.launch
        )
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
    launch: str,
) -> Row:
    """The row of a timed cell. A kernel that did not do the work that was timed is wrong, and has no time."""
    if fault and row["kind"] == "kernel":
        return row | {"status": "wrong", "reason": f"after timing: {fault}", "timed_result": False}
    columns = _time_columns(row, mine, stages, shared, launch)
    doubts = ["not_the_work"] if fault else []
    return row | shared | columns | {"timed_result": not fault, "flags": [*columns["flags"], *doubts]}


def _input_sets(case: Case, device: str, policy: Policy) -> list[tuple[Inputs, Outputs]]:
    """Fresh inputs, and outputs, to rotate over: cold on a GPU, over three times its cache in all."""
    wanted = timing.cold_sets(case.bytes(), device) if policy.cache == "cold" else 1
    fresh = dataclasses.replace(case, seed=case.seed + recheck.FRESH_SEED)
    inputs = reference.make_inputs(fresh, device, drawn_on=device)
    return [(copy_inputs(case, inputs), reference.make_outputs(case, inputs)[0]) for _ in range(wanted)]


def _stages(launches: list[Launch]) -> dict[str, list[Launch]]:
    """The stages of a kernel as members of their own, over the same buffers; none for a single stage."""
    bound = [launch for launch in launches if isinstance(launch, kernel.Bound)]
    names = bound[0].kernel.stages if bound else ()
    return {name: [one.stage(i) for one in bound] for i, name in enumerate(names)} if len(names) > 1 else {}


def ceiling_case(case: Case) -> Case:
    """The case that the copy kernel is compiled for: as many bytes, lying side by side."""
    steps = case.seqlen + (case.state_steps if case.states or case.op == "update" else 0)
    if case.op == "bwd":
        steps = -(-3 * steps // 2)  # three tensors are moved, not two
    plain = dataclasses.replace(case, op="fwd", state_len=0, states=False, seq_idx=False, seqlen=steps)
    return dataclasses.replace(plain, layout="channel_first", view="contiguous", row_stride=0)


_Copies = list[tuple[Inputs, torch.Tensor]]  # of each set: what is copied, and where to


def _copies(first: Cell, sets: int, device: str) -> _Copies:
    plain = ceiling_case(first.case)
    inputs = reference.make_inputs(plain, device, drawn_on=device)
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
        "copy_runtime": [Call(functools.partial(_copy, o, i.x)) for i, o in copies],
        "copy_again": [kernel.bind(own["copy"], i.x, i.weight, i.bias, o) for i, o in copies],
        "empty": [kernel.bind(own["empty"], i.x, i.weight, i.bias, o) for i, o in copies],
    }


def _copy(out: torch.Tensor, x: torch.Tensor) -> Outputs:
    return {"out": out.copy_(x)}


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
    row: Row, mine: timing.Timing, stages: Mapping[str, timing.Timing] | None, shared: Mapping[str, Any], launch: str
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
        "flags": [*shared["flags"], *_doubts(mine, shared, launch)],
    }


def _doubts(mine: timing.Timing, shared: Mapping[str, Any], launch: str) -> list[str]:
    """What makes a time doubtful: better than a copy of as many bytes, or than nothing; an odd device; no graph."""
    of_best = shared.get("copy_pct_of_best")
    doubts = {
        "noisy": mine.std_pct > NOISY_PCT,
        "above_ceiling": mine.p50 * ABOVE_CEILING < shared.get("copy_time_us", 0.0),
        "below_launch": mine.p50 < shared.get("empty_time_us", 0.0),
        "throttled": bool(shared.get("throttle")),
        "slow_device": of_best is not None and of_best < ceilings.SLOW_PCT,
        "host_time": (launch, mine.mode) == ("graph", "stream"),
    }
    return [name for name, doubtful in doubts.items() if doubtful]

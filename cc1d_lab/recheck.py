"""Whether what was timed does the work: looked at after the timing, with the very launches and the very graph.

The inputs of the timing are fresh: not those that the cell was checked on. Afterwards each member in turn gets poisoned
outputs, and what was sampled is queued again, twice. Then every set of outputs must be right within the error bound and
hold the same bits, no input may have changed, and, on a GPU, nothing may run ahead of the stream that was given.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from . import oracle, reference, timing
from .case import Case
from .reference import Inputs, Outputs
from .timing import Launch

Launcher = Callable[[Inputs, Outputs], Launch]  # inputs, outputs -> a launch
Truths = Mapping[str, reference.Oracle]

FRESH_SEED = 7919  # added to the seed of the case: a prime, so that no sweep over seeds comes upon it
BASELINE_TOLERANCE = 0.02  # of the largest value: what somebody else's rounding and order of sums may differ by
LONGEST_WAIT_US = 20_000.0
INT = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Call:
    """A function that returns its outputs by name, as a launch: it goes to torch's current stream.

    `found` keeps what the last call returned; when that was captured in a graph, each replay writes there.
    """

    def __init__(self, work: Callable[[], Outputs]) -> None:
        self._work = work
        self.found: Outputs = {}

    def __call__(self, stream: int = 0) -> None:
        self.found = self._work()


@dataclass(frozen=True)
class Subject:
    """A member that was timed: its launches, and how to make one more. `exact`: ours, held to the bound and to bits.

    A baseline is held to BASELINE_TOLERANCE; one that does not convolve copies x.
    """

    launcher: Launcher
    launches: Sequence[Launch]
    exact: bool
    convolves: bool = True


class Recheck:
    """Holds the timed members of a group against the oracle. `sets`: the inputs and outputs that they rotate over."""

    def __init__(self, case: Case, sets: Sequence[tuple[Inputs, Outputs]]) -> None:
        self._case, self._sets = case, sets
        self._device = sets[0][0].x.device.type
        self._inputs = copy_inputs(case, sets[0][0])  # what all sets must still hold in the end
        self._truths: Truths | None = None

    def inputs_changed(self) -> bool:
        """Whether any set's inputs are no longer what they were; they are put right again."""
        if all_same(same for inputs, _ in self._sets for same in inputs_same(self._inputs, inputs)):
            return False
        for inputs, _ in self._sets:
            _restore(inputs, self._inputs)
        return True

    def fault(self, subject: Subject, run: timing.Run) -> str:
        """What is wrong with a member that was timed, or ''."""
        self._reset(subject.launches)
        for _ in range(2):  # the second finds the outputs of the first
            run.queue()
        timing.synchronize(self._device)
        sets = zip(subject.launches, self._sets, strict=True)
        found = [_results(launch, outputs) for launch, (_, outputs) in sets]
        faults = [self._wrong(subject, found, run)]
        if self.inputs_changed():
            faults.append("it changes its inputs")
        if subject.exact and self._device != "cpu" and self._runs_ahead(subject.launcher, run):
            faults.append("it works on another stream than the one it was given: its time is not all of it")
        return "; ".join(f for f in faults if f)

    def _wrong(self, subject: Subject, found: list[Outputs], run: timing.Run) -> str:
        wanted = checked = {name: out.clone() for name, out in found[0].items()}
        if "conv_state" in wanted:  # a state moves on with each launch: only the first step is the oracle's
            checked, wanted = self._alone(subject.launcher, 1), self._alone(subject.launcher, 2 * run.repeats)
        bad = self._outside(subject, checked)
        if bad:
            return bad
        same = _same_bits if subject.exact else _near
        if all_same(same(wanted[name], out) for outputs in found for name, out in outputs.items()):
            return ""
        return "the timed launches do not give the outputs of a single one"

    def _outside(self, subject: Subject, outputs: Outputs) -> str:
        for name, truth in self._truth_of(subject).items():
            if subject.exact:
                n = int((~((outputs[name].double() - truth.y).abs() <= truth.bound)).sum())
                if n:
                    return f"{n} of {name} are outside the bound"
            elif not _near(truth.y, outputs[name]):
                return f"{name} is not what is computed"
        return ""

    def _truth_of(self, subject: Subject) -> Truths:
        if not subject.convolves:
            x = self._inputs.x.double()
            return {"out": reference.Oracle(x, torch.zeros_like(x))}
        if self._truths is None:
            self._truths = oracle.truths(self._case, self._inputs)
        return self._truths

    def _alone(self, launcher: Launcher, times: int) -> Outputs:
        """The outputs of single launches over buffers of their own."""
        inputs = copy_inputs(self._case, self._inputs)
        outputs = reference.make_outputs(self._case, inputs)[0]
        launch = launcher(inputs, outputs)
        for _ in range(times):
            launch(timing.current_stream(self._device))
        timing.synchronize(self._device)
        return _results(launch, outputs)

    def _reset(self, launches: Iterable[Launch]) -> None:
        """Poison what a launch must write; a state gets its first value again."""
        for launch, (_, outputs) in zip(launches, self._sets, strict=True):
            for name, out in _results(launch, outputs).items():
                if name == "conv_state":
                    out.copy_(self._inputs.more["conv_state"])
                else:
                    bits(out).fill_(-1)

    def _runs_ahead(self, launcher: Launcher, run: timing.Run) -> bool:
        inputs = copy_inputs(self._case, self._inputs)
        outputs = reference.make_outputs(self._case, inputs)[0]
        written = [bits(out) for name, out in outputs.items() if name != "conv_state"]

        def touched() -> torch.Tensor:
            return torch.stack([(out != -1).any() for out in written]).any()

        wait_us = min(LONGEST_WAIT_US, 200.0 + 2 * max(run.samples))
        return bool(timing.runs_ahead(launcher(inputs, outputs), touched, wait_us))


def bits(t: torch.Tensor) -> torch.Tensor:
    """The same memory as integers: a NaN equals itself."""
    return t.view(INT[t.element_size()])


def copy_inputs(case: Case, inputs: Inputs) -> Inputs:
    """The same inputs in buffers of their own, with the same strides and alignment."""
    device = inputs.x.device.type
    x, buffer = reference.empty_view(case, device, inputs.x.dtype)
    x.copy_(inputs.x)
    more = {name: tensor.clone() for name, tensor in inputs.more.items()}
    if "dout" in more:
        more["dout"] = reference.empty_view(reference.beside(case), device, inputs.x.dtype)[0].copy_(more["dout"])
    bias = None if inputs.bias is None else inputs.bias.clone()
    return dataclasses.replace(inputs, x=x, weight=inputs.weight.clone(), bias=bias, x_buffer=buffer, more=more)


def _tensors(inputs: Inputs) -> dict[str, torch.Tensor]:
    """What a launch reads, by name; of x all that lies around it too."""
    bias = {} if inputs.bias is None else {"bias": inputs.bias}
    return {"x": inputs.x_buffer, "weight": inputs.weight, **bias, **inputs.more}


def inputs_same(wanted: Inputs, found: Inputs) -> list[torch.Tensor]:
    """Whether each input is the same, bit for bit, and what lies around x too: for `all_same`."""
    now = _tensors(found)
    return [_same_bits(tensor, now[name]) for name, tensor in _tensors(wanted).items()]


def _restore(inputs: Inputs, wanted: Inputs) -> None:
    now = _tensors(inputs)
    for name, tensor in _tensors(wanted).items():
        bits(now[name]).copy_(bits(tensor))


def _results(launch: Launch, outputs: Outputs) -> Outputs:
    return launch.found if isinstance(launch, Call) else outputs


def _same_bits(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Whether all bits are the same, as a tensor on the device: nothing waits for it."""
    return (bits(a) == bits(b)).all()


def _near(wanted: torch.Tensor, found: torch.Tensor) -> torch.Tensor:
    largest = wanted.abs().max()
    return ((found - wanted).abs() <= BASELINE_TOLERANCE * largest).all()


def all_same(findings: Iterable[torch.Tensor]) -> bool:
    """Whether all are true; waits for the device once."""
    return bool(torch.stack(list(findings)).all())

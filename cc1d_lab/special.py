"""Special values: subnormal, large and infinite x, and what each must give. What fast-math flags break shows here.

The shape is small, whatever the case: kernels are not compiled for a shape.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch

from . import oracle, reference
from .case import Case
from .reference import Inputs, Oracle, Outputs

# By what x, the bias and what comes before x are multiplied. `subnormal`: below the smallest normal number of the type,
# by a factor that leaves some bits. `large`: exp overflows in float32, and the sums do not.
_SUBNORMAL = {"float32": 2.0**-132, "float16": 2.0**-18, "bfloat16": 2.0**-130}
_LARGE = 100.0
KINDS = ("subnormal", "large", "inf")


@dataclass(frozen=True)
class Problem:
    """A small case, inputs of one kind, and what each output must be."""

    case: Case
    inputs: Inputs
    truths: dict[str, Oracle]


@functools.lru_cache(maxsize=1)
def problems(case: Case, device: str) -> dict[str, Problem]:
    """A problem of each kind, like `case` but small. To be made before a kernel's library is loaded.

    A library that was linked with fast math may make its whole process flush subnormal numbers, the oracle included.
    """
    limits = {"batch": 2, "dim": 70, "seqlen": 150}
    small = dataclasses.replace(case, row_stride=0, **{n: min(getattr(case, n), most) for n, most in limits.items()})
    return {kind: _problem(small, device, kind) for kind in KINDS}


def _problem(case: Case, device: str, kind: str) -> Problem:
    inputs = reference.make_inputs(case, device)
    if kind == "inf":
        for t in {0, case.seqlen // 2, case.seqlen - 1}:
            inputs.x[:, case.dim // 2, t] = float("inf") if t else -float("inf")
    else:
        factor = _SUBNORMAL[case.dtype] if kind == "subnormal" else _LARGE
        states = {n: t * factor for n, t in inputs.more.items() if n in ("initial_states", "conv_state")}
        bias = None if inputs.bias is None else inputs.bias * factor
        inputs.x.mul_(factor)
        inputs = dataclasses.replace(inputs, bias=bias, more={**inputs.more, **states})
    return Problem(case, inputs, oracle.truths(case, inputs))


def findings(case: Case, device: str, run: Callable[[Case, Inputs], Outputs]) -> dict[str, bool]:
    """Whether each kind gives what the oracle says. `run` launches once and returns the outputs by name."""
    return {kind: _agrees(kind, p, run(p.case, p.inputs)) for kind, p in problems(case, device).items()}


def _agrees(kind: str, problem: Problem, found: Outputs) -> bool:
    """`inf`: the same is finite. Else: within the bound, and what products and sums may lose below 2^-126."""
    if kind == "inf":
        return all(torch.equal(_finite(found[name]), _finite(t.y)) for name, t in problem.truths.items())
    terms = problem.case.batch * problem.case.seqlen + problem.case.width + 2
    lost = {
        name: (terms if t.y.dim() < 3 else problem.case.width + 2) * 2.0**-149 for name, t in problem.truths.items()
    }
    return all(
        bool(((found[name].double() - t.y).abs() <= t.bound + lost[name]).all()) for name, t in problem.truths.items()
    )


def _finite(t: torch.Tensor) -> torch.Tensor:
    """What is finite; of dweight and dbias which channels are, since 0 times Inf may be left out or not."""
    return t.isfinite() if t.dim() == 3 else t.reshape(len(t), -1).isfinite().all(1)

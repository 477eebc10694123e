"""How x and what belongs to it lie in memory, for each view of a case."""

from __future__ import annotations

import pytest

from cc1d_lab import reference
from cc1d_lab.case import Case

FIRST, LAST = {"layout": "channel_first"}, {"layout": "channel_last"}


@pytest.mark.parametrize(
    ("case", "x", "out"),
    [
        (Case(3, 5, 7, **FIRST), (35, 7, 1), (35, 7, 1)),
        (Case(3, 5, 7, **LAST), (35, 1, 5), (35, 1, 5)),
        (Case(3, 5, 7, view="channel_slice", row_stride=40, **LAST), (280, 1, 40), (280, 1, 40)),
        (Case(3, 5, 7, view="sliced_input", row_stride=40, **LAST), (280, 1, 40), (35, 1, 5)),
        (Case(3, 5, 7, view="sliced_input", **FIRST), (7 * 29, 7, 1), (35, 7, 1)),
        (Case(3, 5, 7, view="batch_second", **FIRST), (7, 21, 1), (7, 21, 1)),
        (Case(3, 5, 7, view="batch_second", **LAST), (5, 1, 15), (5, 1, 15)),
        (Case(3, 5, 7, view="misaligned", **FIRST), (40, 8, 1), (40, 8, 1)),
    ],
    ids=lambda c: c.title() if isinstance(c, Case) else "",
)
@pytest.mark.parametrize("op", ["fwd", "bwd"])
def test_strides(case: Case, x: tuple[int, ...], out: tuple[int, ...], op: str) -> None:
    case = Case(**case.to_dict() | {"op": op})
    inputs = reference.make_inputs(case)
    outputs, _ = reference.make_outputs(case, inputs)
    assert inputs.x.stride() == x
    for made in (outputs["out"],) if op == "fwd" else (outputs["dx"], inputs.more["dout"]):
        assert made.stride() == out
        assert made.shape == (3, 5, 7)

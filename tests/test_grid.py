"""The whole test grid of the field (Dao-AILab's), and more blocks than a grid dimension may have. Takes minutes.

`make test-full` runs it in emulation; `pytest -m "full and gpu" tests/test_grid.py` on a GPU, there with every size.
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from test_ops import DTYPES, Call, _assert_rounded, check_call, check_tensors

from cc1d_lab import Cell, build, causal_conv1d_update, causal_conv1d_update_ref
from cc1d_lab.ops import choice

pytestmark = pytest.mark.full

DIMS = (64, 4128)
LENGTHS = (1, 2, 8, 16, 32, 64, 128, 129, 130, 151, 256, 372, 512, 784, 1024, 1134, 2048, 4096)
each_dtype = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
each_width = pytest.mark.parametrize("width", [2, 3, 4])
each_layout = pytest.mark.parametrize("last", [False, True], ids=["channel_first", "channel_last"])
each_device = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])


@pytest.fixture(autouse=True)
def _device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU the grid is itself the check of each kernel; one in a process of its own would cost a second each."""
    if request.node.callspec.params.get("device") == "cuda":
        if not torch.cuda.is_available():
            pytest.skip("no GPU")
        monkeypatch.setenv("CC1D_UNCHECKED", "1")


def build_ahead(tensors: tuple[Any, ...]) -> None:
    """Compile on all cores what calls with these tensors use, instead of one after the other."""
    x, weight, bias, *_ = tensors
    backend = choice.backend_for(x.device, "auto")
    cells = []
    for op, silu, states in itertools.product(("fwd", "bwd"), (False, True), (False, True)):
        case = choice.case_of(op, x, weight, bias, silu, states, False)
        found = choice.choose(case, backend, "auto")
        cells.append(Cell(found.variant, backend, case, found.tunables))
    assert not [o for _, o in build.build_all(cells) if isinstance(o, Exception)]


def sizes(device: str) -> list[tuple[int, int]]:
    """(dim, seqlen). In emulation dim 4128, which ends in half a tile, at a few lengths: its cost is by the element."""
    return [(d, n) for n in LENGTHS for d in DIMS if d == 64 or device == "cuda" or n in (1, 8, 130)]


@each_layout
@each_dtype
@each_width
@each_device
def test_the_whole_grid_of_the_field(device: str, dtype: torch.dtype, width: int, last: bool) -> None:
    for i, (dim, seqlen) in enumerate(sizes(device)):
        call = Call(2, dim, seqlen, width, dtype, torch.float32, last, states=True, sliced=True, seed=seqlen)
        x, weight, bias, _, initial = (t if t is None else t.to(device) for t in call.tensors())
        if i == 0:
            build_ahead((x, weight, bias))
        for silu, with_bias, states in itertools.product((False, True), repeat=3):
            given = (x, weight, bias if with_bias else None, None, initial if states else None)
            check_tensors(given, silu, states)


@each_dtype
@each_width
@each_device
def test_the_whole_update_grid_of_the_field(device: str, width: int, dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(width)
    for dim, seqlen, ring, gathered in itertools.product([2048, 2064, 4096], [1, 4, 5], [False, True], [False, True]):
        batch, state_len = 64, (width - 1 + seqlen) if ring else width - 1
        x = torch.randn(batch, dim, seqlen, generator=g).to(device, dtype)
        weight, bias = (torch.randn(s, generator=g).to(device) for s in ((dim, width), (dim,)))
        states = torch.randn(10 * batch if gathered else batch, dim, state_len, generator=g).to(device, dtype)
        rows = torch.randperm(10 * batch, generator=g)[:batch].int() if gathered else None
        if rows is not None:
            rows[-3:] = -1
            rows = rows.to(device)
        steps = torch.randint(0, 1024, (batch,), generator=g).int().to(device) if ring else None
        mine, theirs = states.clone(), states.double()
        out = causal_conv1d_update(x, mine, weight, bias, "silu", steps, rows)
        truth = causal_conv1d_update_ref(x.double(), theirs, weight.double(), bias.double(), "silu", steps, rows)
        _assert_rounded(out, truth)
        assert torch.equal(mine.double(), theirs)


# Kernels of channel_first have a block for each row, or number their blocks along x; those of channel_last have tiles
# of 64 steps and channels, so that it takes 4.2 million of these. In emulation each block costs microseconds.
MANY = [
    *(Call(*shape, last=last, silu=False) for shape in ((70_000, 1, 2), (1, 70_000, 2)) for last in (False, True)),
    *(Call(*shape, last=True, silu=False) for shape in ((1, 2, 4_200_000), (1, 4_200_000, 2))),
    Call(1, 2, 4_200_000, silu=False),
]


@pytest.mark.parametrize("call", MANY, ids=lambda c: f"{c.batch}x{c.dim}x{c.seqlen}-{'last' if c.last else 'first'}")
def test_more_than_65535_blocks_in_any_dimension(call: Call) -> None:
    check_call(call)

"""Element offsets are counted in 64 bits: every tensor of every kernel, over memory that lies 2^32 elements apart.

Addresses are taken for that, and a few pages exist. An offset taken modulo 2^32 stays among them, so that a kernel that
computes one in 32 bits gives wrong results and not a crash.
"""

from __future__ import annotations

import json
import math
import mmap
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from planted import Planted, plant

from cc1d_lab import build, kernel, variants
from cc1d_lab.case import Case

FAR = 2**32
NO_RESERVE = 0x4000  # Linux's MAP_NORESERVE, which the mmap module has no name for
STATES = ("seq_idx", "initial_states")
FORWARD = ("x", "weight", "out", *STATES, "final_states")
BACKWARD = ("x", "weight", "dout", "dx", "dweight", *STATES, "dfinal_states", "dinitial_states")
TENSORS = {"fwd": FORWARD, "bwd": BACKWARD, "update": ("x", "weight", "out", "conv_state")}
OUTPUTS = ("out", "final_states", "dx", "dweight", "dbias", "dinitial_states", "conv_state")
KERNELS = [v for op in TENSORS for v in variants.select("all", op) if v.executed_flops is None]


def cases_of(variant: variants.Variant, layout: str) -> list[Case]:
    """Rows of whole vectors along the contiguous dimension, and a few of them; plain, and with states and seq_idx."""
    dim, seqlen = (3, 70) if layout == "channel_first" else (70, 3)
    plain = Case(2, dim, seqlen, dtype="float16", layout=layout, op=variant.op)
    return [plain, replace(plain, states=True, seq_idx=True)] if len(variant.features) == 2 else [plain]


def tensors_of(case: Case) -> list[str]:
    """Names of the tensors of a case."""
    packed = ("seq_idx", "initial_states", "final_states", "dfinal_states", "dinitial_states")
    return [name for name in TENSORS[case.op] if case.states or name not in packed]


def near_tensors(case: Case) -> dict[str, torch.Tensor]:
    """All that the op reads and writes, dense; what it writes is NaN."""
    g = torch.Generator().manual_seed(0)
    steps, states = (case.batch, case.dim, case.seqlen), (case.batch, case.dim, case.width - 1)
    shapes = {"weight": (case.dim, case.width), "dweight": (case.dim, case.width), "dbias": (case.dim,)}
    found = {}
    for name in (*tensors_of(case), *(("dbias",) if case.op == "bwd" else ())):
        shape = shapes.get(name, states if "state" in name else steps)
        made = torch.randn(shape, generator=g).half()
        found[name] = made if name == "conv_state" or name not in OUTPUTS else torch.full_like(made, math.nan)
        if case.layout == "channel_last" and shape == steps:
            found[name] = found[name].transpose(1, 2).contiguous().transpose(1, 2)
    if "seq_idx" in found:
        found["seq_idx"] = torch.tensor([[0] * (case.seqlen - 1) + [1], [4] * case.seqlen], dtype=torch.int32)
    return found


def far_apart(near: torch.Tensor, keep: int | None) -> torch.Tensor:
    """The same values, neighbours in each dimension more than 2^32 elements apart; in dimension `keep` as they were."""
    strides, low = [0] * near.dim(), 1
    for i in sorted(range(near.dim()), key=lambda i: i != keep):  # the low parts number the elements
        strides[i], low = low + (FAR if i != keep else 0), low * near.shape[i]
    return strided(near, strides)


def strided(near: torch.Tensor, strides: Sequence[int]) -> torch.Tensor:
    """The same values by other strides, in memory of which those pages exist that hold one."""
    size = sum((n - 1) * s for n, s in zip(near.shape, strides, strict=True)) + 1
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NO_RESERVE
    memory = mmap.mmap(-1, size * near.itemsize, flags=flags)
    memory.madvise(mmap.MADV_NOHUGEPAGE)  # a page for each element, and these small
    held = torch.frombuffer(memory, dtype=near.dtype, count=size)
    return held.as_strided(near.shape, strides).copy_(near)


def run(loaded: kernel.Kernel, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    more = dict(tensors)
    x, weight, out = more.pop("x"), more.pop("weight"), more.pop("out", None)
    kernel.bind(loaded, x, weight, torch.arange(x.shape[1]).half(), out, **more)()
    return {name: t.clone() for name, t in tensors.items() if name in OUTPUTS}


def wrong_tensors(variant: variants.Variant, case: Case) -> list[str]:
    """Tensors that may not lie far apart: with them, some result is another."""
    loaded = kernel.load(build.build(variant, case, {}, "cpu").library)
    expected = run(loaded, near_tensors(case))
    assert not any(t.isnan().any() for t in expected.values())
    wrong = []
    for name in tensors_of(case):
        rows = {3: 1 if case.layout == "channel_last" else 2, 2: 1}[near_tensors(case)[name].dim()]
        for keep in (None, rows):
            tensors = near_tensors(case)
            tensors[name] = far_apart(tensors[name], keep)
            found = run(loaded, tensors)
            if not all(torch.equal(t, found[n]) for n, t in expected.items()):
                wrong.append(name)
    return wrong


@pytest.mark.parametrize("variant", KERNELS, ids=lambda v: v.name)
def test_every_tensor_may_lie_far_apart(variant: variants.Variant) -> None:
    for case in [case for layout in variant.layouts for case in cases_of(variant, layout)]:
        assert wrong_tensors(variant, case) == [], case.title()


@pytest.mark.parametrize(
    ("variant", "tensor", "old", "file"),
    [
        ("fwd_naive", "x", "batch * p.x_batch_stride", "fwd_naive.hip"),
        ("fwd_shared_memory", "initial_states", "batch * p.initial_states_batch_stride", "include/cc1d/states.h"),
        ("fwd_register", "out", "dim * dim_stride", "include/cc1d/frame.h"),
        ("fwd_raster", "final_states", "batch * p.final_states_batch_stride", "include/cc1d/states.h"),
        ("bwd_channel_last", "dx", "t * p.dx_seq_stride", "bwd_channel_last.hip"),
        ("update_naive", "conv_state", "row * p.conv_state_batch_stride", "include/cc1d/decode.h"),
    ],
)
def test_an_offset_in_32_bits_is_found(
    variant: str, tensor: str, old: str, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bug = Planted("narrow", variant, old, f"static_cast<int32_t>({old})", Case(), file)
    monkeypatch.setenv("CC1D_KERNELS", str(plant(bug, tmp_path)))
    found = variants.get(variant)
    case = cases_of(found, found.layouts[0])[-1 if "states" in file else 0]
    assert tensor in wrong_tensors(found, case)


TURNED = Case(2, 515, 50, dtype="float16", layout="channel_last")
TURNED_STRIDES = (515, 2**30 - 1, 2**31 + 3)  # of a step: one after the other, within 32 bits of bytes, and beyond


def wrong_strides() -> list[int]:
    """Strides of TURNED_STRIDES by which rows of channels that turn, in batches far apart, give another result."""
    loaded = kernel.load(build.build(variants.get("fwd_raster"), TURNED, {}, "cpu").library)
    expected = run(loaded, near_tensors(TURNED))["out"]
    wrong = []
    for stride in TURNED_STRIDES:
        tensors = near_tensors(TURNED)
        for name in ("x", "out"):
            tensors[name] = strided(tensors[name], (stride * TURNED.seqlen + FAR, 1, stride))
        if not torch.equal(run(loaded, tensors)["out"], expected):
            wrong.append(stride)
    return wrong


def test_rows_that_turn_may_lie_far_apart() -> None:
    assert wrong_strides() == []


@pytest.mark.parametrize(
    ("old", "new", "file", "strides"),
    [
        ("static_cast<uint64_t>(n) * bytes", "n * bytes", "include/cc1d/packed.h", [2**30 - 1]),
        (
            "place.batch * turned.x_batch_bytes",
            "place.batch * static_cast<uint32_t>(turned.x_batch_bytes)",
            "",
            [515, 2**30 - 1],
        ),
        ("kMost = 1 << 30", "kMost = index_t(1) << 40", "", [2**31 + 3]),
    ],
)
def test_rows_that_turn_and_are_counted_too_narrowly_are_found(
    old: str, new: str, file: str, strides: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bug = Planted("narrow", "fwd_raster", old, new, TURNED, file or "fwd_raster.hip")
    monkeypatch.setenv("CC1D_KERNELS", str(plant(bug, tmp_path)))
    assert wrong_strides() == strides


# --- how many there are ---------------------------------------------------------------------------

# A process for each narrow build: what counts too narrowly may do anything. Prints how each ended.
COUNTS = """
import json, os, signal, sys
sys.path.insert(0, sys.argv[1])
import torch
from cc1d_lab import build, kernel
from test_offsets import KERNELS, near_tensors, run
from cc1d_lab.case import Case
from cc1d_lab.errors import LaunchError

torch.set_num_threads(1)

def loaded(variant, case, index):
    build.INDEX = index
    knobs = {name: min(t.choices) for name, t in variant.tunables.items() if name == "block"}
    return kernel.load(build.build(variant, case, knobs, "cpu").library)

def narrowed(variant, case, truth):
    narrow = loaded(variant, case, "int16_t")
    pid = os.fork()
    if pid:
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        return {0: "right", 1: "wrong", 2: "refused"}.get(code, f"ended {code}")
    signal.alarm(10)
    try:
        found = run(narrow, near_tensors(case))
        os._exit(0 if all(torch.equal(found[n], t) for n, t in truth.items()) else 1)
    except LaunchError:
        os._exit(2)
    except BaseException:
        os._exit(1)

for variant in KERNELS:
    for name, sizes in (("seqlen", (1, 1, 33_000)), ("dim", (1, 33_000, 1)), ("batch", (33_000, 1, 1))):
        case = Case(*sizes, dtype="float16", layout=variant.layouts[0], op=variant.op)
        truth = run(loaded(variant, case, "int64_t"), near_tensors(case))
        assert not any(t.isnan().any() for t in truth.values()), case.title()
        print(json.dumps([variant.name, name, narrowed(variant, case, truth)]), flush=True)
"""
# The number of a block, of which a grid has less than 2^31; and steps, where longer rows are refused.
ELSEWHERE = {("fwd_raster", "batch"), ("fwd_register", "seqlen"), ("bwd_warp_walk", "seqlen")}


@pytest.mark.full
def test_kernels_count_in_the_type_of_indices() -> None:
    """With a 16-bit index_t every kernel fails past 32767 of anything, as with 32 bits it would past 2^31.

    One that does not fail counts in a type of its own, which a case that fits into this machine's memory cannot show.
    """
    here = str(Path(__file__).parent)
    done = subprocess.run([sys.executable, "-c", COUNTS, here], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-500:]
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == 3 * len(KERNELS)
    assert {(variant, of) for variant, of, how in found if how == "right"} == ELSEWHERE

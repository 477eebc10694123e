"""No kernel reads or writes past its tensors: they end where a page that nobody may touch begins."""

from __future__ import annotations

import subprocess
import sys

import pytest

from cc1d_lab import variants

# A process of its own: a stray access ends it. x, out, dout, dx, seq_idx and the states are the last bytes before a
# page without access.
SCRIPT = """
import ctypes, mmap, sys
import torch
from cc1d_lab import build, kernel, reference, variants
from cc1d_lab.case import Case

libc, kept = ctypes.CDLL(None, use_errno=True), []

def at_the_end(shape, dtype, last):
    size = torch.empty(shape, dtype=dtype).nbytes
    pages = -(-size // mmap.PAGESIZE)
    memory = mmap.mmap(-1, (pages + 1) * mmap.PAGESIZE)
    kept.append(memory)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    assert libc.mprotect(ctypes.c_void_p(address + pages * mmap.PAGESIZE), mmap.PAGESIZE, 0) == 0
    flat = torch.frombuffer(memory, dtype=dtype, count=size // dtype.itemsize, offset=pages * mmap.PAGESIZE - size)
    if not last:
        return flat.view(shape)
    batch, dim, seqlen = shape
    return flat.view(batch, seqlen, dim).transpose(1, 2)

def more(shape, dtype, packed):
    # Inputs and outputs of a call with states and packed sequences.
    if not packed:
        return {}
    batch, dim, seqlen = shape
    seq_idx = at_the_end((batch, seqlen), torch.int32, False).copy_(torch.arange(seqlen) // 5)
    seq_idx[-1, seqlen - seqlen // 8 :] = -1
    states = [at_the_end((batch, dim, 3), dtype, False).fill_(1) for _ in range(2)]
    return {"seq_idx": seq_idx, "initial_states": states[0], "final_states": states[1]}

variant = variants.get(sys.argv[1])
packable = len(variant.features) == 2 and variant.op == "fwd"

def run(loaded, x, weight, bias, out, dout, edge):
    # A forward into out, or a backward into it as dx.
    if variant.op == "fwd":
        return kernel.bind(loaded, x, weight, bias, out, **edge)()
    sums = {"dweight": torch.empty_like(weight), "dbias": torch.empty_like(bias)}
    kernel.bind(loaded, x, weight, bias, None, dout=dout, dx=out, **sums)()

for dtype, packed in [(d, False) for d in variant.dtypes] + [("bfloat16", True)] * packable:
    for layout in variant.layouts:
        config = Case(dtype=dtype, layout=layout, states=packed, seq_idx=packed, op=variant.op)
        if dtype == "float64" or variants.why_not(variant, config, "cpu"):
            continue
        loaded = kernel.load(build.build(variant, config, {}, "cpu").library)
        shapes = [(1, 1, 1), (1, 10, 1), (2, 5, 3), (1, 3, 17), (2, 7, 129), (1, 64, 65), (2, 9, 64)]
        shapes += [(1, 133, 9), (2, 513, 10), (1, 545, 97)] * (layout == "channel_last")
        shapes += [(1, 3, 1025), (4, 3, 1023)] * (layout == "channel_first")
        for shape in shapes:
            torch_dtype, last = reference.DTYPES[dtype], layout == "channel_last"
            x, out, dout = (at_the_end(shape, torch_dtype, last) for _ in range(3))
            x.copy_(torch.randn(shape))
            dout.copy_(torch.randn(shape))
            weight, bias = torch.randn(shape[1], 4, dtype=torch_dtype), torch.randn(shape[1], dtype=torch_dtype)
            edge = more(shape, torch_dtype, packed)
            run(loaded, x, weight, bias, out, dout, edge)
            again, copies = torch.empty_like(x), {name: t.clone() for name, t in edge.items()}
            run(loaded, x.clone(), weight, bias, again, dout.clone(), copies)
            assert torch.equal(out, again), (dtype, layout, shape, packed)
            assert all(torch.equal(t, copies[name]) for name, t in edge.items()), (dtype, layout, shape)
print("done")
"""


@pytest.mark.parametrize("name", [v.name for op in ("fwd", "bwd") for v in variants.select("all", op)])
def test_nothing_past_the_end_is_touched(name: str) -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT, name], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, f"exit code {done.returncode}: {done.stderr[-500:]}"
    assert done.stdout.strip() == "done"

"""The programs of the pipeline study: S2's program from host to host, and what each of its proposals does to it.

A program is named by the proposals that it follows, joined with +; `naive` follows none:

    transpose on the host to (batch, seqlen, dim), allocate, copy to the device, the kernels of im2col, expand_weight,
    gemm and bias once for every element of the batch, copy back, transpose back, free

Here are the names alone, without torch; `pipeline` runs them.
"""

from __future__ import annotations

import itertools

from .case import Case
from .errors import ConfigError, one_of

NAIVE = "naive"
PROPOSALS = {
    "pool": "buffers are kept from run to run, not allocated and freed in each",
    "streams": "two streams and pinned memory on the host: parts of the batch are copied while others are computed",
    "grid": "the batch is in the grid: one launch of each kernel, not one for every element of the batch",
    "unified": "unified memory: the host writes and reads where the kernels do, and nothing is copied",
    "fused": "one kernel of the convolution itself instead of im2col and a matrix product; nothing lies in between",
    "strided": "kernels take x as it lies, so that the host transposes nothing (ours: S2 does not propose it)",
}
STAGED = "fwd_im2col_wmma"  # S2's four kernels
FUSED = {"channel_last": "fwd_raster", "channel_first": "fwd_register"}
UNIFIED_BYTES = 2**28  # a study of small sizes: beyond, paging is all that would be seen


def proposals(program: str) -> tuple[str, ...]:
    """What a program follows, in the order of PROPOSALS: () for `naive`.

    ConfigError for an unknown proposal, one that is named twice, and for two that exclude each other.
    """
    named = [] if program == NAIVE else program.split("+")
    for name in named:
        one_of("program", name, [NAIVE, *PROPOSALS])
    if NAIVE in named or len(set(named)) < len(named):
        raise ConfigError(f"program: {program!r} must be {NAIVE!r}, or proposals joined with +, each once")
    if {"unified", "streams"} <= set(named):
        raise ConfigError(f"program: {program!r}: unified memory leaves no copies to overlap; take one of the two")
    return tuple(name for name in PROPOSALS if name in named)


def canonical(program: str) -> str:
    """The name of a program with its proposals in their order. ConfigError as `proposals`."""
    return "+".join(proposals(program)) or NAIVE


def kernel_of(program: str) -> tuple[str, str]:
    """(variant, layout on the device) of a program."""
    follows = proposals(program)
    layout = "channel_first" if "strided" in follows else "channel_last"
    return (FUSED[layout] if "fused" in follows else STAGED), layout


def why_not(program: str, case: Case, backend: str) -> str:
    """Why a program cannot run a case on a backend, whatever its kernels can do, or ''."""
    follows = proposals(program)
    no_streams = "the emulation has no streams: a launch has ended when it returns"
    one_memory = "host and device are one memory in emulation"
    checks = (
        (case.op == "fwd" and not case.states and not case.seq_idx, "the pipeline is a plain forward"),
        (case.view == "contiguous", f"view {case.view}: the data of the host lie side by side"),
        (backend != "cpu" or "streams" not in follows, no_streams),
        (backend != "cpu" or "unified" not in follows, one_memory),
        (case.batch > 1 or "streams" not in follows, "batch 1: there is nothing to overlap with"),
    )
    return next((reason for fine, reason in checks if not fine), "")


def chunks(program: str, batch: int) -> list[tuple[int, int]]:
    """The parts [from, to) of the batch that are launched, and with `streams` copied, on their own."""
    follows = proposals(program)
    count = batch if "grid" not in follows else min(batch, 4) if "streams" in follows else 1
    edges = [batch * i // count for i in range(count + 1)]
    return list(itertools.pairwise(edges))

"""The program that is profiled: a cell from host memory to host memory, as S2's pipeline runs it.

    python -m cc1d_lab.profiler.target CELL [TRACE]

CELL is the cell as JSON. Tensors are made on the host, copied, the cell is launched LAUNCHES times, its outputs are
copied back. With TRACE, torch.profiler watches and writes its trace there.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from .. import backends, build, kernel, reference
from ..case import Case
from ..cell import Cell
from ..timing import current_stream
from .readers import trace_times

LAUNCHES = 5


def from_json(text: str) -> Cell:
    """The cell that `run.to_json` wrote."""
    fields = json.loads(text)
    return Cell(**fields | {"case": Case(**fields["case"])})


def run(cell: Cell) -> dict[str, torch.Tensor]:
    """Host to device, LAUNCHES launches, device to host. Returns the outputs, on the host."""
    device = backends.get(cell.backend).torch_device
    loaded = kernel.load(build.build_cell(cell).library)
    host = reference.make_inputs(cell.case)
    shapes, _ = reference.make_outputs(cell.case, host)
    x = host.x_buffer.to(device).as_strided(host.x.shape, host.x.stride(), host.x.storage_offset())
    weight, bias = host.weight.to(device), None if host.bias is None else host.bias.to(device)
    more = {name: t.to(device) for name, t in host.more.items()}
    outputs = {n: torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device=device) for n, t in shapes.items()}
    if "conv_state" in outputs:  # an update moves it on in place
        outputs["conv_state"] = more["conv_state"]
    bound = kernel.bind(loaded, x, weight, bias, outputs.get("out"), **_without_out({**more, **outputs}))
    for _ in range(LAUNCHES):
        bound(current_stream(device))
    return {name: t.cpu() for name, t in outputs.items()}


def _without_out(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: t for name, t in tensors.items() if name != "out"}


@contextlib.contextmanager
def _watched(trace: Path | None) -> Iterator[None]:
    if trace is None:
        yield
        return
    torch.ones(1, device="cuda").item()  # the device is there before the watch begins
    # CUPTI's activities hold the calls of the runtime, too; torch's own operators are left out.
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as watch:
        yield
    watch.export_chrome_trace(str(trace))
    # A trace names the machine and its folders, and what is read of it is a small part.
    trace.write_text(json.dumps({"traceEvents": trace_times(trace)}))


def main(arguments: list[str]) -> None:
    """Build first, so that no compiler is watched; then run."""
    cell = from_json(arguments[0])
    build.build_cell(cell)
    with _watched(Path(arguments[1]) if len(arguments) > 1 else None):
        run(cell)


if __name__ == "__main__":
    main(sys.argv[1:])

"""Arithmetic and bytes per output, counted in the machine code on a kernel's main path (`cc1d_lab.main_path`).

What the widest stores on the path move are the outputs. It is a lower bound: what a shorter way leaves out (a bias that
may be absent, the slow path of a row's end) is not in it, loops go round once where nothing says how often (`loops`
says that there are such), and loads through the scalar cache, which a wave shares, are left out. What is masked or
predicated counts for every lane.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields

from .case import Case
from .machine_code import Inspection, float_ops, flow, matrix_ops, moved_bytes, widest_bytes
from .main_path import code_of, loops_on, main_path


@dataclass(frozen=True)
class Work:
    """Per output: `float_ops` on the vector units, `matrix_ops` on the matrix cores, bytes loaded and stored by a lane.

    `outputs`: what a lane stores on the path, in elements of the case's dtype (where a stage stores fp32, a 16-bit case
    counts each as two). `within`: `loop` or `kernel`, what the path goes through. `loops`: whether there are loops on
    it, whose rounds are not known.
    """

    outputs: float
    float_ops: float
    matrix_ops: float
    load_bytes: float
    store_bytes: float
    within: str
    loops: bool


def per_output(kernel: Inspection) -> Work | None:
    """The work of one kernel; None when it stores nothing to global memory, or its main path cannot be told."""
    if not any(i.kind == "store" for i in kernel.instructions):
        return None
    graph = flow(kernel.instructions)
    head, path = main_path(graph)
    if not path:
        return None
    code = code_of(graph, path)
    outputs = widest_bytes(code, "store") / kernel.cell.case.itemsize
    return Work(
        outputs=outputs,
        float_ops=float_ops(code) / outputs,
        matrix_ops=matrix_ops(code, kernel.kernel.wave) / outputs,
        load_bytes=moved_bytes(code, "load") / outputs,
        store_bytes=moved_bytes(code, "store") / outputs,
        within="kernel" if head in graph.entry else "loop",
        loops=bool(loops_on(graph, head, path)),
    )


def table(kernel: Inspection) -> dict[str, object]:
    """`per_output` and `model` of a kernel in one record: what stands in tables and in JSON. None where not counted."""
    found, needed = per_output(kernel), model(kernel.cell.case)
    counted = asdict(found) if found else dict.fromkeys(f.name for f in fields(Work))
    return counted | {f"model_{name}": value for name, value in needed.items()}


def model(case: Case) -> dict[str, float]:
    """What the problem itself needs per output: `flops` (the activation left out) and `bytes` (each tensor once)."""
    return {"flops": case.flops() / case.outputs, "bytes": case.bytes() / case.outputs}

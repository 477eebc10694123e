"""Arithmetic and bytes per output, counted in the machine code on a kernel's main path.

How it is counted. Of the blocks of code, the one in which the widest stores to global memory move the most bytes is the
main block; the elements stored on the path are the outputs. The path is the shortest way through the main block, in
instructions: around the innermost loop that it is in, else from the first instruction of the kernel to the last. Since
every output needs an input of its own, a path that loads fewer bytes than it stores is not the one that is looked for,
nor is one without matrix instructions where there are some: then comes the shortest way that also leads through a block
with the most bytes of the widest loads, or with matrix instructions, and then the same around the next loop outside.
On amd, code under a mask (skipped by s_cbranch_execz, when no lane is left) is taken to run; of two arms under opposite
masks, one does.

So it is a lower bound: what a shorter way leaves out (a bias that may be absent, the slow path of a row's end) is not
in it, loops on the way count once (`loops` says whether there are any), and loads through the scalar cache, which a
wave shares, are left out. What is masked or predicated counts for every lane.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields

from .case import Case
from .machine_code import Flow, Inspection, Instruction, float_ops, flow, reached


@dataclass(frozen=True)
class Work:
    """Per output: `float_ops` on the vector units, `matrix_ops` on the matrix cores, bytes loaded and stored by a lane.

    `outputs`: what a lane stores on the path, in elements of the case's dtype (where a stage stores fp32, a 16-bit case
    counts each as two). `within`: `loop` or `kernel`, what the path goes through. `loops`: whether there are loops on
    it, of which one round is counted.
    """

    outputs: float
    float_ops: float
    matrix_ops: float
    load_bytes: float
    store_bytes: float
    within: str
    loops: bool


def per_output(kernel: Inspection) -> Work | None:
    """The work of one kernel; None when it stores nothing to global memory."""
    graph = flow(kernel.instructions) if kernel.instructions else None
    stores = _widest(graph, "store", set(graph.blocks)) if graph else []
    if graph is None or not stores:
        return None
    head, path = _main_path(graph, stores[0])
    code = _code(graph, path)
    widest = max(i.width for i in code if i.kind == "store")
    outputs = sum(i.width for i in code if i.kind == "store" and i.width == widest) / kernel.cell.case.itemsize
    return Work(
        outputs=outputs,
        float_ops=float_ops(code) / outputs,
        matrix_ops=sum(_matrix_ops(i, kernel.kernel.wave) for i in code) / outputs,
        load_bytes=_bytes(code, "load") / outputs,
        store_bytes=_bytes(code, "store") / outputs,
        within="kernel" if head in graph.entry else "loop",
        loops=any(other != head and body & set(path) for other, body in _inside(graph, head)),
    )


def table(kernel: Inspection) -> dict[str, object]:
    """`per_output` and `model` of a kernel in one record: what stands in tables and in JSON. None where not counted."""
    found, needed = per_output(kernel), model(kernel.cell.case)
    counted = asdict(found) if found else dict.fromkeys(f.name for f in fields(Work))
    return counted | {f"model_{name}": value for name, value in needed.items()}


def model(case: Case) -> dict[str, float]:
    """What the problem itself needs per output: `flops` (the activation left out) and `bytes` (each tensor once)."""
    return {"flops": case.flops() / case.outputs, "bytes": case.bytes() / case.outputs}


def _code(graph: Flow, path: Iterable[int]) -> list[Instruction]:
    return [i for begin in path for i in graph.blocks[begin]]


def _bytes(code: Iterable[Instruction], kind: str) -> int:
    return sum(i.width for i in code if i.kind == kind)


def _widest(graph: Flow, kind: str, among: set[int]) -> list[int]:
    """Blocks in which the widest accesses of a kind move most; none when there is no such access."""
    found = {b: [i.width for i in graph.blocks[b] if i.kind == kind] for b in sorted(among)}
    width = max((w for widths in found.values() for w in widths), default=0)
    moved = {b: sum(w for w in widths if w == width) for b, widths in found.items()}
    most = max(moved.values(), default=0)
    return [b for b, n in moved.items() if n == most and n]


# --- the path --------------------------------------------------------------------------------------------------------

State = tuple[int, bool]  # a block, and whether control jumped there over masked code


def _main_path(graph: Flow, main: int) -> tuple[int, list[int]]:
    """Where the main path begins, and its blocks: around a loop, or through the kernel."""
    whole = (min(graph.entry), reached(graph.entry, graph.follow))
    around = sorted((loop for loop in graph.loops().items() if main in loop[1]), key=lambda loop: len(loop[1]))
    head, path = whole[0], [main]
    for head, body in [*around, whole]:
        path = _through(graph, body, head, [main]) or path
        if not _enough(graph, path, body):
            ways = [way for points in _detours(graph, body, main) if (way := _through(graph, body, head, points))]
            good = [way for way in ways if _enough(graph, way, body)]
            path = min(good or ways, key=lambda way: len(_code(graph, way)), default=path)
        if _enough(graph, path, body):
            break
    return head, path


def _enough(graph: Flow, path: list[int], body: set[int]) -> bool:
    """Whether a path loads what its outputs need, and uses the matrix cores where `body` does."""
    code = _code(graph, path)
    is_matrix = any(i.kind == "matrix" for i in code) or not _matrix_blocks(graph, body)
    return _bytes(code, "load") >= _bytes(code, "store") and is_matrix


def _detours(graph: Flow, body: set[int], main: int) -> Iterator[list[int]]:
    """Points to pass before `main`: a block with the widest loads, one with matrix instructions, both."""
    loads, matrix = _widest(graph, "load", body), _matrix_blocks(graph, body)
    yield from ([load, main] for load in loads)
    yield from ([m, main] for m in matrix)
    yield from ([load, m, main] for load in loads for m in matrix)


def _matrix_blocks(graph: Flow, among: set[int]) -> list[int]:
    return [b for b in sorted(among) if any(i.kind == "matrix" for i in graph.blocks[b])]


def _inside(graph: Flow, head: int) -> list[tuple[int, set[int]]]:
    """The loops inside of the one that begins at `head`, or all when none does."""
    every = graph.loops()
    return [(h, body) for h, body in every.items() if head not in every or body < every[head]]


def _through(graph: Flow, body: set[int], head: int, points: list[int]) -> list[int]:
    """Blocks of the shortest way from `head` through `points` to where the body ends; nothing when there is none."""
    ends = {b for b in body if not [a for a in graph.follow[b] if a in body] or head in graph.follow[b]}
    for masked in (True, False):  # where no way keeps to the masks, they are left out of account
        way: list[State] = [(head, False)]
        for goal in [*({point} for point in points), ends]:
            leg = _shortest(graph, body, head, way[-1], goal, masked)
            way = [*way, *leg[1:]] if leg else []
            if not way:
                break
        if way:
            return [b for b, _ in way]
    return []


def _shortest(graph: Flow, body: set[int], head: int, start: State, ends: set[int], masked: bool) -> list[State]:
    """States from `start` to the first block of `ends`, fewest instructions first; nothing when there is no way."""
    before: dict[State, State | None] = {}
    waiting: list[tuple[int, State, State | None]] = [(0, start, None)]
    while waiting:
        cost, state, came = heapq.heappop(waiting)
        if state in before:
            continue
        before[state] = came
        if state[0] in ends:
            return _way(before, state)
        for after in _next(graph, state, masked):
            if after[0] in body and after[0] != head:
                heapq.heappush(waiting, (cost + len(graph.blocks[after[0]]), after, state))
    return []


def _way(before: dict[State, State | None], end: State) -> list[State]:
    way: list[State] = []
    at: State | None = end
    while at is not None:
        way.append(at)
        at = before[at]
    return way[::-1]


def _next(graph: Flow, state: State, masked: bool) -> Iterator[State]:
    """Where control goes on. Masked code without an alternative runs; of two arms, one."""
    block, jumped = state
    last = graph.blocks[block][-1]
    if not masked or last.name != "s_cbranch_execz":
        yield from ((after, False) for after in graph.follow[block])
        return
    falls = [after for after in graph.follow[block] if after != last.target]
    first_of_two = last.target is not None and _is_else(graph.blocks.get(last.target, []))
    if not _is_else(graph.blocks[block]):
        yield from ((after, False) for after in falls)
        if first_of_two and last.target is not None:
            yield last.target, True
    elif jumped:
        yield from ((after, False) for after in falls)
    elif last.target is not None:
        yield last.target, False


_ELSE = ("s_or_saveexec", "s_andn2_saveexec", "s_and_not1_saveexec")  # how LLVM turns a mask into its opposite


def _is_else(block: Iterable[Instruction]) -> bool:
    return any(i.name.startswith(_ELSE) for i in block)


# --- matrix cores ----------------------------------------------------------------------------------------------------

_SHAPE = re.compile(r"(\d+)x(\d+)x(\d+)")
_NVIDIA_SHAPES = {"16816": (16, 8, 16), "1688": (16, 8, 8), "884": (8, 8, 4)}


def _matrix_ops(i: Instruction, wave: int) -> float:
    """A lane's share of the multiplications and additions of one matrix instruction."""
    if i.kind != "matrix":
        return 0.0
    found = _SHAPE.search(i.name)
    m, n, k = map(int, found.groups()) if found else _NVIDIA_SHAPES.get(i.name.split(".")[1], (0, 0, 0))
    return 2.0 * m * n * k / wave

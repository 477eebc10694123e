"""The way through a kernel's machine code that does its main work.

Of all ways from the first instruction to the last, the main path is the one that stores the most by its widest stores
to global memory; of these the one with the most matrix instructions; of these the shortest, in instructions. Where a
loop alone does half of the arithmetic or more, the path leads around that loop instead (the innermost such). On amd,
code under a mask is taken to run; of two arms under opposite masks, one does.

Every output needs an input of its own, so a path must load no fewer bytes than it stores. If it does not, the one that
loads the most by its widest loads comes before the shortest, and loops on it that load and do not store go round until
it is enough. A loop that only moves results out of shared memory goes round until what was put there is out. Every
other loop on the path goes round once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from operator import add

from .machine_code import Flow, Instruction, float_ops, matrix_ops, moved_bytes, reached, widest_bytes

State = tuple[int, bool]  # a block, and whether control jumped there over masked code
Worth = tuple[int, ...]  # of a way, compared from the left


def main_path(graph: Flow) -> tuple[int, list[int]]:
    """Where the main path begins, and its blocks, each as often as it runs; no blocks where that cannot be told."""
    head, body = min(graph.entry), reached(graph.entry, graph.follow)
    whole = _best_way(graph, head, body)
    for begin, loop in sorted(graph.loops.items(), key=lambda item: len(item[1])):
        around = _best_way(graph, begin, loop)
        if _enough(graph, around) and 2 * _arithmetic(graph, around) >= max(1, _arithmetic(graph, whole)):
            return begin, around
    return head, whole


def _best_way(graph: Flow, head: int, body: set[int]) -> list[int]:
    """The way worth most, its loops going round as often as they must; with loads that it may leave out if it must."""
    ways = (_with_loads(graph, head, _moved_out(graph, head, _way(graph, head, body, most))) for most in (False, True))
    return next((way for way in ways if _enough(graph, way)), [])


def code_of(graph: Flow, path: Iterable[int]) -> list[Instruction]:
    """The instructions of blocks."""
    return [i for begin in path for i in graph.blocks[begin]]


def _enough(graph: Flow, path: list[int]) -> bool:
    """Whether a path stores, loads what its outputs need, and uses the matrix cores where the kernel does."""
    code = code_of(graph, path)
    has_matrix = any(i.kind == "matrix" for i in code_of(graph, graph.blocks))
    is_matrix = any(i.kind == "matrix" for i in code)
    return moved_bytes(code, "load") >= moved_bytes(code, "store") > 0 and is_matrix == has_matrix


def _arithmetic(graph: Flow, path: Iterable[int]) -> float:
    code = code_of(graph, path)
    return float_ops(code) + matrix_ops(code, wave=32)


def _moved_out(graph: Flow, head: int, way: list[int]) -> list[int]:
    """`way`, its loops that move results out of shared memory as often as they must go round.

    They read there and store, and neither load nor compute. A lane reads as much as it wrote between the last two
    barriers, in the loop that moves most in a round; the others are for what remains. Nothing without that, unless
    more is stored elsewhere.
    """
    loops = loops_on(graph, head, way)
    moving = [body for body in loops if _moves_out(code_of(graph, body))]
    rest = set().union(*moving)
    if moved_bytes(code_of(graph, rest), "store") < moved_bytes(code_of(graph, set(way) - rest), "store") or not rest:
        return way
    before = code_of(graph, way[: min(map(way.index, rest))])
    barriers = [at for at, i in enumerate(before) if i.name.startswith(_BARRIER) and i.name != "s_barrier_wait"]
    written = _shared(before[barriers[-2] : barriers[-1]], _PUT) if len(barriers) > 1 else 0
    main = max(moving, key=lambda body: moved_bytes(code_of(graph, body), "store"))
    rounds = written // _shared(code_of(graph, main), _GET)
    return [b for b in way for _ in range(rounds if b in main else b not in rest)] if rounds else []


def _moves_out(code: list[Instruction]) -> bool:
    is_used = moved_bytes(code, "load") or float_ops(code)
    return bool(moved_bytes(code, "store") and _shared(code, _GET) and not is_used)


_BARRIER = ("s_barrier", "BAR.")  # of a workgroup
_PUT, _GET = ("ds_write", "ds_store", "STS"), ("ds_read", "ds_load", "LDS")


def _shared(code: Iterable[Instruction], names: tuple[str, ...]) -> int:
    """Bytes that a lane puts into shared memory, or gets from there."""
    return sum(i.width for i in code if i.kind == "lds" and i.name.startswith(names))


def _with_loads(graph: Flow, head: int, way: list[int]) -> list[int]:
    """`way`, its loops that load and do not store as often as it takes to load as many bytes as are stored."""
    loading = {b for body in loops_on(graph, head, way) if not moved_bytes(code_of(graph, body), "store") for b in body}
    in_loops = moved_bytes(code_of(graph, loading), "load")
    missing = moved_bytes(code_of(graph, way), "store") - moved_bytes(code_of(graph, set(way) - loading), "load")
    rounds = max(1, -(-missing // in_loops)) if in_loops else 1
    return [b for b in way for _ in range(rounds if b in loading else 1)]


def loops_on(graph: Flow, head: int, path: Iterable[int]) -> list[set[int]]:
    """Of each loop on the path inside of the one that begins at `head`, or of all when none does, the blocks there."""
    found = [body.intersection(path) for body in _loops_inside(graph, head).values()]
    return [blocks for blocks in found if blocks]


def _loops_inside(graph: Flow, head: int) -> dict[int, set[int]]:
    """The loops inside of the one that begins at `head`, or all when none does."""
    return {h: body for h, body in graph.loops.items() if head not in graph.loops or body < graph.loops[head]}


def _way(graph: Flow, head: int, body: set[int], most_loads: bool) -> list[int]:
    """Blocks of the way worth most from `head` to where `body` ends, every loop once; nothing when there is none."""
    ends = {b for b in body if not [a for a in _follow(graph, b) if a in body] or head in graph.follow[b]}
    worth, loops = _worth(graph, body, most_loads), _loops_inside(graph, head)
    for masked in (True, False):  # where no way keeps to the masks, they are left out of account

        def after(state: State, masked: bool = masked) -> list[State]:
            onward = {s for to in _next(graph, state, masked) for s in _once(graph, loops, state[0], to)}
            return sorted(s for s in onward if s[0] in body and s[0] != head)

        best: dict[State, tuple[Worth, list[int]]] = {}
        for state in _last_first((head, False), after):
            ways = [best[s] for s in after(state) if s in best] + [((0, 0, 0, 0), [])] * (state[0] in ends)
            if ways:
                value, way = max(ways)
                best[state] = (tuple(map(add, worth[state[0]], value)), [state[0], *way])
        if (head, False) in best:
            return best[head, False][1]
    return []


def _follow(graph: Flow, block: int) -> list[int]:
    """Where control may go on. On nvidia, lanes that store under the guard of a branch behind are those that branch."""
    code = graph.blocks[block]
    last = code[-1]
    if last.guard and any(i.kind == "store" and i.guard == last.guard for i in _since_set(code, last.guard)):
        return [last.target] if last.target is not None else []
    return list(graph.follow[block])


def _since_set(code: list[Instruction], guard: str) -> list[Instruction]:
    """The end of a block behind the last instruction that sets a predicate: it is among the first two operands."""
    sets = [at for at, i in enumerate(code) if guard.lstrip("!") in i.operands.replace(" ", "").split(",")[:2]]
    return code[sets[-1] + 1 :] if sets else code


def _worth(graph: Flow, body: set[int], most_loads: bool) -> dict[int, Worth]:
    """Of each block: bytes of the widest stores, matrix instructions, bytes of the widest loads if asked, shortness."""
    code = code_of(graph, body)
    widest = {kind: max((i.width for i in code if i.kind == kind), default=0) for kind in ("load", "store")}

    def of(block: list[Instruction]) -> Worth:
        loads = widest_bytes(block, "load", widest["load"]) if most_loads else 0
        matrix = sum(i.kind == "matrix" for i in block)
        return widest_bytes(block, "store", widest["store"]), matrix, loads, -len(block)

    return {b: of(graph.blocks[b]) for b in body}


def _once(graph: Flow, loops: dict[int, set[int]], source: int, to: State) -> set[State]:
    """`to`; or, where that would begin a loop anew, where control goes on after the loop."""
    body = loops.get(to[0], set())
    if source not in body:
        return {to}
    left = {(b, a) for b in body for a in graph.follow[b] if a not in body}
    return {s for b, a in left for s in _once(graph, loops, b, (a, False))}


def _last_first(start: State, after: Callable[[State], list[State]]) -> list[State]:
    """The states that can be reached, each behind those that come after it."""
    found, order, waiting = {start}, [], [(start, iter(after(start)))]
    while waiting:
        state, rest = waiting[-1]
        fresh = next((s for s in rest if s not in found), None)
        if fresh is None:
            order.append(state)
            waiting.pop()
        else:
            found.add(fresh)
            waiting.append((fresh, iter(after(fresh))))
    return order


def _next(graph: Flow, state: State, masked: bool) -> Iterator[State]:
    """Where control goes on. Masked code without an alternative runs; of two arms, one."""
    block, jumped = state
    last = graph.blocks[block][-1]
    if not masked or last.name not in ("s_cbranch_execz", "s_cbranch_execnz") or last.target is None:
        yield from ((after, False) for after in _follow(graph, block))
        return
    beside = [after for after in graph.follow[block] if after != last.target]
    runs, skips = ([last.target], beside) if last.name.endswith("nz") else (beside, [last.target])
    if _is_else(graph.blocks[block]):
        yield from ((after, False) for after in (runs if jumped else skips))
    else:
        yield from ((after, False) for after in runs)
        yield from ((after, True) for after in skips if _is_other_arm(graph.blocks[block], graph.blocks[after]))


_ELSE = ("s_or_saveexec", "s_andn2_saveexec", "s_and_not1_saveexec")  # how LLVM turns a mask into its opposite


def _is_else(block: Iterable[Instruction]) -> bool:
    return any(i.name.startswith(_ELSE) for i in block)


def _is_other_arm(block: Iterable[Instruction], other: Iterable[Instruction]) -> bool:
    """Whether `other` turns around the mask that `block` saved, and does not only stand behind what `block` masks."""
    saved = {i.operands.split(",")[0] for i in block if "exec" in i.name + i.operands}
    return any(i.name.startswith(_ELSE) and i.operands.split(",")[-1].strip() in saved for i in other)

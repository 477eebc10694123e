"""Look at the machine code of a build: instructions by class, loops, memory by width, occupancy.

`amd` needs llvm-objdump (ROCm's, or the one of `make tools`), `nvidia` the CUDA toolkit's cuobjdump. Counts are static:
how often an instruction stands in the code, not how often it runs.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from . import code_object, occupancy
from .build import Built
from .cell import Cell
from .code_object import KernelCode
from .errors import CodeObjectError, ConfigError, ToolchainError
from .paths import kernels_dir

# Classes of instructions, in the order in which they are listed. Memory also stands by width: `load_16` is 16 bytes a
# lane. `hint` is what the scheduler is told (delays, clauses, padding).
CLASSES = {
    "valu": "vector arithmetic, one lane one element",
    "matrix": "matrix-core instructions (MFMA, WMMA, HMMA)",
    "salu": "scalar arithmetic (uniform datapath on nvidia)",
    "branch": "jumps",
    "load": "loads from global memory",
    "store": "stores to global memory",
    "scalar_load": "loads through the scalar (constant) cache",
    "lds": "shared memory",
    "scratch": "private memory: spills, arrays that did not fit in registers",
    "crosslane": "values passed between lanes",
    "barrier": "barriers of a workgroup",
    "wait": "waits for memory or for other counters",
    "atomic": "atomic operations on memory",
    "hint": "what only steers the scheduler",
}


@dataclass(frozen=True)
class Instruction:
    """One line of a listing. `target` is where a branch goes, bytes from the start of the kernel as `address` is.

    `guard` (nvidia): the predicate, such as `!P0`, of the lanes that do it; '' when all do.
    """

    address: int
    name: str
    operands: str
    target: int | None = None
    guard: str = ""

    @property
    def kind(self) -> str:
        """Its class, a key of CLASSES."""
        return _classify(self.name, self.operands)

    @property
    def width(self) -> int:
        """Bytes that a lane moves, for memory instructions; else 0."""
        return _width(self.name) if self.kind in ("load", "store", "lds", "scratch") else 0

    def __str__(self) -> str:
        goes = "" if self.target is None else f"  -> {self.target:#06x}"
        return f"{self.address:#06x}  {self.name} {self.operands}{goes}".rstrip()


@dataclass(frozen=True)
class Inspection:
    """One kernel of a build: what the code object states, its listing, and (amd) its occupancy."""

    cell: Cell
    kernel: KernelCode
    instructions: tuple[Instruction, ...]
    occupancy: occupancy.Occupancy | None

    def histogram(self) -> dict[str, int]:
        """Instructions by class, every class listed."""
        return histogram(self.instructions)

    def to_dict(self) -> dict[str, Any]:
        """What `cc1d inspect --json` prints of a kernel."""
        k, o = self.kernel, self.occupancy
        return {
            "variant": self.cell.variant,
            "backend": self.cell.backend,
            "arch": self.cell.arch,
            "kernel": k.name,
            "dtype": self.cell.case.dtype,
            "layout": self.cell.case.layout,
            "workgroup": k.workgroup,
            "wave": k.wave,
            "vgprs": k.vgprs,
            "agprs": k.agprs,
            "sgprs": k.sgprs,
            "lds_bytes": k.lds_bytes,
            "scratch_bytes": k.scratch_bytes,
            "spills": k.spills,
            "code_bytes": k.code_bytes,
            "arguments": [vars(a) for a in k.arguments],
            "waves_per_simd": o and o.waves_per_simd,
            "waves_most": o and o.most,
            "limited_by": o and o.limited_by,
            "instructions": self.histogram(),
            "memory": memory(self.instructions),
            "float_ops": float_ops(self.instructions),
            "loops": [
                {"from": b[0].address, "to": b[-1].address, "float_ops": float_ops(b), "instructions": histogram(b)}
                for b in loops(self.instructions)
            ],
        }


def inspect(cell: Cell, built: Built) -> list[Inspection]:
    """Every kernel of a build for amd or nvidia, in order. `cell.arch` must be given.

    Raises ToolchainError (no disassembler), CodeObjectError, ConfigError for a backend without machine code to show.
    """
    if cell.backend == "amd":
        kernels = code_object.read(built.library, cell.arch)
        code = disassemble_amd(built.library, cell.arch)
        known = cell.arch in occupancy.ARCHES
        return [
            Inspection(cell, k, code.get(k.name, ()), occupancy.occupancy(k, cell.arch) if known else None)
            for k in kernels
        ]
    if cell.backend == "nvidia":
        return _inspect_nvidia(cell, built.library)
    raise ConfigError(f"backend {cell.backend}: inspect reads the machine code of amd and nvidia")


# --- counting --------------------------------------------------------------------------------------------------------


def histogram(code: Iterable[Instruction]) -> dict[str, int]:
    """Instructions by class."""
    found = Counter(i.kind for i in code)
    return {name: found[name] for name in CLASSES}


def memory(code: Iterable[Instruction]) -> dict[str, int]:
    """Memory instructions by kind and width: {'load_16': 2, 'store_2': 8}; widths in bytes a lane."""
    found = Counter(f"{i.kind}_{i.width}" for i in code if i.width)
    return dict(sorted(found.items(), key=lambda item: (item[0].rsplit("_", 1)[0], int(item[0].rsplit("_", 1)[1]))))


def float_ops(code: Iterable[Instruction]) -> int:
    """Floating-point additions and multiplications a lane, a fused one counted as two; conversions are none."""
    return sum(_float_ops(i) for i in code)


def moved_bytes(code: Iterable[Instruction], kind: str) -> int:
    """Bytes that a lane moves by the instructions of a kind: `load`, `store`, `lds`."""
    return sum(i.width for i in code if i.kind == kind)


def widest_bytes(code: Iterable[Instruction], kind: str, width: int = 0) -> int:
    """Bytes that a lane moves by those which are `width` wide; by default the widest of them."""
    widths = [i.width for i in code if i.kind == kind]
    return sum(w for w in widths if w == (width or max(widths)))


def matrix_ops(code: Iterable[Instruction], wave: int) -> float:
    """A lane's share of the multiplications and additions of the matrix instructions, `wave` lanes sharing each."""
    return sum(_matrix_ops(i) for i in code) / wave


@dataclass(frozen=True)
class Flow:
    """Basic blocks by the address at which they begin, where control may go from each, and where it may come from."""

    blocks: Mapping[int, list[Instruction]]
    follow: Mapping[int, list[int]]
    before: Mapping[int, list[int]]

    @property
    def entry(self) -> set[int]:
        """The first block."""
        return {next(iter(self.blocks))}

    def latches(self, head: int) -> set[int]:
        """Blocks from which control goes back to `head`, all ways to them leading through it: those of a loop."""
        alive = reached(self.entry, self.follow)
        return (alive & set(self.before.get(head, ()))) - reached(self.entry, self.follow, avoid=head)

    @functools.cached_property
    def loops(self) -> dict[int, set[int]]:
        """Blocks of every loop, by its head.

        A loop is natural: one block dominates all of it, and control goes back there. A jump backwards is no sign of
        it, since compilers move blocks.
        """
        found = {head: latches for head in self.before if (latches := self.latches(head))}
        return {head: {head} | reached(latches, self.before, avoid=head) for head, latches in found.items()}

    def innermost(self) -> dict[int, set[int]]:
        """Blocks of the loops that have no other loop in them."""
        every = self.loops.items()
        return {head: body for head, body in every if not any(body > other for _, other in every)}


def flow(code: tuple[Instruction, ...]) -> Flow:
    """The control flow of a kernel."""
    blocks = _blocks(code)
    follow = {b: _successors(blocks[b], after) for b, after in zip(blocks, [*list(blocks)[1:], None], strict=True)}
    return Flow(blocks, follow, _reversed(follow))


def loops(code: tuple[Instruction, ...]) -> list[tuple[Instruction, ...]]:
    """Bodies of the innermost loops, in the order in which they begin."""
    graph = flow(code)
    bodies = sorted(graph.innermost().values(), key=min)
    return [tuple(i for begin in sorted(body) for i in graph.blocks[begin]) for body in bodies]


def _blocks(code: tuple[Instruction, ...]) -> dict[int, list[Instruction]]:
    """Basic blocks by the address at which they begin; what follows a jump begins one, and so does its target."""
    after_jumps = {after.address for i, after in pairwise(code) if i.kind == "branch"}
    leaders = after_jumps | {i.target for i in code if i.target is not None}
    blocks: dict[int, list[Instruction]] = {}
    for i in code:
        if i.address in leaders or not blocks:
            current = blocks[i.address] = []
        current.append(i)
    return blocks


def _successors(block: list[Instruction], after: int | None) -> list[int]:
    """Where control may go from the end of a block, `after` being the block that stands next."""
    last = block[-1]
    ends = last.name in _AMD_ENDS or (last.name.split(".")[0] in _NVIDIA_ENDS and not last.guard)
    falls = None if ends else after
    return [a for a in (last.target, falls) if a is not None]


_AMD_ENDS = {"s_branch", "s_endpgm", "s_setpc_b64"}
_NVIDIA_ENDS = {"BRA", "EXIT", "RET", "JMP", "BRX"}


def _reversed(follow: Mapping[int, list[int]]) -> dict[int, list[int]]:
    before: dict[int, list[int]] = {}
    for source, ends in follow.items():
        for end in ends:
            before.setdefault(end, []).append(source)
    return before


def reached(start: set[int], follow: Mapping[int, list[int]], avoid: int | None = None) -> set[int]:
    """What can be reached from `start` without passing through `avoid`."""
    found, waiting = set(start) - {avoid}, list(start - {avoid})
    while waiting:
        for after in follow.get(waiting.pop(), []):
            if after != avoid and after not in found:
                found.add(after)
                waiting.append(after)
    return found


_FUSED = re.compile(r"(fma|fmac|mac|mad)")
_SUM = re.compile(r"(add|sub|subrev|mul)")
_FLOAT = re.compile(r"_(?:legacy_)?(f16|f32|f64|bf16)")


def _float_ops(i: Instruction) -> int:
    if i.name[:1].isupper():  # nvidia
        stem = i.name.split(".")[0]
        per_lane = 2 if stem.startswith("H") and stem.endswith("2") else 1
        return per_lane * {"FFMA": 2, "FADD": 1, "FMUL": 1, "HFMA2": 2, "HADD2": 1, "HMUL2": 1}.get(stem, 0)
    if i.kind != "valu":
        return 0
    return sum(_float_ops_of(part.split()[0]) for part in f"{i.name} {i.operands}".split(" :: "))


def _float_ops_of(name: str) -> int:
    if not _FLOAT.search(name) or "cvt" in name or "div" in name:
        return 0
    packed = 2 if name.startswith("v_pk_") else 1
    return packed * (2 if _FUSED.search(name) else 1 if _SUM.search(name) else 0)


_SHAPE = re.compile(r"(\d+)x(\d+)x(\d+)")
_NVIDIA_SHAPES = {"16816": (16, 8, 16), "1688": (16, 8, 8), "884": (8, 8, 4)}


def _matrix_ops(i: Instruction) -> int:
    if i.kind != "matrix":
        return 0
    found = _SHAPE.search(i.name)
    m, n, k = map(int, found.groups()) if found else _NVIDIA_SHAPES.get(i.name.split(".")[1], (0, 0, 0))
    return 2 * m * n * k


def _classify(name: str, operands: str) -> str:
    if name[:1].isupper():
        return _by_prefix(name, "nvidia")
    if name.startswith("v_") and ("_dpp" in name or "dpp:" in operands or "row_" in operands):
        return "crosslane"
    if "atomic" in name:
        return "atomic"
    if name.startswith(("global_", "flat_", "buffer_")):
        return "store" if "_store" in name else "load" if "_load" in name else "wait"
    return _by_prefix(name, "amd")


# The first prefix that fits decides.
_AMD_CLASSES = {
    **dict.fromkeys(("v_mfma", "v_smfmac", "v_wmma", "v_swmmac"), "matrix"),
    **dict.fromkeys(("ds_bpermute", "ds_permute", "ds_swizzle", "v_readlane", "v_readfirstlane"), "crosslane"),
    **dict.fromkeys(("v_writelane", "v_permlane", "v_mbcnt"), "crosslane"),
    "v_nop": "hint",
    "v_": "valu",
    "ds_": "lds",
    "scratch_": "scratch",
    **dict.fromkeys(("s_load", "s_buffer_load", "s_scratch"), "scalar_load"),
    "s_barrier": "barrier",
    "s_wait": "wait",
    "s_branch": "branch",
    "s_cbranch": "branch",
    "s_endpgm": "branch",
    **dict.fromkeys(("s_setpc", "s_swappc", "s_call"), "branch"),
    **dict.fromkeys(
        ("s_nop", "s_delay_alu", "s_clause", "s_code_end", "s_sendmsg", "s_inst_prefetch", "s_set", "s_sleep"), "hint"
    ),
    "s_": "salu",
}
_NVIDIA_CLASSES = {
    **dict.fromkeys(("HMMA", "IMMA", "DMMA", "QMMA", "HGMMA", "WGMMA"), "matrix"),
    **dict.fromkeys(("SHFL", "VOTE", "REDUX", "MATCH"), "crosslane"),
    **dict.fromkeys(("LDGSTS", "LDG", "LD.", "TEX"), "load"),
    **dict.fromkeys(("STG", "ST."), "store"),
    **dict.fromkeys(("LDSM", "LDS", "STS"), "lds"),
    **dict.fromkeys(("LDL", "STL"), "scratch"),
    **dict.fromkeys(("LDC", "ULDC"), "scalar_load"),
    **dict.fromkeys(("ATOM", "RED."), "atomic"),
    **dict.fromkeys(("BAR", "WARPSYNC", "BSYNC", "BSSY"), "barrier"),
    **dict.fromkeys(("DEPBAR", "MEMBAR", "FENCE", "ERRBAR"), "wait"),
    **dict.fromkeys(("BRA", "EXIT", "RET", "CALL", "JMP", "BRX", "BREAK", "YIELD"), "branch"),
    **dict.fromkeys(("NOP", "CCTL"), "hint"),
    **dict.fromkeys(("USEL", "UMOV", "UIADD", "UIMAD", "ULOP", "USHF", "UISETP", "ULEA", "R2UR", "S2UR", "UP"), "salu"),
}


@functools.cache
def _by_prefix(name: str, vendor: str) -> str:
    table, default = {"amd": (_AMD_CLASSES, "hint"), "nvidia": (_NVIDIA_CLASSES, "valu")}[vendor]
    return next((kind for prefix, kind in table.items() if name.startswith(prefix)), default)


_WORDS = {"x2": 8, "x3": 12, "x4": 16, "x8": 32, "x16": 64}


def _width(name: str) -> int:
    if name[:1].isupper():
        found = re.search(r"\.(?:[US](8|16)|(64|128))\b", name)
        return int(found[1] or found[2]) // 8 if found else 4
    bits = re.search(r"_[biu](\d+)", name)
    if bits:
        return int(bits[1]) // 8 * (2 if re.search(r"read2|write2|load_2addr|store_2addr", name) else 1)
    if re.search(r"byte", name):
        return 1
    if "short" in name:
        return 2
    words = re.search(r"dword(x\d+)?", name)
    return _WORDS.get(words[1] or "", 4) if words else 0


# --- amd -------------------------------------------------------------------------------------------------------------

_AMD_LINE = re.compile(r"^\t(?P<name>[a-z]\w*)(?P<operands>.*?)\s*// (?P<address>[0-9A-F]{12}):")
_AMD_TARGET = re.compile(r"<\w+\+0x([0-9a-f]+)>\s*$|<\w+>\s*$")
_AMD_LABEL = re.compile(r"^([0-9a-f]{16}) <(\w+)>:$")


def disassemble_amd(library: Path, arch: str = "") -> dict[str, tuple[Instruction, ...]]:
    """The instructions of each kernel of a code object, by name, without the padding behind its end."""
    with tempfile.NamedTemporaryFile(suffix=".co") as file:
        file.write(code_object.extract(library, arch))
        file.flush()
        listing = _run([_llvm_objdump(), "-d", "--no-show-raw-insn", file.name])
    return parse_amd(listing)


def parse_amd(listing: str) -> dict[str, tuple[Instruction, ...]]:
    """What llvm-objdump -d printed, kernel by kernel."""
    found: dict[str, list[Instruction]] = {}
    code: list[Instruction] = []
    start = 0
    for line in listing.splitlines():
        label, text = _AMD_LABEL.match(line), _AMD_LINE.match(line)
        if label:
            start, code = int(label[1], 16), found.setdefault(label[2], [])
        elif text:
            goes = _AMD_TARGET.search(line) if "branch" in text["name"] else None
            target = int(goes[1] or "0", 16) if goes else None
            code.append(Instruction(int(text["address"], 16) - start, text["name"], text["operands"].strip(), target))
    return {name: _without_padding(code) for name, code in found.items() if code}


def _without_padding(code: list[Instruction]) -> tuple[Instruction, ...]:
    """Behind the last instruction stand no-operations and, on nvidia, a jump to itself."""
    end = len(code)
    while end and (code[end - 1].kind == "hint" or code[end - 1].target == code[end - 1].address):
        end -= 1
    return tuple(code[:end])


def _llvm_objdump() -> str:
    private = kernels_dir().parent / ".tools" / "bin" / "llvm-objdump"
    roots = [Path(os.environ[v], "llvm/bin/llvm-objdump") for v in ("ROCM_PATH", "HIP_PATH") if os.environ.get(v)]
    candidates = [*roots, private, Path("/opt/rocm/llvm/bin/llvm-objdump"), "llvm-objdump-22", "llvm-objdump"]
    return _tool("llvm-objdump", [str(c) for c in candidates], "install ROCm, or run `make tools`")


def disassembler(backend: str) -> str:
    """Path of what reads the machine code of a backend, amd or nvidia. ToolchainError with the remedy."""
    return _llvm_objdump() if backend == "amd" else _cuobjdump()


def _tool(name: str, candidates: list[str], remedy: str) -> str:
    for candidate in candidates:
        found = shutil.which(candidate)
        if found:
            return found
    raise ToolchainError(f"no {name}: tried {', '.join(candidates)}; {remedy}")


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired) as e:
        raise ToolchainError(f"{command[0]}: {e}") from e
    if done.returncode:
        raise CodeObjectError(f"{' '.join(command)}: {done.stderr.strip()[:500]}")
    return done.stdout


# --- nvidia ----------------------------------------------------------------------------------------------------------

_SASS_LINE = re.compile(
    r"^\s+/\*(?P<address>[0-9a-f]{4,})\*/\s+(?:@(?P<guard>!?U?P\w+\s+))?(?P<name>[A-Z][\w.]*)(?P<operands>[^;]*);"
)
_USAGE = re.compile(r"Function (\w+):\s+(.*?REG:.*)")


def _inspect_nvidia(cell: Cell, library: Path) -> list[Inspection]:
    tool = _cuobjdump()
    code = parse_sass(_run([tool, "-sass", str(library)]))
    kernels = parse_usage(_run([tool, "--dump-resource-usage", str(library)]), code)
    return [Inspection(cell, k, code.get(k.name, ()), None) for k in kernels]


def parse_sass(listing: str) -> dict[str, tuple[Instruction, ...]]:
    """What cuobjdump -sass printed, function by function. The padding behind the last jump is left out."""
    found: dict[str, list[Instruction]] = {}
    code: list[Instruction] = []
    for line in listing.splitlines():
        if "Function :" in line:
            code = found.setdefault(line.rpartition(":")[2].strip(), [])
            continue
        text = _SASS_LINE.match(line)
        if text:
            operands = text["operands"].strip()
            jumps = re.search(r"0x([0-9a-f]+)$", operands) if text["name"].startswith("BRA") else None
            target = int(jumps[1], 16) if jumps else None
            address, guard = int(text["address"], 16), (text["guard"] or "").strip()
            code.append(Instruction(address, text["name"], operands, target, guard))
    return {name: _without_padding(code) for name, code in found.items()}


def parse_usage(text: str, code: Mapping[str, tuple[Instruction, ...]]) -> list[KernelCode]:
    """What cuobjdump --dump-resource-usage printed. The workgroup is not stated there: 0."""
    found = []
    for name, usage in _USAGE.findall(text):
        n = {key: int(value) for key, value in re.findall(r"([A-Z]+(?:\[\d\])?):(\d+)", usage)}
        spilled = sum(i.kind == "scratch" for i in code.get(name, ()))
        size = (code[name][-1].address + 16) if code.get(name) else 0
        local = n.get("STACK", 0) + n.get("LOCAL", 0)
        found.append(KernelCode(name, 32, 0, n["REG"], 0, 0, n.get("SHARED", 0), local, spilled, 0, 0, (), size))
    return found


def _cuobjdump() -> str:
    home = os.environ.get("CUDA_HOME")
    candidates = [*([f"{home}/bin/cuobjdump"] if home else []), "cuobjdump", "/usr/local/cuda/bin/cuobjdump"]
    return _tool("cuobjdump", candidates, "install the CUDA toolkit's cuobjdump or set CUDA_HOME")

"""Launch manifests: all that a loader needs to run a cell from its AMD code object, without this package.

A manifest is a JSON file beside the ELF. It names, for one case, every launch in order: kernel (the symbol in the ELF),
grid, block, shared memory, and each argument by its offset in the kernarg segment, as the ELF's metadata states it. A
scalar has its value, a pointer its role and byte size, also where it lies inside a struct: Params by its fields, others
word by word.

Where the numbers come from: the launcher itself. It runs on the CPU twin of the arch (same wave, same constants) with
tensors of the case; the emulation tells of each launch instead of executing it.
"""

from __future__ import annotations

import ctypes
import dataclasses
import hashlib
import json
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from . import backends, build, code_object, files, kernel, reference, variants
from .build import Built
from .case import Case
from .cell import Cell
from .code_object import KernelCode
from .errors import CodeObjectError

FORMAT = "cc1d launch manifest 1"
ALIGNMENT = 16  # a launcher may look at an address modulo this many bytes, its widest vector, and at no more


# --- what the emulation tells of a launch -------------------------------------------------------------


class _Argument(ctypes.Structure):  # cc1d_emulation::Argument
    _fields_ = [("value", ctypes.c_void_p), ("bytes", ctypes.c_uint), ("kind", ctypes.c_char)]


class _Launch(ctypes.Structure):  # cc1d_emulation::Launch
    _fields_ = [
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("wave", ctypes.c_uint),
        ("run_threads", ctypes.c_void_p),
        ("touch_shared", ctypes.c_void_p),
        ("name", ctypes.c_char_p),
        ("arguments", ctypes.POINTER(_Argument)),
        ("argument_count", ctypes.c_uint),
    ]


_HOOK = ctypes.CFUNCTYPE(None, ctypes.POINTER(_Launch))
_TYPES = {b"i": "integer", b"f": "real", b"p": "pointer", b"s": "struct"}


@dataclass(frozen=True)
class Record:
    """A launch as the launcher asked for it. `grid` counts blocks, `block` threads; `arguments`: (type, bytes) of each.

    A type is `integer`, `real`, `pointer` or `struct`.
    """

    kernel: str
    grid: tuple[int, ...]
    block: tuple[int, ...]
    wave: int
    arguments: tuple[tuple[str, bytes], ...]


def record(loaded: kernel.Kernel, launch: Callable[[int], None]) -> list[Record]:
    """What `launch`, of a library of the cpu backend, asks for. Nothing is executed."""
    found: list[Record] = []
    hook = _HOOK(lambda told: found.append(_copied(told.contents)))
    loaded.library.cc1d_on_launch(hook)
    try:
        launch(0)
    finally:
        loaded.library.cc1d_on_launch(None)
    return found


def _copied(told: _Launch) -> Record:
    arguments = tuple(
        (_TYPES[a.kind], ctypes.string_at(a.value, a.bytes)) for a in told.arguments[: told.argument_count]
    )
    return Record(told.name.decode(), tuple(told.grid), tuple(told.block), told.wave, arguments)


# --- the manifest -------------------------------------------------------------------------------------


def write(cell: Cell, built: Built) -> Path:
    """Write the manifest of a cell of backend amd beside its ELF, which `built` is. Returns the path.

    A library for host and device holds the ELF in a bundle; then it is laid beside it as well. Raises CodeObjectError
    when the launcher and the code object contradict each other.
    """
    arch = cell.arch or code_object.target(built.library)
    elf = built.library
    code = code_object.extract(elf, arch)
    if code != elf.read_bytes():
        elf = built.library.with_name(f"kernel-{arch}.co")
        files.write(elf, code)
    found = describe(dataclasses.replace(cell, arch=arch), elf)
    path = elf.with_name(f"launches-{cell.case.shape()}-{cell.cell_id}.json")
    return files.write(path, json.dumps(found, indent=1) + "\n")


def describe(cell: Cell, elf: Path) -> dict[str, Any]:
    """The manifest of a cell whose code object is `elf`. Raises CodeObjectError as `write` does."""
    twin = dataclasses.replace(cell, backend="cpu", arch=backends.cpu_twin(cell.arch))
    loaded = kernel.load(build.build_cell(twin).library)
    tensors, accesses = _tensors(cell.case)
    bound = kernel.bind(loaded, **tensors)
    memory = _Memory(tensors | {"workspace": bound.tensors[-1]})
    codes = {k.name: k for k in code_object.read(elf)}
    return {
        "format": FORMAT,
        "variant": cell.variant,
        "arch": cell.arch,
        "case": cell.case.to_dict(),
        "tunables": variants.resolve_tunables(variants.get(cell.variant), cell.tunables, cell.case),
        "code_object": elf.name,
        "code_object_sha256": hashlib.sha256(elf.read_bytes()).hexdigest(),
        "buffers": {name: _buffer(t, accesses.get(name, "scratch")) for name, t in memory.tensors.items()},
        "launches": [
            _launch(stage, told, codes, memory)
            for number, stage in enumerate(loaded.stages)
            for told in record(loaded, bound.stage(number))
        ],
    }


def _tensors(case: Case) -> tuple[dict[str, Any], dict[str, str]]:
    """Tensors of the case, and how the kernels access them (read, write, read_write), by role."""
    inputs = reference.make_inputs(case)
    outputs, _ = reference.make_outputs(case, inputs)
    given = {"x": inputs.x, "weight": inputs.weight, "bias": inputs.bias, **inputs.more}
    accesses = dict.fromkeys(given, "read") | {n: "read_write" if n in given else "write" for n in outputs}
    return {"out": None, **given, **outputs}, accesses


def _buffer(tensor: torch.Tensor, access: str) -> dict[str, Any]:
    return {
        "bytes": _span(tensor),
        "access": access,
        f"address_mod_{ALIGNMENT}": tensor.data_ptr() % ALIGNMENT,
        "dtype": str(tensor.dtype).removeprefix("torch."),
        "shape": list(tensor.shape),
        "strides": list(tensor.stride()),
    }


def _span(tensor: torch.Tensor) -> int:
    """Bytes from the first element to the end of the last."""
    last = sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return (last + 1) * tensor.element_size()


class _Memory:
    """Which role an address has: `tensors` by role, those left out that are None or hold nothing."""

    def __init__(self, tensors: Mapping[str, torch.Tensor | None]) -> None:
        self.tensors = {name: t for name, t in tensors.items() if t is not None and t.numel()}
        self.roles = {t.data_ptr(): name for name, t in self.tensors.items()}

    def pointer(self, address: int) -> dict[str, Any]:
        """Role and byte size of what lies at `address`; a null pointer has no role."""
        if not address:
            return {"role": None, "bytes": 0}
        if address not in self.roles:
            raise CodeObjectError(f"a launch passes the address {address:#x}, where no argument of the call begins")
        role = self.roles[address]
        return {"role": role, "bytes": _span(self.tensors[role])}

    def holds_pointers(self, data: bytes) -> bool:
        """Whether an address lies in `data`, at a multiple of 8. CodeObjectError when one lies elsewhere."""
        found = {i for i in range(0, len(data) - 7, 4) if int.from_bytes(data[i : i + 8], "little") in self.roles}
        if any(i % 8 for i in found):
            raise CodeObjectError("a launch passes a pointer that is not aligned to 8 bytes inside a struct")
        return bool(found)


def _launch(stage: str, told: Record, codes: Mapping[str, KernelCode], memory: _Memory) -> dict[str, Any]:
    contradictions = list(_contradictions(told, codes.get(told.kernel)))
    if contradictions:
        raise CodeObjectError(f"kernel {told.kernel}: {'; '.join(contradictions)}")
    code = codes[told.kernel]
    arguments = [
        {**dataclasses.asdict(a), "type": kind, **_value(a.offset, kind, data, memory)}
        for a, (kind, data) in zip(code.arguments, told.arguments, strict=True)
    ]
    return {
        "stage": stage,
        "kernel": told.kernel,
        "grid": told.grid,
        "block": told.block,
        "wave": told.wave,
        "shared_memory": {"static_bytes": code.lds_bytes, "dynamic_bytes": 0},
        "kernarg_bytes": code.kernarg_bytes,
        "arguments": arguments,
    }


def _contradictions(told: Record, code: KernelCode | None) -> Iterator[str]:
    """Where the launcher and the code object disagree."""
    if code is None:
        yield "the code object has no such kernel"
        return
    threads = told.block[0] * told.block[1] * told.block[2]
    if threads != code.workgroup:
        yield f"launched with {threads} threads a block, the code object states {code.workgroup}"
    if told.wave != code.wave:
        yield f"launched for waves of {told.wave}, the code object has {code.wave}"
    passed, stated = [len(data) for _, data in told.arguments], [a.size for a in code.arguments]
    if passed != stated:
        yield f"launched with arguments of {passed} bytes, the code object takes {stated}"


def _value(offset: int, kind: str, data: bytes, memory: _Memory) -> dict[str, Any]:
    """What an argument at `offset` holds: a value, a role, the fields of a struct with pointers, or its bytes."""
    if kind == "pointer":
        return memory.pointer(int.from_bytes(data, "little"))
    if kind == "struct" and len(data) == ctypes.sizeof(kernel.Params):
        return {"fields": list(_fields(offset, data, memory))}
    if kind == "struct" and memory.holds_pointers(data):
        return {"fields": list(_words(offset, data, memory))}
    if kind == "struct":
        return {"bytes": data.hex()}
    form = {"integer": {4: "<i", 8: "<q"}, "real": {4: "<f", 8: "<d"}}[kind][len(data)]
    return {"value": struct.unpack(form, data)[0]}


def _words(offset: int, data: bytes, memory: _Memory) -> Iterator[dict[str, Any]]:
    """A struct by words of 8 bytes, the last perhaps of 4: pointers with their role, all else as integers."""
    for at in range(0, len(data), 8):
        word = data[at : at + 8]
        entry = {"name": f"word {at // 8}", "offset": offset + at, "size": len(word)}
        address = int.from_bytes(word, "little")
        if address in memory.roles:
            yield {**entry, "type": "pointer", **memory.pointer(address)}
        else:
            yield {**entry, "type": "integer", "value": int.from_bytes(word, "little", signed=True)}


def _fields(offset: int, data: bytes, memory: _Memory) -> Iterator[dict[str, Any]]:
    """The fields of Params: scalars with their value, pointers with their role."""
    params = kernel.Params.from_buffer_copy(data)
    for name, ctype in kernel.FIELDS:
        where, value = getattr(kernel.Params, name), getattr(params, name)
        entry = {"name": name, "offset": offset + where.offset, "size": where.size}
        if ctype is ctypes.c_void_p:
            yield {**entry, "type": "pointer", **memory.pointer(value or 0)}
        else:
            yield {**entry, "type": "integer", "value": value}

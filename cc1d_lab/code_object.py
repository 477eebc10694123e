"""What an AMD code object states of its kernels: registers, shared memory, arguments, size. Needs no tool.

A code object is an ELF whose note holds a MessagePack map (LLVM's "User Guide for AMDGPU Backend", Code Object V5
Metadata). A library for a ROCm machine carries code objects in an offload bundle, one per arch.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import CodeObjectError

_NOTE_TYPE = 32  # NT_AMDGPU_METADATA
_MACHINE_AMDGPU = 224
_BUNDLE = b"__CLANG_OFFLOAD_BUNDLE__"


@dataclass(frozen=True)
class Argument:
    """One explicit or hidden argument of a kernel, at `offset` bytes in its kernarg segment."""

    offset: int
    size: int
    kind: str


@dataclass(frozen=True)
class KernelCode:
    """What a code object states of one kernel. Registers are per lane (vgprs, agprs) or per wave (sgprs).

    `vgprs` is what a wave is given: on gfx90a and later CDNA it holds the agprs, too.
    """

    name: str
    wave: int
    workgroup: int
    vgprs: int
    agprs: int
    sgprs: int
    lds_bytes: int
    scratch_bytes: int
    vgpr_spills: int
    sgpr_spills: int
    kernarg_bytes: int
    arguments: tuple[Argument, ...]
    code_bytes: int

    @property
    def spills(self) -> int:
        """Registers of either kind that were spilled."""
        return self.vgpr_spills + self.sgpr_spills


@dataclass(frozen=True)
class Descriptor:
    """What the hardware is told of a kernel: the 64 bytes of its symbol `<name>.kd`.

    `denormals_32`, `denormals_16_64`: whether a kernel starts with subnormal numbers `kept` or flushed to zero: as
    `inputs`, as `outputs` or `both`. Source: LLVM's "User Guide for AMDGPU Backend", Code Object V3 Kernel Descriptor.
    """

    lds_bytes: int
    scratch_bytes: int
    kernarg_bytes: int
    denormals_32: str
    denormals_16_64: str


_DENORMALS = ("both", "outputs", "inputs", "kept")  # FLOAT_DENORM_MODE: 0 flushes both, 3 none


def read(path: Path, arch: str = "") -> tuple[KernelCode, ...]:
    """The kernels of a code object, or of the one for `arch` in a library, in the order in which they stand.

    Raises CodeObjectError when the file holds none that can be read.
    """
    data = extract(path, arch)
    try:
        elf = _Elf(data)
        sizes = elf.function_sizes()
        return tuple(_kernel(k, sizes) for k in elf.metadata()["amdhsa.kernels"])
    except (struct.error, LookupError, ValueError) as e:
        raise CodeObjectError(f"{path}: {e}") from e


def descriptors(path: Path, arch: str = "") -> dict[str, Descriptor]:
    """The kernel descriptors of a code object, by kernel. Raises CodeObjectError."""
    try:
        elf = _Elf(extract(path, arch))
        found = {s.name: s for s in elf.symbols() if s.name.endswith(".kd")}
        return {name.removesuffix(".kd"): _descriptor(elf.contents(s)) for name, s in found.items()}
    except (struct.error, LookupError, ValueError) as e:
        raise CodeObjectError(f"{path}: {e}") from e


def undefined_symbols(path: Path, arch: str = "") -> tuple[str, ...]:
    """Symbols that a code object wants from elsewhere; a kernel that can be launched alone has none."""
    return tuple(s.name for s in _Elf(extract(path, arch)).symbols() if s.section == 0 and s.name)


def _descriptor(data: bytes) -> Descriptor:
    lds, scratch, kernarg = struct.unpack_from("<III", data)
    (settings,) = struct.unpack_from("<I", data, 48)  # COMPUTE_PGM_RSRC1
    return Descriptor(lds, scratch, kernarg, _DENORMALS[settings >> 16 & 3], _DENORMALS[settings >> 18 & 3])


def target(path: Path, arch: str = "") -> str:
    """The arch that a code object is for, such as gfx942. Raises CodeObjectError."""
    return str(_Elf(extract(path, arch)).metadata()["amdhsa.target"]).rpartition("--")[2].split(":")[0]


def resources(path: Path) -> dict[str, int]:
    """What a row keeps: the largest vgprs, sgprs and lds_bytes of the kernels, the sums of spills and code_bytes."""
    kernels = read(path)
    largest = {name: max(getattr(k, name) for k in kernels) for name in ("vgprs", "sgprs", "lds_bytes")}
    return largest | {name: sum(getattr(k, name) for k in kernels) for name in ("spills", "code_bytes")}


def extract(path: Path, arch: str = "") -> bytes:
    """The bytes of a code object: the file itself, or the one for `arch` (any, when empty) in a library's bundle."""
    data = path.read_bytes()
    if data[:4] != b"\x7fELF":
        raise CodeObjectError(f"{path}: not an ELF file")
    if struct.unpack_from("<H", data, 18)[0] == _MACHINE_AMDGPU:
        return data
    found = [code for triple, code in _bundled(data) if triple.startswith("hip") and arch in triple]
    if not found:
        raise CodeObjectError(f"{path}: no uncompressed code object for {arch or 'an AMD GPU'} in it")
    return found[0]


def _bundled(data: bytes) -> Iterator[tuple[str, bytes]]:
    start = data.find(_BUNDLE)
    if start < 0:
        return
    (count,) = struct.unpack_from("<Q", data, start + len(_BUNDLE))
    at = start + len(_BUNDLE) + 8
    for _ in range(count):
        offset, size, length = struct.unpack_from("<QQQ", data, at)
        triple = data[at + 24 : at + 24 + length].decode()
        yield triple, data[start + offset : start + offset + size]
        at += 24 + length


def _kernel(entry: dict[str, Any], sizes: dict[str, int]) -> KernelCode:
    return KernelCode(
        name=entry[".name"],
        wave=entry[".wavefront_size"],
        workgroup=entry[".max_flat_workgroup_size"],
        vgprs=entry[".vgpr_count"],
        agprs=entry.get(".agpr_count", 0),
        sgprs=entry[".sgpr_count"],
        lds_bytes=entry[".group_segment_fixed_size"],
        scratch_bytes=entry[".private_segment_fixed_size"],
        vgpr_spills=entry.get(".vgpr_spill_count", 0),
        sgpr_spills=entry.get(".sgpr_spill_count", 0),
        kernarg_bytes=entry[".kernarg_segment_size"],
        arguments=tuple(Argument(a[".offset"], a[".size"], a[".value_kind"]) for a in entry.get(".args", [])),
        code_bytes=sizes.get(entry[".name"], 0),
    )


class _Elf:
    """The few parts of a little-endian 64-bit ELF that are needed: sections, notes, symbols."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        (table,) = struct.unpack_from("<Q", data, 40)
        size, count = struct.unpack_from("<HH", data, 58)
        self.sections = [struct.unpack_from("<IIQQQQIIQQ", data, table + i * size) for i in range(count)]

    def _of_type(self, wanted: int) -> Iterator[tuple[int, ...]]:
        return (s for s in self.sections if s[1] == wanted)

    def metadata(self) -> dict[str, Any]:
        """The map in the AMDGPU note."""
        for section in self._of_type(7):  # SHT_NOTE
            at, end = section[4], section[4] + section[5]
            while at < end:
                name, size, kind = struct.unpack_from("<III", self.data, at)
                body = at + 12 + -(-name // 4) * 4
                if kind == _NOTE_TYPE:
                    return _unpack(self.data[body : body + size])
                at = body + -(-size // 4) * 4
        raise CodeObjectError("no AMDGPU metadata note (code object V3 or later has one)")

    def symbols(self) -> Iterator[_Symbol]:
        """The dynamic symbols, all that a loader can see."""
        for section in self._of_type(11):  # SHT_DYNSYM
            names = self.sections[section[6]][4]
            for at in range(section[4], section[4] + section[5], 24):
                name, info, _, home, value, size = struct.unpack_from("<IBBHQQ", self.data, at)
                text = self.data[names + name : self.data.index(b"\0", names + name)].decode()
                yield _Symbol(text, info & 15, home, value, size)

    def function_sizes(self) -> dict[str, int]:
        """Bytes of machine code of each function, by name."""
        return {s.name: s.size for s in self.symbols() if s.kind == 2}  # STT_FUNC

    def contents(self, symbol: _Symbol) -> bytes:
        """The bytes that a symbol stands for."""
        section = self.sections[symbol.section]
        at = section[4] + symbol.value - section[3]
        return self.data[at : at + symbol.size]


@dataclass(frozen=True)
class _Symbol:
    """`section` 0: it is defined elsewhere."""

    name: str
    kind: int
    section: int
    value: int
    size: int


def _unpack(data: bytes) -> Any:
    """Decode the MessagePack types that the metadata uses: maps, arrays, strings, integers, booleans, nil."""
    return _value(data, 0)[0]


def _value(data: bytes, at: int) -> tuple[Any, int]:
    tag = data[at]
    if tag <= 0x7F or tag >= 0xE0:
        return (tag if tag <= 0x7F else tag - 256), at + 1
    if tag in (0xC0, 0xC2, 0xC3):
        return {0xC0: None, 0xC2: False, 0xC3: True}[tag], at + 1
    if tag in _NUMBERS:
        form = _NUMBERS[tag]
        return struct.unpack_from(form, data, at + 1)[0], at + 1 + struct.calcsize(form)
    kind, length, at = _header(data, at)
    if kind == "string":
        return data[at : at + length].decode(), at + length
    items = []
    for _ in range(length * (2 if kind == "map" else 1)):
        item, at = _value(data, at)
        items.append(item)
    return (dict(zip(items[::2], items[1::2], strict=True)) if kind == "map" else items), at


_NUMBERS = {0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q", 0xD0: ">b", 0xD1: ">h", 0xD2: ">i", 0xD3: ">q"}
_SIZED = {
    0xD9: ("string", ">B"),
    0xDA: ("string", ">H"),
    0xDB: ("string", ">I"),
    0xDC: ("array", ">H"),
    0xDD: ("array", ">I"),
    0xDE: ("map", ">H"),
    0xDF: ("map", ">I"),
}


def _header(data: bytes, at: int) -> tuple[str, int, int]:
    """(kind, length, where the contents begin) of a string, an array or a map."""
    tag = data[at]
    if tag in _SIZED:
        kind, form = _SIZED[tag]
        return kind, struct.unpack_from(form, data, at + 1)[0], at + 1 + struct.calcsize(form)
    for kind, base, mask in (("map", 0x80, 0x0F), ("array", 0x90, 0x0F), ("string", 0xA0, 0x1F)):
        if tag & ~mask == base:
            return kind, tag & mask, at + 1
    raise CodeObjectError(f"metadata: MessagePack tag {tag:#x} is not expected there")

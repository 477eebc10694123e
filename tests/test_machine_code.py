"""Reading machine code and code objects, on texts and bytes written here: no compiler and no disassembler needed."""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path

import pytest

from cc1d_lab import code_object, machine_code, occupancy
from cc1d_lab.case import Case
from cc1d_lab.code_object import KernelCode
from cc1d_lab.errors import CodeObjectError, ConfigError
from cc1d_lab.machine_code import Instruction

# --- disassembly of amd ----------------------------------------------------------------------------------------------

AMD = """
probe.co:	file format elf64-amdgpu

Disassembly of section .text:

0000000000001c00 <first>:
	s_load_dwordx4 s[4:7], s[0:1], 0x20                        // 000000001C00: C00A0100 00000020
	v_mov_b32_e32 v1, 0                                        // 000000001C08: 7E020280
	s_cbranch_scc1 4                                           // 000000001C0C: BF850004 <first+0x20>
	global_load_dwordx4 v[2:5], v1, s[4:5]                     // 000000001C10: DC5C8000 02040001
	v_fmac_f32_e32 v1, v2, v3                                  // 000000001C18: 36020702
	s_cbranch_scc0 65532                                       // 000000001C1C: BF84FFFC <first+0x10>
	s_endpgm                                                   // 000000001C20: BF810000
	s_nop 0                                                    // 000000001C24: BF800000
	s_code_end                                                 // 000000001C28: BF9F0000

0000000000001d00 <second>:
	s_endpgm                                                   // 000000001D00: BF810000
"""


def test_llvm_objdump_is_read() -> None:
    code = machine_code.parse_amd(AMD)
    assert {name: len(instructions) for name, instructions in code.items()} == {"first": 7, "second": 1}
    branch = code["first"][2]
    assert (branch.address, branch.name, branch.target) == (0x0C, "s_cbranch_scc1", 0x20)
    assert str(code["first"][3]) == "0x0010  global_load_dwordx4 v[2:5], v1, s[4:5]"


def test_counts() -> None:
    code = machine_code.parse_amd(AMD)["first"]
    found = {kind: n for kind, n in machine_code.histogram(code).items() if n}
    assert found == {"valu": 2, "branch": 3, "load": 1, "scalar_load": 1}
    assert machine_code.memory(code) == {"load_16": 1}
    assert machine_code.float_ops(code) == 2
    (loop,) = machine_code.loops(code)
    assert [i.address for i in loop] == [0x10, 0x18, 0x1C]


def _code(*lines: str) -> tuple[Instruction, ...]:
    """`name` or `name>target`, one address apart."""
    split = [line.partition(">") for line in lines]
    return tuple(Instruction(at, name, "", int(to) if to else None) for at, (name, _, to) in enumerate(split))


@pytest.mark.parametrize(
    ("code", "bodies"),
    [
        (_code("v_a", "s_cbranch_x>0", "s_endpgm"), [[0, 1]]),
        # An outer loop around an inner one: the inner one alone.
        (_code("v_a", "v_b", "s_cbranch_x>1", "s_cbranch_y>0", "s_endpgm"), [[1, 2]]),
        # A block moved behind the end, which jumps back to where it belongs: no loop.
        (_code("s_cbranch_x>3", "v_a", "s_endpgm", "v_b", "s_branch>1"), []),
        # A loop that is entered in the middle of its text: what goes back falls through.
        (_code("s_branch>2", "v_tail", "v_head", "s_cbranch_x>1", "s_endpgm"), [[1, 2, 3]]),
        (_code("s_endpgm"), []),
    ],
)
def test_innermost_loops(code: tuple[Instruction, ...], bodies: list[list[int]]) -> None:
    assert [[i.address for i in body] for body in machine_code.loops(code)] == bodies


@pytest.mark.parametrize(
    ("name", "kind", "width"),
    [
        ("global_load_dwordx4", "load", 16),
        ("global_load_b128", "load", 16),
        ("global_load_ushort", "load", 2),
        ("global_load_short_d16_hi", "load", 2),
        ("global_load_d16_b16", "load", 2),
        ("global_load_u16", "load", 2),
        ("global_load_ubyte", "load", 1),
        ("global_load_dword", "load", 4),
        ("global_store_dwordx3", "store", 12),
        ("global_store_b64", "store", 8),
        ("buffer_store_short", "store", 2),
        ("global_atomic_add_f32", "atomic", 0),
        ("scratch_load_dwordx2", "scratch", 8),
        ("ds_read_b128", "lds", 16),
        ("ds_read2_b64", "lds", 16),
        ("ds_load_2addr_b32", "lds", 8),
        ("ds_write_b16_d16_hi", "lds", 2),
        ("ds_store_b96", "lds", 12),
        ("ds_bpermute_b32", "crosslane", 0),
        ("v_readfirstlane_b32", "crosslane", 0),
        ("v_add_f32_dpp", "crosslane", 0),
        ("v_mfma_f32_16x16x16_bf16", "matrix", 0),
        ("v_mfma_f32_16x16x16bf16_1k", "matrix", 0),
        ("v_wmma_f32_16x16x16_f16", "matrix", 0),
        ("v_pk_fma_f32", "valu", 0),
        ("s_buffer_load_dword", "scalar_load", 0),
        ("s_waitcnt", "wait", 0),
        ("s_wait_loadcnt_dscnt", "wait", 0),
        ("s_barrier_signal", "barrier", 0),
        ("s_cbranch_execz", "branch", 0),
        ("s_delay_alu", "hint", 0),
        ("s_nop", "hint", 0),
        ("s_mul_i32", "salu", 0),
    ],
)
def test_class_and_width(name: str, kind: str, width: int) -> None:
    assert (Instruction(0, name, "").kind, Instruction(0, name, "").width) == (kind, width)
    assert kind in machine_code.CLASSES


@pytest.mark.parametrize(
    ("name", "operands", "operations"),
    [
        ("v_add_f32_e32", "v1, v2, v3", 1),
        ("v_fma_f32", "v1, v2, v3, v4", 2),
        ("v_pk_fma_f32", "v[0:1], v[2:3], v[4:5], v[6:7]", 4),
        ("v_dual_fmac_f32", "v1, v2, v3 :: v_dual_add_f32 v4, v5, v6", 3),
        ("v_add_u32_e32", "v1, v2, v3", 0),
        ("v_cvt_f32_f16_e32", "v1, v2", 0),
        ("v_rcp_f32_e32", "v1, v2", 0),
        ("FFMA", "R1, R2, R3, R4", 2),
        ("HFMA2.BF16", "R1, R2, R3, R4", 4),
        ("IMAD", "R1, R2, R3, R4", 0),
    ],
)
def test_floating_point_operations(name: str, operands: str, operations: int) -> None:
    assert machine_code.float_ops([Instruction(0, name, operands)]) == operations


# --- cuobjdump -------------------------------------------------------------------------------------------------------

SASS = """
	code for sm_90
		Function : probe
	.headerflags	@"EF_CUDA_TEXMODE_UNIFIED EF_CUDA_64BIT_ADDRESS EF_CUDA_SM90"
        /*0000*/                   LDC R1, c[0x0][0x28] ;                 /* 0x00000a00ff017b82 */
                                                                          /* 0x000fe20000000800 */
        /*0010*/                   ULDC.64 UR4, c[0x0][0x208] ;           /* 0x0000820000047ab9 */
        /*0020*/                   LDG.E.128 R4, desc[UR4][R2.64] ;       /* 0x0000000402047981 */
        /*0030*/                   LDG.E.U16 R8, desc[UR4][R2.64+0x10] ;  /* 0x0000000402087981 */
        /*0040*/                   FFMA R4, R5, R6, R7 ;                  /* 0x0000000605047223 */
        /*0050*/              @!P0 BRA 0x20 ;                             /* 0xfffffffc00007947 */
        /*0060*/                   STG.E desc[UR4][R2.64], R4 ;           /* 0x0000000402007986 */
        /*0070*/                   EXIT ;                                 /* 0x000000000000794d */
        /*0080*/                   BRA 0x80;                              /* 0xfffffffc00fc7947 */
        /*0090*/                   NOP;                                   /* 0x0000000000007918 */
"""
USAGE = """
Resource usage:
 Common:
  GLOBAL:0
 Function probe:
  REG:24 STACK:0 SHARED:4112 LOCAL:0 CONSTANT[0]:656 TEXTURE:0 SURFACE:0 SAMPLER:0
"""


def test_cuobjdump_is_read() -> None:
    code = machine_code.parse_sass(SASS)
    found = {kind: n for kind, n in machine_code.histogram(code["probe"]).items() if n}
    assert found == {"valu": 1, "branch": 2, "load": 2, "store": 1, "scalar_load": 2}
    assert machine_code.memory(code["probe"]) == {"load_2": 1, "load_16": 1, "store_4": 1}
    (loop,) = machine_code.loops(code["probe"])
    assert [i.address for i in loop] == [0x20, 0x30, 0x40, 0x50]
    (k,) = machine_code.parse_usage(USAGE, code)
    assert (k.name, k.vgprs, k.lds_bytes, k.scratch_bytes, k.spills, k.code_bytes) == ("probe", 24, 4112, 0, 0, 0x80)


# --- code objects ----------------------------------------------------------------------------------------------------


def _elf(machine: int, tail: bytes = b"") -> bytes:
    return b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HH", 3, machine) + bytes(44) + tail


def _bundle(codes: dict[str, bytes]) -> bytes:
    head = 32 + sum(24 + len(t) for t in codes)
    table, offset = b"", head
    for triple, code in codes.items():
        table += struct.pack("<QQQ", offset, len(code), len(triple)) + triple.encode()
        offset += len(code)
    return b"__CLANG_OFFLOAD_BUNDLE__" + struct.pack("<Q", len(codes)) + table + b"".join(codes.values())


def test_a_library_for_a_rocm_machine_is_opened(tmp_path: Path) -> None:
    amd = "hipv4-amdgcn-amd-amdhsa--"
    codes = {"host-x86_64-unknown-linux--": b"", f"{amd}gfx942": b"A", f"{amd}gfx1100": b"B"}
    (tmp_path / "kernel.so").write_bytes(_elf(62, b"some code" + _bundle(codes)))
    assert code_object.extract(tmp_path / "kernel.so", "gfx1100") == b"B"
    assert code_object.extract(tmp_path / "kernel.so") == b"A"
    with pytest.raises(CodeObjectError, match="gfx90a"):
        code_object.extract(tmp_path / "kernel.so", "gfx90a")


@pytest.mark.parametrize("data", [b"", b"text", _elf(62), _elf(224)])
def test_what_is_no_code_object_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "kernel.so").write_bytes(data)
    with pytest.raises(CodeObjectError):
        code_object.resources(tmp_path / "kernel.so")


@pytest.mark.parametrize(
    ("packed", "value"),
    [
        (b"\x00", 0),
        (b"\xff", -1),
        (b"\xcd\x01\x00", 256),
        (b"\xd2\xff\xff\xff\xfe", -2),
        (b"\xc2", False),
        (b"\xc0", None),
        (b"\x93\x01\xa1x\xc3", [1, "x", True]),
        (b"\xdc\x00\x01\x07", [7]),
        (b"\x82\xa1a\x01\xd9\x01b\x90", {"a": 1, "b": []}),
    ],
)
def test_message_pack(packed: bytes, value: object) -> None:
    assert code_object._unpack(packed) == value


# --- occupancy and bounds --------------------------------------------------------------------------------------------

SMALL = KernelCode("k", 64, 256, 24, 0, 32, 0, 0, 0, 0, 128, (), 100)


@pytest.mark.parametrize(
    ("change", "arch", "waves", "limit"),
    [
        ({}, "gfx942", 8, "wave slots"),
        ({"vgprs": 65}, "gfx942", 7, "vgprs"),
        ({"vgprs": 512}, "gfx942", 1, "vgprs"),
        ({"vgprs": 97, "wave": 32}, "gfx1100", 12, "vgprs"),  # 120 of 1536, as they come in 24s
        ({"vgprs": 96, "wave": 32}, "gfx1100", 16, "wave slots"),
        ({"sgprs": 86}, "gfx90a", 7, "sgprs"),  # with the 16 of the trap handler: 112 of 800
        ({"sgprs": 106, "wave": 32}, "gfx1200", 16, "wave slots"),  # every wave has its own SGPRs there
        ({"lds_bytes": 32768}, "gfx942", 2, "lds"),
        ({"lds_bytes": 32000}, "gfx950", 5, "lds"),
        ({"lds_bytes": 32768}, "gfx950", 4, "lds"),  # given out in steps of 1280
        ({"lds_bytes": 32769}, "gfx942", 1, "lds"),
        ({"workgroup": 192}, "gfx942", 7.5, "workgroup"),  # 3 waves: 10 groups in 32 slots
        ({"workgroup": 64}, "gfx942", 8, "wave slots"),
    ],
)
def test_occupancy(change: dict[str, int], arch: str, waves: float, limit: str) -> None:
    found = occupancy.occupancy(replace(SMALL, **change), arch)
    assert (found.waves_per_simd, found.limited_by) == (waves, limit)


def test_an_unknown_arch_is_refused() -> None:
    with pytest.raises(ConfigError, match="gfx900"):
        occupancy.occupancy(SMALL, "gfx900")


@pytest.mark.parametrize(
    ("product", "vector", "matrix"),
    [
        ("MI250X die", 47.9, 191.5),  # half of the page's 95.7 and 383
        ("MI300X", 163.4, 1307.4),
        ("MI355X", 157.3, 2516.6),
        ("RX 7900 XTX", 61.4, 122.8),
        ("RX 9070 XT", 48.7, 194.6),
    ],
)
def test_peaks_are_those_of_the_vendor(product: str, vector: float, matrix: float) -> None:
    assert occupancy.peak_tflops(product) == pytest.approx({"vector": vector, "matrix": matrix}, rel=2e-3)


def test_bound_is_set_by_what_takes_longest() -> None:
    case = Case(batch=8, dim=2048, seqlen=2048, dtype="bfloat16")
    memory = occupancy.bound("MI300X", case)
    assert memory.set_by == "memory"
    assert memory.time_us == pytest.approx(case.bytes() / 5325e9 * 1e6)
    assert memory.gbps == pytest.approx(5325)
    matrix = occupancy.bound("MI300X", case, 10**12)
    assert matrix.set_by == "matrix"
    assert matrix.time_us == pytest.approx(1e12 / 1307.4432e12 * 1e6)


def test_every_product_is_cited_and_of_a_known_arch() -> None:
    assert all(p.arch in occupancy.ARCHES and p.source.startswith("amd.com/") for p in occupancy.PRODUCTS.values())
    assert {p.arch for p in occupancy.PRODUCTS.values()} == set(occupancy.ARCHES)

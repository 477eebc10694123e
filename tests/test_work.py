"""Work per output, counted in machine code: on listings written here, on one that was recorded, and on AMD builds."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from cc1d_lab import anatomy, backends, machine_code, work
from cc1d_lab.case import Case
from cc1d_lab.cell import Cell
from cc1d_lab.code_object import KernelCode
from cc1d_lab.machine_code import Inspection, Instruction

DATA = Path(__file__).parent / "data"
LOAD, STORE = "global_load_dwordx4", "global_store_dwordx4"
FMA = "v_fma_f32"


def inspection(code: tuple[Instruction, ...], dtype: str = "float32", wave: int = 64) -> Inspection:
    kernel = KernelCode("probe", wave, 256, 8, 0, 8, 0, 0, 0, 0, 0, (), 0)
    return Inspection(Cell("fwd_naive", "amd", Case(dtype=dtype), arch="gfx942"), kernel, code, None)


def code_of(*lines: str) -> tuple[Instruction, ...]:
    """`name`, `name>target` or, predicated, `@name`; one address apart."""
    split = [line.partition(">") for line in lines]
    return tuple(
        Instruction(at, name.removeprefix("@"), "", int(to) if to else None, name.startswith("@"))
        for at, (name, _, to) in enumerate(split)
    )


def counted(*lines: str, dtype: str = "float32", wave: int = 64) -> tuple[float, float, float, float]:
    """(outputs, float ops, bytes loaded, bytes stored) of a listing."""
    found = work.per_output(inspection(code_of(*lines), dtype, wave))
    assert found is not None
    return found.outputs, found.float_ops, found.load_bytes, found.store_bytes


def test_straight_line() -> None:
    assert counted(LOAD, FMA, FMA, STORE, "s_endpgm") == (4.0, 1.0, 4.0, 4.0)
    assert counted(LOAD, FMA, FMA, STORE, "s_endpgm", dtype="float16") == (8.0, 0.5, 2.0, 2.0)


def test_nothing_is_stored() -> None:
    assert work.per_output(inspection((Instruction(0, "s_endpgm", ""),))) is None
    assert set(work.table(inspection((Instruction(0, "s_endpgm", ""),)))) >= {"outputs", "float_ops", "model_flops"}


def test_masked_code_runs_and_what_may_be_jumped_over_does_not() -> None:
    masked = ("s_and_saveexec_b64", "s_cbranch_execz>5", FMA, LOAD)
    assert counted(LOAD, *masked, STORE, "s_endpgm") == (4.0, 0.5, 8.0, 4.0)
    assert counted(LOAD, "s_cmp", "s_cbranch_scc1>5", FMA, LOAD, STORE, "s_endpgm") == (4.0, 0.0, 4.0, 4.0)


def test_of_two_arms_under_opposite_masks_one_runs() -> None:
    code = (
        *("s_and_saveexec_b64", "s_cbranch_execz>5"),  # 0, 1: if
        *(LOAD, FMA, FMA),  # 2 to 4: the longer arm
        *("s_andn2_saveexec_b64", "s_cbranch_execz>8", LOAD),  # 5, 6: else; 7: the shorter arm
        *(STORE, "s_endpgm"),
    )
    assert counted(*code) == (4.0, 0.0, 4.0, 4.0)


def test_a_path_that_loads_too_little_is_not_the_main_one() -> None:
    # The load stands in a loop that may be left out: one round of it counts.
    code = ("s_cbranch_scc1>4", LOAD, "ds_write_b128", "s_cbranch_scc0>1", FMA, STORE, "s_endpgm")
    assert counted(*code) == (4.0, 0.5, 4.0, 4.0)
    found = work.per_output(inspection(code_of(*code)))
    assert found is not None
    assert (found.within, found.loops) == ("kernel", True)


def test_the_matrix_cores_are_on_the_path_where_there_are_any() -> None:
    code = (LOAD, "s_cbranch_scc1>4", "v_mfma_f32_16x16x16_bf16", "s_cbranch_scc0>2", STORE, "s_endpgm")
    found = work.per_output(inspection(code_of(*code)))
    assert found is not None
    assert (found.matrix_ops, found.loops) == (128.0 / 4, True)


def test_around_a_loop() -> None:
    loop = ("v_setup", LOAD, FMA, FMA, STORE, "s_cbranch_scc0>1", "s_endpgm")
    assert counted(*loop) == (4.0, 1.0, 4.0, 4.0)
    # The stores have a loop of their own: what they store was loaded around the loop outside.
    nested = ("v_setup", LOAD, FMA, STORE, "s_cbranch_scc0>3", "s_cbranch_scc0>1", "s_endpgm")
    assert counted(*nested) == (4.0, 0.5, 4.0, 4.0)


def test_the_slow_path_with_narrow_stores_is_left_out() -> None:
    slow = ("global_load_ushort", "global_store_short") * 8
    code = (LOAD, "s_cbranch_scc0>19", *slow, "s_endpgm", FMA, STORE, "s_endpgm")
    assert counted(*code) == (4.0, 0.5, 4.0, 4.0)


def test_predicated_ends_fall_through_on_nvidia() -> None:
    code = ("LDG.E.128", "@EXIT", "FFMA", "STG.E.128", "EXIT", "FADD", "STG.E")
    assert counted(*code, wave=32) == (4.0, 0.5, 4.0, 4.0)


@pytest.mark.parametrize(
    ("name", "wave", "operations"),
    [
        ("v_mfma_f32_16x16x16_bf16", 64, 128.0),
        ("v_wmma_f32_16x16x16_f16", 32, 256.0),
        ("HMMA.16816.F32.BF16", 32, 128.0),
        ("v_fma_f32", 64, 0.0),
    ],
)
def test_a_lanes_share_of_a_matrix_instruction(name: str, wave: int, operations: float) -> None:
    load, store = ("LDG.E.128", "STG.E.128") if name[0] == "H" else (LOAD, STORE)
    found = work.per_output(inspection(code_of(load, name, store, "s_endpgm"), wave=wave))
    assert found is not None
    assert found.matrix_ops == operations / 4


def test_model() -> None:
    case = Case(batch=2, dim=64, seqlen=4096, dtype="float16", activation="none")
    assert work.model(case) == pytest.approx({"flops": 9.0, "bytes": 4.0}, rel=0.01)


def test_a_recorded_listing_of_nvidia() -> None:
    # fwd_register, bfloat16, width 4, bias, SiLU; nvcc 13.0 for sm_90, cuobjdump 12.8.
    code = machine_code.parse_sass(gzip.decompress((DATA / "fwd_register_sm90.sass.gz").read_bytes()).decode())
    (kernel,) = machine_code.parse_usage((DATA / "fwd_register_sm90.usage").read_text(), code)
    assert (kernel.name, kernel.vgprs, kernel.lds_bytes, kernel.spills) == ("fwd_register", 40, 0, 0)
    listing = code["fwd_register"]
    assert machine_code.memory(listing)["store_16"] == 2
    cell = Cell("fwd_register", "nvidia", Case(dtype="bfloat16"), arch="sm_90")
    found = work.per_output(Inspection(cell, kernel, listing, None))
    assert found is not None
    # Two vectors a thread; x once, the vector before it at a wave's edge, weights and bias; 9 operations and SiLU's.
    assert (found.outputs, found.store_bytes, found.within, found.loops) == (16.0, 2.0, "kernel", False)
    assert 2.0 <= found.load_bytes <= 4.0
    assert 9.0 <= found.float_ops <= 9.0 + 13.0


@pytest.mark.amd
@pytest.mark.skipif(bool(backends.get("amd").can_build()), reason=backends.get("amd").can_build())
def test_variants_differ_in_what_they_load_as_their_ideas_say() -> None:
    found = anatomy.kernels(arches=["gfx942"], dtype="bfloat16", activation="silu")
    table = anatomy.per_output(found).set_index("kernel")
    # A thread of the naive kernel reads every x again for each of the 4 taps, with the weight.
    assert table.load_bytes["fwd_naive"] == pytest.approx(16.0, abs=2.0)
    for kernel in ("fwd_shared_memory", "fwd_channel_last", "fwd_register", "fwd_raster"):
        # fwd_register: with the halo, a vector that the first lane of a wave alone loads.
        assert 2.0 <= table.load_bytes[kernel] <= (5.5 if kernel == "fwd_register" else 4.0), kernel
        assert table.store_bytes[kernel] == 2.0
        assert 9.0 <= table.float_ops[kernel] <= 9.0 + 13.0, "width 4, bias, SiLU"
    for kernel in ("gemm", "fwd_im2col_fused_wmma", "fwd_toeplitz_wmma"):
        assert table.matrix_ops[kernel] > 0, kernel
    assert set(table.model_flops) == {9.0}

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
    """`name`, `name operands`, `name>target` or, predicated, `@name`; one address apart."""
    found = []
    for at, line in enumerate(lines):
        text, _, to = line.partition(">")
        name, _, operands = text.removeprefix("@").partition(" ")
        found.append(Instruction(at, name, operands, int(to) if to else None, "P0" if line.startswith("@") else ""))
    return tuple(found)


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


def test_branches_around_stores_are_not_taken() -> None:
    code = (LOAD, LOAD, FMA, "s_cbranch_scc0>5", STORE, "s_cbranch_scc0>7", STORE, "s_endpgm")
    assert counted(*code) == (8.0, 0.25, 4.0, 4.0)


def test_masked_code_may_stand_out_of_line() -> None:
    code = ("s_and_saveexec_b64", "s_cbranch_execnz>4", "s_or_b64", "s_endpgm", LOAD, FMA, FMA, STORE, "s_branch>2")
    assert counted(*code) == (4.0, 1.0, 4.0, 4.0)


def test_an_arm_ends_with_code_masked_in_it() -> None:
    """What is masked inside of the first arm jumps to where the second begins, and does not run it."""
    code = (
        *("s_and_saveexec_b64 s6, vcc", "s_xor_b64 s5, exec, s6", "s_cbranch_execz>7"),  # 0 to 2: if
        *("s_mov_b64 s4, exec", "s_cbranch_execz>7", LOAD, STORE),  # 3 to 6: an arm that masks its last store
        *("s_andn2_saveexec_b64 s5, s5", "s_cbranch_execz>11", LOAD, STORE),  # 7, 8: else; 9, 10: the other arm
        "s_endpgm",
    )
    assert counted(*code) == (4.0, 0.0, 4.0, 4.0)


def test_lanes_that_store_and_branch_under_one_predicate_do_not_store_again() -> None:
    slow = ("STG.E.128", "EXIT")
    for leaves in ("@EXIT", "@BRA>7"):
        code = ("LDG.E.128", "FADD", "ISETP", "@STG.E.128", leaves, *slow, "EXIT")
        assert counted(*code, wave=32) == (4.0, 0.25, 4.0, 4.0), leaves
    code = ("LDG.E.128", "LDG.E.128", "@STG.E.128", "ISETP P0", "@EXIT", *slow)
    assert counted(*code, wave=32) == (8.0, 0.0, 4.0, 4.0), "the predicate has changed between them"


def test_a_loop_with_most_of_the_arithmetic_is_the_main_path() -> None:
    walk = (LOAD, *(FMA,) * 4, "global_store_dwordx2", "s_cbranch_scc0>1")
    sums = (LOAD, STORE, STORE, "s_endpgm")
    assert counted("v_setup", *walk, *sums) == (2.0, 4.0, 8.0, 4.0)
    few = (LOAD, "global_load_dword", FMA, "global_store_dword", "s_cbranch_scc0>2")
    assert counted("v_setup", "v_setup", *few, LOAD, *(FMA,) * 8, STORE, "s_endpgm")[0] == 4.0


def test_a_loop_that_loads_goes_round_until_every_output_has_an_input() -> None:
    code = ("v_setup", LOAD, "ds_write_b128", "s_cbranch_scc0>1", "s_barrier", FMA, STORE, STORE, STORE, "s_endpgm")
    assert counted(*code) == (12.0, 2 / 12, 4.0, 4.0)


MOVED = ("ds_read_b128", STORE, "s_cbranch_scc0>8", "s_endpgm")


def test_a_loop_that_moves_results_out_goes_round_until_all_are_out() -> None:
    code = (LOAD, LOAD, "ds_write_b128", "s_barrier", FMA, "ds_write_b128", "ds_write_b128", "s_barrier", *MOVED)
    assert counted(*code) == (8.0, 0.25, 4.0, 4.0)
    split = tuple(name.replace("s_barrier", "s_barrier_signal") for name in code[:7])
    assert counted(*split, "s_barrier_signal", *MOVED) == (8.0, 0.25, 4.0, 4.0), "as gfx12 writes them"


def test_what_moves_out_of_shared_memory_without_barriers_is_not_counted() -> None:
    code = (LOAD, LOAD, "ds_write_b128", "s_nop", FMA, "ds_write_b128", "ds_write_b128", "s_nop", *MOVED)
    assert work.per_output(inspection(code_of(*code))) is None


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


# Outputs that a lane stores on the main path of each kernel, in bfloat16 and in float32.
OUTPUTS = {
    "fwd_naive": (1, 1),
    "fwd_shared_memory": (8, 4),
    "fwd_channel_last": (32, 32),
    "fwd_register": (8, 4),
    "fwd_register:framed": (8, 4),
    "fwd_register:scattered": (8, 4),
    "fwd_raster": (16, 4),
    "fwd_raster:staged": (32, 16),
    "fwd_raster:scattered": (32, 16),
    "bwd_warp_walk": (32, 32),
    "bwd_warp_walk:few_turns": (32, 32),
    "bwd_warp_walk:framed": (32, 16),
    "bwd_warp_walk:framed_alone": (32, 16),
    "bwd_warp_walk:scattered": (16, 8),  # clang makes two loops of one, and the count goes through both
    "bwd_persistent": (20, 16),
    "bwd_persistent:off_lines": (20, 16),
    "bwd_persistent:apart": (12, 12),
    "bwd_persistent:scattered": (4, 4),
}
# The same of kernels that not every dtype has, in bfloat16 and in float32, with operations and, at most, elements that
# are loaded for each. In turned1 to turned4 the count goes through both ways of a block, one after the other: 32 or 16
# outputs each. In float32 clang puts what a step computes under the mask of its store, and where that is not the same
# from step to step, the count takes some for the arm that is left out.
SOME = {f"fwd_raster:turned{turn}": ((2 * 32, 13, 2.2), None) for turn in (3, 4)}
SOME |= {
    "fwd_raster:turned1": ((2 * 32, 13, 2.2), (20, 22, 3.1)),
    "fwd_raster:turned2": ((2 * 32, 13, 2.2), (2 * 16, 21.5, 2.2)),
}
SOME |= {f"bwd_warp_walk:{kernel}": ((32, 35.5, 3.1), None) for kernel in ("by_rows", "by_rows_alone")}


@pytest.mark.amd
@pytest.mark.skipif(bool(backends.get("amd").can_build()), reason=backends.get("amd").can_build())
@pytest.mark.parametrize(("arch", "dtype"), [("gfx942", "bfloat16"), ("gfx1100", "bfloat16"), ("gfx1201", "float32")])
def test_every_kernel_is_counted_on_its_own_path(arch: str, dtype: str) -> None:
    variants = {kernel.partition(":")[0] for kernel in OUTPUTS}
    found = [
        kernel
        for op in ("fwd", "bwd")
        for kernel in anatomy.kernels([v for v in variants if v.startswith(op)], [arch], dtype=dtype, op=op)
    ]
    works = {f"{i.cell.variant}:{i.kernel.name}".removesuffix(f":{i.cell.variant}"): work.per_output(i) for i in found}
    is_wide = dtype == "float32"
    itemsize = 4 if is_wide else 2
    for kernel, outputs in OUTPUTS.items():
        counts, is_bwd = works[kernel], kernel.startswith("bwd")
        assert counts is not None, kernel
        assert counts.outputs == outputs[is_wide], kernel
        assert counts.store_bytes == pytest.approx(itemsize, rel=0.07), kernel
        # Width 4, bias and SiLU: 9 and 4 or 12. The backward does them again, then dx, dweight and dbias.
        flops = {(False, False): 13, (False, True): 21, (True, False): 35.5, (True, True): 43.5}[is_bwd, is_wide]
        # An end of a stretch computes three gradients above it, each as a forward: an arm that counts in bfloat16.
        above = 3 * 14 / 32 if kernel in ("bwd_warp_walk", "bwd_warp_walk:few_turns") and not is_wide else 0
        assert counts.float_ops == pytest.approx(flops + above + 2 * (kernel == "fwd_naive"), abs=0.6), kernel
        if kernel != "fwd_naive":  # x, or x and the gradient, once; weight, bias, and what lies before
            # A vector each of x, the halo and the taps, and the bias: 13 words for 4 outputs.
            # A tile of few steps: its own and the 3 before, and the taps and the bias of each channel.
            most = {"fwd_register": 3.25, "fwd_register:framed": 3.25, "fwd_raster": 4.5 if is_wide else 4.0}.get(
                kernel, 3.1
            )
            assert 1 + is_bwd <= counts.load_bytes / itemsize <= most, kernel
    for kernel, expected in SOME.items():
        if expected[is_wide] is None:
            assert works[kernel] is None, kernel
        else:
            outputs, flops, loads = expected[is_wide]
            assert works[kernel].outputs == outputs, kernel
            assert works[kernel].float_ops == pytest.approx(flops, abs=0.6), kernel
            assert 1 <= works[kernel].load_bytes / itemsize <= loads, kernel


@pytest.mark.amd
@pytest.mark.skipif(bool(backends.get("amd").can_build()), reason=backends.get("amd").can_build())
def test_variants_differ_in_what_they_load_as_their_ideas_say() -> None:
    found = anatomy.kernels(arches=["gfx942"], dtype="bfloat16", activation="silu")
    table = anatomy.per_output(found).set_index("kernel")
    # A thread of the naive kernel reads every x again for each of the 4 taps, with the weight.
    assert table.load_bytes["fwd_naive"] == pytest.approx(16.0, abs=2.0)
    for kernel in ("fwd_shared_memory", "fwd_channel_last", "fwd_register", "fwd_raster"):
        # fwd_register: with the halo, a vector that the first lane of a wave alone loads. fwd_raster: 7 rows for 4, and
        # with the arm for weights that do not lie side by side.
        most = {"fwd_register": 5.5, "fwd_raster": 7.5}.get(kernel, 4.0)
        assert 2.0 <= table.load_bytes[kernel] <= most, kernel
        assert table.store_bytes[kernel] == 2.0
        assert 9.0 <= table.float_ops[kernel] <= 9.0 + 13.0, "width 4, bias, SiLU"
    for kernel in ("gemm", "fwd_im2col_fused_wmma", "fwd_toeplitz_wmma"):
        assert table.matrix_ops[kernel] > 0, kernel
    assert set(table.model_flops) == {9.0}

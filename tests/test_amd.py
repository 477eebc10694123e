"""Code objects for AMD GPUs: what the compiler made of each variant, read from the ELF and from the disassembly.

No AMD GPU is needed. Every check is a function that returns findings, and is itself tested on a planted fault.
"""

from __future__ import annotations

import ctypes
import functools
import json
import re
import subprocess
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from cc1d_lab import backends, build, code_object, kernel, machine_code, occupancy, paths, variants
from cc1d_lab.case import DTYPES, LAYOUTS, Case
from cc1d_lab.cell import Cell
from cc1d_lab.cli import main
from cc1d_lab.machine_code import Inspection
from cc1d_lab.report.execute import execute

pytestmark = [
    pytest.mark.amd,
    pytest.mark.skipif(bool(backends.get("amd").can_build()), reason=backends.get("amd").can_build()),
]

SAMPLE = ("gfx942", "gfx950", "gfx1100")
BUILT = [v for v in variants.VARIANTS.values() if v.source]
MATRIX = [v for v in BUILT if v.name.endswith("_wmma")]
WIDE = ("fwd_shared_memory", "fwd_channel_last", "copy")  # they promise vectors of 16 bytes


def cells_of(variant: variants.Variant, arch: str, dtypes: tuple[str, ...] = DTYPES) -> list[Cell]:
    """A cell per dtype and layout that the variant takes."""
    op = "fwd" if variant.op == "any" else variant.op
    cases = [Case(dtype=d, layout=la, op=op) for d, la in product(dtypes, LAYOUTS)]
    return [Cell(variant.name, "amd", c, arch=arch) for c in cases if not variants.why_not(variant, c, "amd")]


@functools.cache
def inspected(variant: str, arch: str, turn: int = 0, dtypes: tuple[str, ...] = DTYPES) -> list[Inspection]:
    """One of the cells of a variant: those of another `turn` have another dtype or layout."""
    cells = cells_of(variants.get(variant), arch, dtypes)
    cell = cells[turn % len(cells)]
    return machine_code.inspect(cell, build.build_cell(cell))


# --- findings --------------------------------------------------------------------------------------------------------


def register_faults(kernels: list[Inspection]) -> list[str]:
    """Spills and private memory: either costs memory traffic that the variant does not mean."""
    return [
        f"{i.kernel.name}: {i.kernel.scratch_bytes} B of scratch, {i.kernel.spills} spills"
        for i in kernels
        if i.kernel.scratch_bytes or i.kernel.spills or i.histogram()["scratch"]
    ]


def workgroup_faults(kernels: list[Inspection], block: int) -> list[str]:
    """A code object must state the workgroup that the launcher uses: of the kernel that the knob `block` is for.

    tests/test_manifest.py holds every kernel against its launch.
    """
    first = kernels[0].kernel
    return [f"{first.name}: workgroup {first.workgroup}"] if first.workgroup != block else []


def name_faults(kernels: list[Inspection], variant: variants.Variant) -> list[str]:
    """Kernels are found by plain names, the variant's own or its stages' among them; a stage may choose."""
    found = [i.kernel.name for i in kernels]
    plain = all(re.fullmatch(r"[a-z][a-z0-9_]*", name) for name in found)
    named = variant.name in found or set(variant.stages) <= set(found)
    fine = plain and named and len(found) >= len(variant.stages)
    return [] if fine else [f"kernels {found}, stages {list(variant.stages)}"]


def argument_faults(kernels: list[Inspection]) -> list[str]:
    """A kernel takes Params or a `Step`, perhaps scalars, all by value, nothing hidden: any loader can launch it."""
    steps = ("update_words", "indexed_words", "full_words", "indexed_full_words")
    params = ctypes.sizeof(kernel.Params)
    return [
        f"{i.kernel.name}: {i.kernel.kernarg_bytes} B, {i.kernel.arguments}"
        for i in kernels
        if [a.size for a in i.kernel.arguments].count(80 if i.kernel.name in steps else params) != 1
        or any(a.kind != "by_value" for a in i.kernel.arguments)
        or i.kernel.kernarg_bytes != i.kernel.arguments[-1].offset + i.kernel.arguments[-1].size
    ]


def matrix_faults(kernels: list[Inspection], arch: str, dtype: str) -> list[str]:
    """Matrix-core variants must use the instruction of their generation, in their dtype."""
    stem = "v_mfma_f32_16x16x16" if arch.startswith("gfx9") else "v_wmma_f32_16x16x16"
    wanted = re.compile(stem + r"_?" + {"float16": "f16", "bfloat16": "bf16"}[dtype] + r"(_1k)?$")
    used = {i.name for k in kernels for i in k.instructions if i.kind == "matrix"}
    fine = bool(used) and all(wanted.match(name) for name in used)
    return [] if fine else [f"{arch} {dtype}: matrix instructions {sorted(used)}"]


def width_faults(kernels: list[Inspection]) -> list[str]:
    """Global memory is read and written 16 bytes a lane."""
    names = {i.name for k in kernels for i in k.instructions}
    return [
        f"no {kind} of 16 bytes"
        for kind in ("load", "store")
        if not names & {f"global_{kind}_dwordx4", f"global_{kind}_b128"}
    ]


def faults(kernels: list[Inspection]) -> list[str]:
    """All findings that hold for every variant, and those for what this variant promises."""
    cell = kernels[0].cell
    variant = variants.get(cell.variant)
    block = variants.resolve_tunables(variant, cell.tunables, cell.case).get("block", 32)
    return [
        *register_faults(kernels),
        *workgroup_faults(kernels, block),
        *name_faults(kernels, variant),
        *argument_faults(kernels),
        *(matrix_faults(kernels, cell.arch, cell.case.dtype) if variant in MATRIX else []),
        *(width_faults(kernels) if variant.name in WIDE else []),
    ]


# --- the variants ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", SAMPLE)
@pytest.mark.parametrize("variant", BUILT, ids=lambda v: v.name)
def test_variant_makes_the_code_it_promises(variant: variants.Variant, arch: str) -> None:
    # Dtypes and layouts take turns, so that every arch sees each.
    assert faults(inspected(variant.name, arch, BUILT.index(variant) + SAMPLE.index(arch))) == []


@pytest.mark.parametrize("dtype", variants.HALF)
@pytest.mark.parametrize("arch", ["gfx90a", "gfx942", "gfx1100", "gfx1200"])
@pytest.mark.parametrize("variant", MATRIX, ids=lambda v: v.name)
def test_matrix_cores_are_used(variant: variants.Variant, arch: str, dtype: str) -> None:
    assert matrix_faults(inspected(variant.name, arch, dtypes=(dtype,)), arch, dtype) == []


@pytest.mark.full
@pytest.mark.parametrize("arch", backends.AMD_ARCHES)
def test_every_variant_dtype_and_layout(arch: str) -> None:
    plain = [c for v in BUILT for c in cells_of(v, arch)]
    packed = [replace(c, case=replace(c.case, states=True, seq_idx=True)) for c in plain if c.case.op != "update"]
    packed = [c for c in packed if not variants.why_not(variants.get(c.variant), c.case, "amd")]
    outcomes = list(build.build_all([*plain, *packed]))
    assert [f"{c.title()}: {o}" for c, o in outcomes if isinstance(o, Exception)] == []
    inspections = [machine_code.inspect(c, o) for c, o in outcomes if isinstance(o, build.Built)]
    assert "\n".join(f"{i[0].cell.title()}: {fault}" for i in inspections for fault in faults(i)) == ""


def test_a_row_gets_what_the_code_object_states() -> None:
    cell = cells_of(variants.get("fwd_shared_memory"), "gfx942")[0]
    built = build.build_cell(cell)
    (k,) = code_object.read(built.library)
    assert code_object.target(built.library) == "gfx942"
    assert built.resources == {
        "vgprs": k.vgprs,
        "sgprs": k.sgprs,
        "lds_bytes": k.lds_bytes,
        "spills": 0,
        "code_bytes": k.code_bytes,
    }
    assert k.vgprs > 0
    assert k.sgprs > 0
    assert k.lds_bytes > 128 * 16
    assert k.code_bytes > 1000


def test_note_is_read_as_llvm_reads_it(tmp_path: Path) -> None:
    cell = cells_of(variants.get("fwd_im2col_wmma"), "gfx942")[0]
    library = tmp_path / "kernel.co"
    library.write_bytes(code_object.extract(build.build_cell(cell).library, "gfx942"))
    readelf = Path(machine_code._llvm_objdump()).with_name("llvm-readelf")
    text = subprocess.run([readelf, "--notes", library], capture_output=True, text=True, check=True).stdout
    fields = {"vgpr_count": "vgprs", "sgpr_count": "sgprs", "kernarg_segment_size": "kernarg_bytes", "name": "name"}
    for field, attribute in fields.items():
        theirs = re.findall(rf"^    \.{field}: +(\S+)$", text, re.MULTILINE)
        assert theirs == [str(getattr(k, attribute)) for k in code_object.read(library)]


# --- the command line ------------------------------------------------------------------------------------------------


def cc1d(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def test_build_for_all_archs_counts_built_and_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    one = ("build", "--backend", "amd", "--variant", "fwd_naive", "--dtype", "fp16", "--layout", "channel_first")
    fine = cc1d(*one, "--arch", "all")
    assert fine.exit_code == 0
    assert fine.output.splitlines()[-1].startswith(f"built {len(backends.AMD_ARCHES)}, failed 0, ")
    monkeypatch.setattr(backends, "AMD_ARCHES", ("gfx942", "gfx9999"))
    broken = cc1d(*one, "--arch", "all")
    assert broken.exit_code == 1
    assert "gfx9999" in broken.output
    assert broken.output.splitlines()[-1].startswith("built 1, failed 1, ")


def test_inspect_prints_every_stage_and_a_bound_that_is_called_one() -> None:
    found = cc1d("inspect", "--variant", "fwd_im2col_wmma", "--arch", "gfx942", "--listing")
    assert found.exit_code == 0, found.output
    for stage in variants.get("fwd_im2col_wmma").stages:
        assert f" {stage} " in found.output
    assert "not measurements" in found.output
    assert "MI300X" in found.output
    (line,) = [line for line in found.output.splitlines() if "v_mfma" in line]
    assert line.startswith("| ")  # in the inner loop


def test_inspect_as_json() -> None:
    found = cc1d("inspect", "--variant", "fwd_naive", "--arch", "gfx942", "--arch", "gfx1100", "--json")
    read = json.loads(found.output)
    assert [k["arch"] for k in read["kernels"]] == ["gfx942", "gfx1100"]
    assert read["kernels"][0]["instructions"]["store"] == 1
    assert {b["product"] for b in read["bounds"]} == {"MI300X", "MI325X", "RX 7900 XTX"}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--backend", "cpu"), "allowed: amd, nvidia"),
        (("--variant", "fwd_im2col_wmma", "--dtype", "fp32"), "nothing to inspect"),
        (("--variant", "torch_conv1d"), "nothing to inspect"),
    ],
)
def test_inspect_refuses(arguments: tuple[str, ...], says: str) -> None:
    found = cc1d("inspect", "--arch", "gfx942", *arguments)
    assert found.exit_code == 2
    assert says in found.output


def test_notebook_shows_the_machine_code(tmp_path: Path) -> None:
    path = paths.notebooks_dir() / "70_inspect.ipynb"
    execute(path, tmp_path / path.name, {}, timeout_s=120)
    read = json.loads((tmp_path / path.name).read_text())
    assert read["metadata"]["cc1d"]["status"] == "completed"
    outputs = json.dumps(read["cells"])
    assert "v_mfma_f32_16x16x16" in outputs
    assert outputs.count("image/png") >= 3


# --- planted faults --------------------------------------------------------------------------------------------------


def planted(tmp_path: Path, variant: str, changes: dict[str, str], arch: str = "gfx942") -> list[Inspection]:
    """A variant whose source was changed, compiled for fp16 and inspected."""
    cell = cells_of(variants.get(variant), arch, ("float16",))[0]
    source = paths.kernels_dir() / f"{variant}.hip"
    text = source.read_text()
    for old, new in changes.items():
        assert old in text, f"{source.name} has no {old!r}: plant the fault elsewhere"
        text = text.replace(old, new)
    changed, library = tmp_path / source.name, tmp_path / "kernel.co"
    changed.write_text(text)
    defines = build._defines(cell.case, variants.defaults(variants.get(variant), cell.case))
    compile_for(arch, changed, library, *defines, f"-I{source.parent / 'include'}")
    return machine_code.inspect(cell, build.Built(library, "", 0.0, {}))


def compile_for(arch: str, source: Path, library: Path, *flags: str) -> str:
    """What the compiler printed."""
    target = backends.get("amd")
    device = ["--cuda-device-only", "--no-gpu-bundle-output"]
    command = [target.compiler(), *target.flags(arch), *device, *flags, str(source), "-o", str(library)]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=source.parent).stderr


ARRAY = "volatile float local[64]; for (int j = 0; j < 64; ++j) local[j] = j; x += int(local[dim % 64]); acc_t sum ="


def test_scratch_is_found(tmp_path: Path) -> None:
    (fault,) = register_faults(planted(tmp_path, "fwd_naive", {"acc_t sum =": ARRAY}))
    assert not fault.startswith("fwd_naive: 0 B")


def test_spills_are_found(tmp_path: Path) -> None:
    few = {"__global__": "__global__ __attribute__((amdgpu_num_vgpr(24)))"}
    (fault,) = register_faults(planted(tmp_path, "fwd_shared_memory", few))
    assert int(re.findall(r"(\d+) spills", fault)[0]) > 0


def test_a_workgroup_that_is_not_stated_is_found(tmp_path: Path) -> None:
    kernels = planted(tmp_path, "fwd_naive", {"__launch_bounds__(kBlock)": ""})
    assert workgroup_faults(kernels, 256) == ["fwd_naive: workgroup 1024"]


def test_a_mangled_name_is_found(tmp_path: Path) -> None:
    kernels = planted(tmp_path, "fwd_naive", {'extern "C"': ""})
    assert name_faults(kernels, variants.get("fwd_naive")) == ["kernels ['_Z9fwd_naive6Params'], stages ['conv']"]


@pytest.mark.parametrize(
    "changes",
    [
        {"fwd_naive(const Params p)": "fwd_naive(const Params p, float* q)", "stream, p)": "stream, p, (float*)0)"},
        {"if (i >= inner)": "if (i >= inner || i > __builtin_amdgcn_workgroup_size_x())"},  # hidden
    ],
)
def test_a_pointer_beside_params_or_a_hidden_argument_is_found(tmp_path: Path, changes: dict[str, str]) -> None:
    assert argument_faults(planted(tmp_path, "fwd_naive", changes)) != []


@pytest.mark.parametrize("arch", ["gfx942", "gfx1100"])
def test_a_gemm_off_the_matrix_cores_is_found(tmp_path: Path, arch: str) -> None:
    plain = "c.v[0] += to_float(a.v[0]) * to_float(b.v[0]);"
    kernels = planted(tmp_path, "fwd_im2col_wmma", {"multiply_accumulate(c, a, b);": plain}, arch)
    assert matrix_faults(kernels, arch, "float16") == [f"{arch} float16: matrix instructions []"]


def test_the_other_dtypes_instruction_is_found() -> None:
    assert matrix_faults(inspected("fwd_im2col_wmma", "gfx942", dtypes=("bfloat16",)), "gfx942", "float16") != []


def test_narrow_loads_are_found(tmp_path: Path) -> None:
    one = "for (int j = 0; j < kVec; ++j) out[i + j] = *static_cast<const volatile elem_t*>(x + i + j);"
    kernels = planted(tmp_path, "copy", {"if (i + kVec <= n)": f"if (i + kVec <= n) {one} else if (false)"})
    assert "no load of 16 bytes" in width_faults(kernels)


# --- occupancy -------------------------------------------------------------------------------------------------------

PROBE = """
#define PROBE(NAME, BLOCK, VGPR, SGPR, LDS)                                                                        \\
    extern "C" __attribute__((global)) __attribute__((amdgpu_flat_work_group_size(BLOCK, BLOCK))) void NAME() {    \\
        __attribute__((shared)) static char shared[LDS];                                                           \\
        asm volatile("" ::"v"(&shared[0]) : "v" #VGPR, "s" #SGPR);                                                 \\
    }
PROBE(few, 256, 23, 20, 4)
PROBE(v64, 256, 63, 20, 4)
PROBE(v72, 256, 71, 20, 4)
PROBE(v96, 256, 95, 20, 4)
PROBE(v128, 256, 127, 20, 4)
PROBE(v200, 64, 199, 20, 4)
PROBE(s100, 64, 23, 99, 4)
PROBE(lds20, 256, 23, 20, 20480)
PROBE(lds20one, 64, 23, 20, 20480)
PROBE(lds40, 1024, 63, 20, 40960)
"""


@pytest.mark.parametrize("arch", backends.AMD_ARCHES)
def test_occupancy_agrees_with_the_compiler(tmp_path: Path, arch: str) -> None:
    source, library = tmp_path / "probe.hip", tmp_path / "probe.co"
    source.write_text(PROBE)
    remarks = compile_for(arch, source, library, "-Rpass-analysis=kernel-resource-usage")
    names = re.findall(r"Function Name: (\w+)", remarks)
    theirs = map(int, re.findall(r"Occupancy \[waves/SIMD\]: (\d+)", remarks))
    # The compiler leaves out the 16 SGPRs that ROCm's trap handler takes, and rounds a part of a wave up.
    kernels = [replace(k, sgprs=max(k.sgprs - 16, 0)) for k in code_object.read(library)]
    ours = {k.name: -(-occupancy.occupancy(k, arch).waves_per_simd // 1) for k in kernels}
    assert ours == dict(zip(names, theirs, strict=True))
    assert len(ours) == 10

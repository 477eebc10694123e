"""The library that a ROCm machine loads: how hipcc is called, what is in the file, what it does when it is launched.

Built here with a stand-in for hipcc; loaded beside Debian's HIP runtime, and beside one that writes down each launch.
Only the device is missing. Every check is a function that returns findings, and is itself tested on a planted fault.
"""

from __future__ import annotations

import ctypes
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from rocm_stand_in import (
    LIBRARIES,
    NO_HIP,
    TOOLS,
    Rocm,
    add_driver,
    bare_machine,
    headers,
    launches,
    make_device_libraries,
    make_rocm,
    make_runtime,
    with_debian_hip,
)

from cc1d_lab import backends, build, code_object, kernel, variants
from cc1d_lab.case import Case
from cc1d_lab.cell import Cell
from cc1d_lab.cli import main

NO_CLANG = "" if (TOOLS / "bin" / "clang++").exists() else "no clang for AMD GPUs in .tools; run `make tools`"
pytestmark = [pytest.mark.amd, pytest.mark.skipif(bool(NO_CLANG or NO_HIP), reason=NO_CLANG or NO_HIP)]

BUILT = [v for v in variants.VARIANTS.values() if v.source]


def cell_of(variant: variants.Variant, arch: str) -> Cell:
    """The smallest case that a variant takes."""
    op = "fwd" if variant.op == "any" else variant.op
    case = Case(batch=2, dim=64, seqlen=200, dtype="float16", layout=variant.layouts[0], op=op)
    return Cell(variant.name, "amd", case, arch=arch)


@pytest.fixture(scope="module")
def bitcode(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ROCm's device libraries."""
    return make_device_libraries(tmp_path_factory.mktemp("bitcode"))


@pytest.fixture(params=list(headers().values()), ids=[f"HIP {version}" for version in headers()])
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, bitcode: Path) -> Rocm:
    """A ROCm machine with an MI300X, whose hipcc is a stand-in."""
    bare_machine(monkeypatch, tmp_path)
    made = make_rocm(tmp_path / "rocm", "gfx942", include=request.param)
    (made.root / "bitcode").symlink_to(bitcode)
    add_driver(tmp_path, 0, 90402)
    monkeypatch.setenv("ROCM_PATH", str(made.root))
    return made


# --- findings --------------------------------------------------------------------------------------------------------

EXPORTS = {f"cc1d_{name}" for name in ("launch", "launch_stage", "params_size", "stage_count", "stage_name")}
EXPORTS |= {"cc1d_workspace_bytes"}
# What a launch and the loading of device code take from the HIP runtime; the rest comes from the C library.
RUNTIME = {
    *("__hipPushCallConfiguration", "__hipPopCallConfiguration", "hipLaunchKernel"),
    *("__hipRegisterFatBinary", "__hipRegisterFunction", "__hipUnregisterFatBinary"),
    *("hipGetLastError", "hipGetErrorString"),
}
SYSTEM = re.compile(r"libc\.so|libm\.so|libstdc\+\+\.so|libgcc_s\.so|ld-linux")


def library_faults(library: Path, arch: str) -> list[str]:
    """What keeps `library` from being loaded and launched on a machine with a GPU of `arch`."""
    symbols = _readelf("--dyn-syms", library)
    found = re.findall(r"^ *\d+: \S+ +\d+ \S+ +(\S+) +(\S+) +(\S+) ([^@\s]+)(@\S+)?$", symbols, re.MULTILINE)
    exported = {name for bind, visible, where, name, _ in found if where != "UND" and visible == "DEFAULT"}
    wanted = {name for bind, _, where, name, version in found if where == "UND" and bind != "WEAK" and not version}
    needed = re.findall(r"\(NEEDED\).*\[(.*)\]", _readelf("--dynamic", library))
    return [
        *(f"not exported: {name}" for name in sorted(EXPORTS - exported)),
        *(f"undefined: {name}" for name in sorted(wanted - RUNTIME)),
        *(f"needs {name}" for name in needed if not SYSTEM.search(name)),
        *([] if ".hip_fatbin" in _readelf("--sections", library) else ["no section .hip_fatbin"]),
        *_code_faults(library, arch),
    ]


def _code_faults(library: Path, arch: str) -> list[str]:
    try:
        found = code_object.target(library, arch)
    except code_object.CodeObjectError as e:
        return [str(e)]
    return [] if found == arch else [f"device code for {found}"]


def _readelf(option: str, library: Path) -> str:
    tool = TOOLS / "bin" / "llvm-readelf"
    return subprocess.run([tool, option, "-W", library], capture_output=True, text=True, check=True).stdout


# --- how hipcc is called ---------------------------------------------------------------------------------------------


def test_cc1d_build_calls_hipcc_for_the_device_that_is_there(machine: Rocm) -> None:
    command = "build --backend amd --variant fwd_naive --dtype bf16 --layout channel_first --width 3"
    done = CliRunner().invoke(main, command.split())
    assert done.exit_code == 0, done.output
    said = machine.arguments()
    assert said[said.index("-x") + 1] == "hip"
    assert "--offload-arch=gfx942" in said
    assert {"-std=c++17", "-O3", "-fPIC", "-shared", "-fvisibility=hidden", "-no-hip-rt"} <= set(said)
    defined = dict(a.removeprefix("-DCC1D_").split("=") for a in said if a.startswith("-DCC1D_"))
    code = {
        "ELEM": "bfloat16",
        "WEIGHT": "bfloat16",
        "INDEX": "int64_t",
        "WIDTH": "3",
        "SILU": "1",
        "CHANNEL_LAST": "0",
    }
    assert defined == code | {"STATES": "0", "SEQ_IDX": "0", "BLOCK": "256", "WARP": "64", "MATRIX": "2"}
    assert not [a for a in said if "nogpu" in a], "hipcc has headers and device libraries of its own"
    assert said[-3].endswith("/fwd_naive.hip")
    assert said[-2] == "-o"


def test_a_compiler_error_of_hipcc_is_told_with_the_command(machine: Rocm) -> None:
    done = CliRunner().invoke(main, ["build", "--backend", "amd", "--arch", "gfx9999", "--variant", "fwd_naive"])
    assert done.exit_code == 3
    assert "gfx9999" in done.output
    assert str(machine.root / "bin" / "hipcc") in done.output


# --- what is in the library ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "arch"), [("fwd_im2col_wmma", "gfx942"), ("bwd_two_stage", "gfx1100")])
def test_library_of_hipcc(machine: Rocm, name: str, arch: str) -> None:
    built = build.build_cell(cell_of(variants.get(name), arch))
    assert machine.arguments(), "it is hipcc's, with the headers of ROCm"
    assert library_faults(built.library, arch) == []


@pytest.mark.full
@pytest.mark.parametrize("variant", BUILT, ids=lambda v: v.name)
@pytest.mark.parametrize("arch", backends.AMD_ARCHES)
def test_every_library_of_hipcc(machine: Rocm, variant: variants.Variant, arch: str) -> None:
    assert library_faults(build.build_cell(cell_of(variant, arch)).library, arch) == []


@pytest.mark.parametrize("variant", BUILT, ids=lambda v: v.name)
def test_library_of_clang_without_rocm(variant: variants.Variant) -> None:
    assert library_faults(build.build_cell(cell_of(variant, "gfx942")).library, "gfx942") == []


def test_another_arch_is_found() -> None:
    library = build.build_cell(cell_of(variants.get("fwd_naive"), "gfx942")).library
    assert any("gfx1100" in fault for fault in library_faults(library, "gfx1100"))


def test_a_missing_export_a_foreign_symbol_and_missing_device_code_are_found(tmp_path: Path) -> None:
    source = 'extern "C" int cublasCreate(); extern "C" int cc1d_launch() { return cublasCreate(); }'
    library = tmp_path / "x.so"
    subprocess.run(["g++", "-shared", "-fPIC", "-x", "c++", "-", "-o", library], input=source, text=True, check=True)
    faults = library_faults(library, "gfx942")
    assert {"not exported: cc1d_params_size", "undefined: cublasCreate", "no section .hip_fatbin"} <= set(faults)
    assert "not exported: cc1d_launch" not in faults
    assert any("no uncompressed code object for gfx942" in fault for fault in faults)


# --- what it does when it is loaded ----------------------------------------------------------------------------------

# torch's part, the runtime, is loaded first, as torch does it: not for all to see. Then the library is loaded and
# launched as evaluate does it; tensors lie on the CPU, since nothing runs.
LOAD = """
import ctypes, json, sys
import torch
from cc1d_lab import kernel, reference
from cc1d_lab.case import Case
from cc1d_lab.errors import LaunchError

torch.version.hip = "6.2.41133"
runtime, libraries = sys.argv[1], json.loads(sys.argv[2])
ctypes.CDLL(runtime, mode=ctypes.RTLD_LOCAL)
for number, (path, fields) in enumerate(libraries):
    case = Case(**fields)
    loaded = kernel.load(path)
    inputs = reference.make_inputs(case)
    outputs, _ = reference.make_outputs(case, inputs)
    more = {**inputs.more, **outputs}
    more.pop("out", None)
    bound = kernel.bind(loaded, inputs.x, inputs.weight, inputs.bias, outputs.get("out"), **more)
    error = ""
    try:
        bound(4096 + number)  # a stream that tells whose launch it is
    except LaunchError as e:
        error = str(e)
    print(json.dumps([loaded.stages, loaded.library.cc1d_params_size(), error, bytes(bound.params).hex()]))
"""


def load_and_launch(runtime: str, cells: list[Cell], environment: dict[str, str]) -> list[list[Any]]:
    """(stages, size of Params, error of the launch, Params in hex) of each cell, in a process of its own."""
    libraries = [(str(build.build_cell(c).library), c.case.to_dict()) for c in cells]
    command = [sys.executable, "-c", LOAD, runtime, json.dumps(libraries)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_real_hip_loads_every_library_and_refuses_a_launch_without_a_device() -> None:
    cells = [cell_of(v, "gfx942") for v in BUILT]
    found = load_and_launch(str(LIBRARIES / "libamdhip64.so.5"), cells, with_debian_hip())
    for cell, (stages, size, error, _) in zip(cells, found, strict=True):
        assert tuple(stages) == variants.get(cell.variant).stages or cell.variant in ("copy", "empty")
        assert size == ctypes.sizeof(kernel.Params)
        assert error.split(" (")[0] in ("hipErrorInvalidDevice", "hipErrorNoDevice"), cell.title()


def test_a_library_of_hipcc_uses_the_runtime_that_is_loaded(machine: Rocm) -> None:
    cell = cell_of(variants.get("fwd_naive"), "gfx942")
    ((_, _, error, _),) = load_and_launch(str(LIBRARIES / "libamdhip64.so.5"), [cell], with_debian_hip())
    assert error == "hipErrorInvalidDevice (batch 2, dim 64, seqlen 200)"


def test_a_process_without_a_hip_runtime_is_told_so() -> None:
    cell = cell_of(variants.get("fwd_naive"), "gfx942")
    with pytest.raises(AssertionError, match=r"DeviceError: torch .* has not loaded libamdhip64\.so"):
        load_and_launch("libc.so.6", [cell], with_debian_hip())


def _places(cell: Cell) -> dict[str, int]:
    """Which argument of each kernel is Params, as the code object says."""
    sizes = {k.name: [a.size for a in k.arguments] for k in code_object.read(build.build_cell(cell).library, "gfx1100")}
    params = ctypes.sizeof(kernel.Params)
    return {name: found.index(params) for name, found in sizes.items() if params in found}


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Cell, list[Any], list[dict[str, Any]]]]:
    """Every variant with what loading and launching gave, and its launches as the runtime was told of them."""
    folder = tmp_path_factory.mktemp("runtime")
    cells, log = [cell_of(v, "gfx1100") for v in BUILT], folder / "launches.jsonl"
    places = {f"{4096 + i} {name}": place for i, cell in enumerate(cells) for name, place in _places(cell).items()}
    environment = with_debian_hip() | {"STAND_IN_LOG": str(log), "STAND_IN_PARAMS": json.dumps(places)}
    found = load_and_launch(str(make_runtime(folder)), cells, environment)
    told = launches(log)
    mine = [[launch for launch in told if launch["stream"] == 4096 + i] for i in range(len(cells))]
    return list(zip(cells, found, mine, strict=True))


def test_the_launcher_asks_for_the_kernels_that_the_code_object_holds(
    record: list[tuple[Cell, list[Any], list[dict[str, Any]]]],
) -> None:
    for cell, (stages, _, error, params), told in record:
        assert error == "", cell.title()
        assert 0 < len(told) <= len(stages), cell.title()
        kernels = {k.name: k for k in code_object.read(build.build_cell(cell).library, "gfx1100")}
        for launch in told:
            x, y, z = launch["block"]
            workgroup = kernels[launch["kernel"]].workgroup
            assert x * y * z == workgroup, f"{launch['kernel']}: the code object states another workgroup"
            threads = [g * b for g, b in zip(launch["grid"], launch["block"], strict=True)]
            assert all(0 < n < 2**32 for n in threads), "HIP's limit for each dimension"
            assert launch["shared"] == 0, "shared memory is declared in the kernels"
            assert launch["params"] == params


def test_a_refused_launch_says_what_the_runtime_says(tmp_path: Path) -> None:
    cell = cell_of(variants.get("fwd_naive"), "gfx942")
    environment = with_debian_hip() | {"STAND_IN_LOG": str(tmp_path / "log"), "STAND_IN_FAILS": "1"}
    ((_, _, error, _),) = load_and_launch(str(make_runtime(tmp_path)), [cell], environment)
    assert error == "invalid device function (batch 2, dim 64, seqlen 200)"

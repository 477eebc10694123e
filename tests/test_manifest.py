"""Launch manifests: a loader that knows the JSON alone runs the cell, bit for bit as the ordinary path does."""

from __future__ import annotations

import ctypes
import hashlib
import itertools
import json
import math
import re
import shutil
import struct
import subprocess
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from cc1d_lab import backends, build, code_object, kernel, manifest, paths, reference, variants
from cc1d_lab.case import DTYPES, LAYOUTS, Case
from cc1d_lab.cell import Cell
from cc1d_lab.cli import main
from cc1d_lab.errors import CodeObjectError

pytestmark = [
    pytest.mark.amd,
    pytest.mark.skipif(bool(backends.get("amd").can_build()), reason=backends.get("amd").can_build()),
]

BUILT = [v for v in variants.VARIANTS.values() if v.source]
ARCHES = ("gfx942", "gfx1100", "gfx1200")  # one for each lane map
SHAPE = {"batch": 2, "dim": 70, "seqlen": 131}
Manifest = dict[str, Any]


def cells_of(variant: variants.Variant, arch: str, packed: bool) -> list[Cell]:
    """A cell per dtype and layout that the variant takes; `packed`: with states and seq_idx, where it has them."""
    op = "fwd" if variant.op == "any" else variant.op
    more = dict.fromkeys(variant.features, packed)
    view = "misaligned" if variant.kind == "kernel" else "contiguous"
    cases = [Case(dtype=d, layout=la, op=op, view=view, **SHAPE, **more) for d, la in product(DTYPES, LAYOUTS)]
    return [Cell(variant.name, "amd", c, arch=arch) for c in cases if not variants.why_not(variant, c, "amd")]


def shapes_of(cell: Cell) -> list[Cell]:
    """The cell, and one of other launches: aligned rows, long enough to be split, or a single step of decoding."""
    update = cell.case.op == "update"
    other = {"batch": 2, "dim": 64, "seqlen": 1} if update else {"batch": 2, "dim": 3, "seqlen": 16384}
    return [cell, replace(cell, case=replace(cell.case, view="contiguous", **other))]


def written(cell: Cell) -> Manifest:
    """The manifest that stands beside the ELF."""
    return json.loads(manifest.write(cell, build.build_cell(cell)).read_text())


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ({"batch": 4, "dim": 256, "seqlen": 8192}, "bwd_warp_walk"),
        ({"batch": 2, "dim": 3, "seqlen": 256}, "few_turns"),
        ({"batch": 2, "dim": 3, "seqlen": 131}, "framed"),
        ({"batch": 1, "dim": 1024, "seqlen": 131}, "framed_alone"),
        ({"batch": 2, "dim": 3, "seqlen": 2049}, "by_rows"),
        ({"batch": 1, "dim": 3, "seqlen": 2049}, "by_rows_alone"),
        ({"batch": 2, "dim": 3, "seqlen": 16385, "view": "sliced_input", "row_stride": 28}, "scattered"),
    ],
)
def test_each_kernel_of_a_backward_is_launched_with_its_own_block(shape: Any, expected: str) -> None:
    cell = Cell("bwd_warp_walk", "amd", Case(op="bwd", dtype="bfloat16", **shape), arch="gfx942")
    found = manifest.describe(cell, build.build_cell(cell).library)  # an error where block and code object differ
    assert found["launches"][0]["kernel"] == expected


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ({"dim": 132}, "off_lines"),
        ({"dim": 128, "view": "sliced_input", "row_stride": 144}, "off_lines"),
        ({"dim": 130}, "apart"),
        ({"dim": 66}, "scattered"),
    ],
)
def test_a_backward_asks_how_its_rows_lie_in_lines_of_memory(shape: Any, expected: str) -> None:
    """All that do not begin on one; whether 128 channels do is a matter of where the memory of a test lies."""
    case = Case(batch=2, seqlen=9, op="bwd", dtype="bfloat16", layout="channel_last", **shape)
    cell = Cell("bwd_persistent", "amd", case, arch="gfx1100")
    assert manifest.describe(cell, build.build_cell(cell).library)["launches"][0]["kernel"] == expected


# --- a loader that knows the JSON alone ------------------------------------------------------------------------------


class Buffer:
    """Memory of `size` bytes at an address that is `offset` past a multiple of 16."""

    def __init__(self, size: int, offset: int, content: bytes) -> None:
        self.size, self.memory = size, ctypes.create_string_buffer(size + 32)
        self.address = -(-ctypes.addressof(self.memory) // 16) * 16 + offset
        ctypes.memmove(self.address, content, size)

    def read(self) -> bytes:
        return ctypes.string_at(self.address, self.size)


def packed_arguments(launch: Manifest, buffers: dict[str, Buffer]) -> bytes:
    """The kernarg segment: every argument, and every field of a struct that has fields, at its offset."""
    segment = bytearray(launch["kernarg_bytes"])
    for argument in launch["arguments"]:
        for entry in argument.get("fields", [argument]):
            segment[entry["offset"] : entry["offset"] + entry["size"]] = value_of(entry, buffers)
    return bytes(segment)


def value_of(entry: Manifest, buffers: dict[str, Buffer]) -> bytes:
    if entry["type"] == "pointer":
        role = entry["role"]
        assert role is None or buffers[role].size == entry["bytes"]
        return struct.pack("<Q", buffers[role].address if role else 0)
    if entry["type"] == "struct":
        return bytes.fromhex(entry["bytes"])
    return entry["value"].to_bytes(entry["size"], "little", signed=True)


def replay(found: Manifest, library: ctypes.CDLL, contents: dict[str, bytes]) -> dict[str, bytes]:
    """What the buffers hold after all launches of a manifest, on the CPU library of the same kernels."""
    sizes = {name: (b["bytes"], b["address_mod_16"]) for name, b in found["buffers"].items()}
    buffers = {name: Buffer(*size, contents.get(name, b"\xff" * size[0])) for name, size in sizes.items()}
    for launch in found["launches"]:
        arguments = packed_arguments(launch, buffers)
        segment = Buffer(len(arguments), 0, arguments)
        grid, block = (ctypes.c_uint * 3)(*launch["grid"]), (ctypes.c_uint * 3)(*launch["block"])
        name = launch["kernel"].encode()
        library.cc1d_launch_kernel.restype = ctypes.c_char_p
        error = library.cc1d_launch_kernel(
            name, grid, block, ctypes.c_void_p(segment.address), ctypes.c_size_t(segment.size)
        )
        assert error is None, error
    return {name: buffer.read() for name, buffer in buffers.items()}


# --- the ordinary path -----------------------------------------------------------------------------------------------


def twin_of(cell: Cell) -> kernel.Kernel:
    twin = replace(cell, backend="cpu", arch=backends.cpu_twin(cell.arch))
    return kernel.load(build.build_cell(twin).library)


def raw(tensor: Any) -> bytes:
    """The bytes from a tensor's first element to the end of its last, what lies between its rows included."""
    last = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    return ctypes.string_at(tensor.data_ptr(), (last + 1) * tensor.element_size()) if tensor.numel() else b""


def ordinary(case: Case, loaded: kernel.Kernel) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """What the tensors of a call hold before and after it, by role."""
    inputs = reference.make_inputs(case)
    outputs, _ = reference.make_outputs(case, inputs)
    tensors = {"x": inputs.x, "weight": inputs.weight, "bias": inputs.bias, "out": None, **inputs.more, **outputs}
    before = {name: raw(t) for name, t in tensors.items() if t is not None}
    kernel.bind(loaded, **tensors)()
    return before, {name: raw(t) for name, t in tensors.items() if t is not None}


def differences(cell: Cell, found: Manifest) -> list[str]:
    """Roles whose bytes are others after a replay than after the ordinary path."""
    loaded = twin_of(cell)
    before, after = ordinary(cell.case, loaded)
    again = replay(found, loaded.library, before)
    assert set(after) == set(again) - {"workspace"}
    return [name for name in after if again[name] != after[name]]


# --- every variant and pass ------------------------------------------------------------------------------------------

SAMPLE = [
    pytest.param(v, packed, id=f"{v.name}{'-packed' if packed else ''}")
    for v in BUILT
    for packed in ((False, True) if v.features else (False,))
]


@pytest.mark.parametrize(("variant", "packed"), SAMPLE)
def test_replay_gives_the_same_bits(variant: variants.Variant, packed: bool) -> None:
    turn = BUILT.index(variant)  # archs, dtypes and layouts take turns
    cells = cells_of(variant, ARCHES[(turn + packed) % 3], packed)
    stages = set()
    for cell in shapes_of(cells[turn % len(cells)]):
        found = written(cell)
        stages |= {launch["stage"] for launch in found["launches"]}
        assert differences(cell, found) == []
    assert variant.kind != "kernel" or stages == set(variant.stages)


@pytest.mark.full
@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize(("variant", "packed"), SAMPLE)
def test_replay_of_every_dtype_and_layout(variant: variants.Variant, packed: bool, arch: str) -> None:
    cells = [c for first in cells_of(variant, arch, packed) for c in shapes_of(first)]
    assert [(c.title(), d) for c in cells if (d := differences(c, written(c)))] == []


def test_the_manifest_says_what_a_loader_needs() -> None:
    cell = Cell("fwd_register", "amd", Case(view="misaligned", **SHAPE), {"block": 256}, "gfx942")
    built = build.build_cell(cell)
    path = manifest.write(cell, built)
    found = json.loads(path.read_text())
    (launch,) = found["launches"]
    assert path.parent == built.library.parent == (path.parent / found["code_object"]).parent
    assert (launch["kernel"], launch["block"], launch["wave"]) == ("framed", [256, 1, 1], 64)
    assert launch["shared_memory"] == {"static_bytes": 0, "dynamic_bytes": 0}
    assert [(a["offset"], a["size"], a["kind"]) for a in launch["arguments"]] == [
        (0, 12, "by_value"),
        (12, 12, "by_value"),
        (24, 4, "by_value"),
        (28, 4, "by_value"),
        (32, 4, "by_value"),
        (40, ctypes.sizeof(kernel.Params), "by_value"),
    ]
    fields = {f["name"]: f for f in launch["arguments"][5]["fields"]}
    row = 4 * (SHAPE["seqlen"] + 1)  # one element past a boundary, in a row one element longer
    assert fields["x"] == {
        "name": "x", "offset": 40, "size": 8, "type": "pointer", "role": "x", "bytes": 2 * 70 * row - 4,
    }  # fmt: skip
    assert found["buffers"]["x"]["address_mod_16"] == 4
    assert (fields["bias"]["role"], fields["dout"]["role"], fields["seqlen"]["value"]) == ("bias", None, 131)
    assert struct.unpack_from("<I", bytes.fromhex(launch["arguments"][1]["bytes"]))[0] == 70  # a Divisor by dim


@pytest.mark.parametrize(
    ("view", "packed", "inner"), [("contiguous", False, 70), ("batch_second", False, 2), ("batch_second", True, 70)]
)
def test_rows_are_numbered_as_they_lie_in_memory(view: str, packed: bool, inner: int) -> None:
    """The Divisor behind that of runs: by the channels of a batch, or by the batches of a channel."""
    found = written(Cell("fwd_register", "amd", Case(view=view, seq_idx=packed, **SHAPE), arch="gfx942"))
    arguments = found["launches"][-1]["arguments"]
    assert struct.unpack_from("<I", bytes.fromhex(arguments[1]["bytes"]))[0] == inner


def test_a_library_for_host_and_device_gets_its_code_object_laid_beside_it(tmp_path: Path) -> None:
    cell = Cell("fwd_naive", "amd", Case(**SHAPE), arch="gfx942")
    code = build.build_cell(cell).library.read_bytes()
    triple = b"hipv4-amdgcn-amd-amdhsa--gfx942"
    entry = struct.pack("<QQQ", 32 + 24 + len(triple), len(code), len(triple)) + triple
    host = b"\x7fELF".ljust(18, b"\0") + struct.pack("<H", 62)  # x86-64
    library = tmp_path / "kernel.so"
    library.write_bytes(host + b"__CLANG_OFFLOAD_BUNDLE__" + struct.pack("<Q", 1) + entry + code)
    found = json.loads(manifest.write(cell, build.Built(library, "", 0.0, {})).read_text())
    assert (tmp_path / found["code_object"]).read_bytes() == code
    assert found["code_object_sha256"] == hashlib.sha256(code).hexdigest()


# --- what the code object states -------------------------------------------------------------------------------------


def shared_arrays(library: Path) -> dict[str, list[int]]:
    """Bytes of each shared array of the CPU twin, by function: there they are the function's thread-local variables."""
    symbols = subprocess.run(["nm", "-S", library], capture_output=True, text=True, check=True).stdout
    found: dict[str, list[int]] = {}
    for size, length, rest in re.findall(r"^\w+ (\w+) b _ZZ(\d+)(\w+)$", symbols, re.MULTILINE):
        found.setdefault(rest[: int(length)], []).append(int(size, 16))
    return found


def statement_faults(cell: Cell, elf: Path) -> list[str]:
    """Where what the ELF states is not exactly what the launcher uses, or the ELF needs anything from outside."""
    found, stated, told = manifest.describe(cell, elf), code_object.read(elf), code_object.descriptors(elf)
    launches = {launch["kernel"]: launch for launch in found["launches"]}
    arrays = shared_arrays(build.build_cell(replace(cell, backend="cpu", arch=backends.cpu_twin(cell.arch))).library)
    faults = [f"undefined symbol {name}" for name in code_object.undefined_symbols(elf)]
    helpers = [size for name, sizes in arrays.items() if name not in {k.name for k in stated} for size in sizes]
    for k in stated:
        sizes, end = arrays.get(k.name, []), max(a.offset + a.size for a in k.arguments)
        block = math.prod(launches[k.name]["block"]) if k.name in launches else k.workgroup  # not in this case
        checks = {
            f"block {block}, stated {k.workgroup}": block == k.workgroup,
            f"arrays {sizes}, of helpers {helpers}, LDS {k.lds_bytes}": fits(k.lds_bytes, sizes, helpers),
            f"kernarg {k.kernarg_bytes}, arguments end at {end}": k.kernarg_bytes == end,
            f"hidden {k.arguments}": not any(a.kind.startswith("hidden") for a in k.arguments),
            f"descriptor {told[k.name]}, metadata {k}": _numbers(told[k.name]) == _numbers(k),
        }
        faults += [f"{k.name}: {text}" for text, fine in checks.items() if not fine]
    return faults


def fits(lds: int, own: list[int], helpers: list[int]) -> bool:
    """Whether it is the arrays of a kernel, and of some functions that it may call, each on a boundary of 16 bytes."""
    chosen = (own + list(c) for n in range(len(helpers) + 1) for c in itertools.combinations(helpers, n))
    return any(sum(sizes) <= lds <= sum(-(-size // 16) * 16 for size in sizes) for sizes in chosen)


def _numbers(stated: code_object.KernelCode | code_object.Descriptor) -> tuple[int, int, int]:
    return stated.lds_bytes, stated.scratch_bytes, stated.kernarg_bytes


@pytest.mark.parametrize(("variant", "packed"), SAMPLE)
def test_the_code_object_states_what_the_launcher_uses(variant: variants.Variant, packed: bool) -> None:
    turn = BUILT.index(variant)  # as above, so that the builds are there
    cells = cells_of(variant, ARCHES[(turn + packed) % 3], packed)
    for cell in shapes_of(cells[turn % len(cells)]):
        assert statement_faults(cell, build.build_cell(cell).library) == []


@pytest.mark.full
@pytest.mark.parametrize("arch", backends.AMD_ARCHES)
def test_every_code_object_states_what_the_launcher_uses(arch: str) -> None:
    first = [c for v in BUILT for packed in (False, True) for c in cells_of(v, arch, packed)]
    cells = [c for cell in first for c in shapes_of(cell)]
    faults = [(c.title(), statement_faults(c, build.build_cell(c).library)) for c in cells]
    assert [f for f in faults if f[1]] == []


# Each is compiled for the GPU alone, and held against the launcher of the shipped source.
@pytest.mark.parametrize(
    ("variant", "old", "new", "says"),
    [
        ("fwd_naive", "__launch_bounds__(kBlock)", "__launch_bounds__(kBlock / 2)", "code object states 128"),
        ("fwd_naive", "__launch_bounds__(kBlock)", "", "code object states 1024"),
        ("fwd_naive", 'extern "C" ', "", "no such kernel"),
        ("fwd_naive", "(const Params p)", "(const Params p, int)", "takes [440, 4]"),
        ("fwd_shared_memory", "tile[kHaloPad + kChunk];", "tile[kHaloPad + 2 * kChunk];", "LDS"),
        (
            "fwd_naive",
            "acc_t sum =",
            "extern CC1D_API __device__ acc_t other; acc_t sum = other ? other :",
            "undefined symbol",
        ),
        ("fwd_naive", "if (i >= inner", "if (i >= inner || i > __builtin_amdgcn_workgroup_size_x()", "takes [440, "),
    ],
)
def test_a_code_object_that_states_something_else_is_found(
    variant: str, old: str, new: str, says: str, tmp_path: Path
) -> None:
    cell = Cell(variant, "amd", Case(**SHAPE), arch="gfx942")
    text = (paths.kernels_dir() / f"{variant}.hip").read_text()
    assert old in text, f"{variant} has no {old!r}: plant the fault elsewhere"
    source, elf = tmp_path / f"{variant}.hip", tmp_path / "kernel.co"
    planted = text.replace(old, new)
    if new.endswith(", int)"):  # the launcher has to give what the kernel takes
        planted = planted.replace("stream, p)", "stream, p, 0)")
    source.write_text(planted)
    target = backends.get("amd")
    defines = build._defines(cell.case, variants.defaults(variants.get(variant), cell.case))
    command = [target.compiler(), *target.flags("gfx942"), *defines, f"-I{paths.kernels_dir() / 'include'}", source]
    lenient = ["-Xoffload-linker", "--unresolved-symbols=ignore-all"]
    device = ["--cuda-device-only", "--no-gpu-bundle-output"]
    subprocess.run([*command, *device, *lenient, "-o", elf], check=True)
    try:
        found = "\n".join(statement_faults(cell, elf))
    except CodeObjectError as e:
        found = str(e)
    assert says in found


# --- several launches of one stage -----------------------------------------------------------------------------------


def changed_kernels(folder: Path, monkeypatch: pytest.MonkeyPatch, file: str, changes: dict[str, str]) -> None:
    """Kernels of which one file is changed."""
    kernels = folder / "hip_kernels"
    shutil.copytree(paths.kernels_dir(), kernels)
    text = (kernels / file).read_text()
    for old, new in changes.items():
        assert old in text, f"{file} has no {old!r}: plant the change elsewhere"
        text = text.replace(old, new)
    (kernels / file).write_text(text)
    (folder / ".tools").symlink_to(paths.kernels_dir().parent / ".tools")  # where the compiler is looked for
    monkeypatch.setenv("CC1D_KERNELS", str(kernels))


BACKWARD = Cell("bwd_channel_last", "amd", Case(op="bwd", layout="channel_last", dtype="bfloat16"), arch="gfx942")


def test_every_launch_of_a_stage_is_replayed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changed_kernels(tmp_path, monkeypatch, "bwd_channel_last.hip", {"kGridLimit = 65535;": "kGridLimit = 2;"})
    cell = replace(BACKWARD, case=replace(BACKWARD.case, dim=200, seqlen=300))
    found = written(cell)
    assert [launch["stage"] for launch in found["launches"]] == ["partial"] * 6 + ["reduce"]
    assert differences(cell, found) == []
    found["launches"].pop(4)
    assert "dweight" in differences(cell, found)


def test_a_grid_past_its_limit_is_several_launches() -> None:
    cell = replace(BACKWARD, case=replace(BACKWARD.case, batch=1, dim=1, seqlen=65536 * 64 + 1))
    first, second, _ = written(cell)["launches"]
    assert (first["grid"], second["grid"]) == ([1, 65535, 1], [1, 2, 1])
    assert [a["value"] for a in first["arguments"][1:]] == [0, 0]
    assert [a["value"] for a in second["arguments"][1:]] == [65535, 0]


# --- planted faults --------------------------------------------------------------------------------------------------

NAIVE = Cell("fwd_naive", "amd", Case(**SHAPE), arch="gfx942")


@pytest.mark.parametrize("field", ["x_dim_stride", "seqlen", "weight_width_stride"])
def test_a_wrong_scalar_is_found(field: str) -> None:
    found = written(NAIVE)
    (entry,) = [f for f in found["launches"][0]["arguments"][0]["fields"] if f["name"] == field]
    entry["value"] -= 1
    assert differences(NAIVE, found) == ["out"]


HIDDEN = "struct Hidden { int n; const void* p; };\n"


def with_struct(struct: str, value: str) -> dict[str, str]:
    """Changes of fwd_naive: it takes a `Hidden`, too, and the weight's address from there."""
    return {
        'extern "C"': struct + 'extern "C"',
        "fwd_naive(const Params p)": "fwd_naive(const Params p, const Hidden h)",
        "static_cast<const weight_t*>(p.weight) + dim": "static_cast<const weight_t*>(h.p) + dim",
        "stream, p);": f"stream, p, {value});",
    }


def test_a_pointer_inside_any_struct_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changed_kernels(tmp_path, monkeypatch, "fwd_naive.hip", with_struct(HIDDEN, "Hidden{3, p.weight}"))
    found = written(NAIVE)
    number, pointer = found["launches"][0]["arguments"][1]["fields"]
    assert (number["value"] % 2**32, pointer["role"]) == (3, "weight")
    assert differences(NAIVE, found) == []
    pointer["role"] = "bias"
    pointer["bytes"] = found["buffers"]["bias"]["bytes"]
    assert differences(NAIVE, found) == ["out"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"dim3(kBlock), s": "dim3(kBlock / 2), s"}, "128 threads a block, the code object states 256"),
        ({"stream, p);": "stream, [&] { Params q = p; q.x = &q; return q; }());"}, "where no argument of the call"),
        (
            with_struct(HIDDEN.replace("struct", "struct __attribute__((packed))"), "Hidden{3, p.weight}"),
            "not aligned to 8 bytes inside a struct",
        ),
    ],
)  # fmt: skip
def test_a_launcher_that_no_loader_could_follow_is_refused(
    changes: dict[str, str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed_kernels(tmp_path, monkeypatch, "fwd_naive.hip", changes)
    with pytest.raises(CodeObjectError, match=says):
        written(NAIVE)


def test_the_library_refuses_what_it_cannot_launch() -> None:
    launch = twin_of(NAIVE).library.cc1d_launch_kernel
    launch.restype = ctypes.c_char_p
    one, arguments = (ctypes.c_uint * 3)(1, 1, 1), ctypes.create_string_buffer(ctypes.sizeof(kernel.Params))
    assert b"no kernel of this name" in launch(b"fwd_nave", one, one, arguments, ctypes.c_size_t(len(arguments)))
    assert b"another size" in launch(b"fwd_naive", one, one, arguments, ctypes.c_size_t(8))


# --- the command line ------------------------------------------------------------------------------------------------


def test_build_writes_manifests_and_prints_where() -> None:
    command = [
        "build",
        "--backend",
        "amd",
        "--arch",
        "gfx942",
        "--variant",
        "bwd_naive",
        "--dtype",
        "fp16",
        "--manifest",
    ]
    done = CliRunner().invoke(main, [*command, "--layout", "channel_first", "--dim", "5", "--no-bias", "--states"])
    assert done.exit_code == 0, done.output
    found = json.loads(Path(done.output.splitlines()[1].strip()).read_text())
    assert (found["case"]["dim"], found["case"]["bias"], found["case"]["states"]) == (5, False, True)
    assert [launch["kernel"] for launch in found["launches"]] == ["bwd_naive", "dweight"]
    assert "dbias" not in found["buffers"]
    assert found["buffers"]["dinitial_states"]["access"] == "write"


def test_manifests_are_for_amd_alone() -> None:
    done = CliRunner().invoke(main, ["build", "--manifest", "--backend", "cpu"])
    assert done.exit_code == 2
    assert "add --backend amd" in done.output

"""Lane maps of matrix_core.h, one by one, against the tables of AMD's documents in lane_maps.py.

The emulated instruction goes by the same maps as load and store, so a wrong one would cancel out in every product: here
the registers themselves are looked at.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from lane_maps import MAPS, Element, Place

from cc1d_lab import build, kernel, paths, variants
from cc1d_lab.case import Case

ARCH = {"gfx9": "wave64", "gfx11": "wave32", "gfx12": "wave32_gfx12"}
LANES, ELEMENTS, TILE = 64, 16, 256  # at most, of a wave and of a lane; elements of a matrix

# A and B are loaded from a tile that holds its own indices; C is stored from registers that hold theirs.
PROBE = """
#include "cc1d/config.h"
constexpr int kLanes = 64, kElements = 16;

extern "C" __global__ __launch_bounds__(kLanes) void fwd_naive(const Params p) {
    __shared__ elem_t tile[256];
    for (int i = threadIdx.x; i < 256; i += kLanes) tile[i] = from_float<elem_t>(float(i));
    __syncthreads();
    if (threadIdx.x >= kWarp) return;
    float* found = static_cast<float*>(p.dweight) + lane_id() * kElements;
    FragmentA<elem_t> a;
    FragmentB<elem_t> b;
    FragmentC c;
    a.load(tile, 16);
    b.load(tile, 16);
    for (int i = 0; i < int(sizeof(a.v) / sizeof(elem_t)); ++i) found[i] = to_float(a.v[i]);
    for (int i = 0; i < int(sizeof(b.v) / sizeof(elem_t)); ++i) found[kLanes * kElements + i] = to_float(b.v[i]);
    for (int i = 0; i < int(sizeof(c.v) / sizeof(float)); ++i) c.v[i] = lane_id() * kElements + i;
    c.store(static_cast<float*>(p.dweight) + 2 * kLanes * kElements, 16);
}
static int64_t workspace_bytes(const Params&) { return 0; }
static void launch_stage(int, const Params& p, stream_t stream) { launch<fwd_naive>(dim3(1), dim3(kLanes), stream, p); }
CC1D_EXPORT("conv")
"""


def maps_in_use(
    generation: str, dtype: str, folder: Path, monkeypatch: pytest.MonkeyPatch, old: str = "", new: str = ""
) -> dict[str, dict[Element, Place]]:
    """{(lane, element): (row, column)} of A, B and C, as a kernel of that generation finds them.

    `new` stands for `old` in matrix_core.h.
    """
    kernels = folder / "hip_kernels"
    shutil.copytree(paths.PACKAGE.parent / "hip_kernels", kernels, dirs_exist_ok=True)
    (kernels / "fwd_naive.hip").write_text(PROBE)
    header = kernels / "include" / "cc1d" / "matrix_core.h"
    assert old in header.read_text(), f"matrix_core.h has no {old!r}: plant the error elsewhere"
    if old:
        header.write_text(header.read_text().replace(old, new))
    monkeypatch.setenv("CC1D_KERNELS", str(kernels))
    library = build.build(variants.get("fwd_naive"), Case(dtype=dtype), {}, "cpu", ARCH[generation]).library
    found = torch.full((2 * LANES * ELEMENTS + TILE,), -1.0)
    x, weight = torch.zeros(1, 1, 1), torch.zeros(1, 4)
    kernel.bind(kernel.load(library), x, weight, None, None, dweight=found.unsqueeze(0))()
    loaded = found[: 2 * LANES * ELEMENTS].view(2, LANES, ELEMENTS).int().tolist()
    stored = found[2 * LANES * ELEMENTS :].int().tolist()
    inputs = {
        matrix: {(lane, i): divmod(n, 16) for lane, row in enumerate(rows) for i, n in enumerate(row) if n >= 0}
        for matrix, rows in zip("AB", loaded, strict=True)
    }
    return inputs | {"C": {divmod(n, ELEMENTS): divmod(place, 16) for place, n in enumerate(stored)}}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("generation", MAPS)
def test_registers_hold_what_the_documents_say(
    generation: str, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, documented = maps_in_use(generation, dtype, tmp_path, monkeypatch), MAPS[generation]
    for matrix in "ABC":
        assert found[matrix] == documented[matrix], matrix
    assert documented["D"] == documented["C"]


@pytest.mark.parametrize("generation", MAPS)
def test_the_tables_are_whole(generation: str) -> None:
    copies = 2 if generation == "gfx11" else 1  # of A and B
    for matrix, table in MAPS[generation].items():
        places = list(table.values())
        assert len(set(places)) == 256
        assert len(places) == 256 * (copies if matrix in "AB" else 1)


# --- planted errors --------------------------------------------------------------------------------------------------

# (generation, what becomes what in matrix_core.h, the matrices that are wrong then)
K, ROW = "k(int lane, int i) { return ", "row(int lane, int i) { return "
BY_ROW, BY_COLUMN = "tile[(lane % 16) * ld + LaneMap::{}(lane, i)]", "tile[LaneMap::{}(lane, i) * ld + lane % 16]"
PLANTED = [
    ("gfx9", K + "4 * (lane / 16) + i", K + "4 * i + lane / 16", "AB"),
    ("gfx9", ROW + "4 * (lane / 16) + i", ROW + "4 * i + lane / 16", "C"),
    ("gfx9", BY_ROW.format("k"), BY_COLUMN.format("k"), "A"),
    ("gfx11", "k(int, int i) { return i;", K + "(8 * (lane / 16) + i) % 16;", "AB"),
    ("gfx11", ROW + "2 * i + lane / 16", ROW + "8 * (lane / 16) + i", "C"),
    ("gfx11", BY_COLUMN.format("k"), BY_ROW.format("k"), "B"),
    ("gfx12", K + "8 * (lane / 16) + i", K + "2 * i + lane / 16", "AB"),
    ("gfx12", ROW + "8 * (lane / 16) + i", ROW + "2 * i + lane / 16", "C"),
    ("gfx12", BY_COLUMN.format("row"), BY_ROW.format("row"), "C"),
]


@pytest.mark.parametrize(("generation", "old", "new", "matrices"), PLANTED)
def test_an_error_in_a_map_is_found(
    generation: str, old: str, new: str, matrices: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = maps_in_use(generation, "float16", tmp_path, monkeypatch, old, new)
    assert "".join(m for m in "ABC" if found[m] != MAPS[generation][m]) == matrices

"""The emulation of the execution model: barriers, waves, shared memory, schedules, and what it says of a bad kernel."""

from __future__ import annotations

import ctypes
import shutil
from pathlib import Path

import pytest
import torch

from cc1d_lab import build, kernel, paths, variants
from cc1d_lab.case import Case
from cc1d_lab.errors import CompileError, LaunchError

PROLOGUE = """
#include "cc1d/config.h"
constexpr int kBlock = CC1D_BLOCK;
"""
EPILOGUE = """
static int64_t workspace_bytes(const Params&) { return 0; }
static void launch_stage(int, const Params& p, stream_t stream) { launch<fwd_naive>(dim3(2), dim3(kBlock), stream, p); }
CC1D_EXPORT("conv")
"""


def _run(body: str, folder: Path, monkeypatch: pytest.MonkeyPatch, arch: str = "wave32", order: int = 0) -> list[float]:
    """Run `body` as the kernel fwd_naive on two blocks of 128 threads; returns the 256 floats of `out`."""
    kernels = folder / "hip_kernels"
    shutil.copytree(paths.PACKAGE.parent / "hip_kernels", kernels, dirs_exist_ok=True)
    head = 'extern "C" __global__ __launch_bounds__(kBlock) void fwd_naive(const Params p) {\n'
    prepare = (
        "float* out = static_cast<float*>(p.out); const int t = threadIdx.x, i = blockIdx.x * kBlock + t; (void)i;\n"
    )
    (kernels / "fwd_naive.hip").write_text(PROLOGUE + head + prepare + body + "}\n" + EPILOGUE)
    monkeypatch.setenv("CC1D_KERNELS", str(kernels))
    library = build.build(variants.get("fwd_naive"), Case(), {"block": 128}, "cpu", arch).library
    loaded = kernel.load(library)
    out = torch.full((1, 1, 256), float("nan"))
    loaded.library.cc1d_schedule(ctypes.c_int(order), ctypes.c_uint(7))
    try:
        kernel.bind(loaded, torch.zeros(1, 1, 256), torch.zeros(1, 4), None, out)()
    finally:
        loaded.library.cc1d_schedule(ctypes.c_int(0), ctypes.c_uint(0))
    return out.flatten().tolist()


@pytest.mark.parametrize("order", [0, 1, 2], ids=["ascending", "descending", "random"])
def test_barriers_and_shared_memory(order: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = """
        __shared__ float tile[kBlock];
        tile[t] = i;
        __syncthreads();
        const float reversed = tile[kBlock - 1 - t];
        __syncthreads();
        tile[t] = 2 * reversed;
        __syncthreads();
        out[i] = tile[kBlock - 1 - t];
    """
    assert _run(body, tmp_path, monkeypatch, order=order) == [2.0 * i for i in range(256)]


@pytest.mark.parametrize(("arch", "wave"), [("wave32", 32), ("wave64", 64)])
def test_shuffles_stay_in_their_wave(arch: str, wave: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = """
        const float v = i;
        out[i] = shuffle_up(v, 1) + 1000 * shuffle_down(v, 2) + 1000000 * (shuffle(v, 3) - v);
    """
    found = _run(body, tmp_path, monkeypatch, arch)
    for i, value in enumerate(found):
        lane, first = i % wave, i - i % wave
        up = i - 1 if lane >= 1 else i
        down = i + 2 if lane + 2 < wave else i
        assert value == torch.tensor(up + 1000.0 * down + 1e6 * (first + 3 - i), dtype=torch.float32).item()


def test_shared_memory_starts_as_nan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = "__shared__ float tile[kBlock]; out[i] = tile[t]; __syncthreads(); tile[t] = 1;"
    assert all(v != v for v in _run(body, tmp_path, monkeypatch))


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("if (t < 64) __syncthreads(); out[i] = 0;", "divergent barrier: 64 of 128 threads"),
        ("if (t == 5) {\n __syncthreads();\n } else {\n __syncthreads();\n }", "divergent barrier: thread"),
        ("if (t % 2) out[i] = shuffle(1.0f, 0);", "divergent wave"),
        ("if (t == 7) return;\n __syncthreads();", "1 have returned"),
    ],
)
def test_divergence_is_reported(body: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LaunchError, match=words):
        _run(body, tmp_path, monkeypatch)
    assert _run("out[i] = 1;", tmp_path, monkeypatch) == [1.0] * 256, "the next launch works"


def test_a_compile_error_names_file_and_line_and_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CompileError) as caught:
        _run("out[i] = undeclared_name;", tmp_path, monkeypatch)
    assert "fwd_naive.hip:" in caught.value.reason
    assert "undeclared_name" in caught.value.reason
    assert caught.value.command
    assert "undeclared_name" in Path(caught.value.log).read_text()

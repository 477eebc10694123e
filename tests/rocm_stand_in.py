"""A stand-in for a ROCm machine: hipcc, a device query, a ROCm build of torch, and a HIP runtime that writes down.

`hipcc` is a script that keeps its arguments and compiles with the clang of `make tools`, the headers and the device
libraries of Debian's HIP. So what a ROCm machine does is done here, up to the device.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from cc1d_lab import backends, paths, rocm

TOOLS = paths.kernels_dir().parent / ".tools"
HIP = TOOLS / "hip" / "usr"
LIBRARIES = HIP / "lib" / "x86_64-linux-gnu"
NO_HIP = "" if (LIBRARIES / "libamdhip64.so.5").exists() else f"{HIP}: no HIP of Debian; run `make tools`"
VERSION = "6.2.0-66"

_HIPCC = """#!/bin/sh
if [ "$1" = --version ]; then
    echo "HIP version: 6.2.41133-dd7f95766"
    exec {clang} --version
fi
for argument in "$@"; do printf '%s\\n' "$argument"; done > {root}/hipcc.args
case "$*" in *--offload-arch=gfx9*) wave=64 ;; *) wave=32 ;; esac
exec {clang} --rocm-path={root} --rocm-device-lib-path={root}/bitcode -mcode-object-version=5 \\
    -D__AMDGCN_WAVEFRONT_SIZE=$wave -include {root}/fence.h "$@"
"""
# The headers of HIP 5 call a function of a library that today's clang does not link any more. Those of HIP 7 do not.
_FENCE = """
#include <hip/hip_runtime.h>
#if HIP_VERSION_MAJOR < 6
__device__ inline void __atomic_work_item_fence(__cl_mem_fence_flags, __memory_order, __memory_scope) {
    __builtin_amdgcn_fence(__ATOMIC_SEQ_CST, "workgroup");
}
#endif
"""


@dataclass(frozen=True)
class Rocm:
    """A folder as ROCm has it: bin/hipcc, bin/rocm_agent_enumerator, .info/version."""

    root: Path

    def arguments(self) -> list[str]:
        """What hipcc was called with last."""
        return (self.root / "hipcc.args").read_text().splitlines()

    def install(self, *archs: str) -> None:
        """Put GPUs of these archs into the machine."""
        lines = "\n".join(f"echo {arch}" for arch in ("gfx000", *archs))
        _script(self.root / "bin" / "rocm_agent_enumerator", f"#!/bin/sh\n{lines}\n")


def _script(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def headers() -> dict[str, Path]:
    """Folders with HIP's headers, by their version: Debian's, and those that come with triton where it is installed."""
    triton = importlib.util.find_spec("triton")
    packages = triton.submodule_search_locations or [] if triton else []
    places = [HIP / "include", *(Path(p, "backends", "amd", "include") for p in packages)]
    return {".".join(_hip_version(p)): p for p in places if (p / "hip" / "hip_runtime.h").exists()}


def _hip_version(include: Path) -> tuple[str, ...]:
    text = (include / "hip" / "hip_version.h").read_text()
    return tuple(re.findall(r"#define HIP_VERSION_(?:MAJOR|MINOR) (\d+)", text))


def make_rocm(root: Path, *archs: str, include: Path = HIP / "include") -> Rocm:
    """A ROCm in the folder `root`, with the headers of `include`, on a machine with GPUs of these archs."""
    for name in ("bin", ".info", "share/hip"):
        (root / name).mkdir(parents=True)
    (root / "include").symlink_to(include)
    if include.exists():  # from HIP 3.6 on, clang includes its own declarations of math functions first
        major, minor = _hip_version(include)
        (root / "share" / "hip" / "version").write_text(f"HIP_VERSION_MAJOR={major}\nHIP_VERSION_MINOR={minor}\n")
    (root / ".info" / "version").write_text(VERSION + "\n")
    (root / "fence.h").write_text(_FENCE)
    _script(root / "bin" / "hipcc", _HIPCC.format(clang=TOOLS / "bin" / "clang++", root=root))
    made = Rocm(root)
    made.install(*archs)
    return made


def make_device_libraries(folder: Path) -> Path:
    """Debian's device libraries, and for the archs that they do not know the one constant that is missing."""
    for path in (LIBRARIES / "amdgcn" / "bitcode").glob("*.bc"):
        (folder / path.name).symlink_to(path)
    for arch in backends.AMD_ARCHES:
        path = folder / f"oclc_isa_version_{arch[3:]}.bc"
        if not path.exists():
            number = int(arch[3:-2]) * 1000 + int(arch[-2], 16) * 100 + int(arch[-1], 16)
            constant = f"@__oclc_ISA_version = linkonce_odr protected addrspace(4) constant i32 {number}, align 4\n"
            command = [TOOLS / "bin" / "clang++", "--target=amdgcn-amd-amdhsa", "-nogpulib", "-x", "ir", "-", "-c"]
            subprocess.run([*command, "-emit-llvm", "-o", path], input=constant, text=True, check=True)
    return folder


def bare_machine(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """No ROCm, no driver, no variable that steers either; PATH holds what the system brings."""
    for name in ("ROCM_PATH", "HIP_PATH", "GPU_ARCH", "PYTORCH_ROCM_ARCH"):
        monkeypatch.delenv(name, raising=False)
    for name in ("ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(rocm, "OPT", folder / "opt")
    monkeypatch.setattr(rocm, "DRIVER", folder / "kfd")
    monkeypatch.setattr(rocm, "TOPOLOGY", folder / "nodes")
    monkeypatch.setenv("PATH", "/usr/bin:/bin")


def add_driver(folder: Path, *versions: int) -> None:
    """The kernel driver of `bare_machine`, which states gfx_target_version for each node; 0 is a CPU."""
    folder.mkdir(exist_ok=True)
    (folder / "kfd").touch()
    for i, version in enumerate(versions):
        node = folder / "nodes" / str(i)
        node.mkdir(parents=True)
        (node / "properties").write_text(f"simd_count 304\ngfx_target_version {version}\nvendor_id 4098\n")


def rocm_torch(monkeypatch: pytest.MonkeyPatch, *archs: str, hip: str = "6.2.41133-dd7f95766") -> None:
    """A torch that was built for ROCm and sees GPUs of these archs."""

    class Properties:
        gcnArchName = f"{archs[0]}:sramecc+:xnack-" if archs else ""

    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(archs))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(archs))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: list(rocm.AMD_ARCHES))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "AMD Instinct MI300X")


# --- a runtime that writes down what it is told ----------------------------------------------------------------------

_RUNTIME = r"""
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>
#include "cc1d/params.h"

struct dim3 { uint32_t x, y, z; };
struct Configuration { dim3 grid, block; size_t shared; void* stream; };
static Configuration pending;
static std::map<const void*, std::string> names;
static int failure;

#define API extern "C" __attribute__((visibility("default")))
API void** __hipRegisterFatBinary(const void* wrapper) {
    static void* handle;
    uint32_t magic;
    memcpy(&magic, wrapper, sizeof magic);
    if (magic != 0x48495046) abort();  // "HIPF"
    return &handle;
}
API void __hipUnregisterFatBinary(void**) {}
API void __hipRegisterFunction(void**, const void* host, char*, const char* device, unsigned, void*, void*, void*,
                               void*, int*) {
    names[host] = device;
}
API int __hipPushCallConfiguration(dim3 grid, dim3 block, size_t shared, void* stream) {
    pending = {grid, block, shared, stream};
    return 0;
}
API int __hipPopCallConfiguration(dim3* grid, dim3* block, size_t* shared, void** stream) {
    *grid = pending.grid, *block = pending.block, *shared = pending.shared, *stream = pending.stream;
    return 0;
}
static size_t place_of_params(const std::string& kernel, void* stream) {
    const char* told = getenv("STAND_IN_PARAMS");
    const std::string key = "\"" + std::to_string(reinterpret_cast<uintptr_t>(stream)) + " " + kernel + "\": ";
    const char* found = told ? strstr(told, key.c_str()) : nullptr;
    return found ? atoi(found + key.size()) : 0;
}
API int hipLaunchKernel(const void* kernel, dim3 grid, dim3 block, void** args, size_t shared, void* stream) {
    FILE* file = fopen(getenv("STAND_IN_LOG"), "a");
    fprintf(file, "{\"kernel\": \"%s\", \"grid\": [%u, %u, %u], \"block\": [%u, %u, %u], \"shared\": %zu, ",
            names.at(kernel).c_str(), grid.x, grid.y, grid.z, block.x, block.y, block.z, shared);
    fprintf(file, "\"stream\": %lu, \"params\": \"", reinterpret_cast<unsigned long>(stream));
    const void* params = args[place_of_params(names.at(kernel), stream)];
    for (size_t i = 0; i < sizeof(Params); ++i) fprintf(file, "%02x", static_cast<const unsigned char*>(params)[i]);
    fprintf(file, "\"}\n");
    fclose(file);
    failure = getenv("STAND_IN_FAILS") ? 98 : 0;
    return failure;
}
API int hipGetLastError() {
    const int last = failure;
    failure = 0;
    return last;
}
API const char* hipGetErrorString(int) { return "invalid device function"; }
"""


def make_runtime(folder: Path) -> Path:
    """A libamdhip64 that appends each launch as a line of JSON to the file STAND_IN_LOG, and runs nothing.

    STAND_IN_PARAMS: JSON of the places of Params among the arguments, by "stream kernel"; 0 for those not named.
    """
    library = folder / "libamdhip64.so"
    include = paths.kernels_dir() / "include"
    command = ["g++", "-std=c++17", "-shared", "-fPIC", f"-I{include}", "-x", "c++", "-", "-o", str(library)]
    subprocess.run(command, input=_RUNTIME, text=True, check=True)
    return library


def launches(log: Path) -> list[dict[str, Any]]:
    """What the stand-in runtime wrote down."""
    return [json.loads(line) for line in log.read_text().splitlines()]


def with_debian_hip() -> dict[str, str]:
    """An environment in which Debian's HIP runtime can be loaded."""
    return os.environ | {"LD_LIBRARY_PATH": str(LIBRARIES)}

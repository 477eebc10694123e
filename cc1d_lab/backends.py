"""Backends: amd (hipcc or clang++), nvidia (nvcc), cpu (g++ and the emulation); what they can do here, and why not."""

from __future__ import annotations

import functools
import importlib
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import rocm
from .errors import ConfigError, ToolchainError, one_of
from .paths import kernels_dir

# CC1D_MATRIX in matrix_core.h
_NVIDIA, _MFMA, _GFX11, _GFX12 = 1, 2, 3, 4
CPU_ARCHES = {"wave32": (32, _GFX11), "wave64": (64, _MFMA), "wave32_gfx12": (32, _GFX12)}
AMD_ARCHES = rocm.AMD_ARCHES


@dataclass(frozen=True)
class Backend:
    """A toolchain and the devices that its libraries run on. Reasons are '' when all is well."""

    name: str
    torch_device: str
    find_compiler: Callable[[], str]
    default_arch: Callable[[], str]
    flags: Callable[[str], list[str]]
    can_run: Callable[[], str]
    device_name: Callable[[], str]

    def compiler(self) -> str:
        """Path of the compiler. Raises ToolchainError, with the remedy, when there is none."""
        return self.find_compiler()

    def version(self) -> str:
        """What the compiler says of its version, one line."""
        lines = compiler_version(self.compiler()).splitlines()
        return next((line for line in lines if "release" in line), lines[0])  # nvcc begins with its name alone

    def can_build(self) -> str:
        """Why this backend cannot build here, or ''."""
        try:
            self.compiler()
        except ToolchainError as e:
            return str(e)
        return ""


@functools.cache
def compiler_version(path: str) -> str:
    """Output of `path --version`."""
    try:
        done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError) as e:
        raise ToolchainError(f"compiler {path}: cannot be run: {e}") from e
    return done.stdout.strip()


def _first_tool(candidates: list[str | None], remedy: str) -> str:
    for candidate in candidates:
        found = shutil.which(candidate) if candidate else None
        if found:
            return found
    tried = ", ".join(c for c in candidates if c)
    raise ToolchainError(f"no compiler: tried {tried}; {remedy}")


def _below(variable: str, path: str) -> str | None:
    root = os.environ.get(variable)
    return str(Path(root, path)) if root else None


# --- cpu ------------------------------------------------------------------------------------------


def _cpu_compiler() -> str:
    given = os.environ.get("CXX")
    if given:
        return _first_tool([given], "CXX names it: set CXX to a C++17 compiler or unset it")
    return _first_tool(["g++", "clang++"], "install g++ (Debian: apt-get install g++) or set CXX")


@functools.cache
def _cpu_features() -> tuple[str, str]:
    """(name of the processor, -march level): half precision conversions need F16C, which x86-64-v3 has."""
    name, level = platform.processor() or platform.machine(), ""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return name, level
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in text.splitlines())}
    flags = set(fields.get("flags", "").split())
    if {"avx2", "fma", "f16c", "bmi2", "movbe"} <= flags:
        level = "x86-64-v3"
    return fields.get("model name", name), level


def _cpu_flags(arch: str) -> list[str]:
    wave, matrix = CPU_ARCHES[one_of("cpu arch", arch, CPU_ARCHES)]
    level = _cpu_features()[1]
    return [
        *("-std=c++17", "-O1", "-fPIC", "-shared", "-fvisibility=hidden", "-fstack-clash-protection"),
        "-ffp-contract=off",  # the same bits whatever the compiler makes of the loops around a sum
        "-DCC1D_BACKEND_CPU",
        *([f"-march={level}"] if level else []),
        *(f"-DCC1D_WARP={wave}", f"-DCC1D_MATRIX={matrix}", "-x", "c++"),
    ]


def _cpu_device() -> str:
    return f"{_cpu_features()[0]}, {len(os.sched_getaffinity(0))} cores (emulation)"


# --- nvidia ---------------------------------------------------------------------------------------


def _nvidia_compiler() -> str:
    candidates = [_below("CUDA_HOME", "bin/nvcc"), "nvcc", "/usr/local/cuda/bin/nvcc"]
    return _first_tool(candidates, "install the CUDA toolkit or set CUDA_HOME")


def _nvidia_arch() -> str:
    listed = os.environ.get("TORCH_CUDA_ARCH_LIST", "").replace(";", " ").split()
    if listed:
        return "sm_" + listed[0].split("+")[0].replace(".", "")
    return _device_arch() if not _nvidia_can_run() else "sm_90"


def _nvidia_flags(arch: str) -> list[str]:
    return [
        *("-std=c++17", "-O3", f"-arch={arch}", "-shared", "-Xcompiler", "-fPIC,-fvisibility=hidden"),
        *("-Xptxas", "-v", "-DCC1D_WARP=32", f"-DCC1D_MATRIX={_NVIDIA}", "-x", "cu"),
    ]


def _nvidia_can_run() -> str:
    torch = _torch()
    if torch is None:
        return NO_TORCH
    if torch.version.cuda is None:
        return (
            "this torch has no CUDA: install a CUDA build of torch (make env TORCH=system takes the one that is there)"
        )
    return "" if torch.cuda.is_available() else "torch sees no NVIDIA GPU: check nvidia-smi and CUDA_VISIBLE_DEVICES"


# --- amd ------------------------------------------------------------------------------------------


def _amd_compiler() -> str:
    private = kernels_dir().parent / ".tools" / "bin" / "clang++"
    remedy = "install ROCm and set ROCM_PATH, or run `make tools`"
    return _first_tool([*rocm.hipcc_candidates(), str(private), "clang++-22"], remedy)


def toolchain(name: str, arch: str = "", given: str = "") -> tuple[str, list[str]]:
    """(path of the compiler, all flags) of backend `name`, as a cell's `given` toolchain changes them.

    `given`: `[COMPILER] [FLAGS]`. Flags come after those of the backend; one of -O0 to -Ofast replaces their own.
    Raises ConfigError for what is neither, ToolchainError when there is no such compiler here.
    """
    backend = get(name)
    other, extra = split_toolchain(given)
    compiler = _named_compiler(other) if other else backend.compiler()
    arch = arch or backend.default_arch()
    flags = _amd_flags(arch, compiler) if name == "amd" else backend.flags(arch)
    optimized = any(flag.startswith("-O") for flag in extra)
    return compiler, [*(f for f in flags if not (optimized and f.startswith("-O"))), *extra]


def split_toolchain(given: str) -> tuple[str, list[str]]:
    """(compiler or '', flags) of a `[COMPILER] [FLAGS]`. ConfigError when it is something else."""
    words = given.split()
    other = words.pop(0) if words and not words[0].startswith("-") else ""
    for word in words:
        if not word.startswith("-"):
            raise ConfigError(f"toolchain {given!r}: {word!r} is no flag; write [COMPILER] [FLAGS], such as 'g++ -O1'")
    if other and not _COMPILER.fullmatch(other):
        raise ConfigError(
            f"toolchain {given!r}: {other!r} is no compiler: g++, clang++, hipcc or nvcc, or with -VERSION"
        )
    return other, words


_COMPILER = re.compile(r"(g\+\+|clang\+\+|hipcc|nvcc)(-\d+)?")


def _named_compiler(name: str) -> str:
    private = kernels_dir().parent / ".tools" / "bin" / name
    return _first_tool([name, str(private), f"/opt/rocm/bin/{name}"], f"install {name} or put it into PATH")


def _amd_arch() -> str:
    if rocm.wanted_archs():
        return rocm.wanted_archs()[0]
    return _device_arch() if not _amd_can_run() else next(iter(rocm.visible(rocm.devices())), "gfx942")


def _amd_flags(arch: str, compiler: str = "") -> list[str]:
    return [
        *("-std=c++17", "-O3", f"--offload-arch={arch}", *_amd_wave(arch)),
        *([] if _is_hipcc(compiler or _amd_compiler()) else _WITHOUT_ROCM),
        # No HIP runtime is linked: the library uses the one that torch has loaded, whatever its version.
        *("-fPIC", "-shared", "-fvisibility=hidden", "-no-hip-rt", "-x", "hip"),
    ]


# Neither headers nor device libraries: platform_amd.h declares what a kernel and its launch need.
_WITHOUT_ROCM = ["-nogpuinc", "-nogpulib", "-mcode-object-version=5", "-DCC1D_HIP_HEADERS=0"]


def _is_hipcc(compiler: str) -> bool:
    return "hipcc" in Path(compiler).name


def _amd_wave(arch: str) -> list[str]:
    generation = arch[3:].split(":")[0]
    if generation.startswith("9"):
        wave, matrix = 64, _MFMA
    else:
        wave, matrix = 32, {"11": _GFX11, "12": _GFX12}.get(generation[:2], 0)
    return [f"-DCC1D_WARP={wave}", f"-DCC1D_MATRIX={matrix}"]


def cpu_twin(arch: str) -> str:
    """The arch of the cpu backend that emulates the AMD arch `arch`: the same wave and the same matrix instruction."""
    for twin, (wave, matrix) in CPU_ARCHES.items():
        if _amd_wave(arch) == [f"-DCC1D_WARP={wave}", f"-DCC1D_MATRIX={matrix}"]:
            return twin
    raise ConfigError(f"arch {arch!r}: the emulation has none like it; it knows those of {', '.join(AMD_ARCHES)}")


def _amd_can_run() -> str:
    torch = _torch()
    if torch is None:
        return NO_TORCH
    if torch.version.hip is None:
        return (
            "this torch has no HIP: install a ROCm build of torch (make env TORCH=system takes the one that is there)"
        )
    return "" if torch.cuda.is_available() else "torch sees no AMD GPU: `cc1d doctor` says why under `rocm`"


# --- both kinds of GPU ----------------------------------------------------------------------------


NO_TORCH = "torch is not installed: install a build of it for this GPU (make env TORCH=system takes it)"


def _torch() -> Any:
    """The module, or None where it is not installed."""
    try:
        return importlib.import_module("torch")
    except ImportError:
        return None


def _device_arch() -> str:
    import torch

    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    if torch.version.hip:
        return str(properties.gcnArchName).split(":")[0]
    return f"sm_{properties.major}{properties.minor}"


def _device_name() -> str:
    import torch

    return str(torch.cuda.get_device_name())


BACKENDS = {
    b.name: b
    for b in (
        Backend("amd", "cuda", _amd_compiler, _amd_arch, _amd_flags, _amd_can_run, _device_name),
        Backend("nvidia", "cuda", _nvidia_compiler, _nvidia_arch, _nvidia_flags, _nvidia_can_run, _device_name),
        Backend("cpu", "cpu", _cpu_compiler, lambda: "wave32", _cpu_flags, lambda: "", _cpu_device),
    )
}


_ELSEWHERE = {"cuda": "nvidia", "hip": "amd", "rocm": "amd"}


def known(name: str, *more: str) -> str:
    """`name`, which must be a backend's or one of `more`; ConfigError when it is not."""
    return one_of("backend", name, [*more, *BACKENDS], _ELSEWHERE)


def get(name: str) -> Backend:
    """The backend called `name`; ConfigError when there is none."""
    return BACKENDS[known(name)]


def why_not_run(backend: Backend) -> str:
    """Why `backend` cannot build and run here, or ''."""
    return backend.can_build() or backend.can_run()


def runnable() -> list[str]:
    """Names of the backends that can build and run here. `cpu` is always the last resort."""
    return [b.name for b in BACKENDS.values() if not why_not_run(b)]


def arches(name: str, wanted: Iterable[str] = ()) -> tuple[str, ...]:
    """What to build for: `wanted`, the default of the backend when empty; `all` stands for all that are supported."""
    every = {"amd": AMD_ARCHES, "cpu": tuple(CPU_ARCHES)}
    given = tuple(wanted) or (get(name).default_arch(),)
    if "all" in given:
        return every.get(name, (get(name).default_arch(),))
    return tuple(check_arch(name, arch) for arch in given)


_ARCH_NAMES = {"amd": (r"gfx[0-9a-z-]+(:\w+[+-])*", AMD_ARCHES), "nvidia": (r"sm_\d+[af]?", ("sm_80", "sm_90"))}


def check_arch(name: str, arch: str) -> str:
    """`arch`; ConfigError when it is none of the backend `name`. '' stands for the default."""
    pattern, such_as = _ARCH_NAMES.get(name, ("|".join(CPU_ARCHES), tuple(CPU_ARCHES)))
    if arch and not re.fullmatch(pattern, arch):
        raise ConfigError(
            f"arch: {arch!r} is none of backend {name}: give one such as {', '.join(such_as)}, or leave it out"
        )
    return arch


def first_runnable() -> str:
    """The backend where none is named: a GPU's if there is one. ToolchainError, with the remedy, when none can run."""
    found = runnable()
    if not found:
        raise ToolchainError(BACKENDS["cpu"].can_build())
    return found[0]

"""What the hardware of an arch allows a kernel: waves per SIMD and what limits them, and an upper bound on speed.

Nothing here is measured. A bound is what no kernel can beat; that a kernel comes near it is for a GPU to show.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from .case import Case
from .code_object import KernelCode
from .errors import one_of


@dataclass(frozen=True)
class Arch:
    """Limits of the unit on which a workgroup lives: a compute unit on CDNA, a workgroup processor (2 CUs) on RDNA.

    `vgprs`: registers per lane of a SIMD, given out in steps of `vgpr_step`. `sgprs`: of a SIMD, 0 where every wave
    has its own full set. `groups`: workgroups of more than one wave that a unit holds (its barriers).
    """

    matrix: str
    waves: int  # per SIMD
    vgprs: int
    vgpr_step: int
    lds_bytes: int
    lds_step: int
    groups: int
    sgprs: int = 0
    simds: int = 4


# Waves, VGPRs and their step: LLVM, lib/Target/AMDGPU/Utils/AMDGPUBaseInfo.cpp (getMaxWavesPerEU, getTotalNumVGPRs,
# getVGPRAllocGranule) and test/CodeGen/AMDGPU/occupancy-levels.ll; the VGPR file of 512 KiB a CDNA unit and of
# 384 KiB an RDNA 3 one, and the LDS sizes: AMD, rocm.docs.amd.com, reference/gpu-specs. LDS steps: LLVM,
# AMDGPUUsage.rst, GRANULATED_LDS_SIZE. Groups: AMDGPUBaseInfo.cpp, getMaxWorkGroupsPerCU. SGPRs of gfx9: 800 a SIMD
# in steps of 16, of which the trap handler of ROCm takes 16 a wave (getNumExtraSGPRs, TRAP_NUM_SGPRS).
_CDNA2 = Arch("MFMA", waves=8, vgprs=512, vgpr_step=8, lds_bytes=65536, lds_step=512, groups=16, sgprs=800)
_CDNA4 = Arch("MFMA", waves=8, vgprs=512, vgpr_step=8, lds_bytes=163840, lds_step=1280, groups=16, sgprs=800)
_RDNA3 = Arch("WMMA", waves=16, vgprs=1536, vgpr_step=24, lds_bytes=131072, lds_step=512, groups=32)
ARCHES = {
    "gfx90a": _CDNA2,
    "gfx942": _CDNA2,
    "gfx950": _CDNA4,
    "gfx1100": _RDNA3,
    "gfx1151": _RDNA3,
    "gfx1200": _RDNA3,
    "gfx1201": _RDNA3,
}
_SGPR_STEP, _TRAP_SGPRS = 16, 16


@dataclass(frozen=True)
class Occupancy:
    """`waves_per_simd` of at most `most`. `limited_by`: vgprs, sgprs, lds, workgroup, or wave slots (all are used)."""

    waves_per_simd: float
    most: int
    limited_by: str


def occupancy(kernel: KernelCode, arch: str) -> Occupancy:
    """How many waves of `kernel` a SIMD of `arch` can hold, averaged over the SIMDs of a unit.

    Raises ConfigError for an arch that is not in ARCHES.
    """
    limits = ARCHES[one_of("amd arch", arch, ARCHES)]
    per_group = -(-kernel.workgroup // kernel.wave)
    groups = _groups(kernel, limits, per_group)
    fewest = min(groups.values())
    waves = fewest * per_group / limits.simds
    if waves == limits.waves:
        return Occupancy(waves, limits.waves, "wave slots")
    return Occupancy(waves, limits.waves, next(name for name, n in groups.items() if n == fewest))


def _groups(kernel: KernelCode, limits: Arch, per_group: int) -> dict[str, float]:
    """Workgroups that a unit holds by each limit alone."""

    def by_waves(per_simd: int) -> int:
        return limits.simds * min(per_simd, limits.waves) // per_group

    # A group of one wave needs no barrier. A group that does not divide the waves of a unit leaves slots empty.
    slots = limits.simds * limits.waves // per_group
    found: dict[str, float] = {"workgroup": slots if per_group == 1 else min(slots, limits.groups)}
    found["vgprs"] = by_waves(limits.vgprs // _round_up(max(kernel.vgprs, 1), limits.vgpr_step))
    if limits.sgprs:
        found["sgprs"] = by_waves(limits.sgprs // _round_up(kernel.sgprs + _TRAP_SGPRS, _SGPR_STEP))
    found["lds"] = limits.lds_bytes // _round_up(kernel.lds_bytes, limits.lds_step) if kernel.lds_bytes else math.inf
    return found


def _round_up(n: int, step: int) -> int:
    return -(-n // step) * step


# --- products: what the vendor states ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Product:
    """A product as its vendor describes it: compute units, highest clock, peak memory bandwidth (GB/s, 1e9 bytes)."""

    arch: str
    compute_units: int
    clock_mhz: int
    bandwidth_gbps: float
    source: str


# Peak engine (Instinct) or boost (Radeon) clock, compute units and memory bandwidth as the product's page states them.
# Where the page rounds, its footnote counts: MI250X 3.2768 TB/s (2 x 4096 bits at 3.2 Gbit/s), MI300X 5.325 TB/s
# (MI300-05A), MI325X 6 TB/s (MI325-001A). Ryzen AI Max+ 395: its page states 256 bits of LPDDR5x-8000, not the product.
_AMD = "amd.com/en/products"
PRODUCTS = {
    # A kernel runs on one of the two dies, which are devices of their own: half of what the page states.
    "MI250X die": Product("gfx90a", 110, 1700, 1638.4, f"{_AMD}/accelerators/instinct/mi200/mi250x.html"),
    "MI300X": Product("gfx942", 304, 2100, 5325.0, f"{_AMD}/accelerators/instinct/mi300/mi300x.html"),
    "MI325X": Product("gfx942", 304, 2100, 6000.0, f"{_AMD}/accelerators/instinct/mi300/mi325x.html"),
    "MI355X": Product("gfx950", 256, 2400, 8000.0, f"{_AMD}/accelerators/instinct/mi350/mi355x.html"),
    "RX 7900 XTX": Product(
        "gfx1100", 96, 2500, 960.0, f"{_AMD}/graphics/desktops/radeon/7000-series/amd-radeon-rx-7900xtx.html"
    ),
    "Ryzen AI Max+ 395": Product(
        "gfx1151", 40, 2900, 256.0, f"{_AMD}/processors/laptop/ryzen/ai-300-series/amd-ryzen-ai-max-plus-395.html"
    ),
    "RX 9060 XT": Product(
        "gfx1200", 32, 3130, 320.0, f"{_AMD}/graphics/desktops/radeon/9000-series/amd-radeon-rx-9060xt.html"
    ),
    "RX 9070 XT": Product(
        "gfx1201", 64, 2970, 640.0, f"{_AMD}/graphics/desktops/radeon/9000-series/amd-radeon-rx-9070xt.html"
    ),
}

# Operations per clock of a compute unit: fp32 vector (packed or dual-issued where there is that), fp16 and bf16 matrix
# with fp32 sums, dense. From the peak rates of the same pages, which `peak_tflops` gives back: MI250X 95.7 and 383
# TFLOP/s for both dies (footnote MI200-01), MI300X and MI325X 163.4 and 1307.4 (MI300-18, MI325-002), MI355X 157.3 and
# 2516.6, RX 7900 XTX 61.4 and 123, RX 9070 XT 48.7 and 195. Matrix rates of RDNA 3 and 4 also in
# gpuopen.com/learn/wmma_on_rdna3 and gpuopen.com/learn/accelerating_generative_ai_on_amd_radeon_gpus.
_VECTOR_FLOPS = dict.fromkeys(ARCHES, 256)
_MATRIX_FLOPS = {
    "gfx90a": 1024,
    "gfx942": 2048,
    "gfx950": 4096,
    "gfx1100": 512,
    "gfx1151": 512,
    "gfx1200": 1024,
    "gfx1201": 1024,
}


@dataclass(frozen=True)
class Bound:
    """The shortest time that a product's stated peaks allow, and what sets it: memory, vector or matrix.

    `gbps` is the same as a rate of the case's fewest bytes. Not a measurement.
    """

    time_us: float
    gbps: float
    set_by: str


def bound(product: str, case: Case, matrix_flops: int = 0) -> Bound:
    """The bound of `case` on `product`, its data coming from memory (cold). Raises ConfigError for another product.

    `matrix_flops`: operations that the variant issues on the matrix cores; 0 for a variant without them.
    """
    p = PRODUCTS[one_of("product", product, PRODUCTS)]
    clocks_per_us = p.compute_units * p.clock_mhz
    times = {
        "memory": case.bytes() / p.bandwidth_gbps / 1e3,
        "vector": case.flops() / (clocks_per_us * _VECTOR_FLOPS[p.arch]) if not matrix_flops else 0.0,
        "matrix": matrix_flops / (clocks_per_us * _MATRIX_FLOPS[p.arch]),
    }
    name = max(times, key=times.__getitem__)
    return Bound(times[name], case.bytes() / times[name] / 1e3, name)


def peak_tflops(product: str) -> dict[str, float]:
    """Stated peak rates of a product in TFLOP/s: `vector` (fp32) and `matrix` (16-bit inputs, dense)."""
    p = PRODUCTS[one_of("product", product, PRODUCTS)]
    clocks = p.compute_units * p.clock_mhz * 1e6
    return {"vector": clocks * _VECTOR_FLOPS[p.arch] / 1e12, "matrix": clocks * _MATRIX_FLOPS[p.arch] / 1e12}

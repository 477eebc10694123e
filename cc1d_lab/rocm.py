"""What of ROCm is on this machine, and each thing that is wrong with it, with the remedy. Runs no kernel."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .errors import nearest

AMD_ARCHES = ("gfx90a", "gfx942", "gfx950", "gfx1100", "gfx1151", "gfx1200", "gfx1201")
ARCH_VARIABLES = ("GPU_ARCH", "PYTORCH_ROCM_ARCH")
# Where the kernel driver shows itself, and where ROCm installs itself.
DRIVER = Path("/dev/kfd")
TOPOLOGY = Path("/sys/class/kfd/kfd/topology/nodes")
OPT = Path("/opt")


@dataclass(frozen=True)
class Problem:
    """Something that keeps the amd backend from running, or makes it run on what was not meant."""

    what: str
    remedy: str


@dataclass(frozen=True)
class Torch:
    """The installed torch: its version, its HIP and CUDA ('' when built without), the GPUs and archs that it knows."""

    version: str
    hip: str
    cuda: str
    gpus: int
    archs: tuple[str, ...]


# --- what is here --------------------------------------------------------------------------------------------------


def hipcc_candidates() -> list[str]:
    """Where hipcc is looked for, in this order: ROCM_PATH, HIP_PATH, PATH, /opt/rocm."""
    roots = [Path(os.environ[v]) for v in ("ROCM_PATH", "HIP_PATH") if os.environ.get(v)]
    return [*(str(root / "bin" / "hipcc") for root in roots), "hipcc", str(OPT / "rocm" / "bin" / "hipcc")]


def hipcc() -> str:
    """Path of hipcc, or ''."""
    return next((found for c in hipcc_candidates() if (found := shutil.which(c))), "")


def version(compiler: str) -> str:
    """ROCm's version: what its folder states, else the HIP version that hipcc prints; '' when neither says."""
    if not compiler:
        return ""
    for root in (Path(compiler).parents[1], Path(os.path.realpath(compiler)).parents[1]):
        stated = root / ".info" / "version"
        if stated.is_file():
            return stated.read_text().strip()
    found = re.search(r"HIP version: *(\S+)", _output([compiler, "--version"]))
    return found[1] if found else ""


def devices() -> list[str]:
    """Archs of the GPUs, from the driver, else from rocm_agent_enumerator. Those that are hidden from HIP too."""
    found = [_arch_of(node) for node in sorted(TOPOLOGY.glob("*/properties"), key=_number)]
    return [arch for arch in found if arch] or _enumerated()


def _number(properties: Path) -> int:
    return int(properties.parent.name) if properties.parent.name.isdecimal() else 0


def _arch_of(properties: Path) -> str:
    """gfx942 for a node that states gfx_target_version 90402; '' for a CPU."""
    try:
        found = re.search(r"^gfx_target_version (\d+)$", properties.read_text(), re.MULTILINE)
    except OSError:
        return ""
    n = int(found[1]) if found else 0
    return f"gfx{n // 10000}{n // 100 % 100:x}{n % 100:x}" if n else ""


def _enumerated() -> list[str]:
    beside = str(Path(hipcc() or "hipcc").with_name("rocm_agent_enumerator"))
    tool = shutil.which(beside) or shutil.which("rocm_agent_enumerator")
    lines = _output([tool]).split() if tool else []
    return [line for line in lines if line.startswith("gfx") and line != "gfx000"]  # gfx000 is the CPU


def _output(command: list[str]) -> str:
    # All devices are asked for: which of them are hidden is worked out here.
    environment = {k: v for k, v in os.environ.items() if k != "ROCR_VISIBLE_DEVICES"}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=60, env=environment, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout


def installed_torch() -> Torch | None:
    """What the installed torch says of itself, or None without one."""
    try:
        torch: Any = importlib.import_module("torch")
    except ImportError:
        return None
    hip, cuda = torch.version.hip or "", torch.version.cuda or ""
    gpus = torch.cuda.device_count() if hip else 0
    archs = torch.cuda.get_arch_list() if gpus else []
    return Torch(torch.__version__, hip, cuda, gpus, tuple(a.split(":")[0] for a in archs))


def wanted_archs() -> list[str]:
    """What GPU_ARCH, else PYTORCH_ROCM_ARCH, asks for, without features such as `:xnack-`."""
    listed = next((os.environ[v] for v in ARCH_VARIABLES if os.environ.get(v)), "")
    return _archs(listed)


def _archs(listed: str) -> list[str]:
    return [arch.split(":")[0] for arch in re.split(r"[;,\s]+", listed) if arch]


# --- devices that are left -------------------------------------------------------------------------------------------


def visible(found: Sequence[str]) -> list[str]:
    """Those of the devices `found` that a HIP program sees.

    ROCR_VISIBLE_DEVICES chooses first; the indices of HIP_VISIBLE_DEVICES (or of CUDA_VISIBLE_DEVICES, which HIP reads
    where that is not set) count what is left.
    """
    left = _chosen(list(found), os.environ.get("ROCR_VISIBLE_DEVICES"))
    by_hip = os.environ.get("HIP_VISIBLE_DEVICES", os.environ.get("CUDA_VISIBLE_DEVICES"))
    return _chosen(left, by_hip)


def _chosen(found: list[str], listed: str | None) -> list[str]:
    """What a variable leaves: entries up to the first that names no device. A UUID is taken to name the first."""
    if listed is None:
        return found
    left = []
    for entry in (e.strip() for e in listed.split(",")):
        index = int(entry) if entry.isdecimal() else 0 if entry.startswith("GPU-") else -1
        if not 0 <= index < len(found):
            break
        left.append(found[index])
    return left


# --- what is wrong ---------------------------------------------------------------------------------------------------


def examine() -> dict[str, Any]:
    """What `cc1d doctor` says of ROCm: hipcc, versions, torch, devices with their archs, and the problems."""
    compiler, torch, found = hipcc(), installed_torch(), devices()
    return {
        "hipcc": compiler or None,
        "rocm": version(compiler) or None,
        "torch": torch and torch.version,
        "torch_hip": (torch and torch.hip) or None,
        "devices": found,
        "visible": visible(found),
        "problems": [asdict(p) for p in problems(compiler, torch, found)],
    }


def problems(compiler: str, torch: Torch | None, found: Sequence[str]) -> list[Problem]:
    """Everything that is wrong, the first cause first. `compiler` is hipcc or ''; `found`, the archs of all devices."""
    return [
        *_path_problems(compiler),
        *_torch_problems(torch, version(compiler)),
        *_driver_problems(found),
        *_visibility_problems(found),
        *_unseen_problems(visible(found), torch),
        *_arch_problems(visible(found), torch),
    ]


def _path_problems(compiler: str) -> Iterable[Problem]:
    named = {v: Path(os.environ[v]) for v in ("ROCM_PATH", "HIP_PATH") if os.environ.get(v)}
    homes = {v: path / "bin" / "hipcc" for v, path in named.items()}
    for variable, path in homes.items():
        if not path.is_file():
            yield Problem(
                f"{variable} is {named[variable]}, which has no bin/hipcc",
                f"set {variable} to the folder of ROCm (usually /opt/rocm), or unset it",
            )
    present = {v: path for v, path in homes.items() if path.is_file()}
    if len({os.path.realpath(path) for path in present.values()}) > 1:
        yield Problem(
            f"ROCM_PATH ({named['ROCM_PATH']}) and HIP_PATH ({named['HIP_PATH']}) name two installations",
            "ROCM_PATH is the one that counts: unset HIP_PATH, or set both to one folder",
        )
    if not compiler:
        yield _no_hipcc()


def _no_hipcc() -> Problem:
    elsewhere = sorted(OPT.glob("rocm-*/bin/hipcc"))
    remedy = "install ROCm's hipcc (package `hipcc` or `rocm-hip-sdk`) and put it on PATH, or set ROCM_PATH"
    if elsewhere:
        remedy = f"`export ROCM_PATH={elsewhere[-1].parents[1]}`, where there is one"
    return Problem("hipcc not found", f"{remedy}; without it, the clang of `make tools` compiles the kernels")


def _torch_problems(torch: Torch | None, rocm: str) -> Iterable[Problem]:
    ours = "install a ROCm build of torch (pytorch.org, `Compute Platform: ROCm`), then `make env TORCH=system`"
    if torch is None:
        yield Problem("torch is not installed", ours)
    elif not torch.hip:
        kind = f"a CUDA build (CUDA {torch.cuda})" if torch.cuda else "a CPU build"
        yield Problem(f"torch {torch.version} is {kind}, which cannot use an AMD GPU", ours)
    elif rocm and rocm.split(".")[0] != torch.hip.split(".")[0]:
        yield Problem(
            f"torch {torch.version} was built for HIP {torch.hip}, and ROCm here is {rocm}",
            "kernels run in torch's HIP; when a launch fails, install the torch of this ROCm, or ROCm "
            + torch.hip.rpartition(".")[0],
        )


def _driver_problems(found: Sequence[str]) -> Iterable[Problem]:
    if not DRIVER.exists():
        yield Problem(
            f"no device: {DRIVER} is missing, so the amdgpu driver is not loaded or no AMD GPU is there",
            "check `lspci` and `dmesg | grep amdgpu`, load the driver with `modprobe amdgpu`; in a container pass "
            "`--device=/dev/kfd --device=/dev/dri`",
        )
    elif not os.access(DRIVER, os.R_OK | os.W_OK):
        yield Problem(
            f"no device: {DRIVER} may not be opened by this user",
            "`sudo usermod -aG render,video $USER`, then log in again; in a container pass `--group-add render`",
        )
    elif not found:
        yield Problem(
            f"no device: {DRIVER} is there, but neither the driver nor rocm_agent_enumerator names a GPU",
            "run `rocminfo`; in a container pass `--device=/dev/dri` too",
        )


def _visibility_problems(found: Sequence[str]) -> Iterable[Problem]:
    names = ("ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES")
    given = {name: os.environ[name] for name in names if name in os.environ}
    said = " and ".join(f"{name}={value!r}" for name, value in given.items())
    hip, cuda = given.get("HIP_VISIBLE_DEVICES"), given.get("CUDA_VISIBLE_DEVICES")
    if hip is not None and cuda is not None and hip != cuda:
        yield Problem(
            f"HIP_VISIBLE_DEVICES={hip!r} and CUDA_VISIBLE_DEVICES={cuda!r} contradict each other",
            "both hide AMD GPUs: unset CUDA_VISIBLE_DEVICES",
        )
    if found and not visible(found):
        yield Problem(
            f"no device is left: {said} hides all {len(found)} (indices 0 to {len(found) - 1})",
            f"unset {' and '.join(given)}; indices of HIP_VISIBLE_DEVICES count what ROCR_VISIBLE_DEVICES leaves",
        )


def _unseen_problems(seen: Sequence[str], torch: Torch | None) -> Iterable[Problem]:
    if torch and torch.hip and seen and not torch.gpus:
        yield Problem(
            f"the driver names {', '.join(seen)}, and torch's HIP {torch.hip} sees no GPU",
            f"run `rocminfo`; a driver that is older than HIP {torch.hip} has to be updated",
        )


def _arch_problems(seen: Sequence[str], torch: Torch | None) -> Iterable[Problem]:
    by = {v: _archs(os.environ.get(v, "")) for v in ARCH_VARIABLES}
    source = next((v for v in ARCH_VARIABLES if by[v]), "")
    wanted = by[source] if source else []
    if by["GPU_ARCH"] and by["PYTORCH_ROCM_ARCH"] and by["GPU_ARCH"][0] not in by["PYTORCH_ROCM_ARCH"]:
        yield Problem(
            f"GPU_ARCH={by['GPU_ARCH'][0]} and PYTORCH_ROCM_ARCH={';'.join(by['PYTORCH_ROCM_ARCH'])} contradict "
            "each other",
            "GPU_ARCH is the one that counts: unset one of them",
        )
    if wanted and wanted[0] not in AMD_ARCHES:
        yield Problem(
            f"{source}={wanted[0]} is not an arch of this package{nearest(wanted[0], AMD_ARCHES)}",
            f"set it to one of {', '.join(AMD_ARCHES)}",
        )
    elif wanted and seen and wanted[0] not in seen:
        yield Problem(
            f"{source}={wanted[0]}, but the device here is {', '.join(sorted(set(seen)))}",
            f"unset {source}, or set it to {seen[0]}",
        )
    foreign = sorted(set(seen) - set(AMD_ARCHES))
    if foreign:
        yield Problem(
            f"device {', '.join(foreign)} is not an arch that the kernels are tested to compile for",
            f"try `cc1d build --backend amd --arch {foreign[0]}`; tested: {', '.join(AMD_ARCHES)}",
        )
    if torch and torch.archs and seen and not set(seen) & set(torch.archs):
        yield Problem(
            f"torch {torch.version} has no code for {seen[0]}, only for {', '.join(torch.archs)}",
            f"install a torch that was built for {seen[0]}",
        )

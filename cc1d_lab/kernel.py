"""Load a built library and bind it to tensors: the ctypes mirror of hip_kernels/include/cc1d/params.h."""

from __future__ import annotations

import ctypes
import functools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from .errors import DeviceError, DtypeError, LaunchError, ShapeError

# The dimensions of each tensor that has strides in Params, by the name of the stride.
_BDL, _BDW = ("batch", "dim", "seq"), ("batch", "dim", "width")
DIMENSIONS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("x", "out", "dout", "dx", "conv_state"), _BDL),
    **dict.fromkeys(("initial_states", "final_states", "dfinal_states", "dinitial_states"), _BDW),
    **dict.fromkeys(("weight", "dweight"), ("dim", "width")),
    "seq_idx": ("batch", "seq"),
}
# Fields in the order of params.h: pointers first, then sizes and strides, for each part of the struct.
PLAIN_POINTERS = ("x", "weight", "bias", "out", "workspace")  # of a forward with nothing more: the struct begins so
_PARTS: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (PLAIN_POINTERS, ("x", "weight", "batch", "dim", "seqlen", "out")),
    (("seq_idx", "initial_states", "final_states"), ("seq_idx", "initial_states", "final_states")),
    (
        ("dout", "dfinal_states", "dx", "dweight", "dbias", "dinitial_states"),
        ("dout", "dfinal_states", "dx", "dweight", "dinitial_states"),
    ),
    (("conv_state", "cache_seqlens", "conv_state_indices"), ("conv_state", "state_count", "state_len")),
)


def _strides(name: str) -> list[str]:
    return [f"{name}_{dimension}_stride" for dimension in DIMENSIONS[name]]


def _fields() -> list[tuple[str, type]]:
    found: list[tuple[str, type]] = []
    for pointers, sizes in _PARTS:
        found += [(name, ctypes.c_void_p) for name in pointers]
        for name in sizes:
            found += [(n, ctypes.c_int64) for n in (_strides(name) if name in DIMENSIONS else [name])]
    return found


FIELDS = tuple(_fields())  # name and type of each, in order


class Params(ctypes.Structure):
    """What a kernel is told. Strides are in elements. Unused pointers are null."""

    _fields_ = FIELDS

    def give(self, name: str, tensor: torch.Tensor | None) -> None:
        """Fill in the pointer and the strides of the argument `name`; None leaves it null."""
        if tensor is None:
            return
        setattr(self, name, tensor.data_ptr() or None)
        for field, stride in zip(_strides(name) if name in DIMENSIONS else (), tensor.stride(), strict=False):
            setattr(self, field, stride)


@dataclass(frozen=True)
class Kernel:
    """A loaded library. `stages` are its kernels, in the order in which they run."""

    library: ctypes.CDLL
    stages: tuple[str, ...]

    def workspace_bytes(self, params: Params) -> int:
        """Bytes of device memory that the stages need between them."""
        return int(self.library.cc1d_workspace_bytes(ctypes.byref(params)))


@dataclass(frozen=True)
class Bound:
    """A kernel with its arguments filled in once. Calling it launches; nothing is checked or allocated any more.

    `tensors` keeps what the pointers point to alive.
    """

    kernel: Kernel
    params: Params
    tensors: tuple[torch.Tensor | None, ...]

    def __call__(self, stream: int = 0) -> None:
        """Launch all stages on `stream` (a raw handle). LaunchError with the device's own words when it is refused."""
        self._raise_on(self.kernel.library.cc1d_launch(ctypes.byref(self.params), stream))

    def stage(self, number: int) -> Callable[[int], None]:
        """A launch of one stage alone."""

        def launch(stream: int = 0) -> None:
            self._raise_on(self.kernel.library.cc1d_launch_stage(ctypes.byref(self.params), stream, number))

        return launch

    def _raise_on(self, error: bytes | None) -> None:
        if error:
            raise LaunchError(describe(error, self.params))


def describe(error: bytes, params: Params) -> str:
    """What a launch said, with the sizes it was for."""
    return f"{error.decode()} (batch {params.batch}, dim {params.dim}, seqlen {params.seqlen})"


def loaded(stem: str) -> str:
    """Path of the shared library `stem` (libamdhip64, ...) that this process has loaded, or ''."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return next((line.split(maxsplit=5)[5] for line in lines if re.search(rf"/{stem}[-.\w]*\.so", line)), "")


@functools.cache
def _share_hip_runtime() -> None:
    """Let libraries find the HIP runtime that torch has loaded: an amd library names none, so that there is only one.

    DeviceError when no HIP runtime is in this process.
    """
    runtime = loaded("libamdhip64")
    if not runtime:
        raise DeviceError(f"torch {torch.__version__} has not loaded libamdhip64.so: install a ROCm build of torch")
    ctypes.CDLL(runtime, mode=ctypes.RTLD_GLOBAL)


def load(path: Path) -> Kernel:
    """Open a library. LaunchError when it was built for another layout of Params.

    CDLL, not PyDLL: a launch of the emulation takes long and must not hold the interpreter's lock.
    """
    if torch.version.hip:
        _share_hip_runtime()
    library = ctypes.CDLL(str(path))
    for name, result in (
        ("params_size", ctypes.c_int64),
        ("workspace_bytes", ctypes.c_int64),
        ("stage_count", ctypes.c_int),
    ):
        getattr(library, f"cc1d_{name}").restype = result
    for name in ("stage_name", "launch", "launch_stage"):
        getattr(library, f"cc1d_{name}").restype = ctypes.c_char_p
    library.cc1d_launch.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
    library.cc1d_launch_stage.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int]
    library.cc1d_workspace_bytes.argtypes = [ctypes.c_void_p]
    size = library.cc1d_params_size()
    if size != ctypes.sizeof(Params):
        raise LaunchError(f"{path}: Params has {size} bytes there and {ctypes.sizeof(Params)} here; run `cc1d clean`")
    return Kernel(library, tuple(library.cc1d_stage_name(i).decode() for i in range(library.cc1d_stage_count())))


def bind(
    kernel: Kernel,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    out: torch.Tensor | None,
    **more: torch.Tensor | None,
) -> Bound:
    """Check the tensors of a forward call, allocate the workspace, fill Params.

    x, out: (batch, dim, seqlen), any strides. weight: (dim, width). bias: (dim) or None. `more`: the other tensors of
    Params by name, unchecked. A backward has no `out`. Raises ShapeError, DtypeError or DeviceError, naming the
    argument.
    """
    check_tensors(x, weight, bias, out)
    tensors = {"x": x, "weight": weight, "bias": bias, "out": out, **more}
    params = fill(tensors)
    workspace = torch.empty(kernel.workspace_bytes(params), dtype=torch.uint8, device=x.device)
    params.workspace = workspace.data_ptr() or None
    return Bound(kernel, params, (*tensors.values(), workspace))


def fill(tensors: Mapping[str, torch.Tensor | None]) -> Params:
    """Params of the tensors, by the name of the argument; without a workspace."""
    params = Params()
    for name, tensor in tensors.items():
        params.give(name, tensor)
    x, state = tensors["x"], tensors.get("conv_state")
    if x is not None:
        params.batch, params.dim, params.seqlen = x.shape
    if state is not None:
        params.state_count, params.state_len = state.shape[0], state.shape[2]
    return params


def check_tensors(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, out: torch.Tensor | None) -> None:
    """Raise unless shapes, dtypes and devices of a forward call go together. Nothing is launched."""
    given = {"x": x, "weight": weight, "bias": bias, "out": out}
    for name, tensor in given.items():
        if tensor is not None and not isinstance(tensor, torch.Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}")
    if x.dim() != 3:
        raise ShapeError(f"x must be 3-D (batch, dim, seqlen), got shape {tuple(x.shape)}")
    if weight.dim() != 2:
        hint = ": use weight.squeeze(1)" if weight.dim() == 3 and weight.shape[1] == 1 else ""
        raise ShapeError(f"weight must be (dim, width), got shape {tuple(weight.shape)}{hint}")
    if weight.shape[0] != x.shape[1]:
        raise ShapeError(f"weight has dim {weight.shape[0]}, x has dim {x.shape[1]}: they must be equal")
    if bias is not None and bias.shape != (x.shape[1],):
        raise ShapeError(f"bias must have shape ({x.shape[1]},), got {tuple(bias.shape)}")
    if out is not None and out.shape != x.shape:
        raise ShapeError(f"out must have the shape of x, {tuple(x.shape)}, got {tuple(out.shape)}")
    if out is not None and out.dtype != x.dtype:
        raise DtypeError(f"out must have the dtype of x, {x.dtype}, got {out.dtype}")
    if bias is not None and bias.dtype != weight.dtype:
        raise DtypeError(f"bias must have the dtype of weight, {weight.dtype}, got {bias.dtype}")
    for name, tensor in given.items():
        if tensor is not None and tensor.device != x.device:
            raise DeviceError(f"{name} is on {tensor.device}, x is on {x.device}: move them to one device")

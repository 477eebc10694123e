"""Load a built library and bind it to tensors: the ctypes mirror of hip_kernels/include/cc1d/params.h."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from .errors import DeviceError, DtypeError, LaunchError, ShapeError

_POINTERS = ("x", "weight", "bias", "out", "workspace")
_SIZES = (
    *("batch", "dim", "seqlen"),
    *("x_batch_stride", "x_dim_stride", "x_seq_stride"),
    *("out_batch_stride", "out_dim_stride", "out_seq_stride"),
    *("weight_dim_stride", "weight_width_stride"),
)


class Params(ctypes.Structure):
    """What a kernel is told. Strides are in elements."""

    _fields_ = [(n, ctypes.c_void_p) for n in _POINTERS] + [(n, ctypes.c_int64) for n in _SIZES]


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
        _raise_on(self.kernel.library.cc1d_launch(ctypes.byref(self.params), stream))

    def stage(self, number: int) -> Callable[[int], None]:
        """A launch of one stage alone."""

        def launch(stream: int = 0) -> None:
            _raise_on(self.kernel.library.cc1d_launch_stage(ctypes.byref(self.params), stream, number))

        return launch


def _raise_on(error: bytes | None) -> None:
    if error:
        raise LaunchError(error.decode())


def load(path: Path) -> Kernel:
    """Open a library. LaunchError when it was built for another layout of Params.

    CDLL, not PyDLL: a launch of the emulation takes long and must not hold the interpreter's lock.
    """
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


def bind(kernel: Kernel, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, out: torch.Tensor) -> Bound:
    """Check the tensors, allocate the workspace, fill Params.

    x, out: (batch, dim, seqlen), any strides. weight: (dim, width). bias: (dim) or None.
    Raises ShapeError, DtypeError or DeviceError, naming the argument.
    """
    check_tensors(x, weight, bias, out)
    params = Params()
    params.x, params.weight, params.out = x.data_ptr(), weight.data_ptr(), out.data_ptr()
    params.bias = None if bias is None else bias.data_ptr()
    params.batch, params.dim, params.seqlen = x.shape
    params.x_batch_stride, params.x_dim_stride, params.x_seq_stride = x.stride()
    params.out_batch_stride, params.out_dim_stride, params.out_seq_stride = out.stride()
    params.weight_dim_stride, params.weight_width_stride = weight.stride()
    workspace = torch.empty(kernel.workspace_bytes(params), dtype=torch.uint8, device=x.device)
    params.workspace = workspace.data_ptr() or None
    return Bound(kernel, params, (x, weight, bias, out, workspace))


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

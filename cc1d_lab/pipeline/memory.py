"""Where the buffers of a program come from: the host's allocator, the device runtime's, unified memory, or a pool.

The runtime (CUDA's or HIP's) is called through ctypes, since torch would answer from a pool of its own.
"""

from __future__ import annotations

import ctypes
import functools
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..errors import LaunchError, ToolchainError

ATTACH_GLOBAL = 1  # cudaMemAttachGlobal, hipMemAttachGlobal: any stream may use it


@dataclass(frozen=True)
class Block:
    """Bytes as the host and as the device see them, each a 1-D uint8 tensor; None where they are out of reach."""

    host: torch.Tensor | None
    device: torch.Tensor | None
    address: int = 0  # what the runtime frees; 0: Python does

    @property
    def size(self) -> int:
        """Number of bytes."""
        there = self.host if self.host is not None else self.device
        return 0 if there is None else there.numel()


@dataclass(frozen=True)
class Memory:
    """A kind of memory: how blocks of it are taken, and given back."""

    take: Callable[[int], Block]
    give: Callable[[Block], None]


@dataclass
class Pool:
    """Blocks that were given back, for whoever asks for as many bytes."""

    source: Memory
    free: dict[int, list[Block]] = field(default_factory=dict)

    def memory(self) -> Memory:
        """The pool as a kind of memory."""
        return Memory(self._take, lambda block: self.free.setdefault(block.size, []).append(block))

    def _take(self, size: int) -> Block:
        waiting = self.free.get(size)
        return waiting.pop() if waiting else self.source.take(size)

    def close(self) -> None:
        """Give everything back to where it came from."""
        for block in (block for blocks in self.free.values() for block in blocks):
            self.source.give(block)
        self.free.clear()


def pageable() -> Memory:
    """Memory of the host as malloc gives it."""
    return Memory(lambda n: Block(torch.empty(n, dtype=torch.uint8), None), lambda block: None)


def emulated() -> Memory:
    """The device's memory in emulation: a piece of the host's that only copies and kernels touch."""
    return Memory(lambda n: Block(None, torch.empty(n, dtype=torch.uint8)), lambda block: None)


def pinned() -> Memory:
    """Memory of the host that stays in place, so that the device copies it by itself."""
    take, give = _runtime().host

    def new(size: int) -> Block:
        address = take(size)
        return Block(_host_view(address, size), None, address)

    return Memory(new, lambda block: give(block.address))


def device() -> Memory:
    """Memory of the device, from the runtime itself."""
    take, give = _runtime().device

    def new(size: int) -> Block:
        address = take(size)
        return Block(None, _device_view(address, size), address)

    return Memory(new, lambda block: give(block.address))


def unified() -> Memory:
    """Memory that host and device both reach; its pages move to whoever touches them."""
    take, give = _runtime().unified

    def new(size: int) -> Block:
        address = take(size)
        return Block(_host_view(address, size), _device_view(address, size), address)

    return Memory(new, lambda block: give(block.address))


def free_bytes() -> int:
    """Bytes that are free on the device."""
    return int(torch.cuda.mem_get_info()[0])


def typed(flat: torch.Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    """The first bytes of a uint8 tensor as `shape` of `dtype`."""
    itemsize = torch.empty(0, dtype=dtype).element_size()
    return flat[: math.prod(shape) * itemsize].view(dtype).view(shape)


# --- the runtime ----------------------------------------------------------------------------------

Take = Callable[[int], int]  # bytes -> address
Give = Callable[[int], None]


@dataclass(frozen=True)
class _Runtime:
    """malloc and free of each kind of memory."""

    device: tuple[Take, Give]
    host: tuple[Take, Give]
    unified: tuple[Take, Give]


@functools.cache
def _runtime() -> _Runtime:
    """The runtime that torch has loaded: another copy of it might be of another version."""
    torch.cuda.synchronize()  # loads it, and makes its context current
    hip = torch.version.hip is not None
    library = ctypes.CDLL(_loaded("libamdhip64" if hip else "libcudart"))
    prefix = "hip" if hip else "cuda"
    alloc, free = ("hipHostMalloc", "hipHostFree") if hip else ("cudaHostAlloc", "cudaFreeHost")
    return _Runtime(
        (_taker(library, prefix, f"{prefix}Malloc"), _giver(library, prefix, f"{prefix}Free")),
        (_taker(library, prefix, alloc, 0), _giver(library, prefix, free)),
        (_taker(library, prefix, f"{prefix}MallocManaged", ATTACH_GLOBAL), _giver(library, prefix, f"{prefix}Free")),
    )


def _loaded(stem: str) -> str:
    """Path of the shared library `stem` that this process has loaded. ToolchainError when there is none."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    found = next((line.split(maxsplit=5)[5] for line in lines if re.search(rf"/{stem}[-.\w]*\.so", line)), "")
    if not found:
        raise ToolchainError(
            f"{stem}: not loaded by torch; the pipeline study needs a torch that links it as a library"
        )
    return found


def _taker(library: ctypes.CDLL, prefix: str, name: str, *flags: int) -> Take:
    call = getattr(library, name)

    def take(size: int) -> int:
        address = ctypes.c_void_p()
        _raise_on(
            library, prefix, f"{name} of {size} bytes", call(ctypes.byref(address), ctypes.c_size_t(size), *flags)
        )
        return int(address.value or 0)

    return take


def _giver(library: ctypes.CDLL, prefix: str, name: str) -> Give:
    call = getattr(library, name)
    return lambda address: _raise_on(library, prefix, name, call(ctypes.c_void_p(address)))


def _raise_on(library: ctypes.CDLL, prefix: str, what: str, code: int) -> None:
    if code:
        say = getattr(library, f"{prefix}GetErrorString")
        say.restype = ctypes.c_char_p
        raise LaunchError(f"{what}: {say(code).decode()}")


def _host_view(address: int, size: int) -> torch.Tensor:
    return torch.frombuffer((ctypes.c_uint8 * size).from_address(address), dtype=torch.uint8)


@dataclass(frozen=True)
class _Span:
    """Memory of the device for torch.as_tensor, which takes it over without a copy."""

    address: int
    size: int

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {"shape": (self.size,), "typestr": "|u1", "data": (self.address, False), "version": 2}


def _device_view(address: int, size: int) -> torch.Tensor:
    return torch.as_tensor(_Span(address, size), device="cuda")

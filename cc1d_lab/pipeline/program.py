"""The programs themselves, stage by stage, each stage timed.

A stage of the host is timed by the wall clock, one of the device by two events in its stream, so that nothing waits for
the clock. A stage of the device that the host has just queued on an idle stream contains the wait for its launch. With
two streams stages overlap: their sum is then more than the time of the program.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from .. import kernel, reference
from ..case import Case
from ..kernel import Bound, Kernel
from ..programs import chunks, proposals
from ..reference import FIELD_TOLERANCE, Inputs
from . import memory
from .memory import Block, Memory, Pool, typed

Stages = dict[str, float]  # microseconds of each stage, in the order in which they first occurred
Span = tuple[int, int]  # elements [from, to) of the batch


@dataclass
class Clock:
    """Times the stages of one run of a program."""

    on_gpu: bool
    wall_us: Stages = field(default_factory=dict)
    events: list[tuple[str, Any, Any]] = field(default_factory=list)

    @contextlib.contextmanager
    def host(self, stage: str) -> Iterator[None]:
        """What the host does itself."""
        begin = time.perf_counter_ns()
        yield
        self.wall_us[stage] = self.wall_us.get(stage, 0.0) + (time.perf_counter_ns() - begin) / 1e3

    @contextlib.contextmanager
    def device(self, stage: str) -> Iterator[None]:
        """What goes into the current stream of the device. In emulation the host does that too."""
        if not self.on_gpu:
            with self.host(stage):
                yield
            return
        self.wall_us.setdefault(stage, 0.0)
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        yield
        end.record()
        self.events.append((stage, begin, end))

    def stages(self) -> Stages:
        """The time of each stage, all its occurrences together. The device must have come to its end."""
        found = dict(self.wall_us)
        for stage, begin, end in self.events:
            found[stage] += float(begin.elapsed_time(end)) * 1e3
        return found


@dataclass(frozen=True)
class _Stores:
    """Where the buffers of the host and of the device come from."""

    host: Memory
    device: Memory


_Taken = tuple[Memory, Block]


@dataclass(frozen=True)
class _Buffers:
    """What a run has allocated. `x_host` and `out_host` are None where the data of the user are copied as they lie."""

    x_host: torch.Tensor | None
    out_host: torch.Tensor | None
    x: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None
    out: torch.Tensor
    weight_side: torch.Tensor  # where the host writes the weight: itself, but for unified memory
    bias_side: torch.Tensor | None
    workspaces: list[int]  # an address for each stream; 0 where the kernels need none


class Program:
    """A program that is ready to run, time after time. Close it when done: a pool gives its buffers back then.

    case: layout is that of the device. inputs: tensors of the host, x (batch, dim, seqlen) contiguous.
    verify: whether the host computes the result too, and compares.
    """

    def __init__(self, program: str, case: Case, loaded: Kernel, inputs: Inputs, on_gpu: bool, verify: bool) -> None:
        self._follows = proposals(program)
        self._case, self._kernel, self._inputs = case, loaded, inputs
        self._on_gpu, self._verify = on_gpu, verify
        self._chunks = chunks(program, case.batch)
        self._pools: list[Pool] = []
        self._stores = self._choose()
        self._streams = [torch.cuda.Stream() for _ in range(2)] if "streams" in self._follows else []
        self.out = torch.empty_like(inputs.x, memory_format=torch.contiguous_format)
        self.verified: bool | None = None  # what the last run's own verification said

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Give back what is kept between runs."""
        for pool in self._pools:
            pool.close()

    def run(self, poison: bool = False) -> Stages:
        """Run from x on the host to `out` on the host, and return the time of each stage in microseconds.

        poison: fill every buffer and `out` with NaN first. Memory that is taken again may still hold the result of an
        earlier run, and would hide that a kernel was not launched or a copy not made.
        """
        clock, taken = Clock(self._on_gpu), list[_Taken]()
        try:
            buffers = self._allocate(taken, clock)
            if poison:
                _poison([self.out, *(side for _, block in taken for side in (block.host, block.device))])
            (self._overlapped if self._streams else self._serial)(buffers, clock)
            if self._on_gpu:
                torch.cuda.synchronize()
        finally:
            with clock.host("free"):
                for store, block in reversed(taken):
                    store.give(block)
        if self._verify:
            with clock.host("verification"):
                self.verified = _close_enough(self._case, self._inputs, self.out)
        return clock.stages()

    # --- memory

    def _choose(self) -> _Stores:
        if not self._on_gpu:
            stores = _Stores(memory.pageable(), memory.emulated())
        elif "unified" in self._follows:
            stores = _Stores(memory.unified(), memory.unified())
        else:
            host = memory.pinned() if "streams" in self._follows else memory.pageable()
            stores = _Stores(host, memory.device())
        return _Stores(self._pooled(stores.host), self._pooled(stores.device)) if "pool" in self._follows else stores

    def _pooled(self, source: Memory) -> Memory:
        self._pools.append(Pool(source))
        return self._pools[-1].memory()

    def _allocate(self, taken: list[_Taken], clock: Clock) -> _Buffers:
        """All buffers of a run; `taken` says what is to be given back, also after a failure."""

        def take(store: Memory, size: int) -> Block:
            with clock.host("allocation"):
                taken.append((store, store.take(size)))
            return taken[-1][1]

        inputs, device = self._inputs, self._stores.device
        size = self._case.outputs * self._case.itemsize
        x, out = take(device, size), take(device, size)
        weight = take(device, inputs.weight.nbytes)
        bias = None if inputs.bias is None else take(device, inputs.bias.nbytes)
        needed = self._workspace_bytes()
        count = max(len(self._streams), 1) if needed else 0
        workspaces = [_address(take(device, needed)) for _ in range(count)] or [0] * max(len(self._streams), 1)
        x_host, out_host = self._host_sides(x, out, lambda: take(self._stores.host, size))
        weights = [_sides(weight, inputs.weight), _sides(bias, inputs.bias)]
        return _Buffers(
            x_host=self._shaped(x_host),
            out_host=self._shaped(out_host),
            x=self._shaped(x.device),
            weight=weights[0][0],
            bias=weights[1][0],
            out=self._shaped(out.device),
            weight_side=weights[0][1],
            bias_side=weights[1][1],
            workspaces=workspaces,
        )

    def _host_sides(
        self, x: Block, out: Block, take: Callable[[], Block]
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Where the host lays x ready and finds out: unified memory itself, buffers of its own, or none."""
        if x.host is not None:
            return x.host, out.host
        if self._case.layout == "channel_last" or self._streams:
            return take().host, take().host
        return None, None

    def _shaped(self, flat: torch.Tensor | None) -> Any:
        """(batch, dim, seqlen) with the layout of the device; None stays None."""
        if flat is None:
            return None
        case, dtype = self._case, self._inputs.x.dtype
        if case.layout == "channel_first":
            return typed(flat, dtype, (case.batch, case.dim, case.seqlen))
        return typed(flat, dtype, (case.batch, case.seqlen, case.dim)).transpose(1, 2)

    def _workspace_bytes(self) -> int:
        """Device memory between the kernels, for the largest part of the batch that is launched at once."""
        largest = max(end - begin for begin, end in self._chunks)
        x = self._inputs.x[:largest]
        return self._kernel.workspace_bytes(kernel.fill({"x": x, "weight": self._inputs.weight, "out": x}))

    # --- the way of the data

    def _serial(self, buffers: _Buffers, clock: Clock) -> None:
        whole = (0, self._case.batch)
        self._lay_ready(buffers, clock, whole)
        self._copy_weight(buffers, clock)
        self._copy_in(buffers, clock, whole)
        for number, chunk in enumerate(self._chunks):
            self._launch(buffers, clock, chunk, 0, first=number == 0)
        self._copy_back(buffers, clock, whole)
        self._fetch(buffers, clock, whole)

    def _overlapped(self, buffers: _Buffers, clock: Clock) -> None:
        """Each part of the batch goes through one of two streams; the host prepares the next part meanwhile."""
        self._copy_weight(buffers, clock)
        torch.cuda.current_stream().synchronize()
        done = []
        for number, chunk in enumerate(self._chunks):
            self._lay_ready(buffers, clock, chunk)
            with torch.cuda.stream(self._streams[number % 2]):
                self._copy_in(buffers, clock, chunk)
                self._launch(buffers, clock, chunk, number % 2, first=number < 2)
                self._copy_back(buffers, clock, chunk)
                done.append(torch.cuda.Event())
                done[-1].record()
        for chunk, event in zip(self._chunks, done, strict=True):
            event.synchronize()
            self._fetch(buffers, clock, chunk)

    def _lay_ready(self, buffers: _Buffers, clock: Clock, part: Span) -> None:
        if buffers.x_host is not None:
            with clock.host(self._host_stage("in")):
                buffers.x_host[slice(*part)].copy_(self._inputs.x[slice(*part)])

    def _fetch(self, buffers: _Buffers, clock: Clock, part: Span) -> None:
        """What the host does with the result. In unified memory it waits for the kernels first."""
        if "unified" in self._follows:
            torch.cuda.synchronize()
        if buffers.out_host is not None:
            with clock.host(self._host_stage("out")):
                self.out[slice(*part)].copy_(buffers.out_host[slice(*part)])

    def _host_stage(self, way: str) -> str:
        return f"{'transpose' if self._case.layout == 'channel_last' else 'host copy'} {way}"

    def _copy_weight(self, buffers: _Buffers, clock: Clock) -> None:
        with clock.host(self._host_stage("in")) if "unified" in self._follows else clock.device("copy in"):
            buffers.weight_side.copy_(self._inputs.weight)
            if buffers.bias_side is not None and self._inputs.bias is not None:
                buffers.bias_side.copy_(self._inputs.bias)

    def _copy_in(self, buffers: _Buffers, clock: Clock, part: Span) -> None:
        if "unified" not in self._follows:
            source = self._inputs.x if buffers.x_host is None else buffers.x_host
            with clock.device("copy in"):
                buffers.x[slice(*part)].copy_(source[slice(*part)], non_blocking=bool(self._streams))

    def _copy_back(self, buffers: _Buffers, clock: Clock, part: Span) -> None:
        if "unified" not in self._follows:
            target = self.out if buffers.out_host is None else buffers.out_host
            with clock.device("copy back"):
                target[slice(*part)].copy_(buffers.out[slice(*part)], non_blocking=bool(self._streams))

    def _launch(self, buffers: _Buffers, clock: Clock, part: Span, place: int, first: bool) -> None:
        """All kernels on a part of the batch; the weight is expanded once for each workspace."""
        bound = self._bind(buffers, part, buffers.workspaces[place])
        stream = torch.cuda.current_stream().cuda_stream if self._on_gpu else 0
        for number, name in enumerate(self._kernel.stages):
            if first or name != "expand_weight":
                with clock.device(name):
                    bound.stage(number)(stream)

    def _bind(self, buffers: _Buffers, part: Span, workspace: int) -> Bound:
        tensors = {
            "x": buffers.x[slice(*part)],
            "weight": buffers.weight,
            "bias": buffers.bias,
            "out": buffers.out[slice(*part)],
        }
        params = kernel.fill(tensors)
        params.workspace = workspace or None
        return Bound(self._kernel, params, tuple(tensors.values()))


def _poison(tensors: Iterable[torch.Tensor | None]) -> None:
    for tensor in tensors:
        if tensor is not None:
            tensor.view(torch.uint8).fill_(0xFF)
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()  # before the host, or another stream, writes what is right


def _address(block: Block) -> int:
    return 0 if block.device is None else block.device.data_ptr()


def _sides(block: Block | None, like: torch.Tensor | None) -> tuple[Any, Any]:
    """A block with the type and shape of `like`, as the kernels read it and where it is written to."""
    if block is None or like is None or block.device is None:
        return None, None
    there = typed(block.device, like.dtype, tuple(like.shape))
    return there, there if block.host is None else typed(block.host, like.dtype, tuple(like.shape))


def _close_enough(case: Case, inputs: Inputs, out: torch.Tensor) -> bool:
    """S2's verify mode: the host computes the convolution in fp32, and compares with the field's tolerance."""
    bias = None if inputs.bias is None else inputs.bias.float()
    mine = reference.torch_conv1d(case, Inputs(inputs.x.float(), inputs.weight.float(), bias, inputs.x_buffer))
    rtol, atol = FIELD_TOLERANCE[case.dtype]
    return bool(torch.allclose(out.float(), mine, rtol=rtol, atol=atol))

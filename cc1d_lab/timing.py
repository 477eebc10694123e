"""How launches are timed: interleaved rounds over the members of a group, so that drift hits all alike.

On a GPU a sample is one replay of a CUDA graph of many launches over rotating buffers, between two device events; the
stream is kept busy while the replay is queued, so that the host's delay is not in the sample. Where a member cannot be
captured, its launches go into the stream one by one. On the CPU a sample is one launch by the wall clock.
"""

from __future__ import annotations

import contextlib
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Launch = Callable[[int], None]  # takes a raw stream handle

SAMPLE_US = 400.0  # a GPU sample is at least this long: events resolve half a microsecond
MAX_LAUNCHES = 400  # of one sample
BUSY_CYCLES = 200_000  # about 0.1 ms: longer than it takes to queue a replay
COLD_FACTOR = 3.0  # rotating buffers hold this many times the cache
MAX_SETS = 256


@dataclass(frozen=True)
class Policy:
    """When to stop sampling. Samples of the members of a group are taken in interleaved rounds.

    `warmup` rounds are thrown away. Then at least `min_samples` rounds, until the standard error of the mean of every
    member is below `rel_err` (stop reason `precise`), `max_samples` is reached (`count`), or `budget_s` seconds of
    the group are spent (`budget`).
    """

    warmup: int = 3
    min_samples: int = 10
    max_samples: int = 100
    rel_err: float = 0.002
    budget_s: float = 2.0


POLICIES = {
    "gpu": Policy(),
    "cpu": Policy(warmup=1, min_samples=3, max_samples=10, rel_err=0.02, budget_s=0.3),
    "s0": Policy(warmup=10, min_samples=100, max_samples=100, rel_err=0.0, budget_s=math.inf),
}


@dataclass(frozen=True)
class Timing:
    """Microseconds a launch, sample by sample, in the order taken."""

    samples_us: tuple[float, ...]
    launches_per_sample: int
    mode: str
    cache_state: str
    stop_reason: str

    @property
    def p20(self) -> float:
        """20th percentile."""
        return _percentile(self.samples_us, 0.2)

    @property
    def p50(self) -> float:
        """Median."""
        return _percentile(self.samples_us, 0.5)

    @property
    def p80(self) -> float:
        """80th percentile."""
        return _percentile(self.samples_us, 0.8)

    @property
    def mean(self) -> float:
        """Mean."""
        return statistics.fmean(self.samples_us)

    @property
    def std_pct(self) -> float:
        """Standard deviation in % of the mean."""
        return 100 * statistics.stdev(self.samples_us) / self.mean if len(self.samples_us) > 1 else 0.0


def _percentile(samples: Sequence[float], q: float) -> float:
    """Linear interpolation between the closest ranks, as numpy's default."""
    ordered = sorted(samples)
    position = q * (len(ordered) - 1)
    low = math.floor(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


@dataclass
class _Member:
    sample: Callable[[], float]  # microseconds a launch
    launches: int
    mode: str
    samples: list[float] = field(default_factory=list)


def measure(
    members: Mapping[str, Sequence[Launch]], policy: Policy, device: str, cold: bool = False
) -> dict[str, Timing]:
    """Time every member; a member is the same launch over rotating buffers. Returns a Timing by name.

    The outputs of the members are overwritten. Raises whatever a launch raises.
    """
    prepared = {name: _prepare(launches, device) for name, launches in members.items()}
    for _ in range(policy.warmup):
        for member in prepared.values():
            member.sample()
    reason = _sample_rounds(list(prepared.values()), policy)
    cache_state = "cold" if cold else "warm"
    return {n: Timing(tuple(m.samples), m.launches, m.mode, cache_state, reason) for n, m in prepared.items()}


def _sample_rounds(members: list[_Member], policy: Policy) -> str:
    """Interleaved rounds until the policy is content; returns why it stopped."""
    started = time.perf_counter()
    while True:
        for member in members:
            member.samples.append(member.sample())
        n = len(members[0].samples)
        if n < policy.min_samples:
            continue
        if all(_relative_error(m.samples) <= policy.rel_err for m in members):
            return "precise"
        if n >= policy.max_samples:
            return "count"
        if time.perf_counter() - started > policy.budget_s:
            return "budget"


def _relative_error(samples: Sequence[float]) -> float:
    """Standard error of the mean over the mean."""
    if len(samples) < 2:
        return math.inf
    return statistics.stdev(samples) / math.sqrt(len(samples)) / statistics.fmean(samples)


def _prepare(launches: Sequence[Launch], device: str) -> _Member:
    if device == "cpu":
        return _Member(lambda: _wall_us(launches[0]), 1, "wall")
    return _prepare_gpu(launches)


def _wall_us(launch: Launch) -> float:
    started = time.perf_counter_ns()
    launch(0)
    return (time.perf_counter_ns() - started) / 1e3


# --- GPU ------------------------------------------------------------------------------------------


def _prepare_gpu(launches: Sequence[Launch]) -> _Member:
    for launch in launches:  # first touch of every set, and lazy loading of the module
        launch(current_stream("cuda"))
    synchronize("cuda")
    estimate = _event_us(lambda: [launch(current_stream("cuda")) for launch in launches]) / len(launches)
    rounds = max(1, math.ceil(min(SAMPLE_US / max(estimate, 0.5), MAX_LAUNCHES) / len(launches)))
    sequence = list(launches) * rounds
    with contextlib.suppress(RuntimeError):  # not capturable: time it in the stream
        replay = _capture(sequence)
        return _Member(lambda: _event_us(replay) / len(sequence), len(sequence), "graph")
    synchronize("cuda")

    def run_all() -> None:
        stream = current_stream("cuda")
        for launch in sequence:
            launch(stream)

    return _Member(lambda: _event_us(run_all) / len(sequence), len(sequence), "stream")


def _capture(sequence: Sequence[Launch]) -> Callable[[], None]:
    """The sequence as a CUDA (or HIP) graph; returns its replay."""
    import torch

    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        stream = current_stream("cuda")
        for launch in sequence:
            launch(stream)
    return graph.replay


def _event_us(work: Callable[[], Any]) -> float:
    """Device time of `work`, microseconds. The device is kept busy first, so that it never waits for the host."""
    import torch

    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(BUSY_CYCLES)
    begin.record()
    work()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) * 1e3


def current_stream(device: str) -> int:
    """Raw handle of torch's current stream; 0 on the CPU."""
    if device == "cpu":
        return 0
    import torch

    return int(torch.cuda.current_stream().cuda_stream)


def synchronize(device: str) -> None:
    """Wait for all streams of the device, and raise what went wrong on it."""
    if device == "cpu":
        return
    import torch

    from .errors import LaunchError

    try:
        torch.cuda.synchronize()
    except RuntimeError as e:
        raise LaunchError(str(e).splitlines()[0]) from e


def cold_sets(set_bytes: int, device: str) -> int:
    """How many sets of `set_bytes` bytes to rotate over, so that no launch finds its data in cache. 1 on the CPU."""
    if device == "cpu":
        return 1
    import torch

    cache = getattr(torch.cuda.get_device_properties(torch.cuda.current_device()), "L2_cache_size", 50 * 2**20)
    return max(2, min(MAX_SETS, math.ceil(COLD_FACTOR * cache / set_bytes) + 1))


def device_state(device: str) -> dict[str, float]:
    """clock_mhz and temperature_c of the GPU, where the driver tells."""
    return dict(_read_state()) if device != "cpu" else {}


def _read_state() -> Iterator[tuple[str, float]]:
    import torch

    for name, read in (("clock_mhz", torch.cuda.clock_rate), ("temperature_c", torch.cuda.temperature)):
        with contextlib.suppress(Exception):  # the driver's library may be missing: then the column stays null
            yield name, float(read())

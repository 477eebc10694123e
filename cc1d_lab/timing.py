"""How launches are timed: interleaved rounds over the members of a group, so that drift hits all alike.

On a GPU a sample is one replay of a CUDA graph of many launches over rotating buffers, between two device events; the
stream is kept busy while the replay is queued, so that the host's delay is not in the sample. Where a member cannot be
captured, or the policy says `stream`, its launches go into the stream one by one. On the CPU a sample is one launch by
the wall clock.
"""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .errors import one_of

Launch = Callable[[int], None]  # takes a raw stream handle

SAMPLE_US = 400.0  # a GPU sample is at least this long: events resolve half a microsecond
MAX_LAUNCHES = 400  # of one sample
BUSY_CYCLES = 200_000  # about 0.1 ms: longer than it takes to queue a replay
COLD_FACTOR = 3.0  # rotating buffers hold this many times the cache
MAX_SETS = 1200  # of rotating buffers: on an H100 a set of 125 kB or more can be had cold
CYCLES_PER_US = 2000  # of a GPU, or fewer: a hold that is too long does no harm
HOLD_US = 3000.0  # longer than it takes to launch, and to look at the output from another stream
OBSERVE_S = 0.2  # the device's state is read this often while a group is sampled
CACHES = ("cold", "warm")
LAUNCHES = ("graph", "stream")


@dataclass(frozen=True)
class Policy:
    """When to stop sampling. Samples of the members of a group are taken in interleaved rounds.

    `warmup` rounds are thrown away. Then at least `min_samples` rounds, until the standard error of the mean of every
    member is below `rel_err` (stop reason `precise`), `max_samples` is reached (`count`), or `budget_s` seconds of
    the group are spent (`budget`).

    `cache`: `cold` rotates over buffers beyond the GPU's cache, `warm` launches over one set. `launch`: `graph` replays
    a graph of launches, `stream` launches one by one, so that a host that cannot keep up shows. Both are for GPUs.
    """

    warmup: int = 3
    min_samples: int = 10
    max_samples: int = 100
    rel_err: float = 0.002
    budget_s: float = 2.0
    cache: str = "cold"
    launch: str = "graph"

    def __post_init__(self) -> None:
        one_of("cache", self.cache, CACHES)
        one_of("launch", self.launch, LAUNCHES)


POLICIES = {
    "gpu": Policy(),
    "cpu": Policy(warmup=1, min_samples=3, max_samples=10, rel_err=0.02, budget_s=0.3),
    "warm": Policy(cache="warm"),
    "stream": Policy(launch="stream"),
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
class Run:
    """A member, ready to be sampled. `queue` puts the launches of one sample into the stream (on the CPU: runs them);
    each set of buffers is launched over `repeats` times in it.
    """

    queue: Callable[[], None]
    sample: Callable[[], float]  # microseconds a launch
    launches: int
    repeats: int
    mode: str
    samples: list[float] = field(default_factory=list)


def measure(
    members: Mapping[str, Sequence[Launch]],
    policy: Policy,
    device: str,
    observe: Callable[[], None] | None = None,
    after: Callable[[str, Run], None] | None = None,
) -> dict[str, Timing]:
    """Time every member; a member is the same launch over rotating buffers. Returns a Timing by name.

    `observe` is called now and then while the device works, `after` for each member when all are timed: it may queue
    again what was timed. The outputs of the members are overwritten. Raises whatever a launch raises.
    """
    prepared = {name: _prepare(launches, device, policy.launch) for name, launches in members.items()}
    for _ in range(policy.warmup):
        for member in prepared.values():
            member.sample()
    reason = _sample_rounds(list(prepared.values()), policy, observe and _under_load(observe, device))
    times = {n: _timing(m, reason, len(members[n])) for n, m in prepared.items()}
    for name, member in prepared.items():
        if after:
            after(name, member)
    return times


def _timing(member: Run, reason: str, sets: int) -> Timing:
    return Timing(tuple(member.samples), member.launches, member.mode, "cold" if sets > 1 else "warm", reason)


def _under_load(observe: Callable[[], None], device: str) -> Callable[[Run], None]:
    """`observe` while an untimed sample runs: an idle device says nothing of its clocks."""

    def look(member: Run) -> None:
        member.queue()
        observe()
        synchronize(device)

    return look


def _sample_rounds(members: list[Run], policy: Policy, look: Callable[[Run], None] | None = None) -> str:
    """Interleaved rounds until the policy is content; returns why it stopped.

    The order of a round is drawn: what a member leaves in caches and clocks must not always fall to the same one.
    """
    started = looked = time.perf_counter()
    order = random.Random(len(members))
    reason = ""
    while not reason:
        if look and (not members[0].samples or time.perf_counter() - looked > OBSERVE_S):
            look(members[0])
            looked = time.perf_counter()
        for member in order.sample(members, len(members)):
            member.samples.append(member.sample())
        reason = _stop(members, policy, time.perf_counter() - started)
    if look:
        look(members[0])
    return reason


def _stop(members: list[Run], policy: Policy, spent_s: float) -> str:
    """Why sampling is to stop, or ''."""
    n = len(members[0].samples)
    if n < policy.min_samples:
        return ""
    if all(_relative_error(m.samples) <= policy.rel_err for m in members):
        return "precise"
    if n >= policy.max_samples:
        return "count"
    return "budget" if spent_s > policy.budget_s else ""


def _relative_error(samples: Sequence[float]) -> float:
    """Standard error of the mean over the mean."""
    if len(samples) < 2:
        return math.inf
    return statistics.stdev(samples) / math.sqrt(len(samples)) / statistics.fmean(samples)


def _prepare(launches: Sequence[Launch], device: str, mode: str) -> Run:
    if device == "cpu":
        return Run(lambda: launches[0](0), lambda: _wall_us(launches[0]), 1, 1, "wall")
    return _prepare_gpu(launches, mode)


def _wall_us(launch: Launch) -> float:
    started = time.perf_counter_ns()
    launch(0)
    return (time.perf_counter_ns() - started) / 1e3


# --- GPU ------------------------------------------------------------------------------------------


def _prepare_gpu(launches: Sequence[Launch], mode: str) -> Run:
    def once() -> None:
        for launch in launches:
            launch(current_stream("cuda"))

    once()  # first touch of every set, and lazy loading of the module
    synchronize("cuda")
    # The least of three: one that was disturbed would make every sample too short.
    estimate = min(_event_us(once) for _ in range(3)) / len(launches)
    rounds = max(1, math.ceil(min(SAMPLE_US / max(estimate, 0.5), MAX_LAUNCHES) / len(launches)))
    sequence = list(launches) * rounds

    def run_all() -> None:
        stream = current_stream("cuda")
        for launch in sequence:
            launch(stream)

    queue = run_all
    if mode == "graph":
        try:
            queue = _capture(run_all)
        except RuntimeError:  # not capturable: time it in the stream
            mode = "stream"
            synchronize("cuda")
    return Run(queue, lambda: _event_us(queue) / len(sequence), len(sequence), rounds, mode)


def _capture(run_all: Callable[[], None]) -> Callable[[], None]:
    """The launches as a CUDA (or HIP) graph; returns its replay."""
    import torch

    graph = torch.cuda.CUDAGraph()
    # A capture that fails leaves its own stream the current one: the outer context puts that right.
    with torch.cuda.stream(torch.cuda.current_stream()), torch.cuda.graph(graph):
        run_all()
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
    """How many sets of `set_bytes` bytes to rotate over, so that no launch finds its data in cache.

    1 on the CPU, and where it would take more than MAX_SETS: what is half cold is neither, so it is timed warm.
    """
    if device == "cpu":
        return 1
    import torch

    cache = getattr(torch.cuda.get_device_properties(torch.cuda.current_device()), "L2_cache_size", 50 * 2**20)
    wanted = max(2, math.ceil(COLD_FACTOR * cache / set_bytes) + 1)
    return wanted if wanted <= MAX_SETS else 1


def runs_ahead(launch: Launch, touched: Callable[[], Any], wait_us: float) -> bool | None:
    """Whether a launch works while the stream that it was given is still busy: then its time is not all of it.

    The stream is held for longer than `wait_us`; meanwhile `touched` (a tensor that says whether the output is no
    longer poisoned) is read from another one. None where the launch itself waited for the device.
    """
    import torch

    given, aside = torch.cuda.Stream(), torch.cuda.Stream()
    with torch.cuda.stream(aside):
        bool(touched())  # loads what it needs: that may wait for the device
    torch.cuda.synchronize()
    with torch.cuda.stream(given):
        torch.cuda._sleep(int(CYCLES_PER_US * (2 * wait_us + HOLD_US)))
        woke = torch.cuda.Event()
        woke.record()
        launch(given.cuda_stream)
    time.sleep(wait_us * 1e-6)
    with torch.cuda.stream(aside):
        ahead = bool(touched())
    held = not woke.query()
    synchronize("cuda")
    return ahead if held else None

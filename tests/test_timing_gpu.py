"""Timing and baselines on a GPU: cold, warm, graphs, faults that need streams, and every baseline that is there.

`pytest -m gpu tests/test_timing_gpu.py -s` prints what each mode and baseline reached, and what a look costs.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import pytest
import torch
from planted import Planted, plant

from cc1d_lab import backends, baselines, measurement, recheck, sensors, timing, variants
from cc1d_lab.case import DTYPES, LAYOUTS, Case
from cc1d_lab.cell import Cell
from cc1d_lab.evaluation import evaluate
from cc1d_lab.results import Row

pytestmark = pytest.mark.gpu
LAUNCH = "launch<fwd_naive>(grid_of(blocks(p)), dim3(kBlock), stream, p);"
CASE = Case(4, 512, 2048, dtype="bfloat16")
NAMES = [v.name for v in variants.VARIANTS.values() if v.kind == "baseline"]


@pytest.fixture(autouse=True)
def _needs_a_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU")


def _backend() -> str:
    return "amd" if torch.version.hip else "nvidia"


def _evaluate(*names: str, case: Case = CASE, policy: timing.Policy | None = None) -> list[Row]:
    return evaluate([Cell(name, _backend(), case) for name in names], policy)


# --- modes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["gpu", "warm", "stream"])
def test_each_mode_says_what_it_is(policy: str) -> None:
    chosen = timing.POLICIES[policy]
    row = _evaluate("fwd_register", policy=chosen)[0]
    print(f"\n{policy}: {row['time_us_p50']:.2f} us, copy {row['copy_time_us']:.2f}, A/A {row['noise_pct']:.2f} %")
    assert row["status"] == "ok", row["reason"]
    assert (row["cache_state"], row["timing_mode"]) == (chosen.cache, chosen.launch)
    assert row["timed_result"]
    assert chosen.launch == "stream" or row["noise_pct"] < 5, "launched one by one, a busy host shows"
    assert row["clock_mhz"] > 100
    assert row["temperature_c"] > 0
    assert row["empty_time_us"] < row["time_us_p50"]


def test_warm_is_not_slower_than_cold() -> None:
    cold, warm = (_evaluate("fwd_register", policy=timing.POLICIES[name])[0] for name in ("gpu", "warm"))
    assert warm["copy_time_us"] < cold["copy_time_us"], "17 MB stay in a cache of 50 MB"


def test_a_decode_step_is_timed_cold_too() -> None:
    row = _evaluate("update_naive", case=Case(1, 5120, 1, dtype="bfloat16", op="update"))[0]
    print(f"\ndecode: {row['time_us_p50']:.2f} us {row['cache_state']}, {row['launches_per_sample']} launches a sample")
    assert (row["status"], row["cache_state"], row["timed_result"]) == ("ok", "cold", True), row["reason"]


def test_the_driver_tells_clocks_and_throttling() -> None:
    if torch.version.hip:
        pytest.skip("asks NVML, which is NVIDIA's")
    state = sensors.read_state()
    started = time.perf_counter()
    sensors.read_state()
    print(f"\n{state}, read in {1e3 * (time.perf_counter() - started):.2f} ms")
    assert set(state) == {"clock_mhz", "memory_clock_mhz", "temperature_c", "throttle"}


def test_a_look_after_the_timing_costs_little(monkeypatch: pytest.MonkeyPatch) -> None:
    spent: dict[str, float] = {}
    looks = recheck.Recheck.fault

    def timed(self: recheck.Recheck, subject: recheck.Subject, run: timing.Run) -> str:
        started = time.perf_counter()
        found = looks(self, subject, run)
        spent[str(len(spent))] = time.perf_counter() - started
        return found

    monkeypatch.setattr(recheck.Recheck, "fault", timed)
    for case in (Case(2, 64, 256), CASE, Case(8, 5120, 2048, dtype="bfloat16")):
        spent.clear()
        started = time.perf_counter()
        _evaluate("fwd_naive", "fwd_register", "torch_conv1d", case=case)
        total = time.perf_counter() - started
        print(f"\n{case.shape()}: group {total:.2f} s, looks " + ", ".join(f"{1e3 * s:.1f} ms" for s in spent.values()))
        assert sum(spent.values()) < 0.5 * total


# --- faults that need streams --------------------------------------------------------------------------------------

OTHER = "static cudaStream_t other = nullptr; if (!other) cudaStreamCreateWithFlags(&other, cudaStreamNonBlocking);"
STRAYS = {
    "a stream of its own": f"{OTHER} {LAUNCH.replace('stream', 'other')}",
    "the default stream": LAUNCH.replace("stream", "cudaStreamLegacy"),
}
COUNTED = "static int calls = 0; if (++calls > 9) { %s } else " + LAUNCH
LATER = {
    "does nothing any more": COUNTED % "",
    "writes its input": COUNTED % (LAUNCH + " cudaMemsetAsync(const_cast<void*>(p.x), 0, 2, stream);"),
}


def _spoiled(code: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[Row]:
    if _backend() != "nvidia":
        pytest.skip("the planted code names CUDA's functions")
    bug = Planted("", "fwd_naive", LAUNCH, code, CASE, "fwd_naive.hip")
    monkeypatch.setenv("CC1D_KERNELS", str(plant(bug, folder)))
    return _evaluate("fwd_naive", "fwd_register")


@pytest.mark.parametrize("where", ["given", "own", "default"])
def test_work_ahead_of_its_stream_is_seen(where: str) -> None:
    out, other = torch.full((2**22,), -1, device="cuda"), torch.cuda.Stream()
    streams = {
        "given": torch.cuda.ExternalStream,
        "own": lambda _: other,
        "default": lambda _: torch.cuda.default_stream(),
    }

    def launch(stream: int) -> None:
        with torch.cuda.stream(streams[where](stream)):
            out.zero_()

    def touched() -> torch.Tensor:
        return (out != -1).any()

    ahead = timing.runs_ahead(launch, touched, wait_us=300.0)
    torch.cuda.synchronize()
    assert int(out.sum()) == 0, "the work was done in the end"
    assert ahead is (where != "given")


def test_a_launch_that_waits_for_the_device_is_not_accused() -> None:
    out = torch.full((2**22,), -1, device="cuda")

    def launch(stream: int) -> None:
        torch.cuda.synchronize()
        out.zero_()

    def touched() -> torch.Tensor:
        return (out != -1).any()

    assert timing.runs_ahead(launch, touched, wait_us=300.0) is None


@pytest.mark.parametrize("fault", STRAYS)
def test_a_kernel_on_another_stream_has_no_time(fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoiled, fine = _spoiled(STRAYS[fault], tmp_path, monkeypatch)
    print(f"\n{fault}: {spoiled['reason']}")
    assert (spoiled["status"], spoiled["time_us_p50"]) == ("wrong", None)
    assert (fine["status"], fine["timed_result"]) == ("ok", True), fine["reason"]


@pytest.mark.parametrize("fault", LATER)
def test_a_fault_of_later_launches_is_found(fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoiled, fine = _spoiled(LATER[fault], tmp_path, monkeypatch)
    assert (spoiled["status"], spoiled["time_us_p50"]) == ("wrong", None)
    assert spoiled["reason"].startswith("after timing")
    assert (fine["status"], fine["timed_result"]) == ("ok", True), fine["reason"]


def test_a_copy_that_does_nothing_is_no_ceiling(monkeypatch: pytest.MonkeyPatch) -> None:
    ceilings = measurement._ceilings
    monkeypatch.setattr(
        measurement, "_ceilings", lambda *a: ceilings(*a) | {"copy_runtime": [lambda stream: None] * len(a[1])}
    )
    row = _evaluate("fwd_register")[0]
    assert row["copy_kind"] == "kernel"
    assert row["flags"] == []


# --- baselines -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", NAMES)
def test_each_baseline_that_is_there_runs(name: str, layout: str) -> None:
    seen = 0
    for dtype in DTYPES:
        for op in baselines.get(name).ops:
            case = dataclasses.replace(CASE, dtype=dtype, layout=layout, op=op, seqlen=1 if op == "update" else 2048)
            reason = variants.why_not(variants.get(name), case, _backend()) or baselines.why_not(name, case, _backend())
            if reason:
                print(f"\n{name} {layout} {op}: {reason}")
                continue
            row = _evaluate(name, case=case)[0]
            assert row["status"] == "ok", row["reason"]
            print(
                f"\n{case.title()} {name}: {row['time_us_p50']:.2f} us, {row['pct_copy']:.1f} % of copy, {row['flags']}"
            )
            assert row["timed_result"], "what was timed computes what it should"
            seen += 1
    if not seen:
        pytest.skip(reason)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_triton_is_right_at_awkward_shapes(layout: str) -> None:
    if backends.why_not_run(backends.get(_backend())):
        pytest.skip("no compiler")
    for seqlen in (1, 3, 1023, 1026):
        for view in ("contiguous", "channel_slice", "misaligned"):
            case = Case(2, 70, seqlen, dtype="bfloat16", layout=layout, view=view)
            row = _evaluate("triton_conv1d", case=case)[0]
            assert row["status"] == "ok", row["reason"]
            assert row["n_bad"] == 0, case.title()

"""Timing: when sampling stops, what is read beside it, and that a time is only given for work that was done."""

from __future__ import annotations

import ctypes
import dataclasses
import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from planted import Planted, plant

from cc1d_lab import build, ceilings, kernel, measurement, recheck, reference, sensors, timing
from cc1d_lab.case import Case
from cc1d_lab.cell import Cell
from cc1d_lab.errors import ConfigError
from cc1d_lab.evaluation import evaluate
from cc1d_lab.results import Row
from cc1d_lab.timing import POLICIES, Policy

# --- faults that only show once a kernel is timed -----------------------------------------------------------------

LAUNCH = "launch<fwd_naive>(grid_of(blocks(p)), dim3(kBlock), stream, p);"
CALLS = 9  # more than the check makes, fewer than check and timing together
NO_BIAS = "Params q = p; q.bias = nullptr; launch<fwd_naive>(dim3(blocks(q)), dim3(kBlock), stream, q);"
WRITE_X = "const_cast<elem_t*>(static_cast<const elem_t*>(p.x))[0] = elem_t(0);"
WRITE_WEIGHT = "const_cast<weight_t*>(static_cast<const weight_t*>(p.weight))[1] = weight_t(3);"
ADD_TO_OUT = f"elem_t* o = static_cast<elem_t*>(p.out); elem_t was = o[0]; {LAUNCH} if (was == was) o[0] = was + 1;"


def _later(code: str) -> str:
    """The launch, and from the tenth on something else."""
    return f"static int calls = 0; if (++calls > {CALLS}) {{ {code} }} else {LAUNCH}"


FAULTS = {
    "does nothing any more": (_later(""), "outside the bound"),
    "wrong from some launch on": (_later(NO_BIAS), "outside the bound"),
    "changes x": (_later(f"{LAUNCH} {WRITE_X}"), "changes its inputs"),
    "changes weight": (_later(f"{LAUNCH} {WRITE_WEIGHT}"), "changes its inputs"),
    "skips where it has been": (
        f"static int calls = 0; static const void* last = nullptr; if (++calls <= {CALLS} || last != p.out) {LAUNCH}"
        " last = p.out;",
        "outside the bound",
    ),
    "builds on what was there": (ADD_TO_OUT, "outside the bound"),
}


def _row(code: str, folder: Path, monkeypatch: pytest.MonkeyPatch, policy: Policy | None = None, **case: Any) -> Row:
    bug = Planted("", "fwd_naive", LAUNCH, code, Case(1, 4, 37, **case), "fwd_naive.hip")
    monkeypatch.setenv("CC1D_KERNELS", str(plant(bug, folder)))
    (row,) = evaluate([Cell("fwd_naive", "cpu", bug.case)], policy)
    return row


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_the_timed_launches_is_found_and_costs_the_time(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, words = FAULTS[fault]
    row = _row(code, tmp_path, monkeypatch)
    assert (row["status"], row["timed_result"], row["time_us_p50"]) == ("wrong", False, None)
    assert row["reason"].startswith("after timing: ")
    assert words in row["reason"]


def test_a_kernel_that_stays_right_keeps_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = _row(LAUNCH + " // as it was", tmp_path, monkeypatch)
    assert (row["status"], row["timed_result"]) == ("ok", True)
    assert row["time_us_p50"] > 0


def test_who_changes_the_inputs_is_named_and_the_others_are_doubted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = _later(f"{LAUNCH} {WRITE_X}") + " // in a group"  # its own library, whose counter begins at 0
    bug = Planted("", "fwd_naive", LAUNCH, code, Case(1, 4, 37), "fwd_naive.hip")
    monkeypatch.setenv("CC1D_KERNELS", str(plant(bug, tmp_path)))
    cells = [Cell(name, "cpu", bug.case) for name in ("torch_conv1d", "fwd_naive", "fwd_register")]
    torch_row, naive, register = evaluate(cells)
    assert naive["status"] == "wrong"
    assert "it changes its inputs" in naive["reason"]
    for row in (torch_row, register):
        assert (row["status"], row["timed_result"]) == ("ok", True)
        assert "inputs_changed" in row["flags"]


def test_a_baseline_that_stops_working_is_flagged_and_not_called_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    works, calls = reference.torch_outputs, []

    def gives_up(case: Case, inputs: reference.Inputs) -> reference.Outputs:
        calls.append(case)
        found = works(case, inputs)
        return found if len(calls) < 12 else {name: torch.zeros_like(out) for name, out in found.items()}

    monkeypatch.setattr(reference, "torch_outputs", gives_up)
    (row,) = evaluate([Cell("torch_conv1d", "cpu", Case(1, 4, 37))])
    assert (row["status"], row["timed_result"]) == ("ok", False)
    assert "not_the_work" in row["flags"]


@pytest.mark.parametrize("name", ["bwd_two_stage", "update_naive", "torch_conv1d"])
def test_gradients_and_states_that_move_on_are_looked_at_too(name: str) -> None:
    op = "update" if name == "update_naive" else "bwd"
    (row,) = evaluate([Cell(name, "cpu", Case(2, 6, 37, op=op))])
    assert (row["status"], row["timed_result"]) == ("ok", True), row["reason"]


def test_a_state_that_is_not_moved_on_later_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (build.kernels_dir() / "update_naive.hip").read_text()
    (launch,) = [line.strip() for line in text.splitlines() if line.strip().startswith("launch<update_naive>")]
    moved_on = launch.replace(", p)", ", q)")
    stuck = f"static int calls = 0; Params q = p; if (++calls > {CALLS}) q.state_len = 0; {moved_on}"
    bug = Planted("", "update_naive", launch, stuck, Case(2, 6, 3, op="update"), "update_naive.hip")
    monkeypatch.setenv("CC1D_KERNELS", str(plant(bug, tmp_path)))
    (row,) = evaluate([Cell("update_naive", "cpu", bug.case)])
    assert row["status"] == "wrong"
    assert row["reason"].startswith("after timing: ")


# --- when sampling stops ------------------------------------------------------------------------------------------


def _members(*times_us: float) -> list[timing.Run]:
    return [timing.Run(lambda: None, lambda t=t: t, 1, 1, "wall") for t in times_us]


def _noisy() -> timing.Run:
    values = iter(1.0 + 0.5 * (i % 2) for i in range(10_000))
    return timing.Run(lambda: None, lambda: next(values), 1, 1, "wall")


@pytest.mark.parametrize(
    ("policy", "reason", "samples"),
    [
        (Policy(min_samples=4, rel_err=0.5), "precise", 4),
        (Policy(min_samples=2, max_samples=30, rel_err=0.0), "count", 30),
        (Policy(min_samples=5, max_samples=10**6, rel_err=0.0, budget_s=0.0), "budget", 5),
    ],
)
def test_sampling_stops_for_the_reason_that_it_names(policy: Policy, reason: str, samples: int) -> None:
    members = [*_members(3.0), _noisy()]
    assert timing._sample_rounds(members, policy) == reason
    assert [len(m.samples) for m in members] == [samples, samples]


def test_each_member_comes_after_each_other() -> None:
    """The one that always came first was up to 2.5 % ahead of itself elsewhere in the round."""
    called: list[int] = []
    members = [timing.Run(lambda: None, lambda i=i: called.append(i) or 1.0, 1, 1, "wall") for i in range(4)]
    timing._sample_rounds(members, Policy(min_samples=40, max_samples=40, rel_err=0.0))
    assert all(set(called[k : k + 4]) == {0, 1, 2, 3} for k in range(0, 160, 4)), "once a round"
    followed = {(a, b) for a, b in itertools.pairwise(called) if a != b}
    assert len(followed) == 12


def test_the_noisiest_member_decides_when_it_is_precise() -> None:
    steady, noisy = _members(3.0)[0], _noisy()
    assert timing._sample_rounds([steady], Policy(min_samples=2, rel_err=0.01)) == "precise"
    timing._sample_rounds([steady, noisy], Policy(min_samples=2, max_samples=10**6, rel_err=0.01))
    assert len(noisy.samples) > 300, "0.2 relative deviation needs 400 samples for 1 %"


def test_a_sample_is_long_enough_though_its_first_estimate_was_disturbed(monkeypatch: pytest.MonkeyPatch) -> None:
    estimates = iter([9000.0, 13.0, 15.0])
    monkeypatch.setattr(timing, "_event_us", lambda work: next(estimates))
    monkeypatch.setattr(timing, "current_stream", lambda device: 0)
    monkeypatch.setattr(timing, "synchronize", lambda device: None)
    run = timing._prepare_gpu([lambda stream: None] * 10, "stream")
    assert run.launches * 1.3 >= timing.SAMPLE_US


def test_the_device_is_observed_before_between_and_after(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "OBSERVE_S", 0.0)
    looks: list[int] = []
    timing._sample_rounds(_members(1.0), Policy(min_samples=3, rel_err=1.0), lambda m: looks.append(len(m.samples)))
    assert looks == [0, 1, 2, 3]


@pytest.mark.parametrize(("field", "value"), [("cache", "tepid"), ("launch", "eager")])
def test_an_unknown_way_of_timing_is_refused_by_name(field: str, value: str) -> None:
    with pytest.raises(ConfigError, match=f"{field}: '{value}' is not known"):
        Policy(**{field: value})


def test_the_named_policies_say_what_they_are_for() -> None:
    assert (POLICIES["gpu"].cache, POLICIES["gpu"].launch) == ("cold", "graph")
    assert (POLICIES["warm"].cache, POLICIES["stream"].launch) == ("warm", "stream")


def _device_with_cache(monkeypatch: pytest.MonkeyPatch, cache_bytes: int) -> None:
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(L2_cache_size=cache_bytes))


def test_cold_means_three_times_the_cache_or_not_cold_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    _device_with_cache(monkeypatch, 50 * 2**20)
    for set_bytes in (2**17 + 2**12, 2**20, 10 * 2**20):
        assert timing.cold_sets(set_bytes, "cuda") * set_bytes > 3 * 50 * 2**20
    assert timing.cold_sets(2**30, "cuda") == 2, "the next launch never finds its own data"
    assert timing.cold_sets(2**14, "cuda") == 1, "9,600 sets are too many; a few of them would be neither cold nor warm"


# --- what is read beside ------------------------------------------------------------------------------------------


def _fake_nvml(monkeypatch: pytest.MonkeyPatch, answers: dict[str, Callable[..., int]]) -> None:
    """A driver's library that answers through pointers, as the real one."""
    monkeypatch.setattr(sensors, "_nvml", lambda: SimpleNamespace(**answers))
    sensors._nvml_handle.cache_clear()


def _answer(value: Callable[..., int] | int) -> Callable[..., int]:
    def ask(handle: ctypes.c_void_p, *arguments: Any) -> int:
        arguments[-1]._obj.value = value(*arguments[:-1]) if callable(value) else value
        return 0

    return ask


def test_clocks_temperature_and_throttling_are_read_from_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {
        "nvmlDeviceGetHandleByUUID": lambda name, handle: _answer(1)(handle, handle) if name == b"GPU-12-34" else 6,
        "nvmlDeviceGetClockInfo": _answer(lambda kind: {1: 1980, 2: 2619}[kind]),
        "nvmlDeviceGetTemperature": _answer(44),
        "nvmlDeviceGetCurrentClocksThrottleReasons": _answer(0x1 | 0x4 | 0x40),
    }
    _fake_nvml(monkeypatch, answers)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(uuid="12-34"))
    expected = {"clock_mhz": 1980.0, "memory_clock_mhz": 2619.0, "temperature_c": 44.0}
    assert sensors.read_state() == expected | {"throttle": ["sw_power_cap", "hw_thermal"]}
    _fake_nvml(monkeypatch, answers | {"nvmlDeviceGetTemperature": lambda *_: 3})
    assert "temperature_c" not in sensors.read_state(), "an error code is not a temperature"
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(uuid="56"))
    assert sensors.read_state() == {}, "a device that the driver does not know"


def test_a_watch_keeps_the_worst_that_it_saw() -> None:
    states = iter(
        [
            {"clock_mhz": 1980.0, "temperature_c": 40.0, "throttle": []},
            {"clock_mhz": 1200.0, "temperature_c": 61.0, "throttle": ["sw_thermal"]},
            {"clock_mhz": 1700.0, "temperature_c": 60.0, "throttle": []},
        ]
    )
    watch = sensors.Watch(lambda: next(states))
    for _ in range(3):
        watch()
    expected = {"clock_mhz": 1200.0, "memory_clock_mhz": None, "temperature_c": 61.0, "throttle": ["sw_thermal"]}
    assert watch.columns() == expected


def test_what_nobody_tells_is_null() -> None:
    watch = sensors.Watch(dict)
    watch()
    assert set(watch.columns().values()) == {None}


def test_stages_rotate_over_all_buffers_as_the_whole_does() -> None:
    case = Case(1, 16, 16, dtype="float16")
    loaded = kernel.load(build.build_cell(Cell("fwd_im2col_wmma", "cpu", case)).library)
    sets = [reference.make_inputs(case) for _ in range(3)]
    launches = [kernel.bind(loaded, i.x, i.weight, i.bias, torch.empty_like(i.x)) for i in sets]
    found = measurement._stages(launches)
    assert {name: len(each) for name, each in found.items()} == dict.fromkeys(loaded.stages, 3)


# --- what makes a time doubtful -----------------------------------------------------------------------------------


def _timing(us: float) -> timing.Timing:
    return timing.Timing((us,) * 3, 1, "graph", "cold", "precise")


@pytest.mark.parametrize(
    ("us", "shared", "flags"),
    [
        (100.0, {}, []),
        (98.0, {}, []),
        (96.0, {}, ["above_ceiling"]),
        (0.9, {}, ["above_ceiling", "below_launch"]),
        (200.0, {"throttle": ["hw_thermal"]}, ["throttled"]),
        (200.0, {"throttle": []}, []),
        (200.0, {"copy_pct_of_best": 84.0}, ["slow_device"]),
        (200.0, {"copy_pct_of_best": 99.0}, []),
    ],
)
def test_what_cannot_be_is_flagged(us: float, shared: dict[str, Any], flags: list[str]) -> None:
    usual = {"copy_time_us": 100.0, "empty_time_us": 1.1}
    assert measurement._doubts(_timing(us), usual | shared, "graph") == flags


def test_a_time_without_a_ceiling_is_not_doubted_for_it() -> None:
    assert measurement._doubts(_timing(1.0), {}, "graph") == []


@pytest.mark.parametrize(("wanted", "flags"), [("graph", ["host_time"]), ("stream", [])])
def test_launches_that_no_graph_takes_are_flagged_where_one_was_wanted(wanted: str, flags: list[str]) -> None:
    one_by_one = dataclasses.replace(_timing(200.0), mode="stream")
    assert measurement._doubts(one_by_one, {"copy_time_us": 100.0}, wanted) == flags


GPU_CELL = Cell("fwd_naive", "nvidia", Case(8, 512, 2048, dtype="bfloat16"))


def _group(kernel_us: float, runtime_us: float, again_us: float) -> dict[str, timing.Timing]:
    times = {"copy_kernel": kernel_us, "copy_runtime": runtime_us, "copy_again": again_us, "empty": 1.1}
    return {name: _timing(us) for name, us in times.items()}


@pytest.fixture
def record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A record of ceilings of this test alone, and a device by name."""
    monkeypatch.setattr(ceilings, "record_path", lambda: tmp_path / "ceilings.json")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "made-up GPU")
    return tmp_path / "ceilings.json"


def test_the_ceiling_is_the_faster_copy_and_the_noise_that_of_two_equal_ones(record: Path) -> None:
    columns = measurement._ceiling_columns(GPU_CELL, _group(20.0, 19.0, 20.1), [])
    assert (columns["copy_kind"], columns["copy_time_us"], columns["empty_time_us"]) == ("runtime", 19.0, 1.1)
    assert columns["noise_pct"] == pytest.approx(0.5)


def test_a_copy_that_does_not_copy_is_no_ceiling(record: Path) -> None:
    columns = measurement._ceiling_columns(GPU_CELL, _group(20.0, 1.0, 20.0), ["copy_runtime"])
    assert (columns["copy_kind"], columns["copy_time_us"]) == ("kernel", 20.0)
    assert measurement._ceiling_columns(GPU_CELL, _group(1.0, 1.0, 1.0), ["copy_runtime", "copy_kernel"]) == {}


def test_a_device_slower_than_its_model_was_is_seen(record: Path) -> None:
    first = measurement._ceiling_columns(GPU_CELL, _group(20.0, 25.0, 20.0), [])
    assert first["copy_pct_of_best"] is None, "nothing to compare with yet"
    slow = measurement._ceiling_columns(GPU_CELL, _group(25.0, 26.0, 25.0), [])
    assert slow["copy_pct_of_best"] == pytest.approx(80.0)
    faster = measurement._ceiling_columns(GPU_CELL, _group(16.0, 20.0, 16.0), [])
    assert faster["copy_pct_of_best"] == pytest.approx(125.0)
    again = measurement._ceiling_columns(GPU_CELL, _group(20.0, 20.0, 20.0), [])
    assert again["copy_pct_of_best"] == pytest.approx(80.0), "the best is remembered, a slow run is not"


def test_the_record_is_by_model_and_size_and_survives_damage(record: Path) -> None:
    big = 64 * 2**20
    assert ceilings.compare("a", big, 3000.0) is None
    assert ceilings.compare("b", big, 1500.0) is None, "another model"
    assert ceilings.compare("a", 4 * big, 1500.0) is None, "another size"
    assert ceilings.compare("a", big, 1500.0) == pytest.approx(50.0)
    assert ceilings.compare("a", 2**20, 1.0) is None, "too small to tell"
    assert ceilings.compare("a", big, math.inf) is None
    assert json.loads(record.read_text())["a"][ceilings.size_class(big)] == 3000.0
    for damage in ("{]", "[]", *(json.dumps({"a": {ceilings.size_class(big): bad}}) for bad in (math.nan, 0.0, "x"))):
        record.write_text(damage)
        assert ceilings.compare("a", big, 10.0) is None


def test_a_record_that_cannot_be_written_stops_no_measurement(record: Path) -> None:
    record.mkdir()
    assert ceilings.compare("a", 64 * 2**20, 3000.0) is None
    assert list(record.parent.iterdir()) == [record], "no temporary file is left"


# --- the tools of the check ----------------------------------------------------------------------------------------


def test_inputs_are_compared_to_the_last_bit_and_all_around() -> None:
    case = Case(2, 6, 37, op="bwd", states=True, seq_idx=True, view="misaligned")
    given = reference.make_inputs(case)
    copy = recheck.copy_inputs(case, given)
    assert recheck.all_same(recheck.inputs_same(given, copy))
    for name, tensor in {"x": copy.x_buffer, "weight": copy.weight, "bias": copy.bias, **copy.more}.items():
        first = recheck.bits(tensor)[(0,) * tensor.dim()]
        first ^= 1
        assert not recheck.all_same(recheck.inputs_same(given, copy)), name
        first ^= 1
    assert recheck.all_same(recheck.inputs_same(given, copy))

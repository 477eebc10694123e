"""What a GPU says of itself beside a measurement: clocks, temperature, and what holds the clocks down.

On NVIDIA the driver's own library (NVML) is asked through ctypes: it is there wherever the driver is, needs no package,
and answers in microseconds, where a call of nvidia-smi takes a tenth of a second.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
from collections.abc import Callable, Iterable
from typing import Any

State = dict[str, Any]  # clock_mhz, memory_clock_mhz, temperature_c, throttle (names); what is not known is left out

# nvml.h, nvmlClocksEventReasons: those that take a clock away. Idle, application clocks, sync boost and the display set
# one on purpose.
THROTTLE = {0x4: "sw_power_cap", 0x8: "hw_slowdown", 0x20: "sw_thermal", 0x40: "hw_thermal", 0x80: "hw_power_brake"}
_SM, _MEMORY, _GPU_TEMPERATURE = 1, 2, 0  # NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU


class Watch:
    """Reads the state of torch's current GPU whenever it is called, and sums up what it saw."""

    def __init__(self, read: Callable[[], State] | None = None) -> None:
        self._read = read or read_state
        self._seen: list[State] = []

    def __call__(self) -> None:
        self._seen.append(self._read())

    def columns(self) -> State:
        """The columns of a row: lowest clocks, highest temperature, every reason of throttling; None if not known."""
        reasons = [state["throttle"] for state in self._seen if "throttle" in state]
        return {
            "clock_mhz": min(self._values("clock_mhz"), default=None),
            "memory_clock_mhz": min(self._values("memory_clock_mhz"), default=None),
            "temperature_c": max(self._values("temperature_c"), default=None),
            "throttle": sorted(set().union(*reasons)) if reasons else None,
        }

    def _values(self, name: str) -> Iterable[float]:
        return [state[name] for state in self._seen if name in state]


def read_state() -> State:
    """The state of torch's current GPU now; less where the driver does not tell."""
    import torch

    if torch.version.hip is None:
        properties = torch.cuda.get_device_properties(torch.cuda.current_device())
        handle = _nvml_handle(str(getattr(properties, "uuid", "")))
        return _nvml_state(handle) if handle else {}
    found: State = {}
    for name, read in (("clock_mhz", torch.cuda.clock_rate), ("temperature_c", torch.cuda.temperature)):
        with contextlib.suppress(Exception):  # needs AMD's own package, which may be missing
            found[name] = float(read())
    return found


@functools.cache
def _nvml() -> Any:
    """The driver's library, initialised; None where there is none."""
    try:
        library = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return None
    return library if library.nvmlInit_v2() == 0 else None


@functools.cache
def _nvml_handle(uuid: str) -> ctypes.c_void_p | None:
    handle = ctypes.c_void_p()
    name = f"GPU-{uuid.removeprefix('GPU-')}".encode()
    if _nvml() is None or _nvml().nvmlDeviceGetHandleByUUID(name, ctypes.byref(handle)):
        return None
    return handle


def _nvml_state(handle: ctypes.c_void_p) -> State:
    asked: dict[str, tuple[str, tuple[int, ...], Any]] = {
        "clock_mhz": ("nvmlDeviceGetClockInfo", (_SM,), ctypes.c_uint()),
        "memory_clock_mhz": ("nvmlDeviceGetClockInfo", (_MEMORY,), ctypes.c_uint()),
        "temperature_c": ("nvmlDeviceGetTemperature", (_GPU_TEMPERATURE,), ctypes.c_uint()),
        "throttle": ("nvmlDeviceGetCurrentClocksThrottleReasons", (), ctypes.c_ulonglong()),
    }
    library = _nvml()
    found: State = {
        name: answer.value
        for name, (function, arguments, answer) in asked.items()
        if hasattr(library, function) and getattr(library, function)(handle, *arguments, ctypes.byref(answer)) == 0
    }
    if "throttle" in found:
        found["throttle"] = [reason for bit, reason in THROTTLE.items() if found["throttle"] & bit]
    return {name: value if name == "throttle" else float(value) for name, value in found.items()}

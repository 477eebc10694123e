"""What a copy reached before on GPUs of the same name: a small record of this user's, so that a slow device shows.

The record is `ceilings.json` in the cache: by device and class of size, the most GB/s that a cold copy ever reached.
"""

from __future__ import annotations

import contextlib
import json
import math
from pathlib import Path

from . import build, files
from .errors import StoreError

SMALLEST_BYTES = 16 * 2**20  # below, the cost of a launch decides and not the memory
SLOW_PCT = 90.0  # three healthy GPUs of one model agreed within 1.6 %; a slow fourth was at 65 to 87 %


def record_path() -> Path:
    """`ceilings.json` in the cache."""
    return build.cache_dir() / "ceilings.json"


def size_class(moved: int) -> str:
    """Sizes within 19 % of each other: a copy's GB/s changes by 3 % at most in a class, from SMALLEST_BYTES on."""
    return str(round(4 * math.log2(moved)))


def compare(device: str, moved: int, gbps: float) -> float | None:
    """What a cold copy of `moved` bytes reached, in % of the most that this device's model ever did; it is remembered.

    None when nothing is known yet, and for sizes that are not compared.
    """
    if moved < SMALLEST_BYTES or not math.isfinite(gbps):
        return None
    record = _load(record_path())
    known = record.setdefault(device, {})
    best = known.get(size_class(moved))
    if best is None or gbps > best:
        known[size_class(moved)] = gbps
        _store(record_path(), record)
    return None if best is None else 100 * gbps / best


def _load(path: Path) -> dict[str, dict[str, float]]:
    """The record, less what is no speed; an empty one where there is none. It must not stop a measurement."""
    try:
        found = json.loads(path.read_text())
        return {str(device): _speeds(known) for device, known in found.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _speeds(known: dict[str, float]) -> dict[str, float]:
    return {str(k): float(v) for k, v in known.items() if 0 < float(v) < math.inf}


def _store(path: Path, record: dict[str, dict[str, float]]) -> None:
    """Keep the record where that is possible: it must not stop a measurement either."""
    with contextlib.suppress(StoreError):
        files.write(path, json.dumps(record, indent=1))

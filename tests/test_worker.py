"""A kernel that crashes, hangs or lies costs its own row only. Each test spoils kernels for a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from planted import Planted, plant

from cc1d_lab import build
from cc1d_lab.case import Case
from cc1d_lab.cell import Cell
from cc1d_lab.errors import ConfigError
from cc1d_lab.worker import Worker, _start_without_main

SCRIPT = """
import json, sys
from cc1d_lab.case import Case
from cc1d_lab.cell import Cell
from cc1d_lab.runner import run_cells
if __name__ == "__main__":
    cases = [Case(1, 4, n) for n in (31, 32, 33, 34, 35, 36, 37)]
    cells = [Cell(v, "cpu", c) for c in cases for v in ("fwd_naive", "fwd_shared_memory", "torch_conv1d")]
    print(json.dumps(run_cells(cells, on_progress=False)))
"""
FAULTS = {
    32: ("*reinterpret_cast<volatile int*>(8) = 1;", "crashed", "SIGSEGV"),
    33: ("__builtin_trap();", "crashed", "SIG"),
    34: ("for (volatile int i = 0; i < 1;) {}", "timeout", "more than 3 s"),
    # The stack is too small for it.
    35: (
        "[]() __attribute__((noinline)) { volatile char big[1 << 20]; big[0] = 1; }();",
        "crashed",
        "SIGSEGV",
    ),
    36: ("quick_exit(3);", "crashed", "exit code 3"),
}


def test_a_faulty_kernel_costs_its_own_row(tmp_path: Path) -> None:
    """At five lengths a fault each, one after the other in one run; every other row stands."""
    place = "if (i >= inner) return;"
    code = " ".join(f"if (p.seqlen == {seqlen}) {{ {fault} }}" for seqlen, (fault, _, _) in FAULTS.items())
    kernels = plant(Planted("faults", "fwd_naive", place, f"{place} {code}", Case(), "fwd_naive.hip"), tmp_path)
    (kernels / "fwd_naive.hip").write_text("#include <stdlib.h>\n" + (kernels / "fwd_naive.hip").read_text())
    rows = _run_spoiled(kernels, tmp_path)
    assert len(rows) == 3 * 7
    spoiled = {r["seqlen"]: r for r in rows if r["variant"] == "fwd_naive" and r["seqlen"] in FAULTS}
    for seqlen, (_, status, words) in FAULTS.items():
        row = spoiled[seqlen]
        assert row["status"] == status
        assert words in row["reason"]
        assert row["time_us_p50"] is None
        assert Path(row["log"]).is_file(), "where the worker wrote last"
    assert {r["status"] for r in rows if r not in spoiled.values()} == {"ok"}


def _run_spoiled(kernels: Path, folder: Path) -> list[dict]:
    import os

    script = folder / "script.py"
    script.write_text(SCRIPT)
    environment = os.environ | {"CC1D_KERNELS": str(kernels), "CC1D_TIME_LIMIT": "3", "PYTHONPATH": str(Path.cwd())}
    environment["TMPDIR"] = str(folder)
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_kernel_that_does_not_compile_costs_its_own_rows(tmp_path: Path) -> None:
    bug = Planted("typo", "fwd_naive", "acc_t sum", "acc_t summ", Case(), "fwd_naive.hip")
    rows = _run_spoiled(plant(bug, tmp_path), tmp_path)
    assert {r["status"] for r in rows if r["variant"] == "fwd_naive"} == {"build_failed"}
    assert {r["status"] for r in rows if r["variant"] != "fwd_naive"} == {"ok"}
    assert not list(tmp_path.glob("cc1d-*")), "no log is left of workers that did not die"
    reason = next(r["reason"] for r in rows if r["status"] == "build_failed")
    assert "fwd_naive.hip:" in reason
    assert "error" in reason


def test_a_worker_that_died_between_two_groups_is_replaced(tmp_path: Path) -> None:
    """Of a heap that a kernel has damaged, or killed from outside, just as the next group is sent."""
    cell = Cell("torch_conv1d", "cpu", Case(1, 4, 31))
    with Worker(tmp_path) as worker:
        assert worker._process is not None
        worker._process.kill()
        worker._process.join()
        worker._process.is_alive = lambda: True  # type: ignore[method-assign]
        (row,) = worker.evaluate([cell], None)
    assert (row["status"], row["reason"]) == ("ok", None)


def test_workers_that_start_side_by_side_leave_the_callers_main_in_place() -> None:
    main = sys.modules["__main__"]
    process = SimpleNamespace(start=lambda: time.sleep(0.2))
    threads = [threading.Thread(target=_start_without_main, args=(process,)) for _ in range(2)]
    for thread in threads:
        thread.start()
        time.sleep(0.1)  # the second begins while the first is at it, and ends after it
    for thread in threads:
        thread.join()
    assert sys.modules["__main__"] is main


@pytest.mark.parametrize("given", ["0", "-1", "nan", "soon"])
def test_a_time_limit_that_is_none_is_refused(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC1D_TIME_LIMIT", given)
    with pytest.raises(ConfigError, match=f"CC1D_TIME_LIMIT: '{given}' must be a number above 0"):
        Worker()


@pytest.mark.parametrize("given", ["0", "all"])
def test_a_number_of_compilers_that_is_none_is_refused(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAX_JOBS", given)
    with pytest.raises(ConfigError, match=f"MAX_JOBS: '{given}' must be"):
        list(build.build_all([]))

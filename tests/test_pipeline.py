"""The pipeline study: right results on every way, everything given back, and a process that ends as it should."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from planted import Planted, plant
from rows import make_row, spoil

from cc1d_lab import (
    build,
    experiment,
    kernel,
    load_rows,
    oracle,
    paths,
    plots,
    programs,
    reference,
    shares,
    tables,
    timing,
)
from cc1d_lab.case import Case
from cc1d_lab.cell import Cell
from cc1d_lab.errors import ConfigError, LaunchError, ToolchainError
from cc1d_lab.evaluation import evaluate
from cc1d_lab.pipeline import evaluation, memory
from cc1d_lab.pipeline.program import Program
from cc1d_lab.report.execute import execute
from cc1d_lab.results import Row, append, read
from cc1d_lab.runner import run_experiment
from cc1d_lab.timing import Policy

CASE = Case(3, 18, 40, dtype="float16", activation="silu")
ONCE = Policy(warmup=1, min_samples=3, max_samples=3, rel_err=0.0, budget_s=1.0)
HERE = ("naive", "pool", "grid", "fused", "strided", "pool+grid+fused+strided")
ON_A_GPU = (*HERE, "streams", "unified", "pool+streams+grid", "streams+fused+strided", "pool+unified+strided")


def cell(program: str, case: Case = CASE, **more: Any) -> Cell:
    variant, layout = programs.kernel_of(program)
    return Cell(variant, "cpu", dataclasses.replace(case, layout=layout), program=program, **more)


@pytest.fixture(scope="module")
def measured() -> list[Row]:
    cells = [cell(name, verify=verify) for name in (*HERE, "streams", "unified") for verify in (False, True)]
    return list(evaluation.evaluate_each(cells, ONCE))


def test_every_program_gives_the_right_result(measured: list[Row]) -> None:
    here = [row for row in measured if row["program"] in HERE]
    assert {row["status"] for row in here} == {"ok"}
    assert all(row["bound_ratio"] <= 1 and row["kind"] == "pipeline" for row in here)
    assert len({row["cell_id"] for row in measured}) == len(measured) == 16


def test_what_has_no_meaning_in_emulation_says_so(measured: list[Row]) -> None:
    reasons = {row["program"]: row["reason"] for row in measured if row["status"] == "unsupported"}
    assert set(reasons) == {"streams", "unified"}
    assert "no streams" in reasons["streams"]
    assert "one memory" in reasons["unified"]


def test_the_stages_are_those_of_the_program_and_add_up(measured: list[Row]) -> None:
    stages = {(row["program"], row["verified"]): row["stage_us"] for row in measured if row["status"] == "ok"}
    naive = ["allocation", "transpose in", "copy in", "im2col", "expand_weight", "gemm", "bias", "copy back"]
    assert list(stages["naive", False]) == [*naive, "transpose out", "free", evaluation.REST]
    assert list(stages["pool+grid+fused+strided", False]) == [
        *("allocation", "copy in", "conv", "copy back", "free", evaluation.REST)
    ]
    assert all(("verification" in found) == verified for (_, verified), found in stages.items())
    for row in measured:
        if row["status"] == "ok":
            assert sum(row["stage_us"].values()) == pytest.approx(sorted(row["samples_us"])[1])


def test_a_wrong_kernel_makes_its_programs_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bug = Planted("diagonal", "fwd_im2col_wmma", "in_dim == out_dim", "in_dim + 1 == out_dim", CASE)
    monkeypatch.setenv("CC1D_KERNELS", str(plant(dataclasses.replace(bug, file="fwd_im2col_wmma.hip"), tmp_path)))
    wrong, fine = evaluation.evaluate_each([cell("naive"), cell("fused")], ONCE)
    assert (wrong["program"], wrong["status"], wrong["time_us_p50"]) == ("naive", "wrong", None)
    assert (fine["program"], fine["status"]) == ("fused", "ok")


@pytest.mark.parametrize("fault", ["chunk left out", "never fetched"])
def test_a_wrong_program_is_found_and_finds_itself(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels are right here: what is wrong is the way of the data."""
    if fault == "chunk left out":
        monkeypatch.setattr("cc1d_lab.pipeline.program.chunks", lambda program, batch: [(0, 1), (2, batch)])
    else:
        monkeypatch.setattr(Program, "_fetch", lambda self, buffers, clock, part: None)
    rows = list(evaluation.evaluate_each([cell("naive"), cell("naive", verify=True)], ONCE))
    assert [row["status"] for row in rows] == ["wrong", "wrong"]
    assert all("outside the bound" in row["reason"] and row["time_us_p50"] is None for row in rows)
    json.dumps(rows, allow_nan=False)


def _made_up_timing() -> timing.Timing:
    return timing.Timing((1.0,), 1, "wall", "warm", "count")


def test_a_program_that_gives_something_else_later_is_wrong_and_has_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Program.run

    def forgetful(self: Program, poison: bool = False) -> dict[str, float]:
        stages = run(self, poison)
        if not poison:  # the first run is on poisoned memory
            self.out.zero_()
        return stages

    monkeypatch.setattr(Program, "run", forgetful)
    (row,) = evaluation.evaluate_each([cell("naive")], ONCE)
    assert (row["status"], row["reason"]) == ("wrong", "the program's result changed from run to run")
    assert not [name for name in evaluation._time_columns(_made_up_timing(), [{}]) if row[name] is not None]


def test_verification_can_fail_on_its_own() -> None:
    with program_of("naive", on_gpu=False, verify=True) as program:
        program.run(poison=True)
        assert program.verified
        program._launch = lambda *_arguments, **_more: None  # type: ignore[method-assign]
        program.run(poison=True)
        assert program.verified is False


# --- the ways that only a GPU has, on a made-up runtime -------------------------------------------------------------

RUNTIME = """
#include <cstdlib>
static long live = 0;
extern "C" {
long fake_live() { return live; }
int cudaMalloc(void** p, size_t n) { if (n > (1u << 30)) return 2; *p = malloc(n); ++live; return 0; }
int cudaFree(void* p) { free(p); --live; return 0; }
int cudaHostAlloc(void** p, size_t n, unsigned) { return cudaMalloc(p, n); }
int cudaFreeHost(void* p) { return cudaFree(p); }
int cudaMallocManaged(void** p, size_t n, unsigned flags) { return flags == 1 ? cudaMalloc(p, n) : 1; }
const char* cudaGetErrorString(int code) { return code == 2 ? "out of memory" : "made-up error"; }
}
"""


class _Event:
    def __init__(self, **_options: object) -> None: ...

    def record(self) -> None: ...

    def synchronize(self) -> None: ...

    def elapsed_time(self, _end: object) -> float:
        return 0.5


@pytest.fixture
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ctypes.CDLL:
    """A libcudart that counts what is taken, and a torch.cuda whose device is the host."""
    (tmp_path / "fake.cpp").write_text(RUNTIME)
    library = tmp_path / "libcudart-fake.so.0"
    subprocess.run(["g++", "-shared", "-fPIC", "-o", library, tmp_path / "fake.cpp"], check=True)
    stream = SimpleNamespace(cuda_stream=0, synchronize=lambda: None)
    for name, value in {
        "synchronize": lambda: None,
        "Event": _Event,
        "Stream": lambda: stream,
        "current_stream": lambda: stream,
        "stream": lambda _stream: contextlib.nullcontext(),
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(memory, "_loaded", lambda stem: str(library))
    monkeypatch.setattr(memory, "_device_view", memory._host_view)
    memory._runtime.cache_clear()
    return ctypes.CDLL(str(library))


@pytest.fixture(autouse=True)
def forget_the_runtime() -> Iterator[None]:
    yield
    memory._runtime.cache_clear()


def program_of(name: str, on_gpu: bool, verify: bool = False) -> Program:
    made = cell(name)
    inputs = reference.make_inputs(CASE)
    return Program(name, made.case, kernel.load(build.build_cell(made).library), inputs, on_gpu, verify)


@pytest.mark.parametrize("name", ON_A_GPU)
def test_every_way_gives_the_right_result_and_everything_back(name: str, runtime: ctypes.CDLL) -> None:
    truth = oracle.truths(CASE, reference.make_inputs(CASE))["out"]
    with program_of(programs.canonical(name), on_gpu=True) as program:
        for _ in range(2):
            stages = program.run(poison=True)
            assert reference.errors(CASE, program.out, truth)["n_bad"] == 0
            assert (runtime.fake_live() > 0) == ("pool" in name)
        assert ("copy in" in stages) == ("unified" not in name)
    assert runtime.fake_live() == 0


def test_a_refused_allocation_is_an_error_and_gives_back_the_rest(
    runtime: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Program, "_workspace_bytes", lambda self: 2**31)
    for name in ("naive", "pool"):
        with (
            program_of(name, on_gpu=True) as program,
            pytest.raises(LaunchError, match="cudaMalloc of 2147483648 bytes: out of memory"),
        ):
            program.run()
        assert runtime.fake_live() == 0


def test_without_a_runtime_the_remedy_is_named() -> None:
    with pytest.raises(ToolchainError, match="libnothing: not loaded by torch"):
        memory._loaded("libnothing")


def test_unified_memory_is_for_small_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda: 10_000)
    reason = evaluation._too_large(cell("unified", dataclasses.replace(CASE, seqlen=100)))
    assert reason == "unified memory: 21600 bytes, limit 5000: a study of small sizes"
    assert evaluation._too_large(cell("naive")) == ""


# --- the process ends as it should ----------------------------------------------------------------------------------

SCRIPT = """
import sys
from cc1d_lab import build, kernel, programs, reference
from cc1d_lab.case import Case
from cc1d_lab.cell import Cell
from cc1d_lab.pipeline.program import Program
variant, layout = programs.kernel_of(sys.argv[1])
case = Case(3, 18, 40, dtype="float16", layout=layout)
loaded = kernel.load(build.build_cell(Cell(variant, "cpu", case)).library)
for _ in range(2):
    with Program(sys.argv[1], case, loaded, reference.make_inputs(Case(3, 18, 40, dtype="float16")), False, True) as p:
        for _ in range(3):
            p.run()
print("ran to its end")
"""
HEAP_CHECK = "libc_malloc_debug.so.0"  # glibc's own: a block that was written past its end ends the process


def run_alone(name: str, kernels: Path | None = None) -> subprocess.CompletedProcess[str]:
    """A program in a process of its own, under glibc's heap check."""
    environment = os.environ | {"LD_PRELOAD": HEAP_CHECK, "MALLOC_CHECK_": "3", "PYTHONPATH": str(paths.PACKAGE.parent)}
    environment |= {"CC1D_KERNELS": str(kernels)} if kernels else {}
    command = [sys.executable, "-c", SCRIPT, name]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("name", ["naive", "pool+grid+fused"])
def test_the_process_exits_cleanly(name: str) -> None:
    done = run_alone(name)
    assert (done.returncode, done.stdout, done.stderr) == (0, "ran to its end\n", "")


def test_a_corrupted_heap_is_seen_at_exit(tmp_path: Path) -> None:
    """S2's own defect, planted: a kernel that writes past its workspace."""
    old = "static_cast<elem_t*>(p.out)[batch * p.out_batch_stride"
    bug = Planted("heap", "fwd_im2col_wmma", old, f"Workspace(p).c[s.rows * s.cols + (i & 1)] = 1; {old}", CASE)
    kernels = plant(dataclasses.replace(bug, file="fwd_im2col_wmma.hip"), tmp_path)
    assert run_alone("naive", kernels).returncode == -signal.SIGABRT


NEEDS_A_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


@pytest.mark.gpu
@NEEDS_A_GPU
def test_on_a_gpu_every_way_is_right_and_gives_its_memory_back() -> None:
    case = dataclasses.replace(CASE, batch=8, dim=64, seqlen=4096)
    cells = [dataclasses.replace(cell(programs.canonical(name), case), backend="nvidia") for name in ON_A_GPU]
    list(evaluation.evaluate_each(cells[:1], ONCE))  # the runtime and torch's own pool take theirs
    before = memory.free_bytes()
    rows = list(evaluation.evaluate_each(cells, ONCE))
    assert {row["program"]: (row["status"], row["reason"]) for row in rows if row["status"] != "ok"} == {}
    torch.cuda.empty_cache()
    assert memory.free_bytes() >= before - 2**25


@pytest.mark.gpu
@NEEDS_A_GPU
@pytest.mark.parametrize("name", ON_A_GPU)
def test_the_process_exits_cleanly_on_a_gpu(name: str, tmp_path: Path) -> None:
    study = tmp_path / "study.yaml"
    study.write_text(
        f"programs: [{programs.canonical(name)}]\nverify: [true]\nbackends: nvidia\n"
        "cases: [{batch: 4, dim: 64, seqlen: 512, dtype: float16}]\n"
    )
    command = [sys.executable, "-c", "from cc1d_lab.cli import main; main()", "run", str(study), "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 ok" in done.stdout


# --- names, experiments -----------------------------------------------------------------------------------------------


def test_a_program_is_named_by_its_proposals_in_one_order() -> None:
    assert programs.canonical("grid+pool") == "pool+grid"
    assert programs.proposals("naive") == ()
    assert programs.kernel_of("fused+strided") == ("fwd_register", "channel_first")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("pol", r"'pol' is not known \(did you mean 'pool'\?\)"),
        ("pool+pool", "each once"),
        ("naive+pool", "each once"),
        ("unified+streams", "no copies to overlap"),
        ("", "'' is not known"),
    ],
)
def test_a_name_that_is_no_program_is_refused(name: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        programs.proposals(name)


@pytest.mark.parametrize(("batch", "expected"), [(1, [1]), (3, [1, 1, 1]), (8, [2, 2, 2, 2]), (6, [1, 2, 1, 2])])
def test_chunks_cover_the_batch(batch: int, expected: list[int]) -> None:
    found = programs.chunks("streams+grid", batch)
    assert [end - begin for begin, end in found] == expected
    assert (found[0][0], found[-1][1]) == (0, batch)
    assert len(programs.chunks("naive", batch)) == batch
    assert programs.chunks("grid", batch) == [(0, batch)]


def test_the_shipped_study_has_every_proposal_and_both_modes() -> None:
    cells = experiment.load("pipeline").cells("cpu")
    assert {p for c in cells for p in programs.proposals(c.program)} == set(programs.PROPOSALS)
    assert {c.verify for c in cells} == {False, True}
    assert len(cells) == experiment.load("pipeline").count() == len({c.cell_id for c in cells})
    assert len({c.group_key for c in cells}) == 3 * 2


def test_a_run_of_programs_is_resumed_where_it_stopped(tmp_path: Path) -> None:
    study = tmp_path / "study.yaml"
    study.write_text(
        "programs: [naive, fused, streams]\nbackends: cpu\ncases: [{dim: 16, seqlen: 40, dtype: float16}]\n"
    )
    run = run_experiment(experiment.load(study), out=tmp_path, progress=False)
    lines = (run / "rows.jsonl").read_text().splitlines(keepends=True)
    (run / "rows.jsonl").write_text("".join(lines[:2]) + lines[2][:50])  # as a killed run leaves it
    assert run_experiment(experiment.load(study), out=tmp_path, resume=run, progress=False) == run
    rows = read(run / "rows.jsonl")
    assert sorted(row["program"] for row in rows) == ["fused", "naive", "streams"]
    assert list(map(json.loads, lines[:2])) == rows[:2]
    assert {row["program"]: row["status"] for row in rows} == {"naive": "ok", "fused": "ok", "streams": "unsupported"}


@pytest.mark.parametrize(
    ("program", "change", "words"),
    [
        ("streams", {"batch": 1}, "nothing to overlap"),
        ("naive", {"op": "bwd"}, "plain forward"),
        ("naive", {"states": True}, "plain forward"),
        ("naive", {"view": "misaligned"}, "view misaligned"),
        ("unified", {}, ""),
    ],
)
def test_what_a_program_cannot_do_on_a_gpu(program: str, change: dict[str, Any], words: str) -> None:
    assert words in programs.why_not(program, dataclasses.replace(CASE, **change), "nvidia")
    assert bool(words) == bool(programs.why_not(program, dataclasses.replace(CASE, **change), "nvidia"))


def test_a_program_is_not_taken_for_its_kernel() -> None:
    with pytest.raises(ConfigError, match="'naive' is for pipeline"):
        evaluate([cell("naive")])


# --- tables, chart, notebook ------------------------------------------------------------------------------------------


def made_up(program: str, time_us: float, **stages: float) -> Row:
    variant, layout = programs.kernel_of(program)
    case = dataclasses.replace(CASE, layout=layout)
    named = {name.replace("_", " "): value for name, value in stages.items()}
    times = {"time_us_p20": 0.99 * time_us, "time_us_p50": time_us, "time_us_p80": 1.01 * time_us}
    extra = {"kind": "pipeline", "program": program, "verified": False, "status": "ok", "reason": None}
    return make_row(variant, "nvidia", case, **extra, **times, stage_us=named, gbps=None, pct_copy=None)


GPU = [
    made_up("naive", 1000.0, copy_in=400.0, copy_back=300.0, allocation=150.0, free=50.0, gemm=100.0),
    made_up("pool", 800.0, copy_in=400.0, copy_back=300.0, gemm=100.0),
    made_up("pool+streams", 500.0, copy_in=400.0, copy_back=300.0, gemm=100.0),
]


def test_shares_are_of_the_stages_and_overlap_is_told() -> None:
    found = shares.shares(load_rows(GPU)).set_index("program")
    assert list(found.loc["naive", ["copies", "allocation", "kernels"]]) == pytest.approx([70.0, 20.0, 10.0])
    assert list(found["overlap"]) == pytest.approx([0.0, 0.0, 60.0])


def test_the_sentences_compare_with_s2() -> None:
    first, theirs = shares.sentences(load_rows(GPU))
    assert "1.00 ms: allocation 20 %, copies 70 %, kernels 10 %." in first
    assert first.endswith("Without the host's own work: allocation 20 %, copies 70 %, kernels 10 %.")
    assert theirs.endswith("allocation 20 %, copies 70 %, kernels 10 %.")


def test_a_wrong_program_stands_among_what_is_wrong() -> None:
    rows = load_rows([GPU[0], spoil(GPU[1], "wrong")])
    (line,) = (line for _, line in tables.wrong(rows).iterrows())
    assert line["configuration"].endswith(" pool")
    assert tables.checks(rows)["verdict"].tolist() == ["wrong"]
    assert tables.checks(load_rows(GPU))["verdict"].tolist() == ["ok"]


def test_gains_are_against_naive_and_never_in_emulation(measured: list[Row]) -> None:
    found = shares.gains(load_rows(GPU)).set_index("program")
    assert list(found["times_faster"]) == pytest.approx([1.0, 1.25, 2.0])
    assert list(found["clearly"]) == ["no", "yes", "yes"]
    assert shares.gains(load_rows(measured))["times_faster"].isna().all()


def test_the_chart_names_device_units_and_emulation(measured: list[Row]) -> None:
    svg = plots.to_svg(plots.pipeline(load_rows(measured))).decode()
    assert svg == plots.to_svg(plots.pipeline(load_rows(measured))).decode()
    words = {text.get_text() for text in _texts(plots.pipeline(load_rows(measured)))}
    assert tables.CPU_BANNER in words
    assert {"time (ms)", "share of the sum of the stages (%)"} <= words
    assert "naive, verified" not in words
    on_gpu = {text.get_text() for text in _texts(plots.pipeline(load_rows(GPU)))}
    assert {"800 µs, 1.25×", "500 µs, 2.00×"} <= on_gpu
    assert tables.CPU_BANNER not in on_gpu
    assert not any("×" in word for word in words)


def _texts(figure: Any) -> list[Any]:
    import matplotlib.text

    return figure.findobj(matplotlib.text.Text)


def test_the_notebook_and_the_page_show_the_study(measured: list[Row], tmp_path: Path) -> None:
    from cc1d_lab.report import page, render

    info = {"run_id": "r1", "experiment": "pipeline", "notebooks": ["50_pipeline", "../../secret"]}
    (tmp_path / "run.json").write_text(json.dumps(info))
    for row in measured:
        append(tmp_path / "rows.jsonl", row)
    assert render._wanted(info) == ["50_pipeline"]
    execute(paths.notebooks_dir() / "50_pipeline.ipynb", tmp_path / "50_pipeline.ipynb", {"run": str(tmp_path)})
    rows = load_rows(measured)
    text = page.write_index(tmp_path, rows, info, page.draw(rows, tmp_path / "figures"), []).read_text()
    assert [path.name for path in (tmp_path / "figures").iterdir()] == ["pipeline.png"]
    assert "times faster than naive" in text
    assert "12 of 16 cells are ok" in text

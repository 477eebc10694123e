"""The command line: which cells an option means, what is printed, and the exit code."""

from __future__ import annotations

import json
import re
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result
from rows import make_row, make_run, spoil

import cc1d_lab
from cc1d_lab import backends, build, paths, provenance
from cc1d_lab.case import Case
from cc1d_lab.cell import Cell
from cc1d_lab.cli import main, output
from cc1d_lab.errors import CompileError, NotebookError
from cc1d_lab.results import Row, append
from cc1d_lab.timing import POLICIES


def cc1d(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


def _row(cell: Cell, status: str = "ok") -> Row:
    row = make_row(cell.variant, cell.backend, cell.case)
    return row if status == "ok" or row["status"] != "ok" else spoil(row, status)


class FakeRunner(types.ModuleType):
    """Measures nothing: makes rows up, and remembers what it was asked."""

    def __init__(self) -> None:
        super().__init__("cc1d_lab.runner")
        self.statuses: dict[str, str] = {}
        self.cells: list[Cell] = []
        self.policy: Any = None
        self.asked: dict[str, Any] = {}

    def run_cells(self, cells: list[Cell], policy: Any = None, **_: Any) -> list[Row]:
        self.cells, self.policy = cells, policy
        return [_row(cell, self.statuses.get(cell.variant, "ok")) for cell in cells]

    def run_experiment(self, loaded: Any, backend: Any = None, out: Any = None, resume: Any = None, **_: Any) -> Path:
        self.asked = {"name": loaded.name, "backend": backend, "resume": resume}
        run, latest = out / loaded.name / "r1", out / loaded.name / "latest"
        run.mkdir(parents=True, exist_ok=True)
        if not latest.exists():
            latest.symlink_to("r1")
        for cell in loaded.cells(backend or "cpu"):
            append(run / "rows.jsonl", _row(cell, self.statuses.get(cell.variant, "ok")))
        return Path(run)


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> FakeRunner:
    fake = FakeRunner()
    monkeypatch.setattr(cc1d_lab, "runner", fake, raising=False)
    return fake


@pytest.fixture
def renderer(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    fake = types.ModuleType("cc1d_lab.report")

    def render_report(run: Path) -> Path:
        (run / "index.html").write_text("<!doctype html>")
        return run / "index.html"

    fake.render_report = render_report  # type: ignore[attr-defined]
    monkeypatch.setattr(cc1d_lab, "report", fake, raising=False)
    return fake


# --- options -> cells --------------------------------------------------------------------------------------------


def test_the_command_line_test_of_s0_means_this_cell(runner: FakeRunner) -> None:
    given = "check --variant fwd_naive --batch 2 --dim 256 --seqlen 1024 --width 4 --dtype float16 --use_silu --no_bias"
    done = cc1d(*given.split(), "--backend", "cpu")
    case = Case(2, 256, 1024, 4, "float16", bias=False, activation="silu")
    assert runner.cells == [Cell("fwd_naive", "cpu", case)]
    assert done.exit_code == 0, done.output


def test_dashes_and_underscores_are_the_same(runner: FakeRunner) -> None:
    one = ["--use_silu", "--no_bias", "--weight_dtype", "fp32", "--view", "channel_slice", "--row_stride", "200"]
    cells = []
    for arguments in (one, [a.replace("_", "-") if a.startswith("--") else a for a in one]):
        assert cc1d("check", "--backend", "cpu", "--dtype", "bf16", *arguments).exit_code == 0
        cells.append(runner.cells)
    assert cells[0] == cells[1]
    assert cells[0][0].case.weight_dtype == "float32"


@pytest.mark.parametrize(
    ("alias", "dtype"), [("fp32", "float32"), ("fp16", "float16"), ("bf16", "bfloat16"), ("float16", "float16")]
)
def test_dtypes_have_short_names(runner: FakeRunner, alias: str, dtype: str) -> None:
    cc1d("check", "--backend", "cpu", "--dtype", alias)
    assert {cell.case.dtype for cell in runner.cells} == {dtype}


def test_variants_can_be_repeated_and_all_is_the_default(runner: FakeRunner) -> None:
    cc1d("check", "--backend", "cpu")
    assert [c.variant for c in runner.cells] == [
        v.name for v in cc1d_lab.VARIANTS.values() if (v.kind, v.op) == ("kernel", "fwd")
    ]
    cc1d("check", "--backend", "cpu", "--variant", "fwd_naive", "--variant", "torch_conv1d")
    assert [c.variant for c in runner.cells] == ["fwd_naive", "torch_conv1d"]


def test_without_a_layout_each_variant_takes_its_own(runner: FakeRunner) -> None:
    cc1d("check", "--backend", "cpu", "--variant", "fwd_naive", "--variant", "fwd_channel_last")
    assert [c.case.layout for c in runner.cells] == ["channel_first", "channel_last"]
    cc1d("check", "--backend", "cpu", "--variant", "fwd_channel_last", "--layout", "channel_first")
    assert [c.case.layout for c in runner.cells] == ["channel_first"]


def test_tunables_go_to_the_variants_that_have_them(runner: FakeRunner) -> None:
    cc1d("check", "--backend", "cpu", "--set", "block=128", "--set", "tile_seqlen=32")
    knobs = {c.variant: dict(c.tunables) for c in runner.cells}
    assert knobs["fwd_naive"] == {"block": 128}
    assert knobs["fwd_channel_last"] == {"block": 128, "tile_seqlen": 32}


def test_bench_takes_a_policy_by_name(runner: FakeRunner) -> None:
    cc1d("bench", "--backend", "cpu", "--policy", "s0")
    assert runner.policy == POLICIES["s0"]
    cc1d("bench", "--backend", "cpu")
    assert runner.policy is None


# --- errors ------------------------------------------------------------------------------------------------------

BAD = {
    "check --variant fwd_naiv": "'fwd_naiv' is not known (did you mean 'fwd_naive'?)",
    "check --variant copy": "'copy' is not known",
    "check --dtype float61": "'float61' is not known (did you mean 'float16'?)",
    "check --layout channels_last": "did you mean 'channel_last'",
    "check --activation gelu": "allowed: none, silu",
    "check --backend rocm": "backend: 'rocm' is not known (here it is 'amd'); allowed: amd, nvidia, cpu",
    "check --backend cuda": "(here it is 'nvidia')",
    "check --dtype float64": "dtype: float64 is only for gradient checks of the operator; allowed: float32",
    "check --backend cpu --arch gfx942": "arch: 'gfx942' is none of backend cpu: give one such as wave32, wave64",
    "build --backend cpu --arch sm_90": "arch: 'sm_90' is none of backend cpu",
    "check --row-stride 128": "row_stride: 128 is for view channel_slice or sliced_input, got view contiguous",
    "check --use-silu --activation none": "--use-silu, --activation none: they contradict",
    "check --set block=64 --set block=128": "--set block: given more than once, as 64 and 128",
    "check --dim -4": "dim: -4 must be an integer of at least 1",
    "check --dim four": "'four' is not a valid integer",
    "check --bacth 2": "'--bacth'",
    "check --set block": "must be KNOB=INTEGER, such as block=128",
    "check --set blok=128": "did you mean 'block'",
    "check --variant fwd_naive --set block=3": "block: 3 is not among",
    "bench --policy s1": "did you mean 's0'",
    "build --variant fwd_naiv": "did you mean 'fwd_naive'",
    "build --variant fwd_channel_last --backend cpu --layout channel_first": "nothing to build: fwd_channel_last:",
    "build --variant torch_conv1d --backend cpu": "nothing to build: torch_conv1d: a baseline has no source",
    "run quik": "did you mean 'quick'",
    "run nowhere.yaml": "nowhere.yaml: cannot be read",
    "run quick --backend cdu": "'cdu' is not known",
    "report nowhere": "'nowhere' is not known",
    "show nowhere": "nowhere: no rows.jsonl here",
    "list kernels": "'kernels' is not one of",
    "benhc": "'benhc'",
}


@pytest.mark.parametrize("line", BAD)
def test_bad_usage_is_one_line_with_the_remedy_and_code_2(runner: FakeRunner, line: str) -> None:
    given = line.split()
    if given[0] in ("check", "bench") and "--backend" not in given:
        given += ["--backend", "cpu"]
    done = cc1d(*given)
    assert done.exit_code == 2, done.output
    assert done.stdout == ""
    assert BAD[line] in done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert runner.cells == []


@pytest.mark.parametrize(
    ("backend", "arch"),
    [("amd", "gfx942:sramecc+:xnack-"), ("amd", "gfx11-generic"), ("nvidia", "sm_90a"), ("cpu", "wave64"), ("cpu", "")],
)
def test_an_arch_of_the_backend_is_taken_as_it_is(backend: str, arch: str) -> None:
    assert backends.check_arch(backend, arch) == arch


def test_a_missing_toolchain_is_code_3_with_the_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CXX", str(tmp_path / "no-such-compiler"))
    for verb in ("check", "build"):
        done = cc1d(verb, "--backend", "cpu")
        assert done.exit_code == 3
        assert "no-such-compiler" in done.stderr
        assert "set CXX" in done.stderr


def _raising(error: BaseException) -> Callable[..., Any]:
    def function(*_: Any, **__: Any) -> Any:
        raise error

    return function


def test_a_traceback_only_with_v(runner: FakeRunner) -> None:
    runner.run_cells = _raising(ZeroDivisionError("oops"))  # type: ignore[method-assign]
    quiet, loud = cc1d("check", "--backend", "cpu"), cc1d("check", "--backend", "cpu", "-v")
    assert quiet.exit_code == loud.exit_code == 70
    assert quiet.stderr.endswith("error: ZeroDivisionError: oops; a defect of cc1d_lab: -v shows where\n")
    assert "Traceback" not in quiet.stderr
    assert "Traceback" in loud.stderr


def test_an_interrupt_is_code_130(runner: FakeRunner) -> None:
    runner.run_cells = _raising(KeyboardInterrupt())  # type: ignore[method-assign]
    done = cc1d("check", "--backend", "cpu")
    assert done.exit_code == 130
    assert "interrupted; what was measured is kept" in done.stderr


# --- what rows mean ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("statuses", "code"),
    [
        (["ok", "unsupported"], 0),
        (["ok", "wrong", "crashed", "build_failed"], 1),
        (["ok", "crashed"], 4),
        (["ok", "timeout"], 4),
        (["launch_failed"], 4),
        (["ok", "build_failed"], 3),
        (["unsupported"], 5),
        ([], 5),
    ],
)
def test_exit_code_of_rows(statuses: list[str], code: int) -> None:
    assert output.exit_code([{"status": status} for status in statuses]) == code


def test_check_prints_errors_per_variant_and_says_what_is_wrong(runner: FakeRunner) -> None:
    runner.statuses = {"fwd_naive": "wrong"}
    done = cc1d("check", "--backend", "cpu", "--dtype", "fp16")
    assert done.exit_code == 1
    line = next(line for line in done.stdout.splitlines() if line.startswith("fwd_naive "))
    assert "wrong" in line
    assert "342" in line  # err/bound
    assert "fwd_naive: wrong: 17 outputs outside the bound" in done.stdout


def test_bench_prints_rows_as_json_and_nothing_else_on_stdout(runner: FakeRunner) -> None:
    done = cc1d("bench", "--variant", "fwd_naive", "--backend", "cpu", "--json")
    (row,) = json.loads(done.stdout)
    assert {"variant", "dtype", "status", "time_us_p50", "gbps", "pct_copy"} <= set(row)
    assert row["status"] == "ok"


def test_bench_says_that_cpu_times_are_an_emulation(runner: FakeRunner) -> None:
    assert "emulation" in cc1d("bench", "--backend", "cpu").stdout


def test_show_refuses_a_status_that_there_is_not(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [make_row("fwd_naive", "nvidia", Case())])
    done = cc1d("show", run, "--status", "worng")
    assert done.exit_code == 2
    assert "status: 'worng' is not known (did you mean 'wrong'?)" in done.stderr


def test_control_characters_of_a_row_do_not_reach_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    output.echo_reasons([{"status": "wrong", "variant": "v\x1b[2J", "reason": "a\x1b[2Jb\nc"}])
    output.echo_table(("flags",), [[["noisy\x1b[2J"]]])
    assert capsys.readouterr().out == "v [2J: wrong: a [2Jb c\nflags\nnoisy [2J\n"


# --- run, report, show -------------------------------------------------------------------------------------------


def test_dry_run_prints_the_cells_and_runs_nothing(runner: FakeRunner) -> None:
    done = cc1d("run", "quick", "--backend", "cpu", "--dry-run")
    *cells, total = done.stdout.splitlines()
    assert done.exit_code == 0
    assert total.startswith(f"{len(cells)} cells, ")
    assert runner.asked == {}


def test_run_ends_with_the_counts_and_the_directory(runner: FakeRunner, tmp_path: Path) -> None:
    done = cc1d("run", "quick", "--backend", "cpu", "--out", tmp_path)
    *_, counts, directory = done.stdout.splitlines()
    assert done.exit_code == 0, done.output
    assert counts.split()[1] == "ok,"
    assert Path(directory) == tmp_path / "quick" / "r1"


def test_resume_alone_means_the_latest_run(runner: FakeRunner, tmp_path: Path) -> None:
    missing = cc1d("run", "quick", "--backend", "cpu", "--out", tmp_path, "--resume")
    assert missing.exit_code == 2
    assert "no such run" in missing.stderr
    cc1d("run", "quick", "--backend", "cpu", "--out", tmp_path)
    cc1d("run", "quick", "--backend", "cpu", "--out", tmp_path, "--resume")
    assert runner.asked["resume"] == tmp_path / "quick" / "r1"
    cc1d("run", "quick", "--backend", "cpu", "--out", tmp_path, "--resume", tmp_path / "quick" / "latest")
    assert runner.asked["resume"] == tmp_path / "quick" / "r1"


def test_report_of_an_experiment_ends_with_the_page_below_latest(
    runner: FakeRunner, renderer: types.ModuleType, tmp_path: Path
) -> None:
    done = cc1d("report", "quick", "--backend", "cpu", "--out", tmp_path)
    assert done.exit_code == 0, done.output
    assert Path(done.stdout.splitlines()[-1]) == tmp_path / "quick" / "latest" / "index.html"


def test_report_is_made_and_code_is_1_when_a_row_is_wrong(
    runner: FakeRunner, renderer: types.ModuleType, tmp_path: Path
) -> None:
    runner.statuses = {"fwd_naive": "wrong"}
    done = cc1d("report", "quick", "--backend", "cpu", "--out", tmp_path)
    assert done.exit_code == 1
    assert Path(done.stdout.splitlines()[-1]).is_file()


def test_report_of_a_run_directory_renders_it(renderer: types.ModuleType, tmp_path: Path) -> None:
    run = make_run(tmp_path / "r7", [make_row("fwd_naive", "cpu", Case())])
    done = cc1d("report", run)
    assert done.exit_code == 0
    assert Path(done.stdout.splitlines()[-1]) == run / "index.html"


def test_a_notebook_that_dies_is_code_4(renderer: types.ModuleType, tmp_path: Path) -> None:
    renderer.render_report = _raising(NotebookError("20_throughput: cell 3"))  # type: ignore[attr-defined]
    run = make_run(tmp_path / "r7", [make_row("fwd_naive", "cpu", Case())])
    done = cc1d("report", run)
    assert done.exit_code == 4
    assert done.stderr == "error: 20_throughput: cell 3\n"


def test_show_prints_rows_of_a_run_its_file_or_an_experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [make_row("fwd_naive", "cpu", Case(label="mine")), spoil(make_row("fwd_naive", "cpu", Case()), "crashed")]
    run = make_run(tmp_path / "reports" / "quick" / "latest", rows)
    monkeypatch.chdir(tmp_path)
    for target in (run, run / "rows.jsonl", "quick"):
        done = cc1d("show", target)
        assert done.exit_code == 4
        assert "mine 2x64x256x4" in done.stdout
        assert done.stdout.endswith("1 ok, 1 crashed\n")
    assert json.loads(cc1d("show", run, "--json").stdout) == rows
    assert cc1d("show", run, "--status", "ok").exit_code == 0


# --- list, doctor, build, clean ----------------------------------------------------------------------------------


def test_list_names_everything() -> None:
    printed = cc1d("list").stdout
    for name in ("fwd_im2col_wmma", "torch_conv1d", "quick", "models", "nvidia"):
        assert name in printed
    assert {e["name"] for e in json.loads(cc1d("list", "backends", "--json").stdout)} == set(backends.BACKENDS)
    assert set(json.loads(cc1d("list", "--json").stdout)) == {"variants", "experiments", "backends"}


def test_doctor_names_each_backend_with_its_remedy_and_each_variable_with_its_origin(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MAX_JOBS", "3")
    monkeypatch.setenv("CC1D_CASHE", "x")
    done = cc1d("doctor", "--json")
    found = json.loads(done.stdout)
    assert done.exit_code == 0
    assert {b["name"]: bool(b["remedy"]) == (not b["can_run"]) for b in found["backends"]} == dict.fromkeys(
        backends.BACKENDS, True
    )
    variables = {e["name"]: e for e in found["environment"]}
    assert (variables["MAX_JOBS"]["value"], variables["MAX_JOBS"]["origin"]) == ("3", "environment")
    assert variables["CC1D_CASHE"]["meaning"] == "not known (did you mean 'CC1D_CACHE'?)"
    assert cc1d("doctor").exit_code == 0


def test_doctor_names_the_tools_of_inspect_and_profile(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "ncu").touch(mode=0o755)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    tools = {(t["verb"], t["backend"]): t for t in json.loads(cc1d("doctor", "--json").stdout)["tools"]}
    assert tools["profile", "nvidia"]["path"] == str(tmp_path / "bin" / "ncu")
    for tool in tools.values():
        assert bool(tool["path"]) != bool(tool["remedy"])
    assert "install ROCm" in tools["profile", "amd"]["remedy"]


def test_doctor_names_every_variable_of_ours_that_is_read() -> None:
    texts = [path.read_text() for path in paths.PACKAGE.rglob("*.py")]
    read = {name for text in texts for name in re.findall(r'environ(?:\.get\(|\[)"(CC1D_\w+)"', text)}
    assert read == {name for name in provenance.HONOURED if name.startswith("CC1D_")}


def test_doctor_is_code_3_when_nothing_can_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "why_not_run", lambda backend: "no compiler: install one")
    assert cc1d("doctor").exit_code == 3


@pytest.mark.parametrize(("fails", "code"), [((), 0), (("fwd_naive",), 1), (("fwd_naive", "fwd_channel_last"), 3)])
def test_build_prints_each_outcome_and_counts(
    monkeypatch: pytest.MonkeyPatch, fails: tuple[str, ...], code: int
) -> None:
    def build_all(cells: list[Cell], jobs: int | None = None) -> Any:
        for cell in cells:
            if cell.variant in fails:
                yield cell, CompileError("x.hip:3:1: error: no", "g++ x.hip", "/somewhere/log.txt")
            else:
                yield cell, build.Built(Path("kernel.so"), "d", 1.5, {})

    monkeypatch.setattr(build, "build_all", build_all)
    done = cc1d(
        "build", "--variant", "fwd_naive", "--variant", "fwd_channel_last", "--backend", "cpu", "--dtype", "fp16"
    )
    assert done.exit_code == code
    bad = sum({"fwd_naive": 2, "fwd_channel_last": 1}[name] for name in fails)
    assert f"built {3 - bad}, failed {bad}, in " in done.stdout.splitlines()[-1]
    assert ("x.hip:3:1: error: no" in done.stdout) == bool(fails)


def test_clean_says_what_was_freed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CC1D_CACHE", str(tmp_path / "cache"))
    entry = build.cache_dir() / "fwd_naive-0"
    entry.mkdir()
    (entry / "kernel.so").write_bytes(b"x" * 2_000_000)
    assert cc1d("clean", "--failed").stdout.startswith("freed 0.0 MB")
    assert entry.exists()
    assert cc1d("clean").stdout.startswith("freed 2.0 MB")
    assert not entry.exists()


def test_colours_only_where_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "\x1b[" in CliRunner().invoke(main, ["check", "--dim", "x"], color=True).stderr
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[" not in CliRunner().invoke(main, ["check", "--variant", "x"], color=True).stderr


def test_every_verb_explains_itself() -> None:
    for name, verb in main.commands.items():
        done = cc1d(name, "--help")
        assert done.exit_code == 0
        assert isinstance(verb, click.Command)
        assert verb.help


def test_no_compiler_at_all_is_code_3_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CXX", "CUDA_HOME", "ROCM_PATH", "HIP_PATH"):
        monkeypatch.setenv(name, "no-such-compiler")
    monkeypatch.setattr("cc1d_lab.backends.runnable", list)
    result = cc1d("check", "--variant", "fwd_naive")
    assert result.exit_code == 3
    assert "tried no-such-compiler" in result.stderr
    assert "CXX" in result.stderr


def test_tune_writes_what_auto_takes_and_says_what_it_gains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(batch=2, dim=256, seqlen=512, dtype="bfloat16")
    slow, fast = (make_row("fwd_register", "nvidia", case, time_us_p50=t) for t in (20.0, 16.0))
    fast |= {"tunables": {"block": 256, "vectors": 1}, "cell_id": "other"}
    naive = make_row("fwd_naive", "nvidia", case, time_us_p50=0.5, flags=["below_launch"])  # too good to be true
    reckless = fast | {"time_us_p50": 10.0, "toolchain": "--use_fast_math", "cell_id": "third"}
    folder = make_run(tmp_path / "run", [slow, fast, naive, reckless])
    monkeypatch.setenv("CC1D_TABLE", str(tmp_path / "auto.json"))
    result = cc1d("tune", folder)
    assert result.exit_code == 0, result.stderr
    assert "fwd_register block=256 vectors=1  16.00 us  25.0 % over the default" in result.stdout
    (entry,) = json.loads((tmp_path / "auto.json").read_text())
    assert (entry["variant"], entry["tunables"]) == ("fwd_register", {"block": 256, "vectors": 1})


@pytest.mark.parametrize("verb", ["check", "bench"])
def test_a_toolchain_is_what_the_kernel_is_compiled_with(verb: str) -> None:
    size = ("--batch", "1", "--dim", "4", "--seqlen", "9", "--backend", "cpu", "--json")
    result = cc1d(verb, "--variant", "fwd_naive", "--toolchain", "-O1", *size)
    assert result.exit_code == 0, result.stderr
    rows = json.loads(result.stdout)
    assert {(r["toolchain"], r["program"], r["kind"]) for r in rows if r["variant"] == "fwd_naive"} == {
        ("-O1", None, "kernel")
    }
    unknown = cc1d(verb, "--variant", "fwd_naive", "--toolchain", "naive", *size)
    assert unknown.exit_code != 0
    assert "'naive' is no compiler" in unknown.output


def test_without_a_verb_the_help_is_printed_as_it_is() -> None:
    result = cc1d()
    assert result.exit_code == 2
    assert result.output.count("\n") > 10
    assert "error:" not in result.output


def test_tune_does_not_begin_on_the_emulation(runner: FakeRunner) -> None:
    result = cc1d("tune", "quick", "--backend", "cpu")
    assert result.exit_code == 2
    assert "backend cpu: what is fastest in emulation says nothing of a GPU" in result.stderr


def test_tune_learns_nothing_from_emulation(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", [make_row("fwd_naive", "cpu", Case())])
    result = cc1d("tune", folder)
    assert result.exit_code == 2
    assert "emulation says nothing of speed" in result.stderr

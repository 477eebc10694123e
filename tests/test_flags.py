"""Compilers and flags: a cell's toolchain, what fast math breaks, and what AMD code objects say of flags."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from cc1d_lab import backends, build, experiment, flags, paths, results, runner
from cc1d_lab.case import Case
from cc1d_lab.cell import Cell
from cc1d_lab.errors import ConfigError
from cc1d_lab.report.execute import execute

CASE = Case(batch=2, dim=16, seqlen=100)
needs_clang = pytest.mark.skipif(bool(backends.get("amd").can_build()), reason=backends.get("amd").can_build())


# --- what a toolchain is ---------------------------------------------------------------------------------------------


def test_a_toolchain_is_a_build_and_a_row_of_its_own() -> None:
    plain, other = Cell("fwd_naive", "cpu", CASE), Cell("fwd_naive", "cpu", CASE, toolchain="-O1")
    assert plain.cell_id != other.cell_id
    assert build.build_key(plain) != build.build_key(other)
    assert plain.group_key != other.group_key
    assert other.title().endswith("-O1")


@pytest.mark.parametrize("name", ["cpu", "nvidia"])
def test_another_optimization_replaces_the_usual_one(name: str) -> None:
    if backends.get(name).can_build():
        pytest.skip(backends.get(name).can_build())
    compiler, given = backends.toolchain(name, given="-O1 -g")
    assert compiler == backends.get(name).compiler()
    assert [f for f in given if f.startswith("-O")] == ["-O1"]
    assert given[-1] == "-g"
    assert [f for f in backends.toolchain(name)[1] if f.startswith("-O")] == ["-O1" if name == "cpu" else "-O3"]


@pytest.mark.parametrize(
    ("given", "says"),
    [("-O1 clang", "'clang' is no flag"), ("sh -c", "'sh' is no compiler"), ("./g++", "is no compiler")],
)
def test_what_is_no_toolchain_is_refused(given: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        backends.split_toolchain(given)


def test_an_experiment_has_toolchains_per_backend(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("variants: [fwd_naive]\nbaselines: torch_conv1d\ntoolchains: {cpu: ['', -O1]}\n")
    cells = experiment.load(path).cells("cpu")
    assert [(c.variant, c.toolchain) for c in cells] == [("fwd_naive", ""), ("torch_conv1d", ""), ("fwd_naive", "-O1")]
    path.write_text("variants: [fwd_naive]\ntoolchains: {cpu: [g++ O1]}\n")
    with pytest.raises(ConfigError, match=r"x.yaml:2:\d+: toolchain"):
        experiment.load(path)
    path.write_text("variants: [fwd_naive]\ntoolchains: {cuda: [-O1]}\n")
    with pytest.raises(ConfigError, match=r"x.yaml:2:.*cuda"):
        experiment.load(path)


# --- executed --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rows() -> pd.DataFrame:
    toolchains = ("-ffast-math", "", "g++-99")
    cells = [Cell("fwd_naive", "cpu", CASE, toolchain=t) for t in toolchains]
    return results.load_rows(runner.run_cells(cells, on_progress=False))


def test_fast_math_stays_in_its_process(monkeypatch: pytest.MonkeyPatch) -> None:
    # g++ 12 lets such a library switch its process to flushing, the oracle included: in this order, all would agree.
    monkeypatch.setattr(runner, "_groups", lambda cells: [[c] for c in cells])
    cases = [CASE, replace(CASE, seqlen=101), replace(CASE, seqlen=102)]
    cells = [Cell("fwd_naive", "cpu", c, toolchain=t) for c, t in zip(cases, ["-ffast-math"] * 2 + [""], strict=True)]
    found = [row["special_values"]["subnormal"] for row in runner.run_cells(cells, on_progress=False)]
    assert found == [False, False, True]


def test_fast_math_is_wrong(rows: pd.DataFrame) -> None:
    fast, plain, absent = (row for _, row in rows.iterrows())
    assert (fast["status"], plain["status"], absent["status"]) == ("wrong", "ok", "unsupported")
    assert fast["bound_ratio"] > 100
    assert not fast["special_values"]["subnormal"]
    assert all(plain["special_values"].values())
    assert "install g++-99" in absent["reason"]


def test_tables_show_what_breaks(rows: pd.DataFrame) -> None:
    plain, fast, absent = (line for _, line in flags.executed(rows).iterrows())
    assert (fast["toolchain"], fast["ok"], fast["wrong"], fast["subnormal"]) == ("-ffast-math", 0, 1, "0 of 1")
    assert (plain["toolchain"], plain["ok"], plain["wrong"], plain["subnormal"]) == ("default", 1, 0, "1 of 1")
    assert (absent["ok"], absent["wrong"], absent["inf"]) == (0, 0, "0 of 0")
    unseen = flags.executed(rows.assign(nan_stays=None))  # as of a baseline that only copies
    assert set(unseen["nan"]) == {"0 of 0"}
    (line,) = (line for _, line in flags.by_variant(rows).iterrows())
    assert line["-ffast-math"].startswith("wrong ")
    assert float(line["default"]) < 1
    nan = rows.assign(bound_ratio=rows["bound_ratio"].where(rows["status"] != "wrong"))  # as of an output that is NaN
    assert flags.executed(nan).set_index("toolchain").loc["-ffast-math", "err/bound"] == math.inf
    assert flags.by_variant(nan)["-ffast-math"].tolist() == ["wrong inf"]
    assert "1 wrong cell not drawn" in flags.chart(nan).axes[0].get_xlabel()
    axes = flags.chart(rows).axes[0]
    assert "not drawn" not in axes.get_xlabel()
    places = dict(zip([t.get_text() for t in axes.get_yticklabels()], axes.get_yticks(), strict=True))
    points = {y: x for x, y in axes.collections[0].get_offsets().tolist()}
    assert points[places["cpu: -ffast-math"]] > 1 > points[places["cpu: default"]]


def test_shares_are_of_as_many_variants(monkeypatch: pytest.MonkeyPatch) -> None:
    stated = iter([("2 of 2", 200), ("1 of 2", 90), ("2 of 2", 150)])
    monkeypatch.setattr(build, "build_all", lambda cells: [(cell, None) for cell in cells])
    monkeypatch.setattr(flags, "_stated", lambda found: dict(zip(("built", "instructions"), next(stated), strict=True)))
    found = flags.code_objects(["", "-O1", "-O2"], ["gfx942"], ["fwd_naive", "fwd_register"])
    assert found["of the first"].tolist() == ["100 %", "", "75 %"]


# --- AMD -------------------------------------------------------------------------------------------------------------


@pytest.mark.amd
@needs_clang
def test_code_objects_state_what_a_flag_changed() -> None:
    toolchains = ["", "-fgpu-flush-denormals-to-zero", "-O1", "-mno-such-thing"]
    found = flags.code_objects(toolchains, ["gfx942", "gfx1100"], ["fwd_im2col_wmma"])
    lines = {(line["arch"], line["toolchain"]): line for _, line in found.iterrows()}
    for arch in ("gfx942", "gfx1100"):
        plain, flushed, slow, bad = (lines[arch, t or "default"] for t in toolchains)
        assert (plain["built"], plain["fp32 subnormals"], plain["fp16 subnormals"]) == ("1 of 1", "kept", "kept")
        assert (plain["scratch"], plain["spills"], plain["of the first"]) == (0, 0, "100 %")
        assert plain["matrix"] == slow["matrix"] > 0
        assert (flushed["fp32 subnormals"], flushed["fp16 subnormals"]) == ("both", "kept")
        assert slow["instructions"] != plain["instructions"]
        assert (bad["built"], bad["instructions"]) == ("0 of 1", 0)
        assert "no-such-thing" in bad["failed"]


@pytest.mark.amd
@needs_clang
def test_the_flags_of_the_experiment_meet_the_compilers_that_are_here() -> None:
    wanted = experiment.load("flags").toolchains["amd"]
    found = flags.amd_toolchains()
    assert found
    assert len(found) % len(wanted) == 0
    assert all(backends.split_toolchain(t)[0] in flags.AMD_COMPILERS for t in found)


@pytest.mark.full
@pytest.mark.amd
@needs_clang
def test_the_notebook_shows_both(tmp_path: Path) -> None:
    path, run = paths.notebooks_dir() / "80_flags.ipynb", tmp_path / "run"
    run.mkdir()
    for row in runner.run_cells([Cell("fwd_naive", "cpu", CASE, toolchain=t) for t in ("", "-ffast-math")]):
        results.append(run / "rows.jsonl", row)
    (run / "run.json").write_text("{}")
    execute(path, tmp_path / path.name, {"run": str(run)}, timeout_s=300)
    text = (tmp_path / path.name).read_text()
    assert json.loads(text)["metadata"]["cc1d"]["status"] == "completed"
    assert "-ffast-math" in text
    assert "gfx942" in text

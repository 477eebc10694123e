"""The notebooks: clean in git, and they run to their end on rows made elsewhere. No device, no compiler."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rows import make_rows, make_run

from cc1d_lab import notebook, paths
from cc1d_lab.errors import ConfigError, StoreError
from cc1d_lab.report.execute import execute

NOTEBOOKS = sorted(paths.notebooks_dir().glob("*.ipynb"))
SHOWN = [path for path in NOTEBOOKS if path.stem in ("10_validate", "20_throughput", "30_error")]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = make_rows(("cpu", "nvidia"), seqlens=(128, 1024), dtypes=("float16",), layouts=("channel_first",))
    return make_run(tmp_path_factory.mktemp("reports") / "made_up" / "r1", rows)


def cells(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text())["cells"]


def test_they_are_there() -> None:
    names = ["00_quickstart", "10_validate", "20_throughput", "30_error", "40_backward", "50_pipeline", "60_scaling"]
    assert [path.stem for path in NOTEBOOKS] == [*names, "70_inspect", "80_flags"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_clean_in_git(path: Path) -> None:
    document = json.loads(path.read_text())
    ids = [cell["id"] for cell in document["cells"]]
    assert len(set(ids)) == len(ids)
    assert document["metadata"]["kernelspec"]["name"] == "python3"
    assert not any(cell.get("outputs") for cell in document["cells"])
    canonical = json.dumps(document, indent=1, ensure_ascii=False, sort_keys=True) + "\n"
    assert path.read_text() == canonical


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_one_parameters_cell_with_the_same_names(path: Path) -> None:
    tagged = [cell for cell in cells(path) if "parameters" in cell["metadata"].get("tags", [])]
    assert len(tagged) == 1
    values: dict[str, Any] = {}
    for line in tagged[0]["source"].splitlines():
        name, _, rest = line.partition(" = ")
        values[name] = rest.split("  #")[0]
    shown = {"40_backward": "channel_last_bwd", "50_pipeline": "pipeline", "60_scaling": "scaling", "80_flags": "flags"}
    assert values == {"run": "None", "experiment": f'"{shown.get(path.stem, "quick")}"', "backend": "None"}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_the_last_cell_leaves_the_mark(path: Path) -> None:
    assert cells(path)[-1]["source"] == "notebook.completed()"


@pytest.mark.parametrize("path", SHOWN, ids=lambda p: p.stem)
def test_runs_on_rows_of_another_machine(path: Path, run: Path, tmp_path: Path) -> None:
    execute(path, tmp_path / path.name, {"run": str(run), "backend": "nvidia"}, timeout_s=60)
    assert json.loads((tmp_path / path.name).read_text())["metadata"]["cc1d"]["status"] == "completed"


def test_plain_papermill_from_any_directory(run: Path, tmp_path: Path) -> None:
    papermill = [sys.executable, "-m", "papermill", "--log-level", "ERROR", "--no-progress-bar"]
    source = paths.notebooks_dir() / "10_validate.ipynb"
    command = [*papermill, str(source), "out.ipynb", "-p", "run", str(run)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert notebook.MARK in (tmp_path / "out.ipynb").read_text()


# --- what the notebooks call ----------------------------------------------------------------------------------------


def test_a_missing_run_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"make one with `cc1d run experiments/quick.yaml`, or set run = None"):
        notebook.rows_for(tmp_path / "none")


def test_a_backend_without_rows_is_named(run: Path) -> None:
    with pytest.raises(ConfigError, match=r"no rows of 'amd'; it has cpu, nvidia"):
        notebook.rows_for(run, backend="amd")


def test_a_run_is_found_below_reports(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = run.parents[1]
    (root / "reports").symlink_to(root)
    monkeypatch.chdir(root)
    assert len(notebook.rows_for("made_up/r1")) == len(notebook.rows_for(run))


def test_an_experiment_is_found_from_here_then_from_the_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert Path(notebook.find_experiment("experiments/quick.yaml")) == paths.experiments_dir() / "quick.yaml"
    assert notebook.find_experiment("quick") == "quick"
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "quick.yaml").touch()
    assert notebook.find_experiment("experiments/quick.yaml") == "experiments/quick.yaml"


def test_the_source_of_a_baseline_is_refused() -> None:
    with pytest.raises(ConfigError, match="has no kernel of ours"):
        notebook.source("torch_conv1d")
    assert "__global__" in notebook.source("fwd_naive").data

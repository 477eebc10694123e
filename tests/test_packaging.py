"""What is installed: environments agree, pins suit ranges, the wheel works elsewhere, nothing private is tracked."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from cc1d_lab import paths
from cc1d_lab.errors import ToolchainError

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
REQUIREMENTS = [Requirement(r) for r in [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"]]]
CONTRACT = ("torch", "jupyterlab", "numpy", "matplotlib", "seaborn", "papermill")  # what the project was ordered with


def pins() -> dict[str, Version]:
    """name -> version of constraints.txt; every line is an exact pin."""
    lines = [ln for ln in (ROOT / "constraints.txt").read_text().splitlines() if ln and not ln.startswith("#")]
    matches = [(ln, re.fullmatch(r"([A-Za-z0-9._-]+)==([0-9][A-Za-z0-9.]*)", ln)) for ln in lines]
    assert [ln for ln, m in matches if m is None] == [], "not a plain pin (name==version, no local version, no URL)"
    return {canonicalize_name(m[1]): Version(m[2]) for _, m in matches if m}


def tracked() -> list[Path]:
    """Text files in git."""
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("not a git checkout")
    files = [ROOT / name for name in done.stdout.split("\0") if name]
    return [f for f in files if f.is_file() and b"\0" not in f.read_bytes()[:4096]]


def test_the_ordered_packages_are_dependencies() -> None:
    names = {canonicalize_name(Requirement(r).name) for r in PROJECT["dependencies"]}
    assert set(CONTRACT) <= names


def test_every_requirement_is_pinned_within_its_range() -> None:
    pinned = pins()
    assert [r.name for r in REQUIREMENTS if canonicalize_name(r.name) not in pinned] == []
    assert [str(r) for r in REQUIREMENTS if pinned[canonicalize_name(r.name)] not in r.specifier] == []


def test_ranges_have_a_floor_and_no_pin() -> None:
    operators = {r.name: {s.operator for s in r.specifier} for r in REQUIREMENTS}
    assert [name for name, ops in operators.items() if ">=" not in ops or ops & {"==", "==="}] == []


def test_torch_is_pinned_in_one_place() -> None:
    pattern = re.compile(r"torch\s*={2,3}\s*[0-9]")
    found = [f.relative_to(ROOT).as_posix() for f in tracked() if pattern.search(f.read_text(errors="replace"))]
    assert [f for f in found if not f.startswith("reports/")] == ["constraints.txt"]


def test_conda_environment_defers_to_pyproject() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["name"] == PROJECT["name"]
    conda = [d for d in environment["dependencies"] if isinstance(d, str)]
    (pip,) = [d["pip"] for d in environment["dependencies"] if isinstance(d, dict)]
    assert pip == ["-e .[dev]"]
    assert f"python{PROJECT['requires-python']}" in conda
    assert "cxx-compiler" in conda
    python_packages = {canonicalize_name(r.name) for r in REQUIREMENTS}
    assert python_packages & {canonicalize_name(re.split(r"[<>=]", d)[0]) for d in conda} == set()


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds what the wheel holds."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run([*pip, "-w", str(folder), str(ROOT)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("cc1d_lab-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def contents(folder: Path) -> set[str]:
    """Files below a folder, without what caches leave there."""
    files = (f.relative_to(folder) for f in folder.rglob("*") if f.is_file())
    return {f.as_posix() for f in files if not {"__pycache__", ".ipynb_checkpoints"} & set(f.parts)}


@pytest.mark.parametrize("name", ["kernels_dir", "notebooks_dir", "experiments_dir"])
def test_installed_package_finds_what_it_carries(installed: Path, tmp_path: Path, name: str) -> None:
    code = f"from cc1d_lab import paths; assert paths.checkout() is None; print(paths.{name}())"
    environment = os.environ | {"PYTHONPATH": str(installed), "PYTHONSAFEPATH": "1"}
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    carried = Path(done.stdout.strip())
    assert carried.is_relative_to(installed)
    beside = getattr(paths, name)()
    assert contents(carried) == contents(beside)


def test_a_missing_folder_is_an_error_with_a_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "PACKAGE", tmp_path / "cc1d_lab")
    with pytest.raises(ToolchainError, match=r"hip_kernels: not found .* reinstall"):
        paths.kernels_dir()


def test_wheel_holds_the_package_and_no_tests(installed: Path) -> None:
    carried = {name for name in contents(installed / "cc1d_lab") if not name.startswith("_data/")}
    assert carried == contents(paths.PACKAGE)
    assert {p.name for p in installed.iterdir()} == {"cc1d_lab", f"cc1d_lab-{_version()}.dist-info"}


def _version() -> str:
    import cc1d_lab

    return cc1d_lab.__version__


# In pieces, so that this file does not hold what it looks for.
PRIVATE = re.compile(
    "|".join(
        [
            "pypi" + r"\.org",
            "python" + r"hosted\.org",
            r"download\.py" + r"torch\.org",
            r"--(extra-)?" + "index-url",
            r"(?<![\w.$)}\"'])/" + r"(home|Users)/\w",
            r"(?<![\w.$)}\"'])/" + r"(root|work)/",
        ]
    )
)


def test_no_registry_and_no_private_path_is_tracked() -> None:
    found = []
    for path in tracked():
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
            if hit := PRIVATE.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {hit[0]}")
    assert found == []


@pytest.mark.parametrize("text", ["https://py" + "pi.org/simple", "cd /" + "home/me/x", "path: /" + "root/.cache"])
def test_a_private_text_is_found(text: str) -> None:
    assert PRIVATE.search(text)

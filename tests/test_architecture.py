"""The house: floors of the package, kernels and their registry, notebooks without logic.

Every check is a function that returns findings, and is itself tested on a planted fault.
"""

from __future__ import annotations

import ast
import graphlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cc1d_lab import _HOME, paths
from cc1d_lab.variants import VARIANTS

# Lowest first. A module imports from its own floor and those below; on one floor, in no circle.
FLOORS = (
    ("code_object", "errors", "files", "paths", "progress"),
    ("case", "programs", "rocm", "strict_yaml"),
    ("results", "timing", "sensors", "triton_kernels", "backends", "variants", "cell", "occupancy"),
    ("build", "oracle", "reference", "tables"),
    (
        "baselines",
        "ceilings",
        "recheck",
        "kernel",
        "machine_code",
        "main_path",
        "matrix_work",
        "plots",
        "provenance",
        "scaling",
        "shares",
        "special",
        "work",
    ),
    ("measurement",),
    ("anatomy", "catalogue", "evaluation", "manifest", "pipeline", "profiler"),
    ("experiment", "worker"),
    ("flags", "ops", "runner"),
    ("notebook",),
    ("report",),
    ("cli",),
)
FLOOR = {module: level for level, floor in enumerate(FLOORS) for module in floor}
PACKAGE = paths.PACKAGE
HEAVY = ("torch", "pandas", "matplotlib", "numpy")


# --- imports point one way ---------------------------------------------------------------------------------------


def sources(package: Path) -> Iterator[tuple[str, Path]]:
    """(module, file) of a package; a sub-package counts as one module of its name."""
    for path in sorted(package.rglob("*.py")):
        name = path.relative_to(package).parts[0].removesuffix(".py")
        if not name.startswith("__"):
            yield name, path


def imported(path: Path, package: Path) -> Iterator[tuple[str, int]]:
    """(module, line) of every import from the package itself, inside functions and TYPE_CHECKING too."""
    here = ("cc1d_lab", *path.relative_to(package).parts[:-1])
    for node in ast.walk(ast.parse(path.read_text())):
        dotted: list[str] = []
        if isinstance(node, ast.Import):
            dotted = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level + 1] if node.level else ()
            stem = ".".join([*base, *([node.module] if node.module else [])])
            dotted = [f"{stem}.{alias.name}" for alias in node.names] if stem == "cc1d_lab" else [stem]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            dotted = [node.value] if re.fullmatch(r"cc1d_lab(\.\w+)+", node.value) else []
        for name in dotted:
            parts = name.split(".")
            if parts[0] == "cc1d_lab" and len(parts) > 1 and not parts[1].startswith("_"):
                yield _HOME.get(parts[1], parts[1]), getattr(node, "lineno", 0)


def floor_faults(package: Path) -> list[str]:
    """Modules on no floor, imports upward, circles."""
    faults, graph = [], {}
    for module, path in sources(package):
        if module not in FLOOR:
            faults.append(f"{module}: on no floor; declare it in FLOORS")
            continue
        for target, line in imported(path, package):
            if target == module:
                continue
            graph.setdefault(module, set()).add(target)
            if FLOOR.get(target, len(FLOORS)) > FLOOR[module]:
                faults.append(f"{path.relative_to(package)}:{line}: {module} imports {target}, which is above it")
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as e:
        faults.append(f"circle: {' -> '.join(e.args[1])}")
    return faults


def test_imports_point_one_way() -> None:
    assert floor_faults(PACKAGE) == []


@pytest.mark.parametrize(
    ("files", "fault"),
    [
        ({"case.py": "from .runner import x"}, "case imports runner, which is above it"),
        ({"case.py": "def f():\n    from . import kernel"}, "case.py:2: case imports kernel, which is above"),
        ({"case.py": "import cc1d_lab.cli"}, "case imports cli"),
        ({"case.py": "from cc1d_lab import Case, run_experiment"}, "case imports runner"),
        ({"errors.py": "import importlib\nimportlib.import_module('cc1d_lab.case')"}, "errors imports case"),
        ({"results.py": "from .timing import x", "timing.py": "from . import results"}, "circle: "),
        ({"report/__init__.py": "from ..cli import main"}, "report imports cli"),
        ({"misc.py": ""}, "misc: on no floor"),
    ],
)
def test_a_fault_in_the_floors_is_found(tmp_path: Path, files: dict[str, str], fault: str) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert any(fault in found for found in floor_faults(tmp_path)), floor_faults(tmp_path)


def test_no_floor_is_declared_twice() -> None:
    assert len(FLOOR) == sum(len(floor) for floor in FLOORS)


@pytest.mark.parametrize("module", ["cc1d_lab", "cc1d_lab.cli"])
def test_import_loads_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_public_names_come_from_modules_and_hide_none() -> None:
    assert sorted(set(_HOME.values()) - set(FLOOR)) == []
    # Once a module is imported, its name in the package is the module: a function of that name would be gone.
    assert sorted(set(_HOME) & {module for module, _ in sources(PACKAGE)}) == []


# --- what the package must not do ----------------------------------------------------------------------------------

UNSAFE_CALLS = {"os.system", "os.popen", "eval", "exec", "yaml.load", "yaml.unsafe_load", "yaml.full_load"}
UNSAFE_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve"}


def unsafe(path: Path) -> list[str]:
    """Shells, pickles and evaluated text in a Python file."""
    faults = []
    for node in ast.walk(ast.parse(path.read_text())):
        where = f"{path.name}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if name in UNSAFE_CALLS:
                faults.append(f"{where}: {name}")
            keywords = {k.arg: ast.unparse(k.value) for k in node.keywords}
            if keywords.get("shell", "False") != "False":
                faults.append(f"{where}: shell=")
            if name == "torch.load" and keywords.get("weights_only") != "True":
                faults.append(f"{where}: torch.load without weights_only=True")
        if isinstance(node, ast.Import):
            faults += [f"{where}: {a.name}" for a in node.names if a.name.split(".")[0] in UNSAFE_MODULES]
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in UNSAFE_MODULES:
            faults.append(f"{where}: {node.module}")
    return faults


def test_package_uses_no_shell_and_no_pickle() -> None:
    assert [fault for _, path in sources(PACKAGE) for fault in unsafe(path)] == []


@pytest.mark.parametrize(
    "text",
    [
        "import subprocess\nsubprocess.run('ls', shell=True)",
        "subprocess.run('ls', shell=flag)",
        "import os\nos.system('ls')",
        "from pickle import loads",
        "import pickle as p",
        "eval('1')",
        "torch.load('x')",
        "yaml.load(text)",
    ],
)
def test_an_unsafe_call_is_found(tmp_path: Path, text: str) -> None:
    (tmp_path / "m.py").write_text(text)
    assert unsafe(tmp_path / "m.py")


# --- kernels ---------------------------------------------------------------------------------------------------------


def without_comments(text: str) -> str:
    """C++ text with comments blanked; string literals stay."""
    pattern = r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"'
    return re.sub(pattern, lambda m: m[0] if m[0][0] == '"' else " ", text, flags=re.DOTALL)


def vendor_names(text: str) -> list[str]:
    """Identifiers that begin with hip or cuda, in code."""
    return re.findall(r"\b_*(?:hip|cuda)\w*", without_comments(text), flags=re.IGNORECASE)


def hip_files() -> list[Path]:
    return sorted(paths.kernels_dir().glob("*.hip"))


@pytest.mark.parametrize("path", hip_files(), ids=lambda p: p.stem)
def test_kernel_is_vendor_neutral(path: Path) -> None:
    assert vendor_names(path.read_text()) == []


def narrowed_grids(text: str) -> list[str]:
    """Launches whose number of blocks is not counted by grid_of, so that dim3 takes it modulo 2^32."""
    return re.findall(r"launch<\w+>\(\s*dim3\b", without_comments(text))


@pytest.mark.parametrize("path", hip_files(), ids=lambda p: p.stem)
def test_a_grid_is_counted_in_64_bits(path: Path) -> None:
    assert narrowed_grids(path.read_text()) == []
    assert narrowed_grids("launch<conv>(dim3(n), dim3(kBlock), stream, p);") == ["launch<conv>(dim3"]


def test_a_vendor_name_is_found() -> None:
    assert vendor_names("// hipMalloc is for others\n/* cuda\nhip */ void hipper_no(); int chip = 1;") == ["hipper_no"]
    assert vendor_names("#include <hip/hip_runtime.h>") == ["hip", "hip_runtime"]
    assert vendor_names("#ifdef __CUDA_ARCH__\n cudaFree(p);") == ["__CUDA_ARCH__", "cudaFree"]
    assert vendor_names('auto url = "x//y"; hipFree(p);') == ["hipFree"]


def test_every_kernel_is_registered_and_every_entry_has_its_file() -> None:
    assert {p.name for p in hip_files()} == {v.source for v in VARIANTS.values() if v.source}


# --- notebooks -------------------------------------------------------------------------------------------------------


def notebook_faults(notebook: dict) -> list[str]:
    """Logic, outputs, or a wrong number of parameter cells in a notebook."""
    faults, tagged = [], 0
    for number, cell in enumerate(notebook["cells"]):
        tagged += "parameters" in cell.get("metadata", {}).get("tags", [])
        if cell["cell_type"] != "code":
            continue
        if cell["outputs"] or cell["execution_count"] is not None:
            faults.append(f"cell {number}: has outputs or an execution count; clear them")
        tree = ast.parse("".join(cell["source"]))
        logic = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda, ast.For, ast.While, ast.Try)
        faults += [f"cell {number}: {type(node).__name__}" for node in ast.walk(tree) if isinstance(node, logic)]
    return faults + ([] if tagged == 1 else [f"{tagged} cells are tagged `parameters`, not 1"])


def notebooks() -> list[Path]:
    return sorted(p for p in paths.notebooks_dir().rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)


@pytest.mark.parametrize("path", notebooks(), ids=lambda p: p.stem)
def test_notebook_holds_no_logic_and_no_outputs(path: Path) -> None:
    assert notebook_faults(json.loads(path.read_text())) == []


def _cell(source: str, **other: object) -> dict:
    return {"cell_type": "code", "metadata": {}, "outputs": [], "execution_count": None, "source": source} | other


@pytest.mark.parametrize(
    "cell",
    [
        _cell("def f(): pass"),
        _cell("class A: pass"),
        _cell("x", outputs=[{}]),
        _cell("x", execution_count=1),
        _cell("run = 1", metadata={"tags": ["parameters"]}),
    ],
)
def test_a_fault_in_a_notebook_is_found(cell: dict) -> None:
    parameters = _cell("run = None", metadata={"tags": ["parameters"]})
    assert notebook_faults({"cells": [parameters]}) == []
    assert len(notebook_faults({"cells": [parameters, cell]})) == 1

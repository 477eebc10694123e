"""Cells -> rows: build everything first, then measure group after group in a worker, and keep every row at once."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from . import backends, build, files, results, variants
from .cell import Cell
from .errors import StoreError
from .evaluation import failed_row, needed_builds
from .experiment import Experiment
from .progress import Progress
from .provenance import fingerprint
from .results import Row
from .timing import Policy
from .worker import Worker

OnRow = Callable[[Row], None]


def run_cells(
    cells: Iterable[Cell],
    policy: Policy | None = None,
    experiment: str = "",
    on_row: OnRow | None = None,
    on_progress: bool = True,
    logs: Path | None = None,
) -> list[Row]:
    """Build, check and time cells, in isolated workers. Rows in the order of the cells; `on_row` gets each when known.

    `policy` None takes the default of each cell's backend.
    """
    wanted = list({c.cell_id: c for c in cells}.values())
    rows: dict[str, Row] = {}
    for row in _rows(wanted, policy, on_progress, logs):
        row["experiment"] = experiment or None
        rows[row["cell_id"]] = row
        if on_row:
            on_row(row)
    return [rows[c.cell_id] for c in wanted]


def _rows(cells: list[Cell], policy: Policy | None, show: bool, logs: Path | None) -> Iterator[Row]:
    broken = _build_phase(cells, show)
    for cell in cells:
        if cell.cell_id in broken:
            yield failed_row(cell, broken[cell.cell_id])
    groups = _groups([c for c in cells if c.cell_id not in broken])
    with Worker(logs) as worker, Progress(sum(map(len, groups)) if show else 0, "measure") as progress:
        for group in groups:
            for row in worker.evaluate(group, policy):
                progress.step(note=f"{row['variant']} {row['status']}")
                yield row
            if group[0].toolchain:  # flags such as -ffast-math may change the arithmetic of the whole process
                worker.renew()


def _build_phase(cells: list[Cell], show: bool) -> dict[str, Exception]:
    """Compile all that the cells need before anything is measured; the error of each cell that could not be."""
    todo = [c for c in cells if _can_be_tried(c)]
    builds = [b for c in todo for b in needed_builds(c)]
    errors: dict[Any, Exception] = {}
    with Progress(build.count(builds) if show else 0, "build") as progress:
        for cell, outcome in build.build_all(builds):
            progress.step(note=cell.variant)
            if isinstance(outcome, Exception):
                errors[build.build_key(cell)] = outcome
    found = {c.cell_id: [errors.get(build.build_key(b)) for b in needed_builds(c)] for c in todo}
    return {cell_id: next(e for e in each if e) for cell_id, each in found.items() if any(each)}


def _can_be_tried(cell: Cell) -> bool:
    unsuited = variants.why_not(variants.get(cell.variant), cell.case, cell.backend, cell.tunables)
    return not unsuited and not backends.why_not_run(backends.get(cell.backend))


def _groups(cells: list[Cell]) -> list[list[Cell]]:
    """Cells of one case together; groups in an order that is random but always the same, so that drift hits no axis."""
    groups: dict[Any, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(cell.group_key, []).append(cell)
    shuffled = list(groups.values())
    random.Random(0).shuffle(shuffled)
    return shuffled


# --- a run on disk --------------------------------------------------------------------------------


def run_experiment(
    experiment: Experiment,
    backend: str | None = None,
    out: Path = Path("reports"),
    resume: Path | None = None,
    progress: bool = True,
) -> Path:
    """Run all cells of an experiment and return the run directory `out/<experiment>/<run_id>`.

    Every row is on disk before the next cell begins. `resume` is the directory of a run that was cut short: its rows
    stay, the rest is measured. `out/<experiment>/latest` points at the newest run.
    Raises StoreError when the directory cannot be written or read, or is of another experiment.
    """
    cells = experiment.cells(backend)
    run = _continued(resume, experiment) if resume else _new_run(out / experiment.name)
    rows_path = run / "rows.jsonl"
    done = {row["cell_id"] for row in results.read(rows_path)} if rows_path.exists() else set()
    _point_latest(run)
    record = _open_record(run, experiment, cells)
    _write_json(run / "run.json", record)

    def keep(row: Row) -> None:
        row["run_id"] = run.name
        results.append(rows_path, row)

    for name in dict.fromkeys(c.backend for c in cells):
        rest = [c for c in cells if c.backend == name and c.cell_id not in done]
        run_cells(rest, experiment.policy(name), experiment.name, keep, progress, run / "logs")
    _write_json(run / "run.json", record | {"finished": _now()})
    return run


def open_run(path: str | Path, out: Path = Path("reports")) -> Path:
    """The directory of a run, given as a path, as `<experiment>` (its latest) or as `<experiment>/<run_id>`.

    Raises StoreError, saying how to make one, when there is none.
    """
    for candidate in (Path(path), out / path, out / path / "latest"):
        if (candidate / "run.json").is_file():
            return candidate.resolve()
    raise StoreError(
        f"run {str(path)!r}: no run.json in it, nor below {out}; make one with `cc1d run experiments/quick.yaml`"
    )


def _continued(run: Path, experiment: Experiment) -> Path:
    """An earlier run, ready for more rows."""
    run = run.resolve()  # not the link `latest`, which is about to be moved
    try:
        name = json.loads((run / "run.json").read_text())["experiment"]
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise StoreError(f"resume {run}: run.json does not say of which experiment it is ({e}); begin a new run") from e
    if name != experiment.name:
        raise StoreError(f"resume {run}: it is a run of {name!r}, not of {experiment.name!r}; name another run")
    if (run / "rows.jsonl").exists():
        results.cut_torn_line(run / "rows.jsonl")
    return run


def _new_run(parent: Path) -> Path:
    run = parent / f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
    try:
        run.mkdir(parents=True)
    except OSError as e:
        raise StoreError(f"{run}: cannot be made: {e.strerror}; choose another place with --out") from e
    return run


def _point_latest(run: Path) -> None:
    """Move the link in one step: whoever looks sees the old run or the new one."""
    temporary = run.parent / f".latest-{run.name}"
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(run.name)
    os.replace(temporary, run.parent / "latest")


def _open_record(run: Path, experiment: Experiment, cells: list[Cell]) -> dict[str, Any]:
    names = list(dict.fromkeys(c.backend for c in cells))
    return {
        "run_id": run.name,
        "experiment": experiment.name,
        "started": _now(),
        "finished": None,
        "cells": len(cells),
        "backend": names,
        "policy": {name: dataclasses.asdict(experiment.policy(name)) for name in names},
        "notebooks": experiment.notebooks,
        "yaml": experiment.path.read_text() if experiment.path else "",
        **fingerprint(names),
    }


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def _write_json(path: Path, value: Any) -> None:
    files.write(path, json.dumps(value, indent=1, default=str))

"""A run directory -> executed notebooks, their HTML, figures and index.html."""

from __future__ import annotations

import concurrent.futures
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..errors import Cc1dError, NotebookError
from ..paths import notebooks_dir
from ..results import load_rows
from . import page
from .execute import execute, prepare
from .export import export

NOTEBOOKS = ("10_validate", "20_throughput", "30_error")
SIDE_BY_SIDE = 3
Note = Callable[[str], object]


@dataclass(frozen=True)
class Outcome:
    """How a notebook ended. `error` is '' when it reached its last cell; `html` is relative to the run, '' for none."""

    name: str
    seconds: float
    error: str = ""
    html: str = ""


def render_report(run_dir: str | Path, progress: Note | None = None, timeout_s: float = 300.0) -> Path:
    """Execute the notebooks on the rows of `run_dir`, export them, write `index.html`, and return its path.

    `progress` is called with a line of text at each step. `timeout_s` limits each cell of a notebook.
    A notebook that fails does not keep the page from being written, with a note of it; then NotebookError is raised.
    StoreError: no rows.jsonl, or the disk refuses.
    """
    run, note = Path(run_dir).resolve(), progress or (lambda _line: None)
    rows, info = load_rows(run), page.read_info(run)
    prepare()
    # Threads, not processes: each waits for its kernel. They live as long as the kernels, which die with them.
    with concurrent.futures.ThreadPoolExecutor(SIDE_BY_SIDE, thread_name_prefix="notebook") as pool:
        waiting = [pool.submit(_one, run, name, timeout_s, note) for name in _wanted(info)]
        try:
            figures = page.draw(rows, run / "figures")
            outcomes = [job.result() for job in waiting]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    index = page.write_index(run, rows, info, figures, outcomes)
    note(f"page: {index}")
    failures = [outcome.error for outcome in outcomes if outcome.error]
    if failures:
        raise NotebookError("; ".join(failures) + f"; the page was made all the same: {index}")
    return index


def _wanted(info: page.Info) -> list[str]:
    """The notebooks that the experiment asks for, of those that there are; else the usual ones."""
    given = info.get("notebooks")
    shipped = {path.stem for path in notebooks_dir().glob("*.ipynb")}
    return [name for name in given if name in shipped] if isinstance(given, list) and given else list(NOTEBOOKS)


def _one(run: Path, name: str, timeout_s: float, note: Note) -> Outcome:
    """Execute and export one notebook. Nothing is raised for what goes wrong with it."""
    start, folder = time.monotonic(), run / "notebooks"
    target, error, html = folder / f"{name}.ipynb", "", ""
    try:
        # The run is named relative to the notebook's folder, so that the executed notebook runs again where it lies.
        execute(notebooks_dir() / target.name, target, {"run": ".."}, timeout_s)
    except Cc1dError as e:
        error = str(e)
    except Exception as e:  # whatever a damaged notebook does, the page is still made
        error = f"{target.name}: {type(e).__name__}: {e}"
    try:
        html = str(export(target, target.with_suffix(".html")).relative_to(run))
    except Exception as e:
        error = error or f"{target.name}: no HTML: {type(e).__name__}: {e}"
    note(f"notebook {name}: {error or 'done'}")
    return Outcome(name, time.monotonic() - start, error, html)

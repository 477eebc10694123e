"""What the notebooks call: rows of a run or of a fresh measurement, tables and charts on show, the completion mark."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import paths, plots, tables
from .errors import ConfigError, StoreError
from .results import load_rows

if TYPE_CHECKING:
    import pandas as pd
    from IPython.display import HTML
    from matplotlib.figure import Figure

NONCE = "CC1D_NOTEBOOK_NONCE"  # set by the report; its value comes back in the mark
MARK = "application/vnd.cc1d.completed+json"
MOST_ROWS = 200  # of a table on show


def rows_for(
    run: str | Path | None = None, experiment: str | Path = "quick", backend: str | None = None
) -> pd.DataFrame:
    """The rows of `run`, or, when it is None, of measuring `experiment` here and now.

    `run`: a run directory, or its name below reports/, such as `quick/latest`; no device is needed.
    `experiment`: the name of one of ours, or a YAML file, looked for from the working directory and then from the
    checkout. `backend`: amd, nvidia or cpu; None takes what the run or the experiment has.
    Raises StoreError for a run that is not there, ConfigError for an unknown experiment or backend.
    """
    rows = _measure(experiment, backend) if run is None else load_rows(find_run(run))
    if backend is None:
        return rows
    mine = rows[rows["backend"] == backend]
    if mine.empty:
        there = ", ".join(sorted(set(rows["backend"].dropna()))) or "no rows"
        raise ConfigError(f"backend: {run or experiment} has no rows of {backend!r}; it has {there}")
    return mine.reset_index(drop=True)


def find_run(run: str | Path) -> Path:
    """The run directory called `run`. Raises StoreError that says where it was looked for and how to make it."""
    places = [Path(run).expanduser(), Path("reports", run)]
    places += [root / "reports" / run] if (root := paths.checkout()) else []
    for place in places:
        if (place / "rows.jsonl").is_file():
            return place
    tried = ", ".join(str(place) for place in places)
    raise StoreError(
        f"run: {str(run)!r} has no rows.jsonl (looked in {tried}); make one with `cc1d run experiments/quick.yaml`,"
        " or set run = None to measure here"
    )


def find_experiment(experiment: str | Path) -> str | Path:
    """A path from the working directory or from the checkout, or the name as it stands."""
    path = Path(experiment)
    if path.suffix not in (".yaml", ".yml") or path.is_absolute() or path.exists():
        return experiment
    below = [root / path for root in (paths.checkout(), paths.experiments_dir().parent) if root]
    return next((candidate for candidate in below if candidate.is_file()), experiment)


def backend_here() -> str:
    """The first backend that can run on this machine: amd, nvidia, or else cpu."""
    from . import backends

    usable = [name for name in ("amd", "nvidia") if not backends.why_not_run(backends.get(name))]
    return usable[0] if usable else "cpu"


def _measure(experiment: str | Path, backend: str | None) -> pd.DataFrame:
    from .experiment import load
    from .runner import run_experiment

    loaded = load(find_experiment(experiment))
    with tempfile.TemporaryDirectory(prefix="cc1d-run-") as folder:
        return load_rows(run_experiment(loaded, backend, out=Path(folder), progress=False))


def about(rows: pd.DataFrame) -> HTML:
    """What the rows are, in words: how many cells, how they ended, on what device."""
    level, found = tables.verdict(rows)
    return _html(f'<div class="verdict {level}">{_paragraphs(found)}</div>')


def sentences(lines: Iterable[str]) -> HTML:
    """Lines of text as paragraphs, escaped."""
    return _html(_paragraphs(lines))


def _paragraphs(lines: Iterable[str]) -> str:
    return "".join(f"<p>{_escape(line)}</p>" for line in lines)


def show(figure: Figure, dpi: int = 144) -> None:
    """Display a chart, at its own size on screens of any density."""
    import base64

    from IPython.display import display

    data = {
        "image/png": base64.b64encode(plots.to_png(figure, dpi)).decode(),
        "text/plain": f"chart: {figure.get_label()}",
    }
    looks = {"width": round(float(figure.get_size_inches()[0]) * 80), "alt": str(figure.get_label())}
    display(data, metadata={"image/png": looks}, raw=True)


def table(frame: pd.DataFrame, caption: str = "") -> HTML:
    """A DataFrame as an HTML table: three significant digits, a dash for what was not measured, text escaped."""
    shown = frame.head(MOST_ROWS).astype(object).map(_cell)
    shown.columns = [str(name).replace("_", " ") for name in shown.columns]
    rest = f" (first {MOST_ROWS} of {len(frame)} rows)" if len(frame) > MOST_ROWS else ""
    title = f"<p><b>{_escape(caption + rest)}</b></p>" if caption or rest else ""
    body = shown.to_html(index=False, escape=True, border=0) if len(frame) else "<p>No rows.</p>"
    return _html(title + body)


def _cell(value: Any) -> str:
    return tables.number(value) if value is None or isinstance(value, float) else str(value)


def row(rows: pd.DataFrame) -> HTML:
    """One row, column by column, with what each column means; columns that were not measured are left out."""
    import pandas as pd

    from .case import CASE_FIELDS
    from .results import COLUMNS

    values = rows.iloc[0]
    seen = [name for name in COLUMNS if name not in CASE_FIELDS and tables.text(values[name])]
    records = [("(case)", tables.configuration(values), "batch x dim x seqlen x width and the rest of the problem")]
    records += [(name, _cell(values[name])[:80], COLUMNS[name]) for name in seen]
    return table(pd.DataFrame(records, columns=["column", "value", "meaning"]))


def variants() -> pd.DataFrame:
    """The registry as a table: what can be compared, and what each takes."""
    import pandas as pd

    from .variants import VARIANTS

    records = [
        (v.name, v.kind, v.summary, ", ".join(v.dtypes), ", ".join(v.layouts), f"{v.widths[0]} to {v.widths[1]}")
        for v in VARIANTS.values()
        if v.kind != "helper"
    ]
    return pd.DataFrame(records, columns=["variant", "kind", "idea", "dtypes", "layouts", "widths"])


def plan(experiment: str | Path = "quick", backend: str | None = None) -> pd.DataFrame:
    """What an experiment would measure here: number of cells by variant and dtype. Nothing is measured."""
    import pandas as pd

    from .experiment import load

    cells = load(find_experiment(experiment)).cells(backend)
    frame = pd.DataFrame([(c.variant, c.backend, c.case.dtype) for c in cells], columns=["variant", "backend", "dtype"])
    counts = frame.groupby(["variant", "backend", "dtype"], sort=False).size()
    return counts.unstack(fill_value=0).reset_index()


def source(variant: str) -> Any:
    """The text of a variant's kernel, with HIP's colours where the notebook can show them."""
    from IPython.display import Markdown

    from .variants import get

    entry = get(variant)
    if entry.source is None:
        raise ConfigError(f"variant: {variant!r} is a baseline of torch and has no kernel of ours")
    return Markdown(f"~~~~cpp\n{(paths.kernels_dir() / entry.source).read_text()}\n~~~~")


def completed() -> None:
    """Leave the mark that the last cell was reached. The report accepts a notebook only with this mark."""
    from IPython.display import display

    mark = {"completed": True, "nonce": os.environ.get(NONCE, "")}
    display({MARK: mark, "text/plain": "The notebook ran to its end."}, raw=True)


def _html(text: str) -> HTML:
    from IPython.display import HTML

    return HTML(text)


def _escape(text: str) -> str:
    import html

    return html.escape(text)

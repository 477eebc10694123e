"""index.html: one file that needs nothing else. Text comes from rows and run.json and is escaped by the template."""

from __future__ import annotations

import base64
import json
import urllib.parse
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .. import __version__, plots, shares, tables
from ..files import write
from ..matrix_work import matrix_work
from ..variants import VARIANTS

if TYPE_CHECKING:
    import pandas as pd

TEMPLATES = Path(__file__).resolve().parent.parent / "templates"
SVG_ROWS = 60  # a line chart of more rows is smaller as PNG
MOST_ROWS = 400  # of a table
Info = dict[str, Any]


@dataclass(frozen=True)
class Picture:
    """A chart in the page: what it shows, of which device, and its bytes as a data URI."""

    title: str
    device: str
    caption: str
    uri: str
    width: int


class Column(NamedTuple):
    """A column of a table in the page: its key in the frame, its heading, how a value is written, its CSS class."""

    key: str
    heading: str
    write: Callable[[Any], str] = tables.text
    css: str = ""


# ---- what the run says of itself


def read_info(run: Path) -> Info:
    """run.json, or nothing when it is missing or damaged: the page is made from what there is."""
    try:
        info = json.loads((run / "run.json").read_text())
    except (OSError, ValueError):
        return {}
    return info if isinstance(info, dict) else {}


def pairs(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Nested values as a flat list of name and text: {'a': {'b': 1}} gives [('a.b', '1')]."""
    if isinstance(value, dict):
        return [
            pair for key, inner in value.items() for pair in pairs(inner, f"{prefix}.{key}" if prefix else str(key))
        ]
    if isinstance(value, list):
        return [(prefix, " ".join(map(str, value)))]
    return [] if value is None else [(prefix, str(value))]


def _environment(info: Info) -> list[tuple[str, str, str]]:
    """(name, value, origin) of each setting; a plain value has no origin."""
    found = info.get("environment")
    settings = found.items() if isinstance(found, dict) else ()
    return [
        (str(name), tables.text(v.get("value")), tables.text(v.get("origin")))
        if isinstance(v, dict)
        else (str(name), str(v), "")
        for name, v in settings
    ]


# ---- charts

# name, chart, caption, and the column without which there is nothing to draw
_CHARTS: tuple[tuple[str, Callable[[pd.DataFrame], Any], str, str], ...] = (
    (
        "share_of_copy",
        plots.share_of_copy,
        "Time of the faster copy of as many bytes, measured in the same rounds, over the time of the variant.",
        "pct_copy",
    ),
    (
        "throughput",
        plots.throughput,
        "Bytes counted from the case (x read once, out written once, weight and bias read once) over the median time.",
        "status",
    ),
    (
        "error",
        plots.error,
        "Above: the largest error of a case as a share of the bound that it must keep. Below: the rms error in units in"
        " the last place of the output type. F.conv1d is judged by the same oracle and bound.",
        "status",
    ),
    (
        "error_vs_throughput",
        plots.error_vs_throughput,
        "Precision bought or sold for speed: a point per variant and case.",
        "status",
    ),
    ("status", plots.status_matrix, "Every cell of the run: what ended how.", "status"),
    ("stages", plots.stages, "Pipelines of several kernels: where the device time goes.", "stage_us"),
    (
        "pipeline",
        plots.pipeline,
        "From host to host: the time of each stage of S2's program, as it stands and with its proposals.",
        "program",
    ),
)


def draw(rows: pd.DataFrame, folder: Path) -> list[Picture]:
    """All charts, for each device its own, also written to `folder` as files."""
    pictures = []
    places = tables.families(rows, ("backend", "arch", "device"))
    for number, (_, part) in enumerate(places):
        suffix = f"-{number}" if len(places) > 1 else ""
        for name, chart, caption, needed in _CHARTS:
            drawn = part if needed == "program" else part[part["program"].isna()]
            if drawn[needed].notna().any():
                pictures.append(_picture(drawn, chart, caption, folder / f"{name}{suffix}"))
    return pictures


def _picture(part: pd.DataFrame, chart: Callable[[pd.DataFrame], Any], caption: str, path: Path) -> Picture:
    figure = chart(part)
    small = len(part) <= SVG_ROWS and path.name.startswith("throughput")
    data = plots.to_svg(figure) if small else plots.to_png(figure)
    write(path.with_suffix(".svg" if small else ".png"), data)
    kind = "svg+xml" if small else "png"
    uri = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    width = round(figure.get_size_inches()[0] * 88)
    return Picture(str(figure.get_label()), tables.device_name(part.iloc[0]), caption, uri, width)


# ---- tables


def _percent(value: Any) -> str:
    return f"{float(value):.0f} %" if tables.known(value) else "–"


def _count(value: Any) -> str:
    return str(int(value)) if tables.known(value) and value else "–"


_SUMMARY = (
    Column("variant", "variant", css="name"),
    Column("dtype", "dtype"),
    Column("layout", "layout"),
    Column("ok", "ok", _count, "n s-ok"),
    Column("wrong", "wrong", _count, "n s-bad"),
    Column("unsupported", "unsupported", _count, "n"),
    Column("failed", "failed", _count, "n s-bad"),
    Column("bound_ratio", "worst error / bound", tables.number, "n"),
    Column("time_us", "median time (µs)", tables.number, "n"),
    Column("gbps", "GB/s", tables.number, "n"),
)
_SPEEDUP = (
    Column("configuration", "configuration"),
    Column("variant", "variant", css="name"),
    Column("time_us", "time (µs)", tables.number, "n"),
    Column("torch_us", "PyTorch (µs)", tables.number, "n"),
    Column("speedup", "speed-up", tables.number, "n"),
    Column("std_pct", "std dev (%)", tables.number, "n"),
    Column("correct", "correct"),
)
_RATIOS = (
    Column("configuration", "configuration"),
    Column("variant", "variant", css="name"),
    Column("time_us_p50", "time (µs)", tables.number, "n"),
    Column("pct_copy", "% of copy", _percent, "n"),
    Column("noise_pct", "A/A (%)", tables.number, "n"),
    Column("flags", "doubtful"),
)
_MATRIX = (
    Column("configuration", "configuration"),
    Column("variant", "variant", css="name"),
    Column("time_us", "time (µs)", tables.number, "n"),
    Column("useful_gflop", "useful GFLOP", tables.number, "n"),
    Column("issued_gflop", "issued GFLOP", tables.number, "n"),
    Column("issued_per_useful", "issued / useful", tables.number, "n"),
    Column("im2col_mb", "im2col (MB)", tables.number, "n"),
    Column("workspace_mb", "workspace (MB)", tables.number, "n"),
    Column("moved_mb", "must move (MB)", tables.number, "n"),
)
_PROGRAMS = (
    Column("configuration", "case"),
    Column("program", "program", css="name"),
    Column("time_ms", "median time (ms)", tables.number, "n"),
    Column("times_faster", "times faster than naive", tables.number, "n"),
    Column("clearly", "clearly"),
    Column("status", "status"),
)
_REASONS = (
    Column("status", "status", lambda v: tables.text(v).replace("_", " ")),
    Column("cells", "cells", _count, "n"),
    Column("variants", "variants", css="name"),
    Column("reason", "reason", css="wide"),
)
_WRONG = (
    Column("variant", "variant", css="name"),
    Column("configuration", "configuration"),
    Column("bound_ratio", "worst error / bound", tables.number, "n"),
    Column("max_abs_err", "largest error", tables.number, "n"),
    Column("n_bad", "bad outputs", _count, "n"),
    Column("first_bad", "first bad [batch, dim, seqlen]", css="name"),
    Column("probes_failed", "probes failed"),
    Column("reason", "reason", css="wide"),
)


def _table(frame: pd.DataFrame, columns: Sequence[Column], link: str = "") -> dict[str, Any]:
    """What the template's table macro takes. `link` names a column with a path relative to the run."""
    lines = [
        {
            "cells": [(column.write(row[column.key]), _css(column, row)) for column in columns],
            "link": _safe_link(row[link]) if link else "",
        }
        for _, row in frame.head(MOST_ROWS).iterrows()
    ]
    return {
        "columns": [(c.heading, "n" if c.css.startswith("n ") or c.css == "n" else "") for c in columns],
        "lines": lines,
        "rest": max(0, len(frame) - MOST_ROWS),
        "linked": bool(link) and any(line["link"] for line in lines),
    }


def _css(column: Column, row: Any) -> str:
    """The classes of a cell; a count of nothing is grey, whatever its column says."""
    return "n s-none" if column.write is _count and not row[column.key] else column.css


def _safe_link(path: Any) -> str:
    """A relative path below the run as a link, or '' for anything else."""
    given = tables.text(path)
    parts = Path(given).parts
    if not given or Path(given).is_absolute() or ".." in parts or any(ord(c) < 32 for c in given):
        return ""
    return "./" + urllib.parse.quote(given)


def _summaries(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """A summary per device; the share of the copy is a column on a GPU only."""
    parts = tables.families(rows, ("backend", "arch", "device"))
    return [
        {
            "device": tables.device_name(part.iloc[0]),
            "emulated": tables.emulated(part),
            "summary": _summary(part),
            "speedup": _table(tables.speedup_table(part), _speedup_columns(part)),
            "ratios": _ratios(part),
            "matrix": _table(matrix_work(part), _MATRIX),
        }
        for _, part in parts
    ]


def _ratios(part: pd.DataFrame) -> dict[str, Any]:
    """Each kernel against the copy and each baseline that was timed."""
    frame = tables.ratios(part)
    names = [name for name in frame.columns if name in VARIANTS]
    columns = [Column(name, f"{name} takes (times)", tables.number, "n") for name in names]
    return _table(frame, [*_RATIOS[:4], *columns, *_RATIOS[4:]])


def _summary(part: pd.DataFrame) -> dict[str, Any]:
    if part["program"].notna().all():
        return _table(shares.gains(part), _PROGRAMS)
    return _table(tables.summary(part), _summary_columns(part))


def _summary_columns(part: pd.DataFrame) -> list[Column]:
    gpu = not tables.emulated(part)
    return [*_SUMMARY, Column("pct_copy", "% of copy", _percent, "n")] if gpu else list(_SUMMARY)


def _speedup_columns(part: pd.DataFrame) -> list[Column]:
    return [c for c in _SPEEDUP if c.key != "speedup" or not tables.emulated(part)]


# ---- the page


def write_index(run: Path, rows: pd.DataFrame, info: Info, pictures: list[Picture], outcomes: Iterable[Any]) -> Path:
    """Write index.html as a whole and return its path. Raises StoreError when the disk refuses."""
    import jinja2

    loader = jinja2.FileSystemLoader(TEMPLATES)
    # Undefined names are errors: a template that prints nothing for a typing mistake hides it.
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    text = environment.get_template("index.html.j2").render(_context(run, rows, info, pictures, list(outcomes)))
    return write(run / "index.html", text)


def _context(run: Path, rows: pd.DataFrame, info: Info, pictures: list[Picture], outcomes: list[Any]) -> dict[str, Any]:
    level, sentences = tables.verdict(rows)
    return {
        "title": tables.text(info.get("experiment")) or run.parent.name,
        "run_id": tables.text(info.get("run_id")) or run.name,
        "started": tables.text(info.get("started")),
        "finished": tables.text(info.get("finished")),
        "version": __version__,
        "level": level,
        "sentences": sentences,
        "banner": tables.CPU_BANNER if tables.emulated(rows) else "",
        "unfinished": _unfinished(rows, info),
        "baseline": tables.baseline_sentence(rows),
        "outcomes": outcomes,
        "devices": _summaries(rows),
        "programs": bool(len(rows)) and bool(rows["program"].notna().all()),
        "pictures": pictures,
        "wrong": _table(tables.wrong(rows), _WRONG),
        "reasons": _table(tables.reasons(rows), _REASONS, link="log"),
        "caveats": _caveats(rows),
        **_provenance(info),
    }


def _unfinished(rows: pd.DataFrame, info: Info) -> str:
    """What is missing from a run that was cut short, or ''."""
    cells = info.get("cells")
    if info.get("finished") or not isinstance(cells, int) or len(rows) >= cells:
        return ""
    there = f"{len(rows)} of its {cells} cells are here"
    return f"This run was cut short: {there}. `cc1d run EXPERIMENT --resume` goes on with it."


def _caveats(rows: pd.DataFrame) -> list[tuple[str, str]]:
    found = rows[["variant", "caveat"]].dropna().drop_duplicates()
    return [(str(row["variant"]), str(row["caveat"])) for _, row in found.iterrows() if row["caveat"]]


def _provenance(info: Info) -> dict[str, Any]:
    sections = ("git", "devices", "platform", "compilers", "packages", "policy")
    return {
        "settings": _environment(info),
        "facts": [(name, found) for name in sections if (found := pairs(info.get(name), ""))],
        "yaml": tables.text(info.get("yaml")),
    }

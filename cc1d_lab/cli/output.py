"""What the verbs print: tables, JSON, and what a set of rows means as an exit code."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from .. import tables, variants
from ..case import CASE_FIELDS
from ..results import STATUSES, Row, believable

COLOURS = {"ok": "green", "wrong": "red", "unsupported": "bright_black"}  # all others: yellow
# The first status that a row has decides.
CODES = {"wrong": 1, "crashed": 4, "timeout": 4, "launch_failed": 4, "build_failed": 3, "ok": 0}
NOTHING_MEASURED = 5


def exit_code(rows: Iterable[Row]) -> int:
    """1 when a row is wrong, 4 when a worker died, 3 when a build failed, 5 when nothing was measured, else 0."""
    found = {row["status"] for row in rows}
    return next((code for status, code in CODES.items() if status in found), NOTHING_MEASURED)


def counts(rows: Iterable[Row]) -> str:
    """`12 ok, 1 wrong`: the rows by status, in the order of severity that `results` has."""
    found = Counter(row["status"] for row in rows)
    return ", ".join(f"{found[status]} {status}" for status in STATUSES if found[status]) or "no rows"


def echo_json(data: Any) -> None:
    """JSON on stdout."""
    click.echo(json.dumps(data, indent=1, allow_nan=False, default=str))


def echo_table(header: Sequence[str], lines: Iterable[Sequence[Any]]) -> None:
    """Aligned columns; numbers to the right; a status in its colour."""
    texts = [[_text(value) for value in line] for line in lines]
    widths = [max(len(name), *(len(t[i]) for t in texts), 0) for i, name in enumerate(header)]
    right = [_is_number_column([t[i] for t in texts]) for i in range(len(header))]
    for line in [list(header), *texts]:
        cells = [t.rjust(w) if r else t.ljust(w) for t, w, r in zip(line, widths, right, strict=True)]
        click.echo("  ".join(_coloured(cell) for cell in cells).rstrip())


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return tables.number(value)
    if isinstance(value, list):
        value = ", ".join(map(str, value))
    return printable(str(value))


def printable(text: str) -> str:
    """`text` without what could steer a terminal: rows and logs may hold anything."""
    return "".join(c if c.isprintable() else " " for c in text)


def _is_number_column(texts: list[str]) -> bool:
    values = [t for t in texts if t != "-"]
    return bool(values) and all(t.replace(".", "").replace("e", "").strip("+-0123456789 ") == "" for t in values)


def _coloured(cell: str) -> str:
    status = cell.strip()
    return click.style(cell, fg=COLOURS.get(status, "yellow")) if status in STATUSES else cell


def echo_reasons(rows: Iterable[Row]) -> None:
    """Why rows are not ok, once per reason."""
    why: dict[tuple[str, str, str], int] = Counter(
        (row["status"], row["variant"], row["reason"] or "no reason given") for row in rows if row["status"] != "ok"
    )
    for (status, variant, reason), times in why.items():
        often = f" ({times} cells)" if times > 1 else ""
        click.echo(f"{printable(variant)}: {_coloured(status)}{often}: {printable(reason)}")


def show_path(path: Path) -> str:
    """A path as a user would type it from here."""
    absolute = path.absolute()
    return str(absolute.relative_to(Path.cwd())) if absolute.is_relative_to(Path.cwd()) else str(absolute)


def columns(rows: Iterable[Row], names: Mapping[str, str]) -> list[list[Any]]:
    """The values of `names` (column of a row: heading), row by row."""
    return [[row.get(name) for name in names] for row in rows]


def gains(rows: Sequence[Row]) -> Iterator[str]:
    """A line per case: the fastest kernel with its tunables, its time, and how far the default choice is behind."""
    cases: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        if row["kind"] == "kernel" and believable(row):
            cases.setdefault(tuple(row[name] for name in CASE_FIELDS), []).append(row)
    for found in cases.values():
        best = min(found, key=lambda r: r["time_us_p50"])
        usual = [r for r in found if r["tunables"] == tables.usual_tunables(r)]
        default = max(usual, key=lambda r: variants.get(r["variant"]).rank_for(r["width"]), default=None)
        knobs = " ".join(f"{k}={v}" for k, v in best["tunables"].items())
        gain = f"{100 * (default['time_us_p50'] / best['time_us_p50'] - 1):.1f} % over the default" if default else ""
        shape = f"{best['batch']}x{best['dim']}x{best['seqlen']}x{best['width']} {best['dtype']} {best['layout']}"
        yield f"{shape:44s} {best['variant']} {knobs}  {best['time_us_p50']:.2f} us  {gain}".rstrip()

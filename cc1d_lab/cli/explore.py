"""Verbs that look: doctor, list, show, clean."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from .. import backends, build, experiment, machine_code, profiler, results, rocm, shares, tables, variants
from ..errors import Cc1dError, StoreError, ToolchainError, nearest, one_of
from ..provenance import HONOURED
from ..results import Row
from . import output

json_option = click.option("--json", "as_json", is_flag=True, help="As JSON on stdout.")


@click.command()
@json_option
def doctor(as_json: bool) -> int:
    """What works here, what does not, and the remedy. Exit code 3 when no backend can run."""
    found: dict[str, Any] = {
        "python": {"version": platform.python_version(), "path": sys.executable},
        "backends": [_examine(b) for b in backends.BACKENDS.values()],
        "rocm": rocm.examine(),
        "tools": _tools(),
        "cache": _cache(),
        "environment": _environment(),
        "packages": _packages(),
    }
    if as_json:
        output.echo_json(found)
    else:
        _print_doctor(found)
    return 0 if any(b["can_run"] for b in found["backends"]) else 3


def _examine(backend: backends.Backend) -> dict[str, Any]:
    no_build, no_run = backend.can_build(), backends.why_not_run(backend)
    return {
        "name": backend.name,
        "can_build": not no_build,
        "can_run": not no_run,
        "compiler": None if no_build else backend.compiler(),
        "version": None if no_build else _try(backend.version),
        "arch": None if no_build else _try(backend.default_arch),
        "device": None if no_run else _try(backend.device_name),
        "remedy": no_build or no_run or None,
    }


def _try(function: Callable[[], Any]) -> Any:
    """A doctor names what is broken instead of stopping at it."""
    try:
        return function()
    except (Cc1dError, OSError, RuntimeError) as e:
        return f"error: {e}"


def _tools() -> list[dict[str, Any]]:
    """What the verbs that look at machine code and at a running GPU need, and where it is."""
    found = []
    for verb, find in (("inspect", machine_code.disassembler), ("profile", profiler.tool_of)):
        for backend in ("amd", "nvidia"):
            path = remedy = None
            try:
                path = find(backend)
            except ToolchainError as e:
                remedy = str(e)
            found.append({"verb": verb, "backend": backend, "path": path, "remedy": remedy})
    return found


def _cache() -> dict[str, Any]:
    size = _try(build.cache_size)
    return {"path": str(_try(build.cache_dir)), "bytes": size if isinstance(size, int) else None}


def _environment() -> list[dict[str, Any]]:
    known = [
        {"name": name, "value": os.environ.get(name), "origin": "environment" if name in os.environ else "default",
         "meaning": meaning}
        for name, meaning in HONOURED.items()
    ]  # fmt: skip
    foreign = sorted(n for n in os.environ if n.startswith("CC1D_") and n not in HONOURED)
    return known + [
        {"name": n, "value": os.environ[n], "origin": "environment", "meaning": f"not known{nearest(n, HONOURED)}"}
        for n in foreign
    ]


def _packages() -> dict[str, str | None]:
    """Versions of what this distribution requires, from its metadata."""
    try:
        required = importlib.metadata.requires("cc1d_lab") or []
    except importlib.metadata.PackageNotFoundError:
        required = ["click", "numpy", "pandas", "pydantic", "PyYAML", "torch"]  # run from a checkout, not installed
    names = [re.split(r"[^A-Za-z0-9_.-]", r)[0] for r in required if "extra ==" not in r]
    return {name: _version(name) for name in sorted(names, key=str.lower)}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _print_doctor(found: dict[str, Any]) -> None:
    click.echo(f"python {found['python']['version']}  {found['python']['path']}\n")
    for b in found["backends"]:
        click.echo(f"{b['name']}: {'runs' if b['can_run'] else 'builds only' if b['can_build'] else 'not available'}")
        for key in ("compiler", "version", "arch", "device", "remedy"):
            if b[key]:
                click.echo(f"  {key:9} {output.printable(str(b[key]))[:160]}")
    _print_rocm(found["rocm"])
    click.echo("\ntools")
    for t in found["tools"]:
        click.echo(f"  {t['verb']} {t['backend']:7} {output.printable(t['path'] or t['remedy'])[:160]}")
    size = found["cache"]["bytes"]
    click.echo(f"\ncache: {found['cache']['path']}, {'unknown size' if size is None else megabytes(size)}\n")
    environment = [[e["name"], e["value"], e["origin"], e["meaning"]] for e in found["environment"]]
    output.echo_table(("variable", "value", "from", "when not set"), environment)
    click.echo("")
    output.echo_table(("package", "version"), [[n, v or "missing"] for n, v in found["packages"].items()])


def _print_rocm(found: dict[str, Any]) -> None:
    click.echo("\nrocm: what is here, and what keeps the amd backend from a GPU")
    for key in ("hipcc", "rocm", "torch", "torch_hip", "devices", "visible"):
        told = ", ".join(found[key]) if isinstance(found[key], list) else found[key]
        click.echo(f"  {key:9} {output.printable(told or 'none')}")
    for problem in found["problems"]:
        click.echo(f"  - {output.printable(problem['what'])}\n      {output.printable(problem['remedy'])}")


def megabytes(size: int) -> str:
    """`1.5 MB`."""
    return f"{size / 1e6:.1f} MB"


@click.command("list")
@click.argument("what", type=click.Choice(("variants", "experiments", "backends", "all")), default="all")
@json_option
def list_(what: str, as_json: bool) -> None:
    """Name the variants, experiments and backends that there are."""
    listed = {name: _LISTS[name]() for name in (_LISTS if what == "all" else (what,))}
    if as_json:
        output.echo_json(listed if what == "all" else listed[what])
        return
    for i, (name, entries) in enumerate(listed.items()):
        click.echo(f"{'' if i == 0 else chr(10)}{name}")
        output.echo_table(list(entries[0]), [list(e.values()) for e in entries])


def _list_variants() -> list[dict[str, Any]]:
    return [
        {
            "name": v.name,
            "kind": v.kind,
            "dtypes": " ".join(v.dtypes),
            "layouts": " ".join(v.layouts),
            "widths": f"{v.widths[0]} to {v.widths[1]}",
            "tunables": " ".join(f"{k}={'|'.join(map(str, t.choices))}" for k, t in v.tunables.items()),
            "summary": v.summary,
        }
        for v in variants.VARIANTS.values()
        if v.kind != "helper"
    ]


def _list_experiments() -> list[dict[str, Any]]:
    loaded = [experiment.load(path) for path in experiment.shipped()]
    return [{"name": e.name, "cells": e.count(), "description": " ".join(e.description.split())} for e in loaded]


def _list_backends() -> list[dict[str, Any]]:
    # Whether it can run is doctor's: that takes an import of torch.
    return [
        {"name": b.name, "builds": not b.can_build(), "compiler": b.can_build() or b.compiler()}
        for b in backends.BACKENDS.values()
    ]


_LISTS = {"variants": _list_variants, "experiments": _list_experiments, "backends": _list_backends}
_SHOWN = {
    "variant": "variant",
    "backend": "backend",
    "case": "case",
    "status": "status",
    "bound_ratio": "err/bound",
    "time_us_p50": "us",
    "gbps": "GB/s",
    "pct_copy": "% copy",
}


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--status", help=f"Only rows of this status: {', '.join(results.STATUSES)}.")
@json_option
def show(run: Path, status: str | None, as_json: bool) -> int:
    """The rows of RUN as a table: a run directory, its rows.jsonl, or the name of an experiment below reports/."""
    wanted = one_of("status", status, results.STATUSES) if status else None
    rows = [row for row in read_rows(run) if wanted in (None, row["status"])]
    if as_json:
        output.echo_json(rows)
        return 0
    output.echo_table(list(_SHOWN.values()), output.columns([row | {"case": title(row)} for row in rows], _SHOWN))
    output.echo_reasons(rows)
    click.echo(output.counts(rows))
    return output.exit_code(rows)


def read_rows(run: Path) -> list[Row]:
    """Rows of a run directory, of a file, or of the latest run of an experiment. StoreError when there are none."""
    below = Path("reports") / run
    for path in (run / "rows.jsonl", run, below / "rows.jsonl", below / "latest" / "rows.jsonl"):
        if path.is_file():
            return results.read(path)
    raise StoreError(f"{run}: no rows.jsonl here; `cc1d run quick` makes reports/quick/latest")


def title(row: Row) -> str:
    """The case of a row, the tunables that are not the defaults, and what a scaled-down shape stands for."""
    scaled = f"(for {row['scaled_from']})" if row["scaled_from"] else ""
    program = shares.name(row) if row.get("program") else ""
    return " ".join(p for p in (tables.configuration(row), tables.knobs(row), scaled, program) if p)


@click.command()
@click.option("--failed", is_flag=True, help="Only what failed builds left behind.")
def clean(failed: bool) -> None:
    """Empty the build cache."""
    freed = build.clean(failed_only=failed)
    click.echo(f"freed {megabytes(freed)} in {build.cache_dir()}")


VERBS = (doctor, list_, show, clean)

"""The verb profile: one cell under the vendor's profiler, its times and its bottleneck, drawn."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .. import backends
from ..case import OPS
from ..cell import Cell
from ..errors import ConfigError, StoreError
from . import options, output
from .explore import json_option

if TYPE_CHECKING:
    from ..profiler import Profile

_HEADINGS = {"kernel": "kernel", "copy": "copy", "api": "API call"}


@click.command()
@options.cell_options
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of pictures and files. Default: below reports/profile.",
)
@click.option(
    "--read",
    "old",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Draw what an earlier call left there.",
)
@json_option
def profile(out: Path | None, old: Path | None, as_json: bool, **given: Any) -> int:
    """One cell under rocprofv3 (amd) or ncu (nvidia): time by kernel and by API call, and the bottleneck.

    Writes the profiler's files, profile.json and three pictures. Exit code 3 without the profiler, or without counters.
    """
    found = _read(old) if old else _measure(_cell(**given), out)
    _draw(found)
    if as_json:
        output.echo_json(found)
    else:
        _print(found)
    return 3 if found["missing"] else 0


def _cell(
    names: tuple[str, ...], where: tuple[str, ...], arch: str, toolchains: tuple[str, ...], knobs: Any, **case: Any
) -> Cell:
    """The one cell that is asked for."""
    from .. import profiler

    backend = where[0] if where else backends.first_runnable()
    profiler.check_backend(backend)
    if "all" in names or max(len(names), len(where), len(toolchains)) > 1:
        raise ConfigError("profile takes one cell: one --variant, and at most one --backend and one --toolchain")
    variant = options.select(names, OPS)[0]
    return options.cell(variant, backend, arch, toolchains[0], knobs, **case)


def _measure(cell: Cell, out: Path | None) -> dict[str, Any]:
    from .. import profiler

    folder = out or Path("reports", "profile", f"{cell.variant}-{cell.backend}")
    profiler.find(cell)
    options.require(cell.backend)
    found = profiler.profile(cell, folder)
    target = backends.get(cell.backend)
    where = {"backend": cell.backend, "arch": cell.arch or target.default_arch(), "device": target.device_name()}
    peak = profiler.peak_gbps(cell.backend)
    record = {"cell": asdict(cell), **where, "stated_gbps": peak, **_told(found, peak), "folder": str(folder)}
    (folder / "profile.json").write_text(json.dumps(record, indent=1) + "\n")
    return record


def _told(found: Profile, peak_gbps: float | None) -> dict[str, Any]:
    from .. import profiler

    waits = [asdict(b) for b in profiler.bottlenecks(found, peak_gbps)]
    return {"times": found.times(), "counters": found.counters, "bottlenecks": waits, "missing": list(found.missing)}


def _read(folder: Path) -> dict[str, Any]:
    """What `_measure` wrote, with times and counters read again from the profiler's own files."""
    from .. import profiler

    try:
        record = json.loads((folder / "profile.json").read_text())
        peak, missing = record["stated_gbps"], record["missing"]
    except FileNotFoundError as e:
        raise StoreError(f"{folder}: no profile.json in it: give a folder that `cc1d profile` wrote") from e
    except (OSError, ValueError, LookupError) as e:
        raise StoreError(f"{folder}: no profile.json of `cc1d profile` in it: {e}") from e
    return record | _told(profiler.read(folder), peak) | {"missing": missing, "folder": str(folder)}


def _draw(found: dict[str, Any]) -> None:
    import pandas as pd

    from .. import plots, profiler

    where = {name: found[name] for name in ("backend", "arch", "device")}
    times = pd.DataFrame(found["times"], columns=["what", "name", "calls", "total_us"]).assign(**where)
    waits = pd.DataFrame(found["bottlenecks"] or [{}]).assign(**where)
    figures = (
        plots.profile.device_times(times),
        plots.profile.api_times(times),
        plots.profile.bottlenecks(waits, profiler.LIMIT),
    )
    for name, figure in zip(profiler.PICTURES, figures, strict=True):
        Path(found["folder"], name).write_bytes(plots.to_png(figure))


def _print(found: dict[str, Any]) -> None:
    click.echo(f"{found['device']} ({found['backend']}, {found['arch']})\n")
    for what, heading in _HEADINGS.items():
        mine = [t for t in found["times"] if t["what"] == what]
        total = sum(t["total_us"] for t in mine) or 1.0
        lines = [[t["name"], t["calls"], t["total_us"], 100 * t["total_us"] / total] for t in mine]
        if lines:
            output.echo_table((heading, "calls", "us", "%"), lines)
            click.echo("")
    for wait in found["bottlenecks"]:
        click.echo(
            f"{wait['kernel']} waits for {wait['verdict']}: memory {wait['memory_pct']:.0f} % of peak, "
            f"arithmetic {wait['compute_pct']:.0f} %"
        )
    for reason in found["missing"]:
        click.echo(f"missing: {output.printable(reason)}")
    click.echo(f"pictures and files: {output.show_path(Path(found['folder']))}")


VERBS = (profile,)

"""Verbs that work: build, check, bench, run, report."""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import Any

import click

from .. import backends, experiment, programs, results, variants
from .. import build as builder
from ..case import DTYPES, LAYOUTS, OPS, Case
from ..cell import Cell
from ..errors import ConfigError, ToolchainError, one_of
from ..results import Row
from ..timing import POLICIES, Policy
from . import options, output
from .explore import json_option, title

UNTIMED = Policy(warmup=0, min_samples=1, max_samples=1, rel_err=0.0, budget_s=0.001)  # check is not after the time


@click.command()
@options.variant_option
@click.option("--backend", "where", multiple=True, help="Repeatable. Default: all that can build here.")
@options.arch_option
@click.option(
    "--dtype", "dtypes", callback=options.full_dtype, multiple=True, help="Repeatable. Default: all of the variant."
)
@click.option("--layout", "layouts", multiple=True, help="Repeatable. Default: all of the variant.")
@click.option("--width", type=int, default=4, show_default=True)
@click.option("--activation", default="silu", show_default=True)
@click.option("--states", is_flag=True, help="With initial and final states.")
@click.option("--seq-idx", is_flag=True, help="With several sequences packed in a row.")
@click.option("--jobs", type=click.IntRange(min=1), help="Compilers at once. Default: MAX_JOBS, else one per core.")
@click.option("--manifest", is_flag=True, help="amd: beside each ELF a JSON with its launches, and their arguments.")
@click.option("--batch", type=int, default=2, show_default=True, help="For --manifest, as dim, seqlen, no-bias are.")
@click.option("--dim", type=int, default=64, show_default=True)
@click.option("--seqlen", type=int, default=256, show_default=True)
@click.option("--no-bias", is_flag=True)
def build(
    names: tuple[str, ...], where: tuple[str, ...], jobs: int | None, manifest: bool, no_bias: bool, **given: Any
) -> int:
    """Compile variants, in parallel, into the cache. Exit code 1 when some fail, 3 when all do."""
    started, built, failed = time.monotonic(), 0, 0
    chosen = options.select(names, OPS)
    if manifest and set(where) != {"amd"}:
        raise ConfigError(f"--manifest: it describes AMD code objects, got backend {where or 'all'}: add --backend amd")
    reasons: dict[str, str] = {}
    cells = [c for b in where or _buildable() for c in _builds(chosen, b, reasons, **given, bias=not no_bias)]
    if not cells:
        raise variants.nothing("build", reasons)
    for cell, outcome in builder.build_all(cells, jobs):
        fine = isinstance(outcome, builder.Built)
        built, failed = built + fine, failed + (not fine)
        click.echo(_outcome(cell, outcome))
        if manifest and isinstance(outcome, builder.Built):
            click.echo(f"        {_manifest(cell, outcome)}")
    click.echo(f"built {built}, failed {failed}, in {time.monotonic() - started:.1f} s")
    return 0 if not failed else 1 if built else 3


def _buildable() -> list[str]:
    return [b.name for b in backends.BACKENDS.values() if not b.can_build()]


def _builds(
    chosen: list[variants.Variant],
    backend: str,
    reasons: dict[str, str],
    arch: str,
    dtypes: tuple[str, ...],
    layouts: tuple[str, ...],
    **case_fields: Any,
) -> list[Cell]:
    """What is to be built for one backend. Adds to `reasons` why a variant is left out."""
    reason = backends.get(backend).can_build()
    if reason:
        raise ToolchainError(f"backend {backend}: {reason}")

    def cases(variant: variants.Variant) -> list[Case]:
        wanted = itertools.product(dtypes or DTYPES, layouts or LAYOUTS)
        return [Case(dtype=d, layout=x, op=options.op_of(variant), **case_fields) for d, x in wanted]

    packed = case_fields["states"] or case_fields["seq_idx"]  # an update has neither
    taken, left_out = variants.takers([v for v in chosen if not (packed and v.op == "update")], backend, cases)
    reasons |= left_out
    arches = backends.arches(backend, [arch]) if arch else ("",)
    return [Cell(variant.name, backend, case, arch=one) for variant, case in taken for one in arches]


def _outcome(cell: Cell, outcome: builder.Built | Exception) -> str:
    case = cell.case
    what = " ".join(p for p in (cell.variant, cell.backend, cell.arch, case.dtype, case.layout) if p)
    if isinstance(outcome, builder.Built):
        seconds = f"{outcome.seconds:.1f} s" if outcome.seconds else "cached"
        return f"{click.style('ok', fg='green')}      {what}  {seconds}"
    return f"{click.style('failed', fg='red')}  {what}\n{outcome}"


def _manifest(cell: Cell, built: builder.Built) -> Path:
    from .. import manifest  # loads torch

    return manifest.write(cell, built)


_ERRORS = {
    "variant": "variant",
    "backend": "backend",
    "toolchain": "toolchain",
    "status": "status",
    "bound_ratio": "err/bound",
    "max_abs_err": "max abs",
    "max_rel_err": "max rel",
    "ulp_mean": "ulp mean",
    "ulp_rms": "ulp rms",
    "share_rounded": "rounded",
    "n_bad": "bad",
    "torch_max_abs_err": "F.conv1d max abs",
    "torch_ulp_rms": "F.conv1d ulp rms",
}


@click.command()
@options.cell_options
@json_option
def check(as_json: bool, **given: Any) -> int:
    """Validate variants on one case: against a float64 oracle, with integers, for causality, and beside F.conv1d."""
    rows = _run(options.cells(**given), UNTIMED)
    if as_json:
        output.echo_json(rows)
    else:
        click.echo(title(rows[0] | {"tunables": None, "layout": given["layout"] or ""}))
        shown = {k: v for k, v in _ERRORS.items() if k != "toolchain" or any(row["toolchain"] for row in rows)}
        output.echo_table(list(shown.values()), output.columns(rows, shown))
        output.echo_reasons(rows)
    return output.exit_code(rows)


_TIMES = {
    "variant": "variant",
    "backend": "backend",
    "layout": "layout",
    "status": "status",
    "time_us_p20": "us p20",
    "time_us_p50": "us p50",
    "time_us_p80": "us p80",
    "gbps": "GB/s",
    "pct_copy": "% copy",
    "copy_gbps": "copy GB/s",
    "noise_pct": "A/A %",
    "cache_state": "cache",
    "stop_reason": "stopped",
    "flags": "flags",
}


@click.command()
@options.cell_options
@click.option(
    "--policy",
    help=f"{', '.join(POLICIES)}; gpu: cold buffers, in graphs; s0: 10 warm-ups, 100 iterations. "
    "Default: cpu on cpu, else gpu.",
)
@json_option
def bench(as_json: bool, policy: str | None, **given: Any) -> int:
    """Validate variants on one case, then time those that are ok."""
    chosen = POLICIES[one_of("policy", policy, POLICIES)] if policy else None
    rows = _run(options.cells(**given), chosen)
    if as_json:
        output.echo_json(rows)
        return output.exit_code(rows)
    click.echo(title(rows[0] | {"tunables": None, "layout": given["layout"] or ""}))
    output.echo_table(list(_TIMES.values()), output.columns(rows, _TIMES))
    if any(row["backend"] == "cpu" for row in rows):
        click.echo("cpu is an emulation: its times say nothing of a GPU")
    output.echo_reasons(rows)
    return output.exit_code(rows)


def _run(cells: list[Cell], policy: Policy | None) -> list[Row]:
    from .. import runner

    return runner.run_cells(cells, policy)


_LATEST = "latest"
_backend_option = click.option("--backend", help="Only there. Default: what the experiment says.")
_out_option = click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), default=Path("reports"), show_default=True
)


@click.command()
@click.argument("target", metavar="EXPERIMENT")
@_backend_option
@_out_option
@click.option("--resume", is_flag=False, flag_value=_LATEST, help="Go on with a run directory; alone: with the latest.")
@click.option("--dry-run", is_flag=True, help="Print the cells and their count; run nothing.")
def run(target: str, backend: str | None, out: Path, resume: str | None, dry_run: bool) -> int:
    """Measure EXPERIMENT: a YAML file, or the name of one of ours (`cc1d list experiments`)."""
    loaded = experiment.load(target)
    if dry_run:
        return _print_cells(loaded, backend)
    directory = _measure(loaded, backend, out, resume)
    rows = results.read(directory / "rows.jsonl")
    output.echo_reasons(rows)
    click.echo(f"{output.counts(rows)}\n{output.show_path(directory)}")
    return output.exit_code(rows)


def _print_cells(loaded: experiment.Experiment, backend: str | None) -> int:
    cells = loaded.cells(backend)
    reasons = [_why_not(c) for c in cells]
    for cell, reason in zip(cells, reasons, strict=True):
        click.echo(cell.title() + (f"  unsupported: {reason}" if reason else ""))
    click.echo(f"{len(cells)} cells, {sum(map(bool, reasons))} of them unsupported")
    return 0


def _why_not(cell: Cell) -> str:
    reason = programs.why_not(cell.program, cell.case, cell.backend) if cell.program else ""
    return reason or variants.why_not(variants.get(cell.variant), cell.case, cell.backend, cell.tunables)


def _measure(loaded: experiment.Experiment, backend: str | None, out: Path, resume: str | None = None) -> Path:
    from .. import runner

    if backend:
        options.require(backend)
    before = (out / loaded.name / _LATEST if resume == _LATEST else Path(resume)) if resume else None
    if before and not before.is_dir():
        raise ConfigError(f"--resume {before}: no such run; leave --resume out to start a new one")
    # Resolved: `latest` is a link that the runner moves.
    return runner.run_experiment(loaded, backend=backend, out=out, resume=before.resolve() if before else None)


@click.command()
@click.argument("target")
@_backend_option
@_out_option
def report(target: str, backend: str | None, out: Path) -> int:
    """Render TARGET as HTML: a run directory, or an experiment, which is measured first."""
    from .. import report as renderer

    directory = Path(target)
    if not directory.is_dir():
        loaded = experiment.load(target)
        directory = _named(_measure(loaded, backend, out), out / loaded.name / _LATEST)
    rows = results.read(directory / "rows.jsonl")
    page = renderer.render_report(directory)
    output.echo_reasons(rows)
    click.echo(f"{output.counts(rows)}\n{output.show_path(directory / page.name)}")
    return output.exit_code(rows)


def _named(directory: Path, latest: Path) -> Path:
    """`latest` where it stands for `directory`."""
    return latest if latest.exists() and latest.samefile(directory) else directory


@click.command()
@click.argument("target", default="tune")
@_backend_option
@_out_option
def tune(target: str, backend: str | None, out: Path) -> int:
    """Measure TARGET (an experiment, or a run directory) and let `auto` take what was fastest for each case, on a GPU.

    Prints for each case what it chose and what that gains over the choice without a table.
    """
    directory = Path(target)
    if backend == "cpu":
        raise ConfigError("backend cpu: what is fastest in emulation says nothing of a GPU; name nvidia or amd")
    if not directory.is_dir():
        directory = _measure(experiment.load(target), backend, out)
    rows = [r for r in results.read(directory / "rows.jsonl") if r["backend"] != "cpu"]
    if not any(r["status"] == "ok" and r["kind"] == "kernel" for r in rows):
        raise ConfigError(f"tune {target}: no kernel was timed on a GPU there; emulation says nothing of speed")
    from ..ops import choice

    click.echo("\n".join(output.gains(rows)))
    click.echo(f"{choice.save_table(rows)} entries\n{choice.table_path()}")
    return output.exit_code(rows)


VERBS = (build, check, bench, run, report, tune)

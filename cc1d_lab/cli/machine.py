"""Verbs that look at machine code: inspect."""

from __future__ import annotations

from typing import Any

import click

from .. import backends, machine_code, occupancy, variants, work
from .. import build as builder
from ..case import LAYOUTS, OPS, Case
from ..cell import Cell
from ..errors import ToolchainError, one_of
from ..machine_code import Inspection
from . import options, output
from .explore import json_option

_REGISTERS = {
    "variant": "variant",
    "kernel": "kernel",
    "arch": "arch",
    "vgprs": "VGPRs",
    "agprs": "AGPRs",
    "sgprs": "SGPRs",
    "lds_bytes": "LDS",
    "scratch_bytes": "scratch",
    "spills": "spills",
    "code_bytes": "code",
    "waves": "waves/SIMD",
    "limited_by": "limited by",
}
_COUNTED = ("valu", "matrix", "salu", "lds", "crosslane", "barrier", "wait")


@click.command()
@options.variant_option
@click.option("--backend", default="amd", show_default=True, help="amd or nvidia.")
@click.option("--arch", "arches", multiple=True, help="Repeatable, or `all`. Default: that of the device, else gfx942.")
@click.option("--batch", type=int, default=8, show_default=True, help="For the bound alone, as dim and seqlen are.")
@click.option("--dim", type=int, default=2048, show_default=True)
@click.option("--seqlen", type=int, default=2048, show_default=True)
@click.option("--width", type=int, default=4, show_default=True)
@click.option("--dtype", callback=options.full_dtype, default="bfloat16", show_default=True)
@click.option("--layout", default="", help="The first that the variant takes when not given.")
@click.option("--activation", default="silu", show_default=True)
@click.option("--listing", is_flag=True, help="The disassembly, too; innermost loops are marked.")
@json_option
def inspect(
    names: tuple[str, ...], backend: str, arches: tuple[str, ...], as_json: bool, listing: bool, **case: Any
) -> int:
    """What the compiler made: registers, spills, occupancy, instructions, and a bound on speed. Nothing is run.

    Instructions are counted in the code, not as they run. The bound is what the vendor's peak numbers allow.
    """
    one_of("backend", backend, ("amd", "nvidia"))
    cells = _cells(options.select(names, OPS), backend, arches, case)
    kernels = [k for cell in cells for k in machine_code.inspect(cell, builder.build_cell(cell))]
    bounds = _bounds(cells)
    if as_json:
        told = [k.to_dict() | {"per_output": work.table(k)} for k in kernels]
        output.echo_json({"kernels": told, "bounds": bounds})
        return 0
    _print_tables(kernels)
    _print_work(kernels)
    for kernel in kernels if listing else []:
        _print_listing(kernel)
    if bounds:
        shape = cells[0].case.shape()
        click.echo(f"\nbounds from the vendor's peak numbers for {shape}, data from memory; not measurements")
        output.echo_table(list(bounds[0]), [list(b.values()) for b in bounds])
    return 0


def _cells(chosen: list[variants.Variant], backend: str, arches: tuple[str, ...], given: dict[str, Any]) -> list[Cell]:
    """A cell per variant that takes the case, and arch. ConfigError when there is none."""
    target = backends.get(backend)
    if target.can_build():
        raise ToolchainError(f"backend {backend}: {target.can_build()}")

    def cases(variant: variants.Variant) -> list[Case]:
        return [Case(**given | {"layout": given["layout"] or _layout(variant), "op": options.op_of(variant)})]

    taken, reasons = variants.takers(chosen, backend, cases)
    if not taken:
        raise variants.nothing("inspect", reasons)
    return [Cell(v.name, backend, case, arch=arch) for v, case in taken for arch in backends.arches(backend, arches)]


def _layout(variant: variants.Variant) -> str:
    return next(layout for layout in LAYOUTS if layout in variant.layouts)


def _bounds(cells: list[Cell]) -> list[dict[str, Any]]:
    """Per product and variant; variants with the same bound on a product share a line."""
    lines: dict[tuple[str, float], dict[str, Any]] = {}
    for cell in cells:
        for name, product in occupancy.PRODUCTS.items():
            if product.arch == cell.arch:
                b = occupancy.bound(name, cell.case, _matrix_flops(cell))
                line = {"product": name, "arch": cell.arch, "bound us": b.time_us, "bound GB/s": b.gbps}
                line |= {"set by": b.set_by, "variants": cell.variant, "source": product.source}
                shared = lines.setdefault((name, b.time_us), line)
                if shared is not line:
                    shared["variants"] += f" {cell.variant}"
    return list(lines.values())


def _matrix_flops(cell: Cell) -> int:
    executed = variants.get(cell.variant).executed_flops
    return executed(cell.case) if executed and cell.variant.endswith("_wmma") else 0


def _print_tables(kernels: list[Inspection]) -> None:
    rows = [k.to_dict() for k in kernels]
    for row in rows:
        of = row["waves_most"]
        row["waves"] = f"{row['waves_per_simd']:g} of {of}" if of else None
    output.echo_table(list(_REGISTERS.values()), output.columns(rows, _REGISTERS))
    click.echo("\ninstructions as they stand in the code; loads and stores as count x bytes a lane")
    counted = [
        [row["variant"], row["kernel"], row["arch"], *(row["instructions"][name] for name in _COUNTED)]
        + [_widths(row["memory"], kind) for kind in ("load", "store")]
        + [row["float_ops"], len(row["loops"])]
        for row in rows
    ]
    heading = ["variant", "kernel", "arch", *_COUNTED, "loads", "stores", "float ops", "loops"]
    output.echo_table(heading, counted)


_WORK = {
    "outputs": "outputs",
    "float_ops": "float ops",
    "matrix_ops": "matrix ops",
    "model_flops": "model",
    "load_bytes": "loaded B",
    "store_bytes": "stored B",
    "model_bytes": "model B",
    "within": "within",
    "loops": "loops in it",
}


def _print_work(kernels: list[Inspection]) -> None:
    click.echo(
        "\nper output, on the way that does the kernel's main work; at least so much, and of most loops one round; the "
        "model leaves the activation out"
    )
    lines = [[k.cell.variant, k.kernel.name, k.cell.arch, *(work.table(k)[name] for name in _WORK)] for k in kernels]
    output.echo_table(["variant", "kernel", "arch", *_WORK.values()], lines)


def _widths(memory: dict[str, int], kind: str) -> str:
    """`1x16 14x2`: one access of 16 bytes and fourteen of two."""
    found = {int(name.rsplit("_", 1)[1]): n for name, n in memory.items() if name.startswith(f"{kind}_")}
    return " ".join(f"{n}x{width}" for width, n in sorted(found.items(), reverse=True)) or "-"


def _print_listing(kernel: Inspection) -> None:
    inner = {i.address for body in machine_code.loops(kernel.instructions) for i in body}
    click.echo(f"\n{kernel.kernel.name}  {kernel.cell.title()}")
    for i in kernel.instructions:
        click.echo(f"{'|' if i.address in inner else ' '} {output.printable(str(i))}")


VERBS = (inspect,)

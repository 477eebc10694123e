"""What the documentation says of the variants, made from the registry, the head comments and published rows.

`python -m cc1d_lab.catalogue` writes hip_kernels/README.md, and in a checkout the README's ladder and its chart.
"""

from __future__ import annotations

import itertools
from pathlib import Path

from .paths import checkout, kernels_dir
from .results import Row, load_rows, read
from .variants import VARIANTS, Tunable, Variant

_INTRODUCTION = """\
# Kernels

One algorithm a file, in plain HIP. The head comment of a file gives the idea and the way of the data; this page is made
from those comments and from the registry (`python -m cc1d_lab.catalogue`; a test holds them together).

| variant | what it is | takes |
|---|---|---|
{table}

## How a kernel file is made

Every file has the same movements in the same order: head comment, `#include "cc1d/config.h"`, compile-time constants,
the kernel, `workspace_bytes`, `launch_stage`, `CC1D_EXPORT` with the names of its stages. For kernels at the memory's
speed there are more headers: elements packed in words (`packed.h`), rows along the sequence (`frame.h`) and channels
side by side (`channels.h`) at any address, those shifted between lanes (`turned.h`), packed sequences as bits
(`sequences.h`), sums in a fixed order (`sums.h`), a step of decoding (`decode.h`).

- What is fixed for a cell reaches the kernel as a constant: `elem_t`, `weight_t`, `kWidth`, `kSilu`, `kChannelLast`,
  `kWarp`, and each tunable as `CC1D_<NAME>`. Sizes, strides (in elements) and pointers come in `Params`
  (`include/cc1d/params.h`); a kernel may take a struct of its own, made from it by the launcher (`update_words.hip`).
  A GPU waits for each 64 bytes of arguments, so first in `Params` stands what is needed first, and where it pays
  (`fwd_register.hip`, rows that turn in `fwd_raster.hip`) the launch's own numbers stand before it.
- Sums are `acc_t` (fp32). `from_float<elem_t>` rounds once, to nearest even, on store. Offsets are `index_t` (64 bits).
- The second and third dimension of a grid end at 65,535, so kernels take their place from the first.
- `__global__`, `__shared__`, `__syncthreads()`, `threadIdx` stand there literally. What the vendors name differently
  has one neutral name: `launch<kernel>(grid_of(blocks), block, stream, p)`, `launch_behind` for a second kernel,
  `shuffle`, `shuffle_up`, `shuffle_down`, `vote`, `lane_id`, `sync_wave`, `float16`, `bfloat16`, the fragments of
  `matrix_core.h`. No `hip*` or `cuda*` name in a `.hip` file.
- `kWarp` is 32 or 64. A barrier or a cross-lane operation must be reached by all threads of the block or wave: the
  emulation reports it when not.

## Adding a variant

1. `hip_kernels/fwd_mine.hip`.
2. An entry in `cc1d_lab/variants.py`: name, summary, what it takes, its tunables. One that a case leaves no choice
   of is `fixed` there, never in the kernel: so a row says what was compiled.

Then `cc1d check --variant fwd_mine --backend cpu` compiles and checks it in a second or two, and
`python -m cc1d_lab.catalogue` writes this page. Charts, YAML, `cc1d list` and the tests know it from there.
"""


def kernels_readme() -> str:
    """The text of hip_kernels/README.md."""
    shown = [v for v in VARIANTS.values() if v.source]
    table = "\n".join(f"| `{v.name}` | {v.summary} | {_takes(v)} |" for v in shown)
    return "\n".join([_INTRODUCTION.format(table=table), *(_chapter(v) for v in shown)])


def head_comment(path: Path) -> list[str]:
    """The lines of the comment that a kernel file begins with, without their slashes."""
    lines = path.read_text().splitlines()
    end = next(i for i, line in enumerate(lines) if not line.startswith("//"))
    return [line[3:] for line in lines[:end]]


def _takes(variant: Variant) -> str:
    dtypes = "any dtype" if len(variant.dtypes) >= 3 else ", ".join(variant.dtypes)
    layouts = "both layouts" if len(variant.layouts) == 2 else variant.layouts[0]
    low, high = variant.widths
    return f"{dtypes}; {layouts}; width {low} to {high}"


def _chapter(variant: Variant) -> str:
    """Prose as it is, the sketch (what is indented) as a block of code."""
    parts: list[str] = [f"## {variant.name}", ""]
    fenced = False
    for line in head_comment(kernels_dir() / f"{variant.name}.hip"):
        sketch = line.startswith("  ") or (fenced and not line)
        if sketch != fenced:
            parts.append("```")
            fenced = sketch
        parts.append(line)
    if fenced:
        parts.append("```")
    knobs = ", ".join(f"`{n}` ({', '.join(map(str, t.choices))}; {_default(t)})" for n, t in variant.tunables.items())
    return "\n".join([*parts, "", *([f"Tunables: {knobs}.", ""] if knobs else [])])


def _default(tunable: Tunable) -> str:
    return str(tunable.default) + (f", in float32 {tunable.of_float32}" if tunable.of_float32 else "")


# --- the README's ladder ---------------------------------------------------------------------------

PUBLISHED = Path("reports") / "h100"
_MARKS = ("<!-- ladder: python -m cc1d_lab.catalogue -->", "<!-- end of ladder -->")
_SHAPE = {"batch": 8, "dim": 5120, "seqlen": 2048, "width": 4, "view": "contiguous"}


def ladder(rows: list[Row]) -> str:
    """A table of variants by share of the copy at one shape, from published rows; the best layout of each."""
    head = [
        "| variant | its one idea | op | layout | expected | bfloat16 | float32 |",
        "|---|---|---|---|---|---|---|",
    ]
    return "\n".join([*head, *(line for v in VARIANTS.values() for line in _rungs(v, rows))])


def _rungs(variant: Variant, rows: list[Row]) -> list[str]:
    lines = []
    expected = f"{variant.expected_pct:.0f} %" if variant.expected_pct else "–"
    for op, layout in itertools.product(("fwd", "bwd"), variant.layouts):
        shares = {row["dtype"]: row for row in rows if _is_rung(row, variant.name, op, layout)}
        if shares:
            both = " | ".join(_share(shares.get(dtype)) for dtype in ("bfloat16", "float32"))
            lines.append(f"| `{variant.name}` | {variant.summary} | {op} | {layout} | {expected} | {both} |")
    return lines


def _is_rung(row: Row, variant: str, op: str, layout: str) -> bool:
    who = (row["variant"], row["op"], row["layout"], row["status"])
    return who == (variant, op, layout, "ok") and all(row[name] == value for name, value in _SHAPE.items())


def _share(row: Row | None) -> str:
    return f"{row['time_us_p50']:.0f} us, {row['pct_copy']:.1f} %" if row else "–"


def published_rows(root: Path) -> list[Row]:
    """The rows of the runs in reports/h100/ that the ladder is made of: forward and backward."""
    return [row for name in ("ceiling", "backward") for row in read(root / PUBLISHED / name / "rows.jsonl")]


def with_ladder(readme: str, rows: list[Row]) -> str:
    """The README with its ladder made anew."""
    before, rest = readme.split(_MARKS[0])
    after = rest.split(_MARKS[1])[1]
    return f"{before}{_MARKS[0]}\n{ladder(rows)}\n{_MARKS[1]}{after}"


def _main() -> None:
    (kernels_dir() / "README.md").write_text(kernels_readme())
    root = checkout()
    if root:
        from . import plots

        (root / "README.md").write_text(with_ladder((root / "README.md").read_text(), published_rows(root)))
        (root / "docs" / "h100.png").write_bytes(
            plots.to_png(plots.share_of_copy(load_rows(root / PUBLISHED / "ceiling")))
        )


if __name__ == "__main__":
    _main()

"""Lines a + b * bytes and cliffs, on rows whose a, b and cliffs are known."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from rows import make_row

from cc1d_lab import experiment, load_rows, paths, plots, scaling, tables
from cc1d_lab.case import Case
from cc1d_lab.report.execute import execute
from cc1d_lab.results import Row, append

A_US, GBPS = 3.0, 2500.0  # planted
SWEEPS: dict[str, list[int]] = {
    "batch": [1, 2, 4, 16],
    "dim": [256, 512, 2048],
    "seqlen": [256, 1024, 4096],
    "width": [2, 3, 8],
}
AWKWARD: list[dict[str, Any]] = [
    *({"seqlen": n} for n in (1023, 1025, 1026, 2047)),
    *({"dim": n} for n in (1023, 1056)),
    {"view": "misaligned"},
]


def row(backend: str = "nvidia", variant: str = "fwd_register", slower: float = 1.0, **fields: Any) -> Row:
    """A row on the planted line, `slower` times above it, with a spread of 1 %."""
    case = Case(**({"batch": 8, "dim": 1024, "seqlen": 2048, "dtype": "bfloat16"} | fields))
    time_us = slower * (A_US + case.bytes() / GBPS / 1e3)
    times = {"time_us_p20": 0.99 * time_us, "time_us_p50": time_us, "time_us_p80": 1.01 * time_us}
    return make_row(variant, backend, case, **times)


def rows(backend: str = "nvidia", cliff: float = 1.0, **fields: Any) -> list[Row]:
    """The sweeps, then the awkward sizes; seqlen 1026 is `cliff` times slower than it should be."""
    aligned = [row(backend, label=axis, **{axis: n}, **fields) for axis, sizes in SWEEPS.items() for n in sizes]
    sizes = [(awkward, cliff if awkward.get("seqlen") == 1026 else 1.0) for awkward in AWKWARD]
    return [
        *aligned,
        row(backend, **fields),
        *(row(backend, slower=s, label="awkward", **a, **fields) for a, s in sizes),
    ]


def frame(*made: Row) -> pd.DataFrame:
    return load_rows(made)


# --- the fit ------------------------------------------------------------------------------------------------------


def test_a_planted_line_is_found() -> None:
    found = scaling.fits(frame(*rows())).set_index("axis")
    for axis in ("all", "batch"):
        assert found.loc[axis, "a_us"] == pytest.approx(A_US, rel=1e-6)
        assert found.loc[axis, "gbps"] == pytest.approx(GBPS, rel=1e-6)
        assert abs(found.loc[axis, "residual_pct"]) < 1e-6
    assert found.loc["all", "points"] == 14


def test_the_errors_cover_the_truth_as_often_as_they_say() -> None:
    """With noise of the spread that is given, about two of three fits lie within one standard error of b."""
    rng, sizes = random.Random(0), [1e6 * 2**i for i in range(8)]
    within, chi2 = 0, 0.0
    for _ in range(300):
        spreads = [0.01 * (A_US + n / GBPS / 1e3) for n in sizes]
        times = [A_US + n / GBPS / 1e3 + rng.gauss(0, s) for n, s in zip(sizes, spreads, strict=True)]
        line = scaling.fit(sizes, times, spreads)
        assert line is not None
        within += abs(line.b_us - 1e-3 / GBPS) < line.b_error_us
        chi2 += line.chi2 / 300
    assert 0.62 < within / 300 < 0.82  # 0.68, and somewhat more as errors are widened but never narrowed
    assert chi2 == pytest.approx(1.0, abs=0.15)


def test_a_noisy_row_counts_for_less() -> None:
    sizes = [1e6, 2e6, 4e6, 8e6, 16e6]
    times = [A_US + n / GBPS / 1e3 for n in sizes]
    off = [*times[:4], 2 * times[4]]
    quiet = scaling.fit(sizes, off, [0.01 * t for t in times])
    noisy = scaling.fit(sizes, off, [*(0.01 * t for t in times[:4]), 10.0])
    assert quiet is not None
    assert noisy is not None
    assert noisy.gbps == pytest.approx(GBPS, rel=0.01)
    assert quiet.gbps < 0.8 * GBPS


@pytest.mark.parametrize("sizes", [[1e6, 2e6, 4e6], [1e6, 1.1e6, 1.2e6, 1.3e6]])
def test_a_line_that_is_not_determined_is_none(sizes: list[float]) -> None:
    assert scaling.fit(sizes, [1.0] * len(sizes), [0.1] * len(sizes)) is None
    width = scaling.fits(frame(*rows())).set_index("axis").loc["width"]
    assert math.isnan(width["gbps"])
    assert abs(width["residual_from_all_pct"]) < 1e-6


def test_families_are_fitted_apart() -> None:
    slow = [{**r, "time_us_p50": 2 * r["time_us_p50"]} for r in rows(variant="fwd_naive")]
    both = frame(*rows(), *slow, *rows(dtype="float32"))
    found = scaling.fits(both)
    whole = found[found["axis"] == "all"].set_index(["variant", "dtype"])["gbps"]
    assert whole["fwd_register", "bfloat16"] == pytest.approx(GBPS)
    assert whole["fwd_naive", "bfloat16"] == pytest.approx(GBPS / 2)
    assert whole["fwd_register", "float32"] == pytest.approx(GBPS)


@pytest.mark.parametrize("other", [{"toolchain": "-O1"}, {"cache_state": "warm"}])
def test_what_is_compiled_or_timed_in_another_way_is_a_family_of_its_own(other: dict[str, str]) -> None:
    slow = [{**r, "time_us_p50": 2 * r["time_us_p50"], **other} for r in rows()]
    found = scaling.fits(frame(*rows(), *slow))
    assert found[found["axis"] == "all"]["gbps"].tolist() == pytest.approx([GBPS, GBPS / 2])
    assert not scaling.cliffs(frame(*rows(), *slow))["cliff"].any()


def test_rows_of_a_wider_buffer_are_not_aligned() -> None:
    assert scaling.aligned(row())
    assert not scaling.aligned(row(view="channel_slice", row_stride=1100))


def test_rows_that_are_not_ok_take_no_part() -> None:
    made = rows()
    lost = {**row(seqlen=512), "status": "wrong", "time_us_p50": None}
    helper = {**row(variant="copy"), "kind": "helper"}
    assert scaling.fits(frame(*made, lost, helper)).equals(scaling.fits(frame(*made)))
    assert scaling.fits(frame(lost)).empty
    assert scaling.cliffs(frame(lost)).empty


def test_a_slow_axis_shows_in_the_residuals() -> None:
    slow = [r if r["label"] != "width" else {**r, "time_us_p50": 1.4 * r["time_us_p50"]} for r in rows()]
    found = scaling.residuals(frame(*slow))
    assert found[found["label"] == "width"]["residual_pct"].min() > 20
    assert found[found["label"] != "width"]["residual_pct"].abs().max() < 20


# --- cliffs -------------------------------------------------------------------------------------------------------


def test_a_planted_cliff_is_found_and_nothing_else() -> None:
    found = scaling.cliffs(frame(*rows(cliff=1.3))).set_index("awkward")
    assert set(found.index) == {
        *("seqlen 1023", "seqlen 1025", "seqlen 1026", "seqlen 2047", "dim 1023", "dim 1056", "view misaligned")
    }
    assert list(found[found["cliff"]].index) == ["seqlen 1026"]
    assert found.loc["seqlen 1026", "below_pct"] == pytest.approx(100 * (1 - 1 / 1.3), abs=0.5)
    assert found.loc["seqlen 1026", "neighbour"] == "seqlen 1024"
    assert found.loc["view misaligned", "neighbour"] == "view contiguous"


def test_the_deepest_cliff_comes_first_and_one_device_is_not_repeated() -> None:
    found = scaling.worst_first(frame(*rows(cliff=1.3)))
    assert found["awkward"].iloc[0] == "seqlen 1026"
    assert "device" not in found.columns
    assert "device" in scaling.fits(frame(*rows(), *rows("amd"))).columns


@pytest.mark.parametrize(("slower", "cliff"), [(1.17, False), (1.19, True)])
def test_the_limit_is_fifteen_percent(slower: float, cliff: bool) -> None:
    found = scaling.cliffs(frame(row(seqlen=2048), row(seqlen=2047, slower=slower)))
    assert list(found["cliff"]) == [cliff]


def test_a_neighbour_differs_in_one_thing_alone() -> None:
    far, other_batch = row(seqlen=1024), row(batch=4, seqlen=2048)
    other_width, other_type = row(width=3, seqlen=2048), row(seqlen=2048, dtype="float32")
    assert scaling.cliffs(frame(row(seqlen=2047), far, other_batch, other_width, other_type)).empty
    assert scaling.cliffs(frame(row(seqlen=2047, view="misaligned"), row(seqlen=2048))).empty


def test_the_sentences_name_the_cliff() -> None:
    said = scaling.sentences(frame(*rows(cliff=1.3)))
    assert said[0] == "1 of 7 awkward rows are more than 15 % below their aligned neighbour."
    assert said[1] == "fwd_register: 1, at seqlen 1026; at most 23 % below."
    assert scaling.sentences(frame(*rows("cpu")))[-1] == f"{tables.CPU_BANNER}."
    assert "No awkward size" in scaling.sentences(frame(row()))[0]


# --- charts, the shipped study ----------------------------------------------------------------------------------------

CHARTS = (plots.scaling, plots.residuals, plots.cliffs)


@pytest.mark.parametrize("chart", CHARTS, ids=lambda c: c.__name__)
def test_charts_say_emulation_and_stand_empty_rows(chart: Any) -> None:
    import matplotlib.text

    for made, banner in ((rows("cpu"), True), (rows("nvidia", cliff=1.3), False)):
        figure = chart(frame(*made))
        words = {text.get_text() for text in figure.findobj(matplotlib.text.Text)}
        assert (tables.CPU_BANNER in words) == banner
        assert plots.to_png(figure, dpi=40).startswith(b"\x89PNG")
    chart(load_rows([]))
    chart(frame({**row(), "status": "wrong", "time_us_p50": None}))


def test_the_shipped_study_has_each_awkward_size_and_its_neighbour() -> None:
    cases = {cell.case for cell in experiment.load("scaling").cells("nvidia")}
    for dtype in ("bfloat16", "float32"):
        made = [
            row(
                variant="fwd_register", batch=c.batch, dim=c.dim, seqlen=c.seqlen, width=c.width,
                dtype=dtype, view=c.view, label=c.label,
            )
            for c in cases
            if c.dtype == dtype and c.layout == "channel_first"
        ]  # fmt: skip
        found = scaling.cliffs(frame(*made))
        awkward = ("seqlen 1023", "seqlen 1025", "seqlen 1026", "seqlen 2047", "dim 4095", "dim 4100", "dim 4128")
        assert set(found["awkward"]) == {*awkward, "view misaligned", "view channel_slice"}
        fitted = scaling.fits(frame(*made)).set_index("axis")["gbps"]
        assert fitted[["all", "batch", "dim", "seqlen"]].notna().all()


def test_the_notebook_runs(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    for made in rows(cliff=1.3):
        append(tmp_path / "rows.jsonl", made)
    execute(paths.notebooks_dir() / "60_scaling.ipynb", tmp_path / "60_scaling.ipynb", {"run": str(tmp_path)})
    assert "1 of 7 awkward rows" in (tmp_path / "60_scaling.ipynb").read_text()

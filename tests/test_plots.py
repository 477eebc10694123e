"""Charts and tables: what is drawn, what is left out, and what is always said."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pandas as pd
import pytest
from matplotlib.figure import Figure
from rows import make_row, make_rows, spoil

from cc1d_lab import plots, tables
from cc1d_lab.case import LAYOUTS, Case
from cc1d_lab.results import load_rows
from cc1d_lab.variants import VARIANTS, select

CHARTS = [
    plots.share_of_copy,
    plots.throughput,
    plots.error,
    plots.error_vs_throughput,
    plots.status_matrix,
    plots.stages,
]
GPU, CPU = load_rows(make_rows(("nvidia",))), load_rows(make_rows(("cpu",)))
ONE = [make_row("fwd_im2col_wmma", "nvidia", Case(dtype="float16"))]
HOSTILE = "</svg><script>alert(1)</script> $\\frac{$ \x00\n"


def texts(figure: Figure) -> str:
    return " | ".join(t.get_text() for t in figure.findobj(match=lambda a: hasattr(a, "get_text")))


def lines(figure: Figure) -> list[Any]:
    return [line for axes in figure.axes for line in axes.get_lines()]


FRAMES = {
    "empty": [],
    "one": ONE,
    "all wrong": [spoil(row, "wrong") for row in ONE],
    "all crashed": [spoil(row, "crashed") for row in ONE],
    "wrong without a number": [spoil(row, "wrong") | {"bound_ratio": None} for row in ONE],
    "hostile": [row | {"variant": HOSTILE, "label": HOSTILE, "device": HOSTILE, "dtype": HOSTILE} for row in ONE],
    "unknown status": [row | {"status": "odd"} for row in ONE],
    "exact": [row | {"bound_ratio": 0.0, "ulp_rms": 0.0} for row in ONE],
    "huge error": [spoil(row, "wrong") | {"bound_ratio": 1e30, "ulp_rms": 1e30} for row in ONE] + ONE,
}


@pytest.mark.parametrize("frame", FRAMES.values(), ids=FRAMES)
@pytest.mark.parametrize("chart", CHARTS, ids=lambda c: c.__name__)
def test_any_frame_gives_a_picture(chart: Any, frame: list[dict[str, Any]]) -> None:
    assert plots.to_png(chart(load_rows(frame)), dpi=40).startswith(b"\x89PNG")


@pytest.mark.parametrize("chart", [plots.error, plots.error_vs_throughput])
def test_a_wrong_row_without_a_number_is_told(chart: Any) -> None:
    assert "not drawn: 1 wrong" in texts(chart(load_rows(FRAMES["wrong without a number"] + ONE)))
    assert "not drawn" not in texts(chart(load_rows(ONE)))


@pytest.mark.parametrize("chart", CHARTS, ids=lambda c: c.__name__)
def test_emulation_is_always_announced_and_a_gpu_never(chart: Any) -> None:
    assert tables.CPU_BANNER in texts(chart(CPU))
    assert tables.CPU_BANNER not in texts(chart(GPU))
    assert "made-up GPU" in texts(chart(GPU))


def test_only_ok_rows_are_in_lines() -> None:
    rows = [make_row("fwd_naive", "nvidia", Case(seqlen=n)) for n in (64, 128, 256)]
    # A forged time must not bring a wrong row back.
    rows[1] = spoil(rows[1], "wrong") | {"time_us_p50": 1.0, "gbps": 1e6}
    figure = plots.throughput(load_rows(rows))
    drawn = [y for line in lines(figure) for y in line.get_ydata() if y == y]
    assert drawn
    assert max(drawn) < 1e5
    assert "1 wrong" in texts(figure)


def test_a_line_breaks_where_a_row_is_lost() -> None:
    rows = [make_row("fwd_naive", "nvidia", Case(seqlen=n)) for n in (64, 128, 256)]
    rows[1] = spoil(rows[1], "crashed")
    line = next(line for line in lines(plots.throughput(load_rows(rows))) if len(line.get_xdata()) == 3)
    assert pd.isna(line.get_ydata()[1])


def test_a_line_joins_what_differs_in_length_alone() -> None:
    kinds: list[tuple[str, dict[str, Any]]] = [("torch_conv1d", {}), ("torch_conv1d", {"op": "bwd"})]
    kinds += [("fwd_naive", {}), ("fwd_naive", {"states": True}), ("fwd_naive", {"seq_idx": True})]
    rows = [make_row(name, "nvidia", Case(seqlen=n, **c)) for name, c in kinds for n in (64, 128, 256)]
    rows += [row | {"toolchain": "-O1"} for row in rows[:3]]
    drawn = [line for line in lines(plots.throughput(load_rows(rows))) if len(line.get_xdata())]
    assert {tuple(line.get_xdata()) for line in drawn} == {(64, 128, 256)}
    assert len(drawn) == 6 + 4  # and the copy of fwd, bwd, states, seq_idx


def test_what_the_registry_has_for_a_case_is_no_choice_of_its_rows() -> None:
    fields = [{}, {"width": 8}, {"states": True}, {"seq_idx": True}]
    cases = [Case(dtype="bfloat16", layout=layout, **f) for f in fields for layout in LAYOUTS]
    rows = load_rows([make_row(v.name, "nvidia", case) for v in select("all") for case in cases])
    assert {tables.knobs(row) for _, row in rows.iterrows()} == {""}
    given = make_row("fwd_raster", "nvidia", cases[-1]) | {"tunables": {"block": 256, "resident": 1024}}
    assert tables.knobs(given) == "block=256"


def test_the_ceiling_is_drawn_on_a_gpu_only() -> None:
    forged = CPU.assign(copy_gbps=9.0)
    assert "measured copy" in texts(plots.throughput(GPU))
    assert "measured copy" not in texts(plots.throughput(forged))


def test_the_share_of_the_copy_shows_every_row_and_what_is_doubtful() -> None:
    rows = [make_row("fwd_naive", "nvidia", Case(), pct_copy=90.0), make_row("torch_conv1d", "nvidia", Case(op="bwd"))]
    rows += [make_row("fwd_register", "nvidia", Case(), pct_copy=130.0, flags=["above_ceiling"], states=None)]
    figure = plots.share_of_copy(load_rows(rows))
    (axes,) = (a for a in figure.axes if a.collections)
    hollow = [bool((marks.get_facecolor() == 1).all()) for marks in axes.collections]
    assert hollow == [False, True, False]
    assert axes.get_xlim()[1] > 130
    assert [t.get_text() for t in axes.get_yticklabels()] == ["2 x 64 x 256, bwd", "2 x 64 x 256"]


def test_styles_differ_in_greyscale() -> None:
    looks = [plots.style(name) for name in VARIANTS]
    for a, b in itertools.combinations(looks, 2):
        assert (a.marker, a.dashes) != (b.marker, b.dashes)


def test_status_letters_and_shades_differ() -> None:
    letters = [letter for _, letter, _ in plots.STATUS_LOOK.values()]
    assert len(set(letters)) == len(letters)
    assert set(plots.STATUS_LOOK) == set(tables.SEVERITY)


def test_the_same_rows_give_the_same_svg() -> None:
    frame = load_rows(ONE)
    assert plots.to_svg(plots.throughput(frame)) == plots.to_svg(plots.throughput(frame))


def test_svg_holds_no_live_text() -> None:
    svg = plots.to_svg(plots.throughput(load_rows(FRAMES["hostile"])))
    assert b"<script" not in svg


# --- tables ------------------------------------------------------------------------------------------------------


def test_speedup_table_is_that_of_a_group() -> None:
    case = Case(seqlen=512)
    rows = [
        make_row("fwd_naive", "nvidia", case, time_us_p50=10.0, time_std_pct=1.5),
        make_row("torch_conv1d", "nvidia", case, time_us_p50=25.0),
        make_row("torch_conv1d", "nvidia", Case(seqlen=64), time_us_p50=1.0),
        spoil(make_row("fwd_shared_memory", "nvidia", case), "wrong"),
    ]
    table = plots.speedup_table(load_rows(rows)).set_index("variant")
    assert table.loc["fwd_naive", ["time_us", "torch_us", "speedup", "std_pct", "correct"]].tolist() == [
        *(10.0, 25.0, 2.5, 1.5),
        "yes",
    ]
    assert table.loc["fwd_shared_memory", "correct"] == "no"
    assert pd.isna(table.loc["fwd_shared_memory", "time_us"])


def test_emulation_has_no_speedup_and_no_winner() -> None:
    assert plots.speedup_table(CPU)["speedup"].isna().all()
    assert tables.fastest(CPU).empty
    assert not any("fastest" in sentence for sentence in tables.verdict(CPU)[1])


def _race(*spans: tuple[str, float, float, float], **changes: Any) -> pd.DataFrame:
    return load_rows(
        make_row(name, "nvidia", Case(), **{"time_us_p20": a, "time_us_p50": b, "time_us_p80": c, **changes})
        for name, a, b, c in spans
    )


def test_fastest_needs_distance_and_an_opponent() -> None:
    apart = _race(("fwd_naive", 9, 10, 11), ("fwd_shared_memory", 5, 6, 7))
    close = _race(("fwd_naive", 9, 10, 11), ("fwd_shared_memory", 8, 9.5, 12))
    assert tables.fastest(apart)[["variant", "wins", "ties"]].to_numpy().tolist() == [["fwd_shared_memory", 1, 0]]
    assert tables.fastest(close)[["variant", "wins", "ties"]].to_numpy().tolist() == [["", 0, 1]]
    assert tables.fastest(_race(("fwd_naive", 9, 10, 11))).empty


def test_a_kernel_that_is_wrong_when_timed_is_named_as_such() -> None:
    row = spoil(make_row("fwd_naive", "nvidia", Case()), "wrong") | {"causality": True, "timed_result": False}
    rows = load_rows([row, make_row("fwd_naive", "nvidia", Case(seqlen=64), timed_result=True)])
    assert tables.wrong(rows)["probes_failed"].tolist() == ["timed_result"]
    assert tables.checks(rows)["timed_result"].tolist() == ["1/2"]


def test_a_row_whose_error_is_no_number_does_not_pass_the_bound() -> None:
    rows = load_rows(FRAMES["wrong without a number"] + ONE)
    assert tables.checks(rows)["error_bound"].tolist() == ["1/2"]
    assert tables.summary(rows)["bound_ratio"].tolist() == [math.inf]
    assert tables.summary(load_rows(ONE))["bound_ratio"].iloc[0] < 1
    assert tables.summary(load_rows(FRAMES["all crashed"]))["bound_ratio"].isna().all()


def test_what_is_nearer_than_two_equal_members_is_a_tie() -> None:
    pair = (("fwd_naive", 10.0, 10.1, 10.2), ("fwd_shared_memory", 9.8, 9.9, 9.95))
    assert tables.fastest(_race(*pair, noise_pct=0.2))["wins"].tolist() == [1]
    assert tables.fastest(_race(*pair, noise_pct=2.5))[["wins", "ties"]].to_numpy().tolist() == [[0, 1]]


def test_ratios_are_to_the_baselines_of_the_same_case() -> None:
    case, other = Case(seqlen=512), Case(seqlen=64)
    rows = [
        make_row("fwd_naive", "nvidia", case, time_us_p50=10.0, pct_copy=50.0, noise_pct=0.1, flags=["noisy"]),
        make_row("fwd_shared_memory", "nvidia", case, time_us_p50=5.0, pct_copy=100.0, noise_pct=0.1),
        make_row("torch_conv1d", "nvidia", case, time_us_p50=25.0),
        make_row("triton_conv1d", "nvidia", other, time_us_p50=3.0),
        make_row("fwd_naive", "nvidia", other, time_us_p50=2.0, pct_copy=80.0),
        make_row("fwd_naive", "cpu", other),
        spoil(make_row("fwd_register", "nvidia", case), "wrong"),
    ]
    table = tables.ratios(load_rows(rows))
    assert table[["variant", "pct_copy", "flags"]].to_numpy().tolist() == [
        ["fwd_naive", 80.0, ""],
        ["fwd_shared_memory", 100.0, ""],
        ["fwd_naive", 50.0, "noisy"],
    ]
    assert table["torch_conv1d"].fillna(0).tolist() == [0, 5.0, 2.5]
    assert table["triton_conv1d"].fillna(0).tolist() == [1.5, 0, 0], "a baseline of another case is not compared with"
    assert tables.ratios(CPU).empty


def test_a_doubtful_or_wrong_row_wins_nothing() -> None:
    pair = (("fwd_naive", 9, 10, 11), ("fwd_shared_memory", 5, 6, 7))
    assert tables.fastest(_race(*pair, flags=["noisy"])).empty
    assert tables.fastest(_race(*pair, status="wrong")).empty


def test_a_row_of_a_toolchain_of_its_own_wins_nothing() -> None:
    plain, other = _race(("fwd_naive", 9, 10, 11), ("fwd_register", 7, 8, 8.5)), _race(("fwd_naive", 5, 6, 7))
    both = pd.concat([plain, other.assign(toolchain="--use_fast_math")], ignore_index=True)
    assert tables.fastest(both).equals(tables.fastest(plain))


def test_verdict_is_bad_with_a_wrong_row_and_good_without() -> None:
    clean = load_rows(make_rows(("nvidia",), faults=False))
    assert tables.verdict(clean)[0] == "good"
    level, sentences = tables.verdict(GPU)
    assert level == "bad"
    assert "wrong" in sentences[0]
    assert tables.verdict(load_rows([]))[0] == "empty"


def test_unsupported_rows_stand_with_their_device() -> None:
    unsupported = make_row("fwd_channel_last", "nvidia", Case(), arch="", device=None)
    frame = load_rows([*ONE, unsupported])
    assert tables.devices(frame) == ["made-up GPU (nvidia, sm_90)"]


def test_wrong_rows_say_how_wrong_and_where() -> None:
    row = tables.wrong(load_rows(FRAMES["all wrong"])).iloc[0]
    assert (row["bound_ratio"], row["n_bad"], row["first_bad"]) == (341.5, 17, "[0, 3, 127]")
    assert row["probes_failed"] == "causality"


def test_the_tolerance_table_counts_what_the_field_misses() -> None:
    table = tables.tolerance_verdicts(load_rows(FRAMES["all wrong"] + ONE)).iloc[0]
    assert (table["missed"], table["ok here, passes there"]) == (1, 1)


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (float("nan"), "–"), (0.012345, "0.0123"), (1.234, "1.23"), (12.34, "12.3"), (12345.6, "12346")],
)
def test_numbers_have_three_digits(value: float | None, text: str) -> None:
    assert tables.number(value) == text

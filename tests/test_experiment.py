"""An experiment file is valid as a whole, or refused in one line that says where and what to do."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cc1d_lab import experiment, variants
from cc1d_lab.case import Case
from cc1d_lab.errors import ConfigError, LimitError
from cc1d_lab.experiment import CpuLimits, Experiment, load, scale_down, shipped
from cc1d_lab.timing import POLICIES

_LONG = ", ".join(map(str, range(1, 300)))

# A document, and words that its error must have.
INVALID = {
    "unknown key": ("variant: all", "mine.yaml:1:1 'variant' 'variants'?"),
    "unknown key of a case": ("cases:\n  - {dims: 4}", "mine.yaml:2:6 'dims' 'dim'?"),
    "unknown key of an axis": ("axes: {seqlens: [4]}", "1:8 'seqlens' 'seqlen'?"),
    "unknown key of a second product": (
        "axes:\n  - {dim: [4]}\n  - {seqlens: [4]}",
        "mine.yaml:3:6 'seqlens' 'seqlen'?",
    ),
    "a value of a second product": ("axes: [{dim: [4]}, {seqlen: [0]}]", "1:30 seqlen 0 at least 1"),
    "unknown key of base": ("base: {with: 4}", "1:8 'with' 'width'?"),
    "unknown key of timing": ("timing: {budget: 4}", "1:10 'budget' 'budget_s'?"),
    "unknown key of cpu": ("cpu: {max_output: 4}", "1:7 'max_output' 'max_outputs'?"),
    "a field that is not for users": ("base: {scaled_from: x}", "1:8 'scaled_from'"),
    "unknown variant": ("variants: [fwd_naiv]", "1:12 'fwd_naiv' 'fwd_naive'?"),
    "a helper as variant": ("variants: [copy]", "1:12 'copy' allowed"),
    "a kernel as baseline": ("baselines: [fwd_naive]", "'fwd_naive' torch_conv1d"),
    "unknown dtype": ("axes: {dtype: [float32, bf16]}", "1:25 'bf16' 'bfloat16'?"),
    "unknown layout": ("base: {layout: channels_last}", "'channels_last' 'channel_last'?"),
    "unknown backend": ("backends: [rocm]", "1:12 'rocm' amd"),
    "unknown cache state": ("timing: {cache: wram}", "cache 'wram' 'warm'?"),
    "unknown way to launch": ("timing: {launch: grap}", "launch 'grap' 'graph'?"),
    "unknown policy": ("timing: s1", "'s1' 's0'?"),
    "unknown tunable": ("tunables: {fwd_naive: {blok: [64]}}", "1:30 'blok' 'block'?"),
    "tunable of an absent variant": (
        "variants: [fwd_naive]\ntunables: {fwd_channel_last: {block: [64]}}",
        "2:30 fwd_channel_last variants add",
    ),
    "tunable without its choice": ("tunables: {fwd_naive: {block: [65]}}", "1:31 65 (64, 128, 256, 512)"),
    "tunable without values": ("tunables: {fwd_naive: {block: []}}", "1:31 empty"),
    "negative size": ("cases: [{dim: -1}]", "1:15 dim -1 at least 1"),
    "zero size": ("axes: {seqlen: [0]}", "1:17 seqlen 0 at least 1"),
    "row stride below dim": ("cases:\n  - {dim: 8, row_stride: 4}", "2:5 row_stride 4 dim = 8"),
    "true for a number": ("cases: [{dim: true}]", "cases.dim True integer"),
    "number for a truth value": ("cases: [{bias: 1}]", "cases.bias true or false"),
    "text for a number": ('cases: [{dim: "4"}]', "cases.dim '4' integer"),
    "float for an integer": ("cases: [{dim: 4.0}]", "cases.dim 4.0 integer"),
    "list in a case": ("cases: [{dim: [1, 2]}]", "cases.dim list axes"),
    "scalar as an axis": ("axes: {seqlen: 4}", "axes.seqlen 4 list"),
    "empty axis": ("axes: {seqlen: []}", "axes.seqlen empty"),
    "value twice in an axis": ("axes: {seqlen: [4, 4]}", "axes.seqlen 4 twice"),
    "unknown program": ("programs: [naive, pol]", "1:19 'pol' 'pool'?"),
    "a program of two that exclude each other": ("programs: streams+unified", "no copies to overlap"),
    "variants beside programs": ("programs: naive\nvariants: all", "2:11 variants kernels of its own remove variants"),
    "layout beside programs": (
        "programs: naive\ncases: [{layout: channel_last}]",
        "2:18 layout of its own remove layout",
    ),
    "verify without programs": ("verify: true", "1:9 verify `programs` none remove verify"),
    "unknown notebook": ("notebooks: [50_pipelin]", "1:13 '50_pipelin' '50_pipeline'?"),
    "no variants": ("variants: []", "variants empty"),
    "nothing for a name": ("name:", "name None text"),
    "name with a path": ("name: ../x", "name '../x'"),
    "name that hides": ("name: .x", "name '.x'"),
    "name too long": (f"name: {'x' * 300}", "name 64"),
    "name with a look-alike": ("name: qu\u0456ck", "name"),
    "no samples": ("timing: {min_samples: 0}", "timing.min_samples 0 1"),
    "more samples than allowed": ("timing: {min_samples: 1000}", "max_samples min_samples"),
    "no time": ("timing: {budget_s: 0}", "timing.budget_s 0 greater than 0"),
    "1e-3": ("timing: {rel_err: 1e-3}", "1:19 1e-3 1.0e-3"),
    "1e3": ("cpu: {max_outputs: 1e6}", "1:20 1e6"),
    "yes": ("base: {bias: yes}", "1:14 yes true"),
    "octal": ("base: {dim: 010}", "1:13 010 decimal"),
    "hexadecimal": ("base: {dim: 0x10}", "0x10 decimal"),
    "base 60": ("base: {dim: 1:30}", "1:30 quote"),
    "a date": ("description: 2024-01-01", "date"),
    "NaN": ("timing: {rel_err: .nan}", ".nan finite"),
    "Inf": ("timing: {budget_s: .inf}", ".inf finite"),
    "overflow": ("timing: {budget_s: 1.0e999}", "too large"),
    "huge integer": ("base: {dim: " + "9" * 5000 + "}", "1:13 more than 4000 characters"),
    "big integer": ("base: {dim: 99999999999999999999}", "too large"),
    "duplicate key": ("name: a\nname: b", "2:1 'name' twice line 1"),
    "anchor": ("variants: &v all", "1:11 &v anchors"),
    "alias bomb": ("a: &a [x, x]\nb: [*a, *a]", "1:4 anchors"),
    "alias": ("variants: *v", "1:11 *v"),
    "tag": ("variants: !!python/object/apply:os.system [id]", "1:11 tag"),
    "harmless tag": ("name: !!str x", "1:7 tag"),
    "merge key": ("<<: {name: x}", "1:1 plain name"),
    "number as key": ("1: x", "1:1 plain name"),
    "list as key": ("[1]: x", "1:1 plain name"),
    "two documents": ("name: a\n---\nname: b", "2:1 second document"),
    "not a mapping": ("- all", "1:1 mapping"),
    "nothing": ("", "mapping"),
    "broken": ("variants: [", "1:12 not valid YAML"),
    "tab": ("\tname: x", "1:1 not valid YAML"),
    "control character": ('name: "a\\0b"', "1:7 control character"),
    "deep": ("[" * 100_000, "1:17 16 levels"),
    "deep blocks": ("- " * 100_000, "16 levels"),
    "long": ("description: " + "x " * 400_000, "4000 characters"),
    "many values": ("- 1\n" * 200_000, "20000 values"),
    "too many bytes": ("#" * 1_000_001, "1000000 bytes"),
}


def _write(folder: Path, text: str | bytes) -> Path:
    path = folder / "mine.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def _load(folder: Path, text: str) -> Experiment:
    return load(_write(folder, text))


@pytest.mark.parametrize("name", INVALID)
def test_invalid_documents_are_refused_in_one_line_that_says_where(tmp_path: Path, name: str) -> None:
    text, words = INVALID[name]
    path, start = _write(tmp_path, text), time.monotonic()
    with pytest.raises(ConfigError) as caught:
        load(path)
    message = str(caught.value)
    assert time.monotonic() - start < 5
    assert message.startswith(str(path))
    assert "\n" not in message
    assert len(message) < 1000
    for word in words.split():
        assert word in message


@pytest.mark.parametrize("raw", [b"name: \xff", b"name: a\x00", b"name: \x1b[31m"])
def test_bytes_that_are_not_text_are_refused(tmp_path: Path, raw: bytes) -> None:
    with pytest.raises(ConfigError, match=r"mine\.yaml: not (UTF-8|text)"):
        load(_write(tmp_path, raw))


def test_a_missing_file_is_an_error_with_its_path() -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: cannot be read"):
        load("nowhere.yaml")


def test_an_unknown_name_is_refused_with_its_neighbour() -> None:
    with pytest.raises(ConfigError, match=r"'quik' is not known .did you mean 'quick'"):
        load("quik")


def test_a_huge_sweep_is_counted_not_built(tmp_path: Path) -> None:
    axes = ", ".join(f"{axis}: [{_LONG}]" for axis in ("batch", "dim", "seqlen", "width", "seed"))
    with pytest.raises(LimitError, match=f"has {len(variants.select('all')) * 299**5} cells, at most 20000"):
        _load(tmp_path, f"axes: {{{axes}}}")


def test_name_defaults_to_the_stem_of_the_file(tmp_path: Path) -> None:
    assert _load(tmp_path, "variants: all").name == "mine"
    assert _load(tmp_path, "name: other").name == "other"


def test_axes_are_a_product_over_base_and_cases_follow(tmp_path: Path) -> None:
    loaded = _load(
        tmp_path,
        "variants: fwd_naive\nbase: {dim: 8}\naxes: {seqlen: [1, 2], width: [2, 3]}\ncases: [{dim: 16, label: x}]",
    )
    shapes = [cell.case.shape() for cell in loaded.cells("cpu")]
    assert shapes == ["2x8x1x2", "2x8x1x3", "2x8x2x2", "2x8x2x3", "2x16x256x4"]
    assert loaded.count() == 5


def test_cases_alone_add_no_default_case(tmp_path: Path) -> None:
    assert len(_load(tmp_path, "variants: fwd_naive\ncases: [{dim: 3}]").cells("cpu")) == 1


def test_tunables_are_axes_of_their_variant_alone(tmp_path: Path) -> None:
    loaded = _load(tmp_path, "variants: [fwd_naive, fwd_channel_last]\ntunables: {fwd_naive: {block: [64, 128]}}")
    assert [(c.variant, dict(c.tunables)) for c in loaded.cells("cpu")] == [
        ("fwd_naive", {"block": 64}),
        ("fwd_naive", {"block": 128}),
        ("fwd_channel_last", {}),
    ]
    assert loaded.count() == 3


def test_combinations_that_cannot_run_stay_in_as_cells(tmp_path: Path) -> None:
    cells = _load(tmp_path, "variants: fwd_channel_last\naxes: {layout: [channel_first, channel_last]}").cells("cpu")
    reasons = [variants.why_not(variants.get(c.variant), c.case, c.backend) for c in cells]
    assert [bool(reason) for reason in reasons] == [True, False]


def test_all_means_kernels_and_baselines_come_on_top(tmp_path: Path) -> None:
    found = {c.variant for c in _load(tmp_path, "baselines: torch_conv1d").cells("cpu")}
    assert found == {v.name for v in variants.select("all")} | {"torch_conv1d"}


def test_auto_is_what_can_run_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiment.toolchains, "runnable", lambda: ["nvidia", "cpu"])
    loaded = _load(tmp_path, "variants: fwd_naive")
    assert [c.backend for c in loaded.cells()] == ["nvidia", "cpu"]
    assert [c.backend for c in loaded.cells("amd")] == ["amd"]


def test_an_unknown_backend_asked_for_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'nvida' is not known .did you mean 'nvidia'"):
        _load(tmp_path, "variants: fwd_naive").cells("nvida")


def test_timing_is_a_named_policy_with_fields_on_top(tmp_path: Path) -> None:
    assert _load(tmp_path, "name: x").policy("cpu") == POLICIES["cpu"]
    assert _load(tmp_path, "name: x").policy("nvidia") == POLICIES["gpu"]
    assert _load(tmp_path, "timing: s0").policy("cpu") == POLICIES["s0"]
    warm = _load(tmp_path, "timing: {cache: warm, launch: stream}").policy("nvidia")
    assert warm == dataclasses.replace(POLICIES["gpu"], cache="warm", launch="stream")
    loaded = _load(tmp_path, "timing: {policy: s0, warmup: 2, budget_s: 1.0e-3}").policy("nvidia")
    assert (loaded.warmup, loaded.min_samples, loaded.budget_s) == (2, 100, 0.001)


def test_the_emulation_gets_smaller_cases_and_says_so(tmp_path: Path) -> None:
    loaded = _load(
        tmp_path,
        "variants: fwd_naive\ncpu: {max_outputs: 100_000}\n"
        "base: {batch: 8, dim: 1536, seqlen: 2048, view: channel_slice, row_stride: 3072}",
    )
    (scaled,), (whole,) = loaded.cells("cpu"), loaded.cells("nvidia")
    assert scaled.case.outputs <= 100_000
    assert scaled.case.scaled_from == whole.case.shape() == "8x1536x2048x4"
    assert whole.case.scaled_from == ""


_sizes = st.integers(1, 5000)


@given(_sizes, _sizes, _sizes, st.integers(1, 8), st.integers(1, 3), st.integers(1, 10**6), st.integers(1, 512))
def test_scaling_keeps_width_and_ratio_and_is_within_the_limits(
    batch: int, dim: int, seqlen: int, width: int, ratio: int, max_outputs: int, max_dim: int
) -> None:
    case = Case(batch, dim, seqlen, width, view="channel_slice", row_stride=ratio * dim)
    small = scale_down(case, CpuLimits(max_outputs=max_outputs, max_dim=max_dim))
    assert small.outputs <= max_outputs
    assert small.dim <= max_dim
    assert small.row_stride == ratio * small.dim
    assert (small.width, small.layout, small.dtype) == (case.width, case.layout, case.dtype)
    assert small.scaled_from == ("" if small.shape() == case.shape() else case.shape())
    assert scale_down(small, CpuLimits(max_outputs=max_outputs, max_dim=max_dim)) == small


@pytest.mark.parametrize("path", shipped(), ids=lambda p: p.stem)
def test_every_shipped_experiment_has_cells_with_stable_unique_ids(path: Path) -> None:
    ids = {b: [cell.cell_id for cell in load(path).cells(b)] for b in ("cpu", "nvidia")}
    for backend, found in ids.items():
        assert found
        assert len(set(found)) == len(found)
        assert found == [cell.cell_id for cell in load(path).cells(backend)]
    assert max(map(len, ids.values())) == load(path).count()


@pytest.mark.parametrize("path", shipped(), ids=lambda p: p.stem)
def test_every_shipped_experiment_is_small_enough_to_emulate(path: Path) -> None:
    for cell in load(path).cells("cpu"):
        reason = variants.why_not(variants.get(cell.variant), cell.case, "cpu")
        assert "emulation" not in reason, cell.title()


def test_quick_covers_what_it_promises() -> None:
    cases = {cell.case for cell in load("quick").cells("cpu")}
    names = {cell.variant for cell in load("quick").cells("cpu")}
    assert {v.name for v in variants.select("all")} | {"torch_conv1d"} == names
    assert {(c.dtype, c.layout) for c in cases} == {
        (dtype, layout) for dtype in ("float32", "float16", "bfloat16") for layout in ("channel_first", "channel_last")
    }
    assert {c.seqlen for c in cases} >= {1, 2, 3, 63, 64, 65, 129, 1134}
    assert {c.width for c in cases} >= {2, 3, 4}
    assert {c.view for c in cases} == {"contiguous", "channel_slice", "misaligned"}
    assert {c.bias for c in cases} == {True, False}
    assert {c.activation for c in cases} == {"none", "silu"}


def test_several_products_are_taken_one_after_the_other(tmp_path: Path) -> None:
    text = "axes:\n  - {label: [dim], dim: [4, 8]}\n  - {seqlen: [1, 2, 3], batch: [1, 2]}\nvariants: fwd_naive"
    found = _load(tmp_path, text)
    cases = [cell.case for cell in found.cells("cpu")]
    assert [(c.label, c.dim) for c in cases[:2]] == [("dim", 4), ("dim", 8)]
    assert [(c.seqlen, c.batch) for c in cases[2:]] == [(1, 1), (2, 1), (3, 1), (1, 2), (2, 2), (3, 2)]
    assert found.count() == len(cases)


def test_shipped_experiments_are_listed_in_their_readme() -> None:
    readme = (shipped()[0].parent / "README.md").read_text()
    for path in shipped():
        assert f"`{path.name}`" in readme
    for key in Experiment.model_fields:
        assert f"| `{key}` |" in readme


def test_the_example_of_the_readme_has_the_cells_that_it_says(tmp_path: Path) -> None:
    readme = (shipped()[0].parent / "README.md").read_text()
    example = readme.split("```yaml\n")[1].split("```")[0]
    assert f"{len(_load(tmp_path, example).cells('cpu'))} cells" in readme


def test_an_experiment_made_in_python_is_checked_as_well() -> None:
    with pytest.raises(ValueError, match="fwd_naive"):
        Experiment(name="x", variants=["fwd_naiv"])
    bad: dict[str, Any] = {"nam": "x"}
    with pytest.raises(ValueError, match="nam"):
        Experiment(**bad)

"""A Case is valid or refused by name, and counts bytes and operations as defined."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cc1d_lab.case import ACTIVATIONS, CASE_FIELDS, DTYPES, ITEMSIZE, LAYOUTS, VIEWS, Case
from cc1d_lab.cell import Cell
from cc1d_lab.errors import ConfigError

_small = st.integers(1, 4096)
cases = st.builds(
    Case,
    batch=_small,
    dim=_small,
    seqlen=_small,
    width=st.integers(1, 16),
    dtype=st.sampled_from(DTYPES),
    weight_dtype=st.sampled_from(["", *DTYPES]),
    layout=st.sampled_from(LAYOUTS),
    bias=st.booleans(),
    activation=st.sampled_from(ACTIVATIONS),
    view=st.sampled_from(VIEWS),
    states=st.booleans(),
    seq_idx=st.booleans(),
    seed=_small,
)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("dtype", "bf16", "'bf16' is not known .did you mean 'bfloat16'"),
        ("weight_dtype", "int8", "weight_dtype: 'int8'"),
        ("layout", "channels_last", "did you mean 'channel_last'"),
        ("activation", "gelu", "activation: 'gelu' .* allowed: none, silu"),
        ("activation", True, "activation: True"),
        ("view", "sliced", "view: 'sliced'"),
        ("op", "backward", "op: 'backward'"),
        ("states", 1, "states: 1 must be true or false"),
        ("seq_idx", "yes", "seq_idx: 'yes' must be true or false"),
        ("batch", 0, "batch: 0 must be an integer of at least 1"),
        ("dim", -3, "dim: -3"),
        ("seqlen", 1.5, r"seqlen: 1\.5"),
        ("width", True, "width: True"),
        ("width", "4", "width: '4'"),
        ("row_stride", 63, "row_stride: 63 must be 0 .none. or at least dim = 64"),
    ],
)
def test_bad_values_are_refused_by_name(field: str, value: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Case(**{field: value})


def test_a_row_stride_needs_a_view_that_has_one() -> None:
    assert Case(view="sliced_input", row_stride=80).row_stride == 80
    with pytest.raises(
        ConfigError, match="row_stride: 80 is for view channel_slice or sliced_input, got view misaligned"
    ):
        Case(view="misaligned", row_stride=80)


def test_weight_dtype_follows_dtype_unless_given() -> None:
    assert Case(dtype="float16").weight_dtype == "float16"
    assert Case(dtype="float16", weight_dtype="float32").weight_dtype == "float32"


def test_bytes_of_a_case_by_hand() -> None:
    # x and out: 2 * 2*64*256 elements of 2 bytes; weight 64*4 and bias 64 of 4 bytes
    case = Case(batch=2, dim=64, seqlen=256, width=4, dtype="bfloat16", weight_dtype="float32")
    assert case.bytes() == 2 * 2 * 64 * 256 * 2 + (64 * 4 + 64) * 4


def test_bytes_of_states_and_of_the_other_ops_by_hand() -> None:
    case = Case(batch=2, dim=64, seqlen=256, width=4, dtype="bfloat16", weight_dtype="float32")
    plain, state, parameters = 2 * 64 * 256 * 2, 2 * 64 * 3 * 2, (64 * 4 + 64) * 4
    assert dataclasses.replace(case, states=True).bytes() == case.bytes() + 2 * state
    assert dataclasses.replace(case, seq_idx=True).bytes() == case.bytes() + 4 * 2 * 256
    assert dataclasses.replace(case, op="bwd").bytes() == 3 * plain + 2 * parameters
    assert dataclasses.replace(case, op="bwd", states=True).bytes() == 3 * plain + 2 * parameters + 3 * state
    assert dataclasses.replace(case, op="update").bytes() == 2 * plain + parameters + 2 * state


def test_an_update_has_no_sequences() -> None:
    with pytest.raises(ConfigError, match="states, seq_idx: an update has a state of its own"):
        Case(op="update", seq_idx=True)


def test_flops_of_a_backward_by_hand() -> None:
    case = Case(batch=1, dim=2, seqlen=3, width=4, op="bwd", activation="none")
    assert case.flops() == 6 * (2 * 8 + 1)
    assert dataclasses.replace(case, activation="silu").flops() == 6 * (3 * 8 + 2)


def test_flops_of_a_case_by_hand() -> None:
    assert Case(batch=1, dim=2, seqlen=3, width=4).flops() == 6 * (2 * 4 + 1)
    assert Case(batch=1, dim=2, seqlen=3, width=4, bias=False).flops() == 6 * 8


@given(cases)
def test_a_case_moves_at_least_its_input_and_output(case: Case) -> None:
    assert case.bytes() > 2 * case.outputs * ITEMSIZE[case.dtype]
    assert case.flops() >= 2 * case.outputs * case.width


@given(cases)
def test_a_case_survives_json(case: Case) -> None:
    assert Case(**json.loads(json.dumps(case.to_dict()))) == case
    assert tuple(case.to_dict()) == CASE_FIELDS


@given(cases)
def test_the_title_is_one_line_with_the_shape(case: Case) -> None:
    assert case.shape() in case.title()
    assert "\n" not in case.title()


@given(cases, st.sampled_from(CASE_FIELDS))
def test_every_field_is_part_of_the_identity_of_a_cell(case: Case, field: str) -> None:
    if field == "state_len":  # of an update alone
        case = dataclasses.replace(case, op="update", states=False, seq_idx=False)
    if field == "row_stride":  # of slices alone
        case = dataclasses.replace(case, view="channel_slice")
    other = {"dtype": "bfloat16", "weight_dtype": "bfloat16", "layout": "channel_last", "activation": "silu"}
    other |= {"view": "misaligned", "op": "fwd", "label": "x", "scaled_from": "y"}
    value = getattr(case, field)
    changed = other[field] if field in other else (not value if isinstance(value, bool) else value + 10_000)
    same = changed == value
    different = dataclasses.replace(case, **{field: changed})
    assert (Cell("fwd_naive", "cpu", case).cell_id == Cell("fwd_naive", "cpu", different).cell_id) == same


def test_cell_ids_do_not_change_from_process_to_process() -> None:
    # Resume finds finished cells by this.
    code = "from cc1d_lab.cell import *; print(Cell('fwd_naive', 'cpu', Case(), {'block': 64}).cell_id)"
    found = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert found == {f"{Cell('fwd_naive', 'cpu', Case(), {'block': 64}).cell_id}\n".encode()}


def test_the_order_of_tunables_does_not_matter() -> None:
    case = Case()
    one = Cell("fwd_shared_memory", "cpu", case, {"block": 64, "vectors": 2})
    other = Cell("fwd_shared_memory", "cpu", case, {"vectors": 2, "block": 64})
    assert one.cell_id == other.cell_id


def test_a_group_is_the_cells_of_one_case_on_one_device() -> None:
    case = Case()
    assert Cell("a", "cpu", case).group_key == Cell("b", "cpu", case, {"block": 64}).group_key
    assert Cell("a", "cpu", case).group_key != Cell("a", "cpu", case, arch="wave64").group_key
    assert Cell("a", "cpu", case).group_key != Cell("a", "cpu", dataclasses.replace(case, seed=1)).group_key

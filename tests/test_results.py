"""Rows outlive the process that wrote them, and nothing foreign is read as a row."""

from __future__ import annotations

import json
import math
import multiprocessing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cc1d_lab import results
from cc1d_lab.case import CASE_FIELDS, Case
from cc1d_lab.errors import StoreError
from cc1d_lab.results import COLUMNS, SCHEMA_VERSION, append, load_rows, new_row, read


def _row(**values: object) -> results.Row:
    return new_row(schema_version=SCHEMA_VERSION, **Case().to_dict(), **values)


def test_every_column_is_there_and_null_when_not_measured() -> None:
    row = _row(variant="fwd_naive")
    assert list(row) == list(COLUMNS)
    assert row["time_us_p50"] is None
    assert set(CASE_FIELDS) <= set(row)


def test_an_unknown_column_is_refused() -> None:
    with pytest.raises(KeyError, match="not a column: gbsp"):
        new_row(gbsp=1.0)


@given(st.floats())
def test_numbers_that_are_not_finite_were_not_measured(value: float) -> None:
    plain = value if math.isfinite(value) else None
    row = _row(gbps=value, output_errors={"dx": {"bound_ratio": value}})
    assert (row["gbps"], row["output_errors"]) == (plain, {"dx": {"bound_ratio": plain}})


def test_what_is_appended_is_read_in_order(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [_row(variant=f"v{i}", samples_us=[0.1, 1e-300], reason='"quote"\n\u2028 ünï') for i in range(3)]
    for row in rows:
        append(path, row)
    assert read(path) == rows


@given(st.text(), st.floats(allow_nan=False, allow_infinity=False))
def test_any_text_and_number_survives(tmp_path_factory: pytest.TempPathFactory, text: str, number: float) -> None:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    row = _row(reason=text, gbps=number)
    append(path, row)
    append(path, row)
    assert read(path) == [row, row]


@given(st.data())
def test_a_torn_last_line_is_skipped(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    append(path, _row(variant="whole"))
    whole = path.stat().st_size
    append(path, _row(variant="torn"))
    with path.open("rb+") as f:
        f.truncate(data.draw(st.integers(whole, path.stat().st_size - 1)))
    assert [row["variant"] for row in read(path)] == ["whole"]


def test_a_broken_line_in_the_middle_is_an_error_with_its_number(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    append(path, _row())
    with path.open("a") as f:
        f.write('{"half": \n')
    append(path, _row())
    with pytest.raises(StoreError, match=r"rows\.jsonl:2: not a row"):
        read(path)


@pytest.mark.parametrize("line", ["[]", "3", "null", '{"a": 1}', "\x00"])
def test_a_line_that_is_no_row_is_refused(tmp_path: Path, line: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(StoreError, match="not a row"):
        read(path)


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(b"\xff\xfe\n")
    with pytest.raises(StoreError, match=r"rows\.jsonl: not text"):
        read(tmp_path / "rows.jsonl")


def test_a_row_from_before_a_column_was_added_has_it_as_null(tmp_path: Path) -> None:
    old = {name: value for name, value in _row(variant="v").items() if name not in ("toolchain", "timed_result")}
    (tmp_path / "rows.jsonl").write_text(json.dumps(old) + "\n")
    assert read(tmp_path / "rows.jsonl") == [_row(variant="v")]


def test_a_foreign_version_is_refused_with_both_numbers(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"schema_version": 99}) + "\n")
    with pytest.raises(StoreError, match=f"schema version 99, this package reads {SCHEMA_VERSION}"):
        read(path)


def test_a_missing_file_and_a_full_disk_are_errors_with_the_path(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"rows\.jsonl: cannot be read"):
        read(tmp_path / "rows.jsonl")
    with pytest.raises(StoreError, match=r"nowhere/rows\.jsonl: cannot append"):
        append(tmp_path / "nowhere" / "rows.jsonl", _row())
    if Path("/dev/full").exists():
        with pytest.raises(StoreError, match="/dev/full: cannot append"):
            append(Path("/dev/full"), _row())


def _write_many(path: Path, writer: int, count: int) -> None:
    for i in range(count):
        append(path, _row(variant=f"{writer}", n_bad=i, log="x" * 5000))


def test_writers_side_by_side_do_not_mix_their_rows(tmp_path: Path) -> None:
    path, writers, count = tmp_path / "rows.jsonl", 4, 40
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_write_many, args=(path, w, count)) for w in range(writers)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    rows = read(path)
    for writer in range(writers):
        assert [row["n_bad"] for row in rows if row["variant"] == str(writer)] == list(range(count))


def test_a_frame_has_every_column_in_order(tmp_path: Path) -> None:
    append(tmp_path / "rows.jsonl", _row(variant="a"))
    for source in (tmp_path, tmp_path / "rows.jsonl", [_row(variant="a")]):
        frame = load_rows(source)
        assert list(frame.columns) == list(COLUMNS)
        assert list(frame["variant"]) == ["a"]
    assert list(load_rows([]).columns) == list(COLUMNS)

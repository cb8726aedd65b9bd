"""A Parquet file, or a folder of them, is text cells as a CSV file would have held them."""

from datetime import UTC, date, datetime, time
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hospital_data import records, refused
from hypothesis import given
from hypothesis import strategies as st

pa = pytest.importorskip("pyarrow", reason="needs the extra `parquet`")
pq = pytest.importorskip("pyarrow.parquet")

SECTION = {"kind": "parquet", "path": "ulm.parquet"}


def write(path: Path, columns: dict[str, Any]) -> None:
    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.table(columns), path)


@pytest.mark.parametrize(
    ("column", "cells"),
    [
        (pa.array([63, None]), ("63", "")),
        (pa.array([0.1, float("nan")], pa.float32()), ("0.1", "")),
        (pa.array([0.1, 1e-7]), ("0.1", "1e-07")),
        (pa.array([Decimal("7.10"), None]), ("7.10", "")),
        (pa.array([True, False]), ("1", "0")),
        (pa.array(["a", "ä"]).dictionary_encode(), ("a", "ä")),
        (pa.array([date(2020, 1, 31), None]), ("2020-01-31", "")),
        (
            pa.array([1_580_428_800_000_000_999, None], pa.timestamp("ns", "UTC")),
            ("2020-01-31T00:00:00+00:00", ""),
        ),
        (pa.array([datetime(2020, 1, 31, 8, tzinfo=UTC)] * 2), ("2020-01-31T08:00:00+00:00",) * 2),
        (pa.array([time(8, 30), None]), ("08:30:00", "")),
        (pa.array([1, None], pa.time64("ns")), ("00:00:00", "")),
        (pa.array([None, None]), ("", "")),
    ],
)
def test_each_type_becomes_text(tmp_path: Path, column: Any, cells: tuple[str, ...]) -> None:
    write(tmp_path / "ulm.parquet", {" x ": column})
    assert records(SECTION, tmp_path).cells == {"x": cells}


@given(st.lists(st.one_of(st.none(), st.floats(allow_nan=False)), min_size=1))
def test_a_float_reads_back_as_the_same(tmp_path_factory: pytest.TempPathFactory, numbers: list[Any]) -> None:
    folder = tmp_path_factory.mktemp("parquet")
    write(folder / "ulm.parquet", {"x": pa.array(numbers, pa.float64())})
    found = records(SECTION, folder).cells["x"]
    assert [float(cell) if cell else None for cell in found] == numbers


def test_a_folder_is_its_files_in_the_order_of_their_names(tmp_path: Path) -> None:
    write(tmp_path / "year=2020" / "b.parquet", {"x": [3]})
    write(tmp_path / "year=2020" / "a.parquet", {"x": [1, 2]})
    found = records(SECTION | {"path": "year=2020"}, tmp_path)
    assert found.cells == {"x": ("1", "2", "3")}
    assert [found.place(row) for row in range(3)] == [
        "a.parquet, row 1",
        "a.parquet, row 2",
        "b.parquet, row 1",
    ]


def test_rows_of_a_single_file_are_counted_from_one(tmp_path: Path) -> None:
    write(tmp_path / "ulm.parquet", {"x": [1, 2]})
    assert records(SECTION, tmp_path).place(1) == "row 2"


@pytest.mark.parametrize("cell", [b"hunter2", ["hunter2"], {"name": "hunter2"}])
def test_a_cell_that_is_none_is_named_by_row_and_column(tmp_path: Path, cell: object) -> None:
    write(tmp_path / "ulm.parquet", {"x": [1, 2], "y": pa.array([None, cell])})
    error = refused(SECTION, tmp_path)
    assert error.where.endswith("ulm.parquet, row 2, column 'y'")
    assert "hunter2" not in str(error)


def test_a_file_that_is_no_parquet_is_refused(tmp_path: Path) -> None:
    assert "no such file" in refused(SECTION, tmp_path).what
    (tmp_path / "ulm.parquet").write_bytes(b"PAR1 hunter2 PAR1")
    error = refused(SECTION, tmp_path)
    assert "cannot be read as Parquet" in error.what
    assert "hunter2" not in str(error)
    (tmp_path / "ulm.parquet").unlink()
    (tmp_path / "ulm.parquet").mkdir()
    assert "no Parquet file" in refused(SECTION, tmp_path).what


def test_files_of_a_folder_have_the_same_columns(tmp_path: Path) -> None:
    write(tmp_path / "all" / "a.parquet", {"x": [1], "y": [1]})
    write(tmp_path / "all" / "b.parquet", {"y": [1], "x": [1]})
    error = refused(SECTION | {"path": "all"}, tmp_path)
    assert "other columns" in error.what
    assert "b.parquet" in error.where


def test_columns_have_names_and_each_its_own(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_arrays([pa.array([1])] * 2, names=["x", " x"]), tmp_path / "ulm.parquet")
    assert refused(SECTION, tmp_path).where.endswith("column 2")
    write(tmp_path / "ulm.parquet", {" ": [1]})
    assert refused(SECTION, tmp_path).what == "a column has no name"

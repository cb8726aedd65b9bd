"""Arrays are taken as they should be or refused by name and place; cells are what a file would hold."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from public_files import npz, refused

from clinimeta.common.tasks.schema import Column, Schema
from clinimeta.common.tasks.table import Records, encode
from clinimeta.simulations.datasets.arrays import Wanted, check_count, check_entries, check_names, read_arrays
from clinimeta.simulations.datasets.cells import ArrayCells

WANTED = {"x": Wanted("f", ("rows", 2)), "t": Wanted("iu", ("rows",))}
GOOD = {"x": np.ones((3, 2)), "t": np.arange(3)}


def test_the_wanted_arrays_are_read_and_others_left_alone(tmp_path: Path) -> None:
    found = read_arrays(npz(tmp_path / "a.npz", {**GOOD, "more": np.array([object()])}), WANTED, "there")
    assert set(found) == {"x", "t"}
    assert np.array_equal(found["t"], [0, 1, 2])


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"t": None}, "the array 't' is missing"),
        ({"t": np.ones(3)}, "the array 't' is not what it should be"),
        ({"t": np.arange(4)}, "the array 't' is not what it should be"),
        ({"x": np.ones((3, 3))}, "the array 'x' is not what it should be"),
        ({"x": np.ones(3)}, "the array 'x' is not what it should be"),
        ({"x": np.array([["7734"] * 2] * 3)}, "the array 'x' is not what it should be"),
        ({"x": np.array([["7734", None]] * 3, dtype=object)}, "the file cannot be read as arrays"),
    ],
)
def test_another_array_is_refused_by_name(tmp_path: Path, changed: dict[str, object], says: str) -> None:
    arrays = {name: array for name, array in {**GOOD, **changed}.items() if array is not None}
    path = npz(tmp_path / "a.npz", arrays)
    error = refused(lambda: read_arrays(path, WANTED, "there"))
    assert error.what == says
    assert str(path) in error.where
    assert "there" in error.remedy


def test_a_size_is_held_to_what_the_first_array_said(tmp_path: Path) -> None:
    path = npz(tmp_path / "a.npz", {**GOOD, "t": np.arange(4)})
    error = refused(lambda: read_arrays(path, WANTED, "there"))
    assert (error.found, error.expected) == ("whole numbers, [4]", "whole numbers, [rows] with rows = 3")


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def _damaged(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 0xFF
    path.write_bytes(content)


def _one_array(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.ones(3))


@pytest.mark.parametrize(
    "spoil",
    [_cut, _damaged, _one_array, lambda path: path.write_bytes(b""), lambda path: path.write_bytes(b"7734")],
)
def test_what_is_no_file_of_arrays_is_refused(tmp_path: Path, spoil: Callable[[Path], object]) -> None:
    path = npz(tmp_path / "a.npz", GOOD)
    spoil(path)
    assert refused(lambda: read_arrays(path, WANTED, "there")).what == "the file cannot be read as arrays"


def test_an_entry_is_named_by_its_row_and_column() -> None:
    fits = np.array([[True, True], [True, False], [False, True]])
    numbered = refused(lambda: check_entries(Path("a.npz"), "x", fits, "0 or 1", "there"))
    assert numbered.where == "a.npz, array 'x', row 2, column 2"
    assert numbered.found == "2 such entries"
    named = refused(lambda: check_entries(Path("a.npz"), "x", fits, "0 or 1", "there", ("age", "hr")))
    assert named.where == "a.npz, array 'x', row 2, column 'hr'"
    flat = refused(lambda: check_entries(Path("a.npz"), "t", fits[:, 0], "0 or 1", "there"))
    assert flat.where == "a.npz, array 't', row 3"
    check_entries(Path("a.npz"), "x", fits | True, "0 or 1", "there")


def test_another_count_or_name_is_refused() -> None:
    assert refused(lambda: check_count(Path("a"), "rows", 2, 3, "there")).found == "2 rows"
    check_count(Path("a"), "rows", 3, 3, "there")
    check_names(Path("a"), "tasks", np.array(["a", "b"]), ("a", "b"), "there")
    swapped = refused(lambda: check_names(Path("a"), "tasks", np.array(["a", "c"]), ("a", "b"), "there"))
    assert swapped.where.endswith("row 2")
    assert refused(lambda: check_names(Path("a"), "tasks", np.array(["a"]), ("a", "b"), "there"))


def test_array_cells_are_encoded_as_the_same_cells_of_a_file() -> None:
    numbers = np.array([[0.1, 71.5], [np.nan, 1e-7], [-3.0, 2e20]], dtype=np.float32)
    lazy = ArrayCells({"sick": ["0", "1", "0"]}, ("a", "b"), numbers)
    plain = {"sick": ["0", "1", "0"], "a": ["0.1", "", "-3.0"], "b": ["71.5", "1e-07", "2e+20"]}
    assert lazy == plain
    assert list(lazy) == list(plain)
    assert len(lazy) == 3
    assert "b" in lazy
    assert "c" not in lazy
    with pytest.raises(KeyError):
        lazy["c"]
    columns = (Column(name="a"), Column(name="b", scale=1e20))
    schema = Schema(target="sick", classes=("0", "1"), columns=columns, missing="mask", clip=1e6)
    found, expected = (encode(schema, Records("x", cells)).rows for cells in (lazy, plain))
    assert np.array_equal(found.inputs["table"].numpy(), expected.inputs["table"].numpy())
    assert np.array_equal(found.inputs["present"].numpy(), [[1, 1], [0, 1], [1, 1]])
    assert found.inputs["table"][0, 0] == np.float32(0.1)


def test_array_cells_never_show_a_value() -> None:
    cells = ArrayCells({"id": ["7734"]}, ("a",), np.array([[7734.0]]))
    assert "7734" not in repr(cells)
    assert "7734" not in repr(Records("x", cells))

"""A hospital's rows, from text cells to tensors; every complaint names file, line and column.

No message here ever holds a cell's value, only what kind of thing it is: values are patients'.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from clinimeta.common.errors import DataError, nearest
from clinimeta.common.tasks.episode import Examples, examples
from clinimeta.common.tasks.schema import Column, Schema
from clinimeta.common.typing import Inputs

MISSING_CELLS = frozenset({"", "?", "NA", "N/A", "NaN", "nan", "null", "NULL"})


@dataclass(frozen=True, slots=True)
class Records:
    """Rows as a source gives them: column -> text cells. `where` names the source in messages.

    `places` says where each row stands in a source that is no text file ("row 3"); without it a row is a
    line, counted from `first_line`.
    """

    where: str
    cells: Mapping[str, Sequence[str]]
    first_line: int = 2
    places: Sequence[str] = ()

    def __len__(self) -> int:
        """The number of rows."""
        return len(next(iter(self.cells.values()), ()))

    def place(self, row: int) -> str:
        """Where a row stands in the source, for messages.

        >>> Records("ulm.csv", {"age": ["63", "41"]}).place(1)
        'line 3'
        """
        return self.places[row] if self.places else f"line {self.first_line + row}"

    def __repr__(self) -> str:
        """Name and size only: cells are patients' values."""
        return f"Records({self.where!r}, {len(self)} rows, columns {list(self.cells)})"


@dataclass(frozen=True, slots=True)
class Table:
    """A hospital's encoded rows.

    `patients` numbers the people, so that none is ever on both sides of an episode. `test` marks rows
    that the data set's own protocol keeps for evaluation; training never sees them.
    """

    rows: Examples
    patients: Int[Tensor, " rows"]
    test: Bool[Tensor, " rows"]

    def __len__(self) -> int:
        """The number of rows."""
        return self.rows.size

    def take(self, indices: Int[Tensor, " taken"]) -> "Table":
        """The rows at these indices."""
        return Table(self.rows.take(indices), self.patients[indices], self.test[indices])

    @property
    def training(self) -> "Table":
        """The rows that training may see."""
        return self.take(torch.nonzero(~self.test).squeeze(-1))

    def __repr__(self) -> str:
        """Size only."""
        return f"Table({len(self)} rows)"


@dataclass(frozen=True, slots=True)
class Standard:
    """What is subtracted from and what divides each feature."""

    center: Float[np.ndarray, " features"]
    scale: Float[np.ndarray, " features"]

    @staticmethod
    def of(values: Float[np.ndarray, "rows features"]) -> "Standard":
        """Mean and (n-1) standard deviation of these rows, missing cells apart; 1 where nothing varies."""
        present = ~np.isnan(values)
        count = present.sum(axis=0)
        mean = np.where(present, values, 0.0).sum(axis=0) / np.maximum(count, 1)
        squares = np.where(present, (values - mean) ** 2, 0.0).sum(axis=0)
        deviation = np.sqrt(squares / np.maximum(count - 1, 1))
        return Standard(mean, np.where(deviation > 1e-12, deviation, 1.0))


def encode(schema: Schema, records: Records, *, test: Sequence[bool] | None = None) -> Table:
    """Read labelled rows into a table (run by the site).

    Raises:
        DataError: no rows, a missing column that is not optional, a cell that is no number or no known
            level or class.
    """
    values = read_values(schema, records)
    held_out = np.array(test if test is not None else [False] * len(records), dtype=bool)
    standard = Standard.of(values[~held_out]) if schema.normalise == "site" else None
    targets = read_targets(schema, records)
    patients = _patients(schema, records)
    return Table(
        examples(model_inputs(schema, values, standard), torch.from_numpy(targets)),
        torch.from_numpy(patients),
        torch.from_numpy(held_out),
    )


def model_inputs(
    schema: Schema, values: Float[np.ndarray, "rows values"], standard: Standard | None = None
) -> Inputs:
    """What a model is given of these values: `table`, standardised and filled, `[rows, features]`.

    Where the study masks, also `present`, of the same shape: 1 where a value was there, else 0. `standard`
    replaces the study's own numbers.
    """
    scale = standard or _study_standard(schema)
    table = (values - scale.center) / scale.scale
    missing = np.isnan(table)
    table = np.clip(np.where(missing, 0.0, table), -schema.clip, schema.clip)
    if schema.missing == "indicator":
        starts = np.cumsum([0, *(len(column.features) for column in schema.columns)])[:-1]
        table = np.concatenate([table, missing[:, starts].astype(float)], axis=1)
    inputs = {"table": torch.from_numpy(table.astype(np.float32))}
    if schema.missing == "mask":
        inputs["present"] = torch.from_numpy((~missing).astype(np.float32))
    return inputs


def read_values(schema: Schema, records: Records) -> Float[np.ndarray, "rows values"]:
    """The input columns as numbers, NaN where a cell is empty or an optional column not there."""
    if len(records) == 0:
        raise DataError(
            "there are no rows",
            where=records.where,
            found="no line after the header" if records.cells else "an empty file",
            expected="a header and one line a patient",
            remedy="export the table again",
        )
    absent = absent_columns(schema, records)
    parts = [
        np.full((len(records), len(column.features)), np.nan)
        if column.name in absent
        else _column_values(column, _cells(records, column.name), records, schema)
        for column in schema.columns
    ]
    return np.concatenate(parts, axis=1)


def absent_columns(schema: Schema, records: Records) -> tuple[str, ...]:
    """The optional columns that this table does not have."""
    return tuple(c.name for c in schema.columns if c.optional and c.name not in records.cells)


def read_targets(schema: Schema, records: Records) -> Shaped[np.ndarray, " rows"]:
    """The target: class numbers (int64), or numbers (float32) where the study has no classes."""
    cells = _cells(records, schema.target)
    if not schema.classes:
        column = Column(name=schema.target)
        numbers = [_number(c, column, records, row, "refuse") for row, c in enumerate(cells)]
        return np.array(numbers, dtype=np.float32)
    return np.array(
        [_level(c, schema.classes, schema.target, records, row) for row, c in enumerate(cells)],
        dtype=np.int64,
    )


def unusable_rows(schema: Schema, records: Records, name: str) -> tuple[int, ...]:
    """The rows whose cell in this column, an input or the target, `encode` would refuse."""
    cells = _cells(records, name)
    column = next((c for c in schema.columns if c.name == name), Column(name=name))
    missing = "refuse" if name == schema.target else schema.missing
    levels = schema.classes if name == schema.target else column.levels

    def fits(row: int, cell: str) -> bool:
        try:
            if not levels:
                _number(cell, column, records, row, missing)
            elif missing == "refuse" or cell.strip() not in MISSING_CELLS:
                _level(cell, levels, name, records, row)
        except DataError:
            return False
        return True

    return tuple(row for row, cell in enumerate(cells) if not fits(row, cell))


def describe_cell(cell: str) -> str:
    """What kind of thing a cell holds, without showing it.

    >>> describe_cell("1,5"), describe_cell("high"), describe_cell("")
    ('a number with a decimal comma', 'text of 4 characters', 'an empty cell')
    """
    text = cell.strip()
    if text in MISSING_CELLS:
        return "an empty cell" if not text else "a missing-value mark"
    if _is_float(text.replace(",", ".", 1)):
        return "a number" if _is_float(text) else "a number with a decimal comma"
    if text[:1] in "<>" and _is_float(text[1:].strip(" =")):
        return "a number with a comparison sign"
    if (
        text[0].isdigit()
        and any(not c.isdigit() for c in text)
        and text.rstrip("%abcdefghijklmnopqrstuvwxyz/ ") != text
    ):
        return "a number followed by text (a unit?)"
    return f"text of {len(text)} characters"


def _cells(records: Records, name: str) -> Sequence[str]:
    if name not in records.cells:
        raise DataError(
            f"the column '{name}' is missing",
            where=records.where,
            found=f"{len(records.cells)} columns: {', '.join(sorted(records.cells))}",
            expected=nearest(name, records.cells) if records.cells else f"a column '{name}'",
            remedy=f"add the column '{name}', or rename the one that holds it",
        )
    return records.cells[name]


def _column_values(
    column: Column, cells: Sequence[str], records: Records, schema: Schema
) -> Float[np.ndarray, "rows values"]:
    if column.kind != "categorical":
        numbers = [_number(c, column, records, row, schema.missing) for row, c in enumerate(cells)]
        return np.array(numbers, dtype=np.float64)[:, None]
    hot = np.zeros((len(cells), len(column.levels)))
    for row, cell in enumerate(cells):
        if cell.strip() in MISSING_CELLS and schema.missing != "refuse":
            hot[row] = np.nan
        else:
            hot[row, _level(cell, column.levels, column.name, records, row)] = 1.0
    return hot[:, 1:]


def _number(cell: str, column: Column, records: Records, row: int, missing: str) -> float:
    text = cell.strip()
    if text in MISSING_CELLS and missing != "refuse":
        return math.nan
    fits = _is_float(text) and (column.kind == "numeric" or float(text) in (0.0, 1.0))
    if not fits:
        wanted = (
            "0 or 1"
            if column.kind == "binary"
            else "a number" + (f" in {column.unit}" if column.unit else "")
        )
        raise _bad_cell(cell, column.name, records, row, wanted)
    return float(text)


def _level(cell: str, levels: Sequence[str], name: str, records: Records, row: int) -> int:
    text = cell.strip()
    if text in levels:
        return levels.index(text)
    for i, level in enumerate(levels):  # "1.0" is the level "1"
        if _is_float(text) and _is_float(level) and float(text) == float(level):
            return i
    raise _bad_cell(cell, name, records, row, f"one of {', '.join(levels)}")


def _bad_cell(cell: str, name: str, records: Records, row: int, wanted: str) -> DataError:
    return DataError(
        f"a cell in column '{name}' cannot be used",
        where=f"{records.where}, {records.place(row)}, column '{name}'",
        found=describe_cell(cell),
        expected=wanted,
        remedy="correct the cell, or leave the row out",
    )


def _patients(schema: Schema, records: Records) -> Int[np.ndarray, " rows"]:
    if not schema.patient:
        return np.arange(len(records), dtype=np.int64)
    cells = [cell.strip() for cell in _cells(records, schema.patient)]
    # A row that names nobody is a person of its own; the line break keeps it apart from every name.
    people = [f"\n{row}" if cell in MISSING_CELLS else cell for row, cell in enumerate(cells)]
    _, numbers = np.unique(np.array(people, dtype=str), return_inverse=True)
    return numbers.astype(np.int64)


def _study_standard(schema: Schema) -> Standard:
    center = [column.center for column in schema.columns for _ in column.features]
    scale = [column.scale for column in schema.columns for _ in column.features]
    return Standard(np.array(center), np.array(scale))


_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", flags=re.ASCII)


def _is_float(text: str) -> bool:
    """A finite decimal number; Python alone would also take 1_000 and digits of other scripts."""
    return bool(_NUMBER.fullmatch(text)) and math.isfinite(float(text))

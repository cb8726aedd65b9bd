"""From the names, codes and units of a hospital to those of a study: one pure function for all sources.

What is wrong with a mapping is found all at once (`mistakes`); `translate` raises the first. A mapping is
written by people, so its names may be shown; a cell never is.
"""

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Annotated, TypeAlias

from annotated_types import Gt

from clinimeta.common.errors import DataError, nearest
from clinimeta.common.tasks.schema import Schema
from clinimeta.common.tasks.table import MISSING_CELLS, Records, describe_cell

LISTED_NAMES = 10

Columns: TypeAlias = dict[str, str]
"""Column of the study -> column of the source."""

Values: TypeAlias = dict[str, dict[str, str]]
"""Column of the study -> value of the source -> value of the study."""

Factor: TypeAlias = Annotated[float, Gt(0)]
"""What a number is multiplied by, to be in another unit."""

Scale: TypeAlias = dict[str, Factor]
"""Column of the study -> factor from the source's unit to the study's."""


@dataclass(frozen=True, slots=True)
class Translation:
    """What a source calls a study's columns and values; a column that is not here has its own name.

    `person` is the column of the source that tells patients apart, where every source of that kind has one;
    it is the study's patient column unless `columns` names another.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    values: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    scale: Mapping[str, float] = field(default_factory=dict)
    person: str = ""

    def source_of(self, name: str, schema: Schema, there: Mapping[str, object]) -> str:
        """The source's name of a column of the study."""
        if name in self.columns:
            return self.columns[name]
        return self.person if self.person and name == schema.patient and name not in there else name


def translate(records: Records, words: Translation, schema: Schema) -> Records:
    """The study's columns of these records, in its words and units; other columns are left out.

    A cell that `values` names becomes the study's value as it stands there; any other number is multiplied
    by the column's factor; any other cell stays as it is, for `encode` to judge.

    Raises:
        DataError: a mistake in the mapping, or a column that is not there; see `mistakes`.
    """
    for mistake in mistakes(records, words, schema):
        raise mistake
    return known_columns(records, words, schema)


def known_columns(records: Records, words: Translation, schema: Schema) -> Records:
    """The study's columns as far as these records have them."""
    cells = {}
    for name in study_names(schema):
        source = words.source_of(name, schema, records.cells)
        if source in records.cells:
            change = _change(words.values.get(name, {}), words.scale.get(name))
            cells[name] = change(records.cells[source])
    return Records(records.where, cells, records.first_line, records.places)


def mistakes(records: Records, words: Translation, schema: Schema) -> tuple[DataError, ...]:
    """All that is wrong with a mapping, or missing from the records, before any cell is looked at."""
    return (*_unknown_names(words, schema), *_misfits(words, schema), *_missing(records, words, schema))


def study_names(schema: Schema) -> tuple[str, ...]:
    """The columns that a study reads: inputs, target, patient.

    >>> from clinimeta.common.tasks.schema import Column
    >>> study_names(Schema(target="sick", columns=(Column(name="age"),), patient="who"))
    ('age', 'sick', 'who')
    """
    names = [column.name for column in schema.columns]
    return tuple(dict.fromkeys([*names, schema.target, *([schema.patient] if schema.patient else [])]))


def scaled(cell: str, factor: float) -> str:
    """A number in another unit, as near as a float comes to the exact product.

    >>> scaled("88", 0.0113)
    '0.9944'
    """
    return repr(float(Decimal(cell.strip()) * Decimal(repr(factor))))


def is_number(cell: str) -> bool:
    """Whether a cell is a number as `encode` reads numbers."""
    return describe_cell(cell) == "a number"


def nearest_few(name: str, names: Sequence[str]) -> str:
    """As `nearest`, of a table that may have thousands of columns.

    >>> nearest_few("ag", ["age"] + [f"x{n}" for n in range(2000)]).startswith("did you mean 'age'?")
    True
    """
    close = difflib.get_close_matches(name, names, n=LISTED_NAMES, cutoff=0.0)
    return nearest(name, close) if close else ""


def _change(values: Mapping[str, str], factor: float | None) -> Callable[[Sequence[str]], Sequence[str]]:
    numbers = {float(value): new for value, new in values.items() if is_number(value)}

    def one(cell: str) -> str:
        text = cell.strip()
        if text in values:
            return values[text]
        if numbers and is_number(text) and float(text) in numbers:  # "8507.0" is the code "8507"
            return numbers[float(text)]
        return scaled(text, factor) if factor is not None and is_number(text) else cell

    def every(cells: Sequence[str]) -> Sequence[str]:
        known = {cell: one(cell) for cell in set(cells)}  # a column repeats itself
        return tuple(known[cell] for cell in cells)

    return every if values or factor is not None else tuple


def _unknown_names(words: Translation, schema: Schema) -> Iterator[DataError]:
    names = study_names(schema)
    groups = {"columns": words.columns, "values": words.values, "scale": words.scale}
    for group, entries in groups.items():
        for name in entries:
            if name not in names:
                yield DataError(
                    f"the study has no column '{name}'",
                    where=f"[data.{group}], key '{name}'",
                    expected=nearest_few(name, names),
                    remedy="on the left stands the study's name of the column; correct it, or remove the key",
                )


def _misfits(words: Translation, schema: Schema) -> Iterator[DataError]:
    levels = {column.name: column.levels for column in schema.columns if column.levels}
    if schema.classes:
        levels[schema.target] = schema.classes
    levels |= {column.name: ("0", "1") for column in schema.columns if column.kind == "binary"}
    numeric = [name for name in study_names(schema) if name not in levels and name != schema.patient]
    for name in words.scale:
        if name in study_names(schema) and name not in numeric:
            yield DataError(
                f"the column '{name}' is not a number in a unit",
                where=f"[data.scale], key '{name}'",
                expected=f"one of {', '.join(numeric)}" if numeric else "no such key: no column is",
                remedy="remove the key; [data.values] translates codes",
            )
    for name, values in words.values.items():
        for new in values.values():
            known = levels.get(name)
            fits = is_number(new) if name in numeric else known is None or _is_level(new, known)
            if not fits and new not in MISSING_CELLS:
                yield DataError(
                    f"a value of '{name}' is translated to one that the study does not know",
                    where=f"[data.values.{name}]",
                    found=repr(new),
                    expected="a number" if known is None else f"one of {', '.join(known)}",
                    remedy="on the right stands the study's value; correct it",
                )


def _is_level(text: str, levels: Sequence[str]) -> bool:
    return text in levels or (
        is_number(text) and any(is_number(level) and float(level) == float(text) for level in levels)
    )


def _missing(records: Records, words: Translation, schema: Schema) -> Iterator[DataError]:
    optional = {column.name for column in schema.columns if column.optional}
    for name in study_names(schema):
        source = words.source_of(name, schema, records.cells)
        if source in records.cells or (name in optional and name not in words.columns):
            continue
        mapped = name in words.columns
        yield DataError(
            f"the column '{source}' is missing",
            where=f"{records.where}{f' (asked for by [data.columns], key {name!r})' * mapped}",
            found=f"{len(records.cells)} columns",
            expected=nearest_few(source, list(records.cells)),
            remedy=f"correct the name in [data.columns], key '{name}'"
            if mapped
            else f'name the column that holds it: {name} = "..." in [data.columns], or add it to '
            + ("[data.take]" if words.person else "the data"),
        )

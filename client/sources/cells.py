"""What a database or a typed file holds, as the text that a CSV file would have held."""

import math
from collections.abc import Callable, Iterable
from datetime import date, datetime, time
from decimal import Decimal
from uuid import UUID

from clinimeta.common.errors import DataError


def text_cells(values: Iterable[object], place: Callable[[int], str]) -> tuple[str, ...]:
    """A column's values as text cells; `place` names the one at an index should it not be a cell.

    Raises:
        DataError: bytes, a list or anything else that is no cell; names the place.
    """
    cells = []
    for index, value in enumerate(values):
        try:
            cells.append(cell_text(value))
        except TypeError:
            raise DataError(
                "a cell is of a kind that no column of a study has",
                where=place(index),
                found="bytes" if isinstance(value, bytes | bytearray | memoryview) else "a list or the like",
                expected="a number, a truth value, text, a date or a time",
                remedy="leave the column out, or turn it into one of these",
            ) from None
    return tuple(cells)


def cell_text(value: object) -> str:
    """The text of a value: nothing (also NaN) is the empty cell, a truth value 1 or 0, a time ISO 8601.

    A float is the shortest text that reads back as the same float.

    Raises:
        TypeError: bytes, a list or anything else that is not one cell; shows nothing of it.

    >>> [cell_text(value) for value in (None, True, 7, 0.1, Decimal("7.10"), date(2020, 1, 31), "x")]
    ['', '1', '7', '0.1', '7.10', '2020-01-31', 'x']
    """
    match value:
        case None:
            return ""
        case str():
            return value
        case bool():
            return str(int(value))
        case float():
            return "" if math.isnan(value) else repr(float(value))
        case Decimal():
            return "" if value.is_nan() else format(value, "f")
        case int() | UUID():
            return str(value)
        case datetime() | date() | time():
            return value.isoformat()
    raise TypeError("no cell")

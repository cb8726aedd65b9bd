"""Data: what of the table a study would see, as sums only; small cells are hidden, rows are never shown."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from clinimeta.client.console.base import Console
from clinimeta.client.sources.base import configured
from clinimeta.client.sources.checking import shown_count, shown_counts
from clinimeta.common.errors import UserError
from clinimeta.common.web.roles import May, Who
from clinimeta.common.web.shell import Screen

LEAST, MOST_LEVELS, ROUNDED = 50, 12, 2
"""So many numbers must be there before their quartiles are shown; more levels than these are not listed."""
MISSING = frozenset({"", "?", "na", "nan", "null", "none"})


@dataclass(frozen=True, slots=True)
class Column:
    """A column: how many cells are filled (small counts hidden), its quartiles or levels if many enough."""

    name: str
    filled: str
    kind: str
    summary: str


@dataclass(frozen=True, slots=True)
class Data:
    """The table as it is registered in site.toml; `error` where it cannot be read."""

    kind: str
    rows: str
    columns: tuple[Column, ...]
    error: str


def data_screen(console: Console, _who: Who) -> Data:
    """Read the table now."""
    section = console.home.settings().data
    kind = str(section.get("kind", ""))
    try:
        records = configured(section, f"{console.home.path / 'site.toml'}, [data]").read(console.home.path)
    except UserError as error:
        text = ": ".join(part for part in (error.what, error.where, error.remedy) if part)
        return Data(kind, "0", (), text)
    columns = tuple(column_of(name, cells) for name, cells in records.cells.items())
    return Data(kind, shown_count(len(records)), columns, "")


def column_of(name: str, cells: Sequence[str]) -> Column:
    """What may be shown of a column.

    >>> column_of("sex", ["f"] * 30 + ["m"] * 40).summary
    'f 30, m 40'
    >>> column_of("name", [f"patient {n}" for n in range(70)]).summary
    '70 different values: not shown'
    """
    filled = [cell.strip() for cell in cells if cell.strip().lower() not in MISSING]
    count = shown_count(len(filled))
    levels = Counter(filled)
    if len(levels) <= MOST_LEVELS:
        ordered = sorted(levels)
        counts = shown_counts([levels[level] for level in ordered])
        pairs = zip(ordered, counts, strict=True)
        said = [f"{level} {number}" for level, number in pairs if not number.startswith("<")]
        hidden = len(ordered) - len(said)
        more = [f"{hidden} rare {'value' if hidden == 1 else 'values'} not shown"] if hidden else []
        return Column(name, count, "levels", ", ".join([*said, *more]) or "empty")
    numbers = _numbers(filled)
    if numbers is None:
        return Column(name, count, "text", f"{shown_count(len(levels))} different values: not shown")
    if len(numbers) < LEAST or (len(levels) > 0.9 * len(filled) and all(n.is_integer() for n in numbers)):
        return Column(name, count, "numbers", "too few, or an identifier: not shown")
    ordered_numbers = sorted(numbers)
    quartiles = (ordered_numbers[int(part * (len(numbers) - 1))] for part in (0.25, 0.5, 0.75))
    return Column(name, count, "numbers", "quartiles " + ", ".join(f"{_rounded(one):g}" for one in quartiles))


def _numbers(cells: Sequence[str]) -> list[float] | None:
    try:
        found = [float(cell) for cell in cells]
    except ValueError:
        return None
    return found if all(map(math.isfinite, found)) else None


def _rounded(value: float) -> float:
    """To two digits that matter: a quartile is one patient's value."""
    return 0.0 if value == 0 else round(value, ROUNDED - 1 - math.floor(math.log10(abs(value))))


SCREENS = (Screen("/data", May.READ, "Data", data_screen, "data.html", nav=True),)

"""Whether a hospital's rows fit a study, before anything is trained: all that is wrong at once, and counts.

Findings name row and column, and hold counts, never a cell. A count from 1 to 4 is shown as "<5", and where a
class has so few the next smallest is hidden too, or the difference to all rows would tell.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clinimeta.client.sources.base import Source, configured
from clinimeta.client.sources.mapping import is_number, known_columns, mistakes
from clinimeta.common.errors import UserError
from clinimeta.common.findings import Finding
from clinimeta.common.tasks.schema import Column, Schema
from clinimeta.common.tasks.table import MISSING_CELLS, Records, describe_cell, unusable_rows

SMALL = 5
"""Counts below it are hidden, apart from 0."""
LISTED_ROWS = 10
FAR = 5.0
"""A middle value so many scales from a study's reference value is probably in another unit."""


def check_section(section: Mapping[str, Any], where: str, schema: Schema, folder: Path) -> list[Finding]:
    """As `check`, of the data section of a site's settings as it was written."""
    try:
        source = configured(section, where)
    except UserError as error:
        return [_fault("data", error)]
    return check(source, schema, folder)


def check(source: Source, schema: Schema, folder: Path) -> list[Finding]:
    """All findings about a source and a study, the good ones too (run by the site)."""
    try:
        records = source.read(folder)
    except UserError as error:
        return [_fault("data", error)]
    found = [_rows(records), *(_fault("mapping", e) for e in mistakes(records, source.translation, schema))]
    if len(records) == 0:
        return found
    known = known_columns(records, source.translation, schema)
    for column in schema.columns:
        found += _column(column, known, schema)
    if schema.target in known.cells:
        found += _target(known, schema)
    if schema.patient in known.cells:
        found.append(_patients(known.cells[schema.patient]))
    return found


def shown_count(count: int) -> str:
    """A count that singles nobody out.

    >>> [shown_count(count) for count in (0, 1, 4, 5, 1234)]
    ['0', '<5', '<5', '5', '1234']
    """
    return f"<{SMALL}" if 0 < count < SMALL else str(count)


def shown_counts(counts: Sequence[int]) -> list[str]:
    """The counts of a whole's parts: a single small one is not the rest of the others.

    >>> shown_counts([3, 97]), shown_counts([0, 50, 50]), shown_counts([3, 20, 77])
    (['<5', '5 or more'], ['0', '50', '50'], ['<5', '5 or more', '77'])
    """
    texts = [shown_count(count) for count in counts]
    if f"<{SMALL}" in texts:
        large = [index for index, count in enumerate(counts) if count >= SMALL]
        if large:
            texts[min(large, key=lambda index: counts[index])] = f"{SMALL} or more"
    return texts


def _rows(records: Records) -> Finding:
    if len(records) == 0:
        return Finding("rows", "fault", f"none: {records.where}", "check the export or the query")
    text = f"{shown_count(len(records))} rows, {len(records.cells)} columns: {records.where}"
    if len(records) < SMALL:
        return Finding("rows", "warning", text, "is that all? so few patients can hardly take part")
    return Finding("rows", "good", text)


def _column(column: Column, records: Records, schema: Schema) -> Iterator[Finding]:
    about = f"column {column.name}"
    if column.name not in records.cells:
        if column.optional:
            yield Finding(about, "warning", "not there, which the study allows")
        return
    cells = [cell.strip() for cell in records.cells[column.name]]
    yield from _unusable(column.name, records, schema)
    missing = sum(cell in MISSING_CELLS for cell in cells)
    if missing == len(cells):
        yield Finding(about, "warning", "every cell is empty", "is the mapping of this column right?")
        return
    yield Finding(about, "good", f"missing: {_share(missing, len(cells))}")
    if column.kind == "numeric" and _is_far(column, cells):
        yield Finding(
            about,
            "warning",
            f"the middle value is more than {FAR:g} scales from the study's reference value",
            f"is it in {column.unit or 'the unit of the study'}? if not: [data.scale], key '{column.name}'",
        )


def _target(records: Records, schema: Schema) -> Iterator[Finding]:
    about = f"target {schema.target}"
    yield from _unusable(schema.target, records, schema)
    bad = set(unusable_rows(schema, records, schema.target))
    cells = [cell.strip() for row, cell in enumerate(records.cells[schema.target]) if row not in bad]
    if not schema.classes:
        yield Finding(about, "good", f"{shown_count(len(cells))} numbers")
        return
    found = Counter(_class(cell, schema.classes) for cell in cells)
    counts = shown_counts([found[name] for name in schema.classes])
    text = ", ".join(f"{name}: {count}" for name, count in zip(schema.classes, counts, strict=True))
    if min(found[name] for name in schema.classes) == 0:
        yield Finding(about, "warning", text, "no row of a class: is the mapping of its values right?")
    else:
        yield Finding(about, "good", text)


def _unusable(name: str, records: Records, schema: Schema) -> Iterator[Finding]:
    rows = unusable_rows(schema, records, name)
    if not rows:
        return
    kinds = Counter(describe_cell(records.cells[name][row]) for row in rows)
    places = ", ".join(records.place(row) for row in rows[:LISTED_ROWS])
    more = f" and {len(rows) - LISTED_ROWS} more" if len(rows) > LISTED_ROWS else ""
    found = ", ".join(kind for kind, _ in kinds.most_common())
    yield Finding(
        f"column {name}" if name != schema.target else f"target {name}",
        "fault",
        f"{_plural(len(rows), 'cell')} cannot be used ({found}): {places}{more}",
        f"expected: {_expected(name, schema)}; correct them, translate them in [data.values.{name}], "
        "or leave the rows out",
    )


def _expected(name: str, schema: Schema) -> str:
    column = next((c for c in schema.columns if c.name == name), Column(name=name))
    levels = schema.classes if name == schema.target else column.levels
    if levels:
        return f"one of {', '.join(levels)}"
    return "0 or 1" if column.kind == "binary" else f"a number{f' in {column.unit}' * bool(column.unit)}"


def _patients(cells: Sequence[str]) -> Finding:
    named = [cell.strip() for cell in cells if cell.strip() not in MISSING_CELLS]
    people = len(set(named)) + len(cells) - len(named)
    text = f"{shown_count(people)} people in {shown_count(len(cells))} rows"
    if len(named) < len(cells):
        return Finding(
            "patients",
            "warning",
            f"{text}; {shown_count(len(cells) - len(named))} rows name nobody",
            "each counts as a person of its own; name them if two are the same",
        )
    return Finding("patients", "good", text)


def _is_far(column: Column, cells: Sequence[str]) -> bool:
    if column.center == 0.0 and column.scale == 1.0:  # the study says nothing about the usual values
        return False
    numbers = [float(cell) for cell in cells if is_number(cell)]
    if len(numbers) < SMALL:
        return False
    return bool(abs(np.median(numbers) - column.center) > FAR * column.scale)


def _class(cell: str, classes: Sequence[str]) -> str:
    if cell in classes:
        return cell
    return next(name for name in classes if is_number(name) and float(name) == float(cell))


def _share(count: int, of: int) -> str:
    if count == 0:
        return "none"
    if count < SMALL or of - count < SMALL:
        return f"{shown_count(count)} cells" if count < SMALL else f"all but <{SMALL} cells"
    return f"{count} cells, {100 * count / of:.0f} %"


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"


def _fault(about: str, error: UserError) -> Finding:
    parts = error.details()
    fix = parts.pop("what to do", "")
    if "expected" in parts:
        fix = f"expected: {parts.pop('expected')}{f'; {fix}' * bool(fix)}"
    return Finding(about, "fault", ": ".join(filter(None, [error.what, "; ".join(parts.values())])), fix)

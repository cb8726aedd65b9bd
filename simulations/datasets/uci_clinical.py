"""UCI clinical: 25 small tables of diagnoses and prognoses, each a task with columns of its own.

Source: the UCI Machine Learning Repository, appendicitis from KEEL. Licence: CC BY 4.0 as UCI states today,
older sets came without one; check each before anything but research. Protocol: none is published for all of
them; a task is a disease, its last column `target` is what is to be told. `index.json` says of each table how
many rows, features and classes it has; a table that has others is refused.

What must be known to be honest: `CAUTIONS`. Zeros of the Pima table that mean "missing" become empty cells,
and so does one damaged cell of `appendicitis`; nothing else is changed, and nothing is filled in.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import Field

from clinimeta.client.sources.csv_files import read_csv
from clinimeta.common.errors import DataError, StudyError, nearest
from clinimeta.common.settings import Settings, parse
from clinimeta.common.tasks.schema import Column, Schema
from clinimeta.common.tasks.table import MISSING_CELLS, Records, describe_cell
from clinimeta.simulations.datasets import DATASETS
from clinimeta.simulations.datasets.arrays import check_count
from clinimeta.simulations.datasets.base import Hospital
from clinimeta.simulations.datasets.locate import PublicFile, digest, locate

FOLDER, PAGE = "uci_clinical", "https://archive.ics.uci.edu/datasets"
INDEX = PublicFile(FOLDER, "index.json", PAGE)
TABLES = 25
TARGET = "target"
PIMA_ZEROS = ("glucose", "blood_pressure", "skin_thickness", "insulin", "bmi")

CAUTIONS: Mapping[str, str] = {
    "acute_inflammations": "made by an expert, and separable",
    "appendicitis": "one cell of V2 is damaged, and empty here",
    "heart_failure": "`time` tells the outcome, and is no input",
    "parkinsons_voice": "several rows a person, and no column says whose",
    "pima_diabetes": f"zeros of {', '.join(PIMA_ZEROS)} are missing values, and empty here",
    "statlog_heart": "a part of Cleveland in `heart_disease`: never train on one and judge on the other",
    "sick_euthyroid": "the people of `hypothyroid`: never train on one and judge on the other",
    "wpbc": "194 of the original's 198 rows",
}
DAMAGED: Mapping[str, frozenset[str]] = {"appendicitis": frozenset({"V2"})}
LEAKS: Mapping[str, frozenset[str]] = {"heart_failure": frozenset({"time"})}


class Entry(Settings):
    """What `index.json` says of a table; its other keys tell where it was copied from."""

    name: str = Field(pattern=r"^[a-z0-9_]+$")
    n: int
    n_features: int
    classes: Mapping[str, int]
    description: str


@dataclass(frozen=True, slots=True)
class Disease:
    """A table as a task: `schema` names its classes, and its columns with their kinds and levels.

    A column is numeric where its filled cells are numbers, categorical where none is; a column that never
    varies, or that tells the outcome, is in `records` only. `caution` is empty where we know of none.
    """

    name: str
    description: str
    caution: str
    schema: Schema
    records: Records


@DATASETS.register("uci_clinical")
@dataclass(frozen=True, slots=True)
class UciClinical:
    """25 small diagnosis tables (UCI and KEEL, 100 to 3,772 rows), each disease a site with its own columns.

    `tables` takes some of them only. The target is `target`: "0", "1", ... for the classes in the order of
    their names. As hardly two have the same columns, a study of several calls its columns optional;
    `diseases` gives every table with its own classes and a schema that fits it.
    """

    tables: tuple[str, ...] = ()

    @property
    def synthetic(self) -> bool:
        """These are people."""
        return False

    def hospitals(self, data: Path | None) -> Mapping[str, Hospital]:
        """The tables by the names of their files, in the order of the alphabet.

        Raises:
            MissingDataError: the index or a table is missing.
            DataError: one of them is not what it should be.
            StudyError: `tables` names one that is not there.
        """
        return {name: Hospital(_numbered(disease)) for name, disease in self.diseases(data).items()}

    def diseases(self, data: Path | None) -> Mapping[str, Disease]:
        """The tables as tasks, each with its schema; raises as `hospitals`."""
        entries = self._chosen(locate(INDEX, data))
        return {entry.name: read_disease(locate(_table(entry), data), entry) for entry in entries}

    def files(self, data: Path | None) -> Mapping[str, str]:
        """SHA-256 of the index and the tables."""
        index = locate(INDEX, data)
        paths = [index, *(locate(_table(entry), data) for entry in self._chosen(index))]
        return {path.name: digest(path) for path in paths}

    def _chosen(self, index: Path) -> list[Entry]:
        entries = {entry.name: entry for entry in read_index(index)}
        for name in self.tables:
            if name not in entries:
                raise StudyError(
                    f"there is no table '{name}'",
                    where="data set 'uci_clinical', key 'tables'",
                    expected=nearest(name, entries),
                    remedy="correct the name in the study",
                )
        return [entry for name, entry in entries.items() if not self.tables or name in self.tables]


def read_index(path: Path, tables: int = TABLES) -> list[Entry]:
    """What there should be, by name.

    Raises:
        DataError: it is no such list, names a table twice, or another number of tables.
    """
    try:
        listed: Any = json.loads(path.read_text(encoding="utf-8"))
        known = [{key: one[key] for key in Entry.model_fields if key in one} for one in listed]
        entries = [parse(Entry, one, f"table {row}") for row, one in enumerate(known, start=1)]
    except (ValueError, TypeError, StudyError) as error:
        raise DataError(
            "the index of the tables cannot be read",
            where=f"{path}, {error.where}" if isinstance(error, StudyError) else str(path),
            found=error.what if isinstance(error, StudyError) else "no list in JSON",
            expected=f"a list of tables, each with {', '.join(Entry.model_fields)}",
            remedy="get it again from where the tables came from",
        ) from None
    check_count(path, "tables", len({entry.name for entry in entries}), tables, PAGE)
    check_count(path, "entries", len(entries), tables, PAGE)
    return sorted(entries, key=lambda entry: entry.name)


def read_disease(path: Path, entry: Entry) -> Disease:
    """A table as a task.

    Raises:
        DataError: the last column is not `target`, or rows, features or classes are not as the index says.
    """
    table = read_csv(path)
    if list(table.cells)[-1] != TARGET:
        raise DataError(
            f"the last column is not '{TARGET}'",
            where=f"{path}, line 1",
            expected=f"'{TARGET}' after the {entry.n_features} features",
            remedy=f"get the table again from {PAGE}",
        )
    check_count(path, "rows", len(table), entry.n, PAGE)
    check_count(path, "features", len(table.cells) - 1, entry.n_features, PAGE)
    _check_classes(table, entry)
    if entry.name == "pima_diabetes":
        table = _emptied(table, PIMA_ZEROS, lambda cell: _is_number(cell) and float(cell) == 0)
    table = _emptied(table, DAMAGED.get(entry.name, ()), lambda cell: not _is_number(cell))
    leaks = LEAKS.get(entry.name, frozenset())
    columns = [column_of(table, name) for name in table.cells if name not in {TARGET, *leaks}]
    return Disease(
        entry.name,
        entry.description,
        CAUTIONS.get(entry.name, ""),
        Schema(
            target=TARGET,
            classes=tuple(sorted(entry.classes)),
            columns=tuple(column for column in columns if column),
            normalise="site",
            missing="mask",
        ),
        table,
    )


def column_of(table: Records, name: str) -> Column | None:
    """The column that a table's cells make, or None where nothing varies.

    >>> table = Records("a.csv", {"sex": ["F", "M", ""], "age": ["41", "63", "?"]})
    >>> column_of(table, "sex").levels, column_of(table, "age").kind
    (('F', 'M'), 'numeric')

    Raises:
        DataError: some cells are numbers and others are text.
    """
    cells = [cell.strip() for cell in table.cells[name]]
    levels = tuple(sorted(set(cells) - MISSING_CELLS))
    texts = {level for level in levels if not _is_number(level)}
    if len(levels) < 2:
        return None
    if len(texts) == len(levels):
        return Column(name=name, kind="categorical", levels=levels)
    for row in [row for row, cell in enumerate(cells) if cell in texts][:1]:
        raise DataError(
            f"a cell in column '{name}' cannot be used",
            where=f"{table.where}, {table.place(row)}, column '{name}'",
            found=describe_cell(cells[row]),
            expected="a number, as in other rows",
            remedy=f"get the table again from {PAGE}",
        )
    return Column(name=name)


def _numbered(disease: Disease) -> Records:
    """The table with the numbers of its classes for their names."""
    table, classes = disease.records, disease.schema.classes
    numbers = [str(classes.index(cell.strip())) for cell in table.cells[TARGET]]
    return replace(table, cells={**table.cells, TARGET: numbers})


def _check_classes(table: Records, entry: Entry) -> None:
    found = Counter(cell.strip() for cell in table.cells[TARGET])
    for row, cell in enumerate(table.cells[TARGET]):
        if cell.strip() not in entry.classes:
            raise DataError(
                f"a cell in column '{TARGET}' cannot be used",
                where=f"{table.where}, {table.place(row)}, column '{TARGET}'",
                found="no class of this table",
                expected=f"one of {', '.join(sorted(entry.classes))}",
                remedy=f"get the table again from {PAGE}",
            )
    if found != entry.classes:
        raise DataError(
            "the classes are not as frequent as they should be",
            where=f"{table.where}, column '{TARGET}'",
            expected="the counts that index.json gives",
            remedy=f"get the table again from {PAGE}",
        )


def _emptied(table: Records, columns: Iterable[str], wrong: Callable[[str], bool]) -> Records:
    """The table with the wrong cells of these columns empty."""
    cells = dict(table.cells)
    for name in columns:
        cells[name] = ["" if wrong(cell) else cell for cell in cells[name]]
    return replace(table, cells=cells)


def _is_number(cell: str) -> bool:
    return describe_cell(cell) == "a number"


def _table(entry: Entry) -> PublicFile:
    return PublicFile(FOLDER, f"{entry.name}.csv.gz", PAGE)

"""Warfarin: the weekly dose that 5,410 people needed, by their genes and what a clinician knows.

Source: International Warfarin Pharmacogenetics Consortium, Estimation of the warfarin dose with clinical and
pharmacogenetic data, NEJM 2009; PharmGKB (CC BY-SA 4.0). 5,700 people at 21 sites; the public table has no
column for the site, so the four groups of the column Race stand in for hospitals. Protocol: those who reached
a stable dose; 80 % derive and 20 % validate a formula, mean absolute error in mg a week (published: 8.8
with genes, 10.1 without, 13.2 with 35 mg for everybody).

A cell that the consortium left empty stays empty: a gene that it inferred from others is not filled in here.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from clinimeta.client.sources.csv_files import read_csv
from clinimeta.common.errors import DataError, nearest
from clinimeta.common.tasks.table import Records, describe_cell
from clinimeta.simulations.datasets import DATASETS
from clinimeta.simulations.datasets.arrays import check_count
from clinimeta.simulations.datasets.base import Hospital
from clinimeta.simulations.datasets.locate import PublicFile, digest, locate

PAGE = "https://www.pharmgkb.org/downloads"
FILE = PublicFile("warfarin_iwpc", "warfarin.csv.gz", PAGE)
PEOPLE = 5700

RACES = {"White": "white", "Asian": "asian", "Black or African American": "black", "Unknown": "unknown"}
"""The column Race -> the site; "unknown" is missing or mixed in the published formulas."""
AGES = {f"{10 * decade} - {10 * decade + 9}": str(decade) for decade in range(1, 9)} | {"90+": "9", "": ""}
FLAGS = {"0.0": "0", "1.0": "1", "0": "0", "1": "1", "": ""}
GENDERS = {"male": "male", "female": "female", "": ""}
VKORC1 = {genotype: genotype for genotype in ("A/A", "A/G", "G/G", "")}

STABLE, DOSE = "Subject Reached Stable Dose of Warfarin", "Therapeutic Dose of Warfarin"
INDUCERS = ("Carbamazepine (Tegretol)", "Phenytoin (Dilantin)", "Rifampin or Rifampicin")
"""Drugs that make the liver break warfarin down faster."""
TARGET = "dose_mg_week"

Reading = Callable[[str], str | None]
"""A cell as the study has it, or None where it cannot be what the column holds."""


@DATASETS.register("warfarin")
@dataclass(frozen=True, slots=True)
class Warfarin:
    """Weekly warfarin dose of 5,410 people (IWPC) in four groups by race, each a site.

    The target is `dose_mg_week`, a number. `age_decade` is 6 for people from 60 to 69.
    """

    @property
    def synthetic(self) -> bool:
        """These are people."""
        return False

    def hospitals(self, data: Path | None) -> Mapping[str, Hospital]:
        """The groups "white", "asian", "black" and "unknown".

        Raises:
            MissingDataError: the file is missing.
            DataError: it is not what it should be.
        """
        return groups(read_csv(locate(FILE, data)))

    def files(self, data: Path | None) -> Mapping[str, str]:
        """SHA-256 of the file."""
        path = locate(FILE, data)
        return {path.name: digest(path)}


def groups(table: Records, people: int = PEOPLE) -> dict[str, Hospital]:
    """Those with a stable dose, by group, in the order of the file.

    Raises:
        DataError: another number of people, a missing column, or a cell that is not what its column holds.
    """
    check_count(Path(table.where), "people", len(table), people, PAGE)
    races = _read(table, "Race", RACES.get)
    stable = _read(table, STABLE, FLAGS.get)
    columns = {name: _read(table, source, reading) for name, (source, reading) in COLUMNS.items()}
    drugs = [_read(table, drug, FLAGS.get) for drug in INDUCERS]
    columns["enzyme_inducer"] = [_any(cells) for cells in zip(*drugs, strict=True)]
    columns[TARGET] = _read(table, DOSE, _positive)
    kept = [row for row in range(len(table)) if stable[row] == "1" and columns[TARGET][row]]
    members = {group: [row for row in kept if races[row] == group] for group in RACES.values()}
    return {
        group: Hospital(
            Records(
                f"{table.where}, group '{group}'",
                {name: [cells[row] for row in rows] for name, cells in columns.items()},
                places=[table.place(row) for row in rows],
            )
        )
        for group, rows in members.items()
        if rows
    }


def _positive(cell: str) -> str | None:
    """A number above 0, or nothing."""
    try:
        return cell if not cell or 0 < float(cell) < float("inf") else None
    except ValueError:
        return None


def _stars(cell: str) -> str | None:
    """Two star alleles, or nothing.

    >>> _stars("*1/*3"), _stars(""), _stars("A/G")
    ('*1/*3', '', None)
    """
    alleles = cell.split("/")
    fits = len(alleles) == 2 and all(a[:1] == "*" and a[1:].isdecimal() for a in alleles)
    return cell if fits or not cell else None


def _any(cells: Sequence[str]) -> str:
    """Say "1" where one is, "0" where the others are not, nothing where nothing is known.

    >>> _any(["", "1", "0"]), _any(["", "0", ""]), _any(["", "", ""])
    ('1', '0', '')
    """
    return max(cells)


COLUMNS: Mapping[str, tuple[str, Reading]] = {
    "subject": ("PharmGKB Subject ID", str),
    "gender": ("Gender", GENDERS.get),
    "age_decade": ("Age", AGES.get),
    "height_cm": ("Height (cm)", _positive),
    "weight_kg": ("Weight (kg)", _positive),
    "diabetes": ("Diabetes", FLAGS.get),
    "heart_failure": ("Congestive Heart Failure and/or Cardiomyopathy", FLAGS.get),
    "valve_replacement": ("Valve Replacement", FLAGS.get),
    "aspirin": ("Aspirin", FLAGS.get),
    "amiodarone": ("Amiodarone (Cordarone)", FLAGS.get),
    "smoker": ("Current Smoker", FLAGS.get),
    "cyp2c9": ("CYP2C9 consensus", _stars),
    "vkorc1": ("VKORC1 -1639 consensus", VKORC1.get),
}
"""Our column -> the consortium's, and how its cells are read. `enzyme_inducer` and the dose come after."""


def _read(table: Records, name: str, reading: Reading) -> list[str]:
    if name not in table.cells:
        raise DataError(
            f"the column '{name}' is missing",
            where=table.where,
            expected=nearest(name, table.cells),
            remedy=f"get the table again from {PAGE}",
        )
    found: list[str] = []
    for row, cell in enumerate(table.cells[name]):
        read = reading(cell.strip())
        if read is None:
            raise DataError(
                f"a cell in column '{name}' cannot be used",
                where=f"{table.where}, {table.place(row)}, column '{name}'",
                found=describe_cell(cell),
                expected="what the consortium's file has there",
                remedy=f"get the table again from {PAGE}",
            )
        found.append(read)
    return found

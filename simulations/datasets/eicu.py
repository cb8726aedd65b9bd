"""eICU demo: adult intensive-care stays at 186 hospitals in the United States, built from the raw tables.

Source: Pollard et al., The eICU Collaborative Research Database, Scientific Data 2018; the open demo is on
PhysioNet (ODbL 1.0). It is never downloaded by the program: its licence stands on PhysioNet's page.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from clinimeta.client.sources.csv_files import read_csv
from clinimeta.common.errors import DataError, nearest
from clinimeta.common.tasks.table import Records
from clinimeta.simulations.datasets import DATASETS
from clinimeta.simulations.datasets.base import Hospital
from clinimeta.simulations.datasets.locate import PublicFile, digest, locate

PAGE = "https://physionet.org/content/eicu-crd-demo/"
FILES = tuple(
    PublicFile("eicu_demo", name, PAGE)
    for name in ("patient.csv.gz", "apacheApsVar.csv.gz", "apachePredVar.csv.gz")
)

PHYSIOLOGY = (
    *("intubated", "vent", "dialysis", "eyes", "motor", "verbal", "meds", "urine", "wbc", "temperature"),
    *("respiratoryrate", "sodium", "heartrate", "meanbp", "ph", "hematocrit", "creatinine", "albumin"),
    *("pao2", "pco2", "bun", "glucose", "bilirubin", "fio2"),
)
"""APACHE's acute physiology: the worst values of the first day in the unit (apacheApsVar)."""

FLAGS = (
    *("aids", "hepaticfailure", "lymphoma", "metastaticcancer", "leukemia", "immunosuppression", "cirrhosis"),
    *("electivesurgery", "diabetes", "readmit", "ventday1", "oobventday1", "oobintubday1", "thrombolytics"),
    *("activetx", "ima", "midur"),
)
"""Comorbidity and treatment, 0 or 1 (apachePredVar). Its `diedinhospital` is the answer, never a feature."""

DEATH = {"Alive": "0", "Expired": "1"}
GENDERS = ("Female", "Male")


@DATASETS.register("eicu")
@dataclass(frozen=True, slots=True)
class Eicu:
    """Death in hospital at 186 hospitals (eICU demo, 2,004 stays, 173 deaths), by first-day APACHE variables.

    One row a hospital stay (its first unit stay) that has APACHE variables and a known outcome. The target
    is `hospital_death`; `uniquepid` numbers the people, some of whom came more than once.
    """

    @property
    def synthetic(self) -> bool:
        """These are people."""
        return False

    def hospitals(self, data: Path | None) -> Mapping[str, Hospital]:
        """Every hospital by its number, "hospital-56" to "hospital-459".

        Raises:
            MissingDataError: a table is not there; names where to get it.
            DataError: a table is not what PhysioNet ships.
        """
        patient, aps, pred = (read_csv(locate(file, data)) for file in FILES)
        return cohort(patient, aps, pred)

    def files(self, data: Path | None) -> Mapping[str, str]:
        """SHA-256 of the three tables as they were found."""
        paths = [locate(file, data) for file in FILES]
        return {path.name: digest(path) for path in paths}


def cohort(patient: Records, aps: Records, pred: Records) -> dict[str, Hospital]:
    """Join the three tables by stay, and give every hospital its rows.

    Raises:
        DataError: a column is missing, a stay occurs twice in a table, or no stay qualifies.
    """
    aps_row, pred_row, patient_row = _row_of_stay(aps), _row_of_stay(pred), _row_of_stay(patient)
    visit, outcome = _column(patient, "unitvisitnumber"), _column(patient, "hospitaldischargestatus")
    kept = [
        (row, aps_row[stay], pred_row[stay])
        for stay, row in patient_row.items()
        if stay in aps_row and stay in pred_row and visit[row] == "1" and outcome[row] in DEATH
    ]
    if not kept:
        raise DataError(
            "no stay qualifies",
            where=patient.where,
            found=f"{len(patient)} stays",
            expected="first unit stays with APACHE variables and a known outcome",
            remedy=f"get the tables again from {PAGE}",
        )
    rows, aps_rows, pred_rows = zip(*kept, strict=True)
    columns: dict[str, list[str]] = {
        "patientunitstayid": _take(patient, "patientunitstayid", rows),
        "uniquepid": _take(patient, "uniquepid", rows),
        "age_years": [_age(cell) for cell in _take(patient, "age", rows)],
        "gender": [cell if cell in GENDERS else "" for cell in _take(patient, "gender", rows)],
        **{name: [_measured(cell) for cell in _take(aps, name, aps_rows)] for name in PHYSIOLOGY},
        **{name: [_measured(cell) for cell in _take(pred, name, pred_rows)] for name in FLAGS},
        "hospital_death": [DEATH[outcome[row]] for row in rows],
    }
    members: dict[str, list[int]] = {}
    for index, number in enumerate(_take(patient, "hospitalid", rows)):
        members.setdefault(number, []).append(index)
    return {
        f"hospital-{number}": _hospital(number, columns, members[number])
        for number in sorted(members, key=lambda text: (len(text), text))
    }


def _hospital(number: str, columns: Mapping[str, Sequence[str]], members: Sequence[int]) -> Hospital:
    cells = {name: [cells[i] for i in members] for name, cells in columns.items()}
    return Hospital(Records(f"eICU hospital-{number} (its stays, counted from 1)", cells, first_line=1))


def _row_of_stay(table: Records) -> dict[str, int]:
    stays = _column(table, "patientunitstayid")
    row_of = {stay: row for row, stay in enumerate(stays)}
    if len(row_of) < len(stays):
        raise DataError(
            "a stay occurs twice",
            where=table.where,
            found=f"{len(stays)} rows of {len(row_of)} stays",
            expected="one row a stay",
            remedy=f"get the table again from {PAGE}",
        )
    return row_of


def _take(table: Records, name: str, rows: Sequence[int]) -> list[str]:
    cells = _column(table, name)
    return [cells[row] for row in rows]


def _column(table: Records, name: str) -> Sequence[str]:
    if name not in table.cells:
        raise DataError(
            f"the column '{name}' is missing",
            where=table.where,
            expected=nearest(name, table.cells),
            remedy=f"get the table again from {PAGE}",
        )
    return table.cells[name]


def _age(cell: str) -> str:
    """Years; the oldest are only known to be over 89, and count as 90.

    >>> _age("63"), _age("> 89")
    ('63', '90')
    """
    return "90" if cell.replace(" ", "") == ">89" else cell


def _measured(cell: str) -> str:
    """Empty where APACHE writes -1 for a value that was not measured.

    >>> _measured("7.38"), _measured("-1"), _measured("-1.0000"), _measured("")
    ('7.38', '', '', '')
    """
    try:
        return "" if float(cell) == -1 else cell
    except ValueError:
        return cell

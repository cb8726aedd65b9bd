"""Warfarin: the consortium's people and cells, its formulas' errors, and complaints that name a place."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from public_files import SECRET, present, refused, table

from clinimeta.client.sources.csv_files import read_csv
from clinimeta.simulations.datasets.base import Hospital
from clinimeta.simulations.datasets.locate import digest
from clinimeta.simulations.datasets.warfarin import (
    COLUMNS,
    DOSE,
    INDUCERS,
    STABLE,
    TARGET,
    Warfarin,
    groups,
)

CELLS: dict[str, list[str]] = {
    **{source: ["", "", "", "0.0"] for source, _ in COLUMNS.values()},
    **{drug: ["", "0.0", "", "0.0"] for drug in INDUCERS},
    "Race": ["White", "Asian", "White", "Black or African American"],
    "PharmGKB Subject ID": ["PA1", "PA2", "PA3", "PA4"],
    "Gender": ["male", "female", "", "male"],
    "Age": ["60 - 69", "90+", "", "10 - 19"],
    "Height (cm)": ["183.5", "", "160", "170"],
    "Weight (kg)": ["80", "61.5", "", "70"],
    "CYP2C9 consensus": ["*1/*3", "", "*1/*11", "*1/*1"],
    "VKORC1 -1639 consensus": ["A/G", "", "A/A", "G/G"],
    STABLE: ["1.0", "1.0", "1.0", "0.0"],
    DOSE: ["42.5", "21", "35", "28"],
}
CELLS[INDUCERS[1]] = ["1.0", "0.0", "", "0.0"]


def read(folder: Path, cells: Mapping[str, Sequence[str]], people: int = 4) -> dict[str, Hospital]:
    return groups(read_csv(table(folder / "warfarin.csv.gz", cells)), people)


def test_people_with_a_stable_dose_are_kept_by_group(tmp_path: Path) -> None:
    found = read(tmp_path, CELLS)
    assert {name: list(site.records.cells["subject"]) for name, site in found.items()} == {
        "white": ["PA1", "PA3"],
        "asian": ["PA2"],
    }
    cells = found["white"].records.cells
    assert cells["age_decade"] == ["6", ""]
    assert cells["enzyme_inducer"] == ["1", ""]
    assert cells["cyp2c9"] == ["*1/*3", "*1/*11"]
    assert cells["vkorc1"] == ["A/G", "A/A"]
    assert cells["height_cm"] == ["183.5", "160"]
    assert cells[TARGET] == ["42.5", "35"]
    assert found["asian"].records.cells["enzyme_inducer"] == ["0"]
    assert found["asian"].records.cells["age_decade"] == ["9"]
    assert found["white"].records.place(1) == "line 4"


def test_somebody_without_a_dose_is_left_out(tmp_path: Path) -> None:
    found = read(tmp_path, {**CELLS, DOSE: ["42.5", "", "35", "28"]})
    assert list(found) == ["white"]


@pytest.mark.parametrize(
    ("column", "cell"),
    [
        ("Race", SECRET),
        ("Race", ""),
        ("Age", SECRET),
        ("Gender", "M"),
        ("Height (cm)", "-1"),
        ("Weight (kg)", "0"),
        ("Weight (kg)", "nan"),
        (DOSE, "a" + SECRET),
        (STABLE, "2"),
        (INDUCERS[2], SECRET),
        ("Aspirin", "yes"),
        ("CYP2C9 consensus", "A/G"),
        ("VKORC1 -1639 consensus", "*1/*1"),
    ],
)
def test_a_cell_that_cannot_be_is_refused_by_line_and_column(tmp_path: Path, column: str, cell: str) -> None:
    changed = {**CELLS, column: [*CELLS[column][:2], cell, CELLS[column][3]]}
    error = refused(lambda: read(tmp_path, changed))
    assert error.where.endswith(f"line 4, column '{column}'")


@pytest.mark.parametrize("column", ["Race", STABLE, DOSE, INDUCERS[0], "Age"])
def test_a_missing_column_is_named(tmp_path: Path, column: str) -> None:
    cells = {name: cell for name, cell in CELLS.items() if name != column}
    assert column in refused(lambda: read(tmp_path, cells)).what


def test_another_number_of_people_is_refused(tmp_path: Path) -> None:
    assert refused(lambda: read(tmp_path, CELLS, people=5)).found == "4 people"
    path = table(tmp_path / "warfarin.csv.gz", CELLS)
    assert refused(lambda: Warfarin().hospitals(tmp_path)).expected == "5700 people"
    assert Warfarin().files(tmp_path) == {path.name: digest(path)}


@pytest.mark.data
def test_the_groups_are_as_large_as_they_should_be(data_dir: Path) -> None:
    sites = Warfarin().hospitals(present(data_dir, "warfarin_iwpc"))
    sizes = {name: len(site.records) for name, site in sites.items()}
    assert sizes == {"white": 2903, "asian": 1571, "black": 458, "unknown": 478}
    assert sum(sizes.values()) == 5410


@pytest.mark.data
def test_the_published_formulas_have_their_errors_on_these_rows(data_dir: Path) -> None:
    sites = Warfarin().hospitals(present(data_dir, "warfarin_iwpc"))
    dose, fixed, clinical, genes = (
        np.concatenate(part) for part in zip(*map(_judged, sites.items()), strict=True)
    )
    assert len(dose) == 5371  # those with an age

    def error(estimate: np.ndarray) -> float:
        return float(np.abs(estimate - dose).mean())

    assert error(fixed) == pytest.approx(13.21, abs=0.005)
    assert error(clinical) == pytest.approx(10.12, abs=0.03)
    assert error(genes) == pytest.approx(8.92, abs=0.03)


def _judged(site: tuple[str, Hospital]) -> tuple[np.ndarray, ...]:
    """Dose, 35 mg, and what the consortium's two formulas say (its supplement, S1e and S1f)."""
    name, hospital = site
    cells = hospital.records.cells
    known = [row for row, cell in enumerate(cells["age_decade"]) if cell]

    def numbers(column: str) -> np.ndarray:
        found = np.array([float(cell or "nan") for cell in cells[column]])
        return np.where(np.isnan(found), np.nanmean(found), found)[known]

    def has(column: str, cell: str) -> np.ndarray:
        return np.array([cells[column][row] == cell for row in known], dtype=float)

    age, height, weight = (numbers(column) for column in ("age_decade", "height_cm", "weight_kg"))
    inducer, amiodarone = has("enzyme_inducer", "1"), has("amiodarone", "1")
    asian, black, mixed = (float(name == group) for group in ("asian", "black", "unknown"))
    clinical = 4.0376 - 0.2546 * age + 0.0118 * height + 0.0134 * weight - 0.6752 * asian + 0.4060 * black
    clinical += 0.0443 * mixed + 1.2799 * inducer - 0.5695 * amiodarone
    genes = 5.6044 - 0.2614 * age + 0.0087 * height + 0.0128 * weight - 0.1092 * asian - 0.2760 * black
    genes += -0.1032 * mixed + 1.1816 * inducer - 0.5503 * amiodarone
    for cell, effect in {"A/G": -0.8677, "A/A": -1.6974, "": -0.4854}.items():
        genes += effect * has("vkorc1", cell)
    alleles = {"*1/*2": -0.5211, "*1/*3": -0.9357, "*2/*2": -1.0616, "*2/*3": -1.9206, "*3/*3": -2.3312}
    for cell, effect in (alleles | {"": -0.2188}).items():
        genes += effect * has("cyp2c9", cell)
    dose = np.array([float(cells[TARGET][row]) for row in known])
    return dose, np.full_like(dose, 35.0), clinical**2, genes**2

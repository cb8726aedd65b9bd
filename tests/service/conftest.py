"""Real daemons for the whole module: a coordinator and three hospitals of the heart-disease study."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from daemons import Federation, federation_of

from clinimeta.common.study import Study, read_study
from clinimeta.common.tasks.table import Records
from clinimeta.simulations import studies
from clinimeta.simulations.datasets.base import Hospital
from clinimeta.simulations.datasets.heart_disease import HeartDisease

ROUNDS = 3


@pytest.fixture(scope="session")
def study_text() -> str:
    """Heart disease, a few rounds, in which all hospitals must answer."""
    text = studies.text_of("heart-disease")
    return text.replace("rounds = 100", f"rounds = {ROUNDS}\nquorum = 1.0\ndeadline_s = 40.0", 1)


@pytest.fixture(scope="session")
def study(study_text: str) -> Study:
    """The same, read."""
    return read_study(study_text, "study.toml")


@pytest.fixture(scope="session")
def tables(data_dir: Path) -> Mapping[str, Records]:
    """The rows that the hospitals train on."""
    return {name: _training(hospital) for name, hospital in HeartDisease().hospitals(data_dir).items()}


def _training(hospital: Hospital) -> Records:
    assert hospital.test is not None
    rows = [row for row, test in enumerate(hospital.test) if not test]
    cells = {name: [column[row] for row in rows] for name, column in hospital.records.cells.items()}
    return Records(hospital.records.where, cells)


@pytest.fixture(scope="module")
def federation(
    tmp_path_factory: pytest.TempPathFactory, tables: Mapping[str, Records]
) -> Iterator[Federation]:
    """All of it, running."""
    federation = federation_of(tmp_path_factory.mktemp("federation"), tables)
    yield federation
    federation.stop()

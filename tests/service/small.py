"""Some of the heart-disease hospitals, and the model that an undisturbed run of them gives."""

from collections.abc import Callable, Mapping
from pathlib import Path

from daemons import Federation
from simulated import simulated

from clinimeta.common.study import Study
from clinimeta.common.tasks.table import Records

PAIR = ("cleveland", "hungary")


def some(tables: Mapping[str, Records], *names: str) -> dict[str, Records]:
    """The tables of these hospitals."""
    return {name: tables[name] for name in names}


def model_of(study: Study, tables: Mapping[str, Records], folder: Path) -> bytes:
    """What these hospitals' undisturbed run gives."""
    return simulated(study, tables, folder / "simulated")


def undisturbed_by(
    federation: Federation,
    study: str,
    disturb: Callable[[str], None],
    expected: bytes,
    patience_s: float = 180,
) -> None:
    """Start the study, `disturb` it, and find the undisturbed run's model, with every round done once."""
    name = federation.run(study)
    disturb(name)
    experiment = federation.finished(name, patience_s)
    assert federation.model_path(name).read_bytes() == expected
    assert [row["round"] for row in federation.rounds(name)] == [*range(1, experiment["rounds"] + 1)]

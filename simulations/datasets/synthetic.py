"""The synthetic federation as a data set: nothing to download, as many hospitals as asked for."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated

from annotated_types import Ge, Le, Lt

from clinimeta.common.tasks.table import Records
from clinimeta.simulations.datasets import DATASETS
from clinimeta.simulations.datasets.base import Hospital
from clinimeta.simulations.hospitals import FederationSettings, federation

DEFAULTS = FederationSettings()


@DATASETS.register("synthetic")
@dataclass(frozen=True, slots=True)
class Synthetic:
    """Synthetic hospitals with shared disease mechanisms and knobs for how much the hospitals differ.

    What the options mean stands in `hospitals.FederationSettings`.
    """

    sites: Annotated[int, Ge(1)] = 32
    seed: Annotated[int, Ge(0)] = 0
    case_mix: Annotated[float, Ge(0)] = DEFAULTS.case_mix
    prevalence_spread: Annotated[float, Ge(0)] = DEFAULTS.prevalence_spread
    population: Annotated[float, Ge(0)] = DEFAULTS.population
    shift: Annotated[float, Ge(0)] = DEFAULTS.shift
    coding: Annotated[float, Ge(0), Le(1)] = DEFAULTS.coding
    missing: Annotated[float, Ge(0), Le(0.5)] = DEFAULTS.missing
    differential: Annotated[float, Ge(0), Lt(1)] = DEFAULTS.differential

    @property
    def settings(self) -> FederationSettings:
        """The generator's parameters."""
        chosen = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "seed"}
        return FederationSettings(**chosen)

    def hospitals(self, data: Path | None) -> Mapping[str, Hospital]:
        """The hospitals "hospital-01", ..., each made when it is looked up."""
        return _Hospitals(federation(self.settings, self.seed))

    @property
    def synthetic(self) -> bool:
        """Nobody in it is real."""
        return True

    def files(self, data: Path | None) -> Mapping[str, str]:
        """None: the settings say everything."""
        return {}


@dataclass(frozen=True, slots=True)
class _Hospitals(Mapping[str, Hospital]):
    records: Mapping[str, Records]

    def __getitem__(self, name: str) -> Hospital:
        return Hospital(self.records[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self.records)

    def __len__(self) -> int:
        return len(self.records)

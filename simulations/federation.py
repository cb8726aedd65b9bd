"""The hospitals of a study, and who trains and who is judged in each of its splits."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from clinimeta.client.site import Site
from clinimeta.common.errors import StudyError
from clinimeta.common.rng import generator
from clinimeta.common.study import Evaluation, Study
from clinimeta.common.tasks.schema import Schema
from clinimeta.common.tasks.table import Table, encode
from clinimeta.simulations.datasets import DATASETS
from clinimeta.simulations.datasets.base import Dataset

EVERYONE = "all"
"""The split in which every hospital trains."""


@dataclass(frozen=True, slots=True)
class Split:
    """Who trains and who is judged; trainings of the same name are the same training."""

    name: str
    train: tuple[str, ...]
    judged: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Federation:
    """A study's hospitals, in the data set's order. `files` are the SHA-256 of what was read."""

    sites: Mapping[str, Site]
    tables: Mapping[str, Table]
    files: Mapping[str, str]
    synthetic: bool
    device: str = "cpu"

    def training(self, schema: Schema, train: Sequence[str]) -> "Federation":
        """The hospitals that train, without the rows of people who were also at one that does not."""
        outside = {
            person
            for name, site in self.sites.items()
            if schema.patient_everywhere and name not in train
            for person in _people(site, schema)
        }
        sites = {name: _without(self.sites[name], schema, outside) for name in train}
        tables = {
            name: self.tables[name] if site is self.sites[name] else encode_site(schema, site)
            for name, site in sites.items()
        }
        return replace(self, sites=sites, tables=tables)


def dataset_of(study: Study) -> Dataset:
    """The data set that a study names.

    Raises:
        StudyError: there is none of that name, or an option is wrong.
    """
    return DATASETS.build(study.data.name, study.data.options, "[data]")


def load(study: Study, data: Path | None, device: str = "cpu") -> Federation:
    """Read a study's hospitals and encode their tables; all compute on `device`.

    Raises:
        StudyError: the data set or an option is unknown, or there are too few hospitals.
        MissingDataError: a file is neither there nor downloadable.
        DataError: a table does not fit the study.
    """
    dataset = dataset_of(study)
    hospitals = dataset.hospitals(data)
    sites = {
        name: Site(name, h.records, tuple(h.test) if h.test is not None else None, device)
        for name, h in hospitals.items()
    }
    tables = {name: encode_site(study.table, site) for name, site in sites.items()}
    return Federation(sites, tables, dataset.files(data), dataset.synthetic, device)


def encode_site(schema: Schema, site: Site) -> Table:
    """All of a hospital's rows, the ones kept for evaluation marked."""
    return encode(schema, site.records, test=site.test)


def splits(evaluation: Evaluation, names: Sequence[str]) -> list[Split]:
    """The evaluation's splits of the hospitals; nobody is judged on rows that trained.

    Raises:
        StudyError: there are too few hospitals for the split.
    """
    if evaluation.split == "own_test_rows":
        return [Split(EVERYONE, tuple(names), tuple(names))]
    if evaluation.split == "leave_one_site_out":
        _require(len(names) >= 2, evaluation, names, "two or more")
        return [Split(f"without-{out}", tuple(n for n in names if n != out), (out,)) for out in names]
    if evaluation.split == "unseen_sites":
        if not evaluation.sites:
            raise StudyError(
                f"the evaluation '{evaluation.name}' holds no hospital out",
                where="[[evaluations]]",
                expected="'sites': how many of the last hospitals never train",
                remedy="add 'sites', or choose another split",
            )
        kept = len(names) - evaluation.sites
        _require(0 < kept < len(names), evaluation, names, f"more than the {evaluation.sites} held out")
        return [Split(f"first-{kept}", tuple(names[:kept]), tuple(names[kept:]))]
    _require(len(names) >= evaluation.folds, evaluation, names, f"at least {evaluation.folds}")
    order = torch.randperm(len(names), generator=generator("folds", len(names))).tolist()
    fold_of = {names[site]: position % evaluation.folds for position, site in enumerate(order)}
    return [
        Split(
            f"fold{fold}of{evaluation.folds}",
            tuple(n for n in names if fold_of[n] != fold),
            tuple(n for n in names if fold_of[n] == fold),
        )
        for fold in range(evaluation.folds)
    ]


def deployment_split(study: Study, names: Sequence[str]) -> Split:
    """Who trains the model that new hospitals get: all, or all but those held out as never seen."""
    for evaluation in study.evaluations:
        if evaluation.split == "unseen_sites":
            return splits(evaluation, names)[0]
    return Split(EVERYONE, tuple(names), ())


def _people(site: Site, schema: Schema) -> list[str]:
    """Who each row is of."""
    return [cell.strip() for cell in site.records.cells.get(schema.patient, ())]


def _without(site: Site, schema: Schema, people: set[str]) -> Site:
    """The site with the rows of these people kept back, like test rows."""
    persons = _people(site, schema)
    if not people.intersection(persons):
        return site
    kept_back = site.test or (False,) * len(site.records)
    return replace(site, test=tuple(k or p in people for k, p in zip(kept_back, persons, strict=True)))


def _require(fits: bool, evaluation: Evaluation, names: Sequence[str], wanted: str) -> None:
    if not fits:
        raise StudyError(
            f"too few hospitals for the evaluation '{evaluation.name}'",
            found=f"{len(names)} hospital{'' if len(names) == 1 else 's'}",
            expected=wanted,
            remedy="use more hospitals, or another split",
        )

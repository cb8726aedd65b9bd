"""IHDP: the trials as published, the truth apart from what learns, and complaints that name a place."""

import csv
import gzip
import io
from pathlib import Path

import numpy as np
import pytest
from public_files import SECRET, npz, present, refused

from clinimeta.common.errors import DataError, MissingDataError
from clinimeta.common.tasks.schema import Column, Schema
from clinimeta.common.tasks.table import encode
from clinimeta.simulations.datasets.ihdp import NAMES, Ihdp, parts, read_trials, root_pehe

INFANTS = 10


def arrays(**changes: object) -> dict[str, object]:
    x = np.zeros((INFANTS, 25))
    x[:, :6] = np.arange(INFANTS)[:, None] / 7
    x[:, 13] = 1 + np.arange(INFANTS) % 2
    outcomes = np.arange(2.0 * INFANTS).reshape(2, INFANTS)
    return {
        "x": x,
        "t": (np.arange(INFANTS) % 2).astype(np.int8),
        "yf": outcomes,
        "ycf": outcomes + 100,
        "mu0": outcomes + 200,
        "mu1": outcomes + 203,
    } | changes


def tiny(path: Path, **changes: object) -> Path:
    return npz(path / "ihdp_npci_50.npz", arrays(**changes))


def test_a_trial_is_what_its_realisation_holds(tmp_path: Path) -> None:
    trials = read_trials(tiny(tmp_path), INFANTS, 2)
    assert list(trials) == ["realisation-01", "realisation-02"]
    second = trials["realisation-02"]
    assert second.outcome[0] == INFANTS
    assert second.truth.counterfactual[0] == INFANTS + 100
    assert (second.truth.untreated[0], second.truth.treated[0]) == (INFANTS + 200, INFANTS + 203)
    assert np.array_equal(second.truth.effect, np.full(INFANTS, 3.0))
    assert second.treatment.tolist() == [0, 1] * 5
    assert second.covariates[:, 13].tolist() == [0, 1] * 5
    assert str(INFANTS + 200) not in repr(second)


def test_root_pehe_is_the_root_of_the_mean_squared_error(tmp_path: Path) -> None:
    truth = read_trials(tiny(tmp_path), INFANTS, 2)["realisation-01"].truth
    assert root_pehe(np.full(INFANTS, 3.0), truth) == 0
    estimate = np.full(INFANTS, 3.0)
    estimate[0] += 4
    assert root_pehe(estimate, truth) == pytest.approx(np.sqrt(16 / INFANTS))
    with pytest.raises(DataError, match="not one an infant"):
        root_pehe(np.zeros(INFANTS + 1), truth)


def spoilt(name: str, place: tuple[int, ...], value: float) -> dict[str, object]:
    array = np.array(arrays()[name])
    array[place] = value
    return {name: array}


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        (spoilt("t", (3,), 2), "array 't', row 4"),
        (spoilt("x", (2, 0), np.nan), "array 'x', row 3, column 1"),
        (spoilt("x", (2, 6), float(SECRET)), "array 'x', row 3, column 7"),
        (spoilt("x", (2, 13), 0), "array 'x', row 3, column 14"),
        (spoilt("mu1", (1, 4), np.inf), "array 'mu1', row 2, column 5"),
        ({"ycf": np.zeros((3, INFANTS))}, "array 'ycf'"),
        ({"yf": np.zeros((2, INFANTS - 1))}, "array 'yf'"),
        ({"x": np.zeros((INFANTS, 24))}, "array 'x'"),
    ],
)
def test_what_cannot_be_is_refused_by_row_and_column(
    tmp_path: Path, changes: dict[str, object], where: str
) -> None:
    path = tiny(tmp_path, **changes)
    assert refused(lambda: read_trials(path, INFANTS, 2)).where.endswith(where)


def test_another_number_of_infants_or_realisations_is_refused(tmp_path: Path) -> None:
    path = tiny(tmp_path)
    assert refused(lambda: read_trials(path)).expected == "747 infants"
    assert refused(lambda: read_trials(path, INFANTS)).expected == "50 realisations"
    with pytest.raises(MissingDataError, match="ihdp_npci_50"):
        Ihdp().trials(tmp_path / "elsewhere")


def test_the_parts_are_63_27_and_10_percent_and_share_nobody() -> None:
    found = parts()
    together = np.concatenate([found.train, found.validation, found.test])
    assert sorted(together.tolist()) == list(range(747))
    assert [len(p) for p in (found.train, found.validation, found.test)] == [470, 202, 75]


@pytest.mark.data
def test_no_site_holds_the_truth(data_dir: Path) -> None:
    data = present(data_dir, "ihdp")
    sites = Ihdp(realisations=3).hospitals(data)
    trials = Ihdp().trials(data)
    assert list(sites) == ["realisation-01", "realisation-02", "realisation-03"]
    assert len(trials) == 50
    for name, site in sites.items():
        cells = site.records.cells
        assert set(cells) == {*NAMES, "treatment", "outcome"}
        assert np.allclose([float(cell) for cell in cells["outcome"]], trials[name].outcome, rtol=0, atol=0)
        assert np.flatnonzero(site.test or ()).tolist() == sorted(parts().test.tolist())
    columns = tuple(Column(name=name) for name in (*NAMES, "treatment"))
    encoded = encode(Schema(target="outcome", columns=columns), sites["realisation-01"].records)
    assert tuple(encoded.rows.inputs["table"].shape) == (747, 26)


@pytest.mark.data
def test_the_effects_are_those_of_the_published_realisations(data_dir: Path) -> None:
    trials = Ihdp().trials(present(data_dir, "ihdp"))
    average = [float(trial.truth.effect.mean()) for trial in trials.values()]
    assert average[0] == pytest.approx(4.016, abs=5e-4)
    assert np.mean(average) == pytest.approx(4.61, abs=5e-3)
    assert (min(average), max(average)) == (pytest.approx(3.16, abs=5e-3), pytest.approx(12.65, abs=5e-3))
    first = trials["realisation-01"]
    assert (int(first.treatment.sum()), len(first.treatment)) == (139, 747)


@pytest.mark.data
def test_realisation_1_is_that_of_the_original_layout(data_dir: Path) -> None:
    data = present(data_dir, "ihdp")
    text = gzip.decompress((data / "ihdp" / "ihdp_npci_1.csv.gz").read_bytes()).decode()
    rows = np.array(list(csv.reader(io.StringIO(text, newline=""))), dtype=float)
    first = Ihdp().trials(data)["realisation-01"]
    assert np.array_equal(rows[:, 0], first.treatment)
    for column, found in enumerate(
        (first.outcome, first.truth.counterfactual, first.truth.untreated, first.truth.treated), start=1
    ):
        np.testing.assert_allclose(rows[:, column], found, rtol=1e-12)
    covariates = rows[:, 5:].copy()
    covariates[:, 13] -= 1
    np.testing.assert_allclose(covariates, first.covariates, rtol=1e-12)


@pytest.mark.data
def test_least_squares_finds_the_published_error(data_dir: Path) -> None:
    trials = Ihdp().trials(present(data_dir, "ihdp"))
    errors = []
    for trial in trials.values():
        design = np.column_stack([np.ones(747), trial.covariates])
        effect = np.zeros(747)
        for arm, sign in ((1, 1), (0, -1)):
            own = trial.treatment == arm
            weights = np.linalg.lstsq(design[own], trial.outcome[own], rcond=None)[0]
            effect += sign * design @ weights
        errors.append(root_pehe(effect, trial.truth))
    assert np.mean(errors) == pytest.approx(2.43, abs=0.01)  # published over 1,000 realisations: 2.4

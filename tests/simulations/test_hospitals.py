"""The synthetic federation: the same for the same seed, different as its knobs say, and always readable."""

import dataclasses
import math
import statistics

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import f_oneway
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import cross_val_predict

from clinimeta.common.rng import generator
from clinimeta.common.tasks.sampler import split_rows
from clinimeta.common.tasks.table import Records, Table, encode
from clinimeta.simulations import studies
from clinimeta.simulations.datasets import DATASETS
from clinimeta.simulations.datasets.synthetic import Synthetic
from clinimeta.simulations.hospitals import (
    COLUMNS,
    LABORATORY,
    MEASUREMENTS,
    PATIENT,
    TARGET,
    FederationSettings,
    federation,
    hospital,
    traits,
)

SCHEMA = studies.find("default").table
DEFAULT = FederationSettings()
ALIKE = FederationSettings(
    case_mix=0.0, prevalence_spread=0.0, population=0.0, shift=0.0, coding=0.0, missing=0.0
)
"""All knobs at zero."""

any_settings = st.builds(
    FederationSettings,
    case_mix=st.floats(0, 8),
    prevalence_spread=st.floats(0, 1),
    population=st.floats(0, 2),
    shift=st.floats(0, 2),
    coding=st.floats(0, 1),
    missing=st.floats(0, 0.5),
    differential=st.floats(0, 0.99),
)


def numbers(records: Records, column: str) -> np.ndarray:
    return np.array([float(cell) if cell else math.nan for cell in records.cells[column]])


def missing_share(records: Records) -> float:
    return statistics.fmean(cell == "" for column in COLUMNS for cell in records.cells[column])


def inputs_and_targets(records: Records) -> tuple[np.ndarray, np.ndarray]:
    rows = encode(SCHEMA, records).rows
    return rows.inputs["table"].numpy(), rows.targets.numpy()


# The same seed, the same hospital


@settings(max_examples=20)
@given(any_settings, st.integers(0, 2**40), st.integers(0, 10**6))
def test_every_hospital_encodes_under_the_default_study(
    chosen: FederationSettings, seed: int, index: int
) -> None:
    records = hospital(chosen, seed, index)
    table = encode(SCHEMA, records)
    assert table.rows.inputs["table"].shape == (len(records), len(SCHEMA.features))
    assert torch.isfinite(table.rows.inputs["table"]).all()
    assert set(records.cells) == {PATIENT, TARGET, *COLUMNS}
    low, high = chosen.rows_limits
    assert low <= len(records) <= high
    assert hospital(chosen, seed, index).cells == records.cells


def test_another_seed_is_another_federation() -> None:
    assert hospital(DEFAULT, 0, 0).cells != hospital(DEFAULT, 1, 0).cells


def test_a_hospital_does_not_depend_on_how_many_there_are() -> None:
    few = federation(dataclasses.replace(DEFAULT, sites=3), seed=5)
    many = federation(dataclasses.replace(DEFAULT, sites=99), seed=5)
    assert list(few) == ["hospital-01", "hospital-02", "hospital-03"]
    assert all(few[name].cells == many[name].cells for name in few)


def test_ten_thousand_hospitals_are_made_one_at_a_time() -> None:
    large = federation(dataclasses.replace(DEFAULT, sites=10_000), seed=5)
    assert len(large) == 10_000
    assert large["hospital-09999"].cells == hospital(DEFAULT, 5, 9998).cells


@pytest.mark.parametrize("name", ["hospital-00", "hospital-33", "hospital-1", "hospital-x", "clinic"])
def test_an_unknown_hospital_is_a_key_error(name: str) -> None:
    with pytest.raises(KeyError):
        federation(DEFAULT, 0)[name]


@pytest.mark.parametrize(
    "wrong", [{"sites": 0}, {"case_mix": -1.0}, {"coding": 1.1}, {"missing": 0.6}, {"differential": 1.0}]
)
def test_a_parameter_out_of_range_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="out of its range"):
        dataclasses.replace(DEFAULT, **wrong)


# The knobs


def test_hospitals_differ_within_the_documented_ranges() -> None:
    found = [traits(DEFAULT, 7, index) for index in range(400)]
    logits = [math.log(t.prevalence / (1 - t.prevalence)) for t in found]
    assert statistics.fmean(logits) == pytest.approx(math.log(0.35 / 0.65), abs=0.06)
    assert statistics.stdev(logits) == pytest.approx(0.4, abs=0.05)
    assert statistics.median(t.rows for t in found) == pytest.approx(180, rel=0.1)
    assert statistics.fmean(t.missing_share for t in found) == pytest.approx(0.08, abs=0.01)
    assert statistics.fmean(len(t.not_done) for t in found) == pytest.approx(0.08 * len(LABORATORY), abs=0.1)
    assert np.std([t.offset for t in found]) == pytest.approx(0.5, abs=0.05)
    assert np.std([np.log(t.gain) for t in found]) == pytest.approx(0.125, abs=0.02)
    for name in ("sex", "dyspnoea_class", "creatinine", "haemoglobin", "glucose", "nt_probnp"):
        assert statistics.fmean(name in t.recoded for t in found) == pytest.approx(0.15, abs=0.06)


def test_the_rows_show_the_prevalence_and_the_missing_cells_that_the_traits_say() -> None:
    for index in range(40):
        here, records = traits(DEFAULT, 7, index), hospital(DEFAULT, 7, index)
        assert len(records) == here.rows
        spread = 4 * math.sqrt(here.prevalence * (1 - here.prevalence) / len(records))
        assert numbers(records, TARGET).mean() == pytest.approx(here.prevalence, abs=spread)
        absent = len(here.not_done) / len(COLUMNS)
        assert absent <= missing_share(records) <= absent + here.missing_share + 0.05
        assert all(set(records.cells[name]) == {""} for name in here.not_done)
        assert "" not in records.cells["age"]
        assert "" not in records.cells["sex"]


def test_the_sicker_are_measured_more() -> None:
    chosen = dataclasses.replace(ALIKE, missing=0.4)
    gaps = []
    for index in range(30):
        records = hospital(chosen, 3, index)
        rate, there = numbers(records, "heart_rate"), ~np.isnan(numbers(records, "temperature"))
        if there.any():
            gaps.append(np.nanmean(rate[there]) - np.nanmean(rate[~there]))
    assert statistics.fmean(gaps) > 0.5


@pytest.mark.parametrize("measurement", [m for m in MEASUREMENTS if m.other], ids=lambda m: m.name)
def test_some_laboratories_report_in_another_unit(measurement) -> None:
    assert measurement.other is not None
    _, divisor = measurement.other
    usual, other = (dataclasses.replace(DEFAULT, coding=coding) for coding in (0.0, 1.0))
    there = next(i for i in range(9) if measurement.name not in traits(DEFAULT, 2, i).not_done)
    written = numbers(hospital(usual, 2, there), measurement.name)
    converted = numbers(hospital(other, 2, there), measurement.name)
    np.testing.assert_allclose(converted * divisor, written, rtol=0.1, atol=0.6)
    assert any(measurement.name in traits(DEFAULT, 0, i).recoded for i in range(60))


def test_sex_and_dyspnoea_class_are_sometimes_counted_the_other_way_round() -> None:
    usual, other = (hospital(dataclasses.replace(DEFAULT, coding=c), 2, 0) for c in (0.0, 1.0))
    np.testing.assert_array_equal(numbers(usual, "sex"), 1 - numbers(other, "sex"))
    np.testing.assert_array_equal(numbers(usual, "dyspnoea_class"), 5 - numbers(other, "dyspnoea_class"))


@pytest.mark.parametrize(
    ("knob", "untouched"),
    [
        ({"case_mix": 0.0}, ["age", "sex", "heart_rate", "creatinine"]),
        ({"prevalence_spread": 0.0}, ["age", "sex", "heart_rate", "creatinine"]),
        ({"shift": 0.0}, ["age", "sex", TARGET]),
        ({"coding": 0.0}, ["age", "heart_rate", TARGET]),
        ({"missing": 0.0}, ["age", "sex", TARGET]),
    ],
    ids=lambda value: next(iter(value)),
)
def test_a_knob_moves_one_thing_alone(knob: dict[str, float], untouched: list[str]) -> None:
    before, after = (hospital(s, 4, 1) for s in (DEFAULT, dataclasses.replace(DEFAULT, **knob)))
    assert before.cells != after.cells
    for column in untouched:
        assert before.cells[column] == after.cells[column]


# Without differences nothing need be adapted, with them it pays


def test_knobs_at_zero_leave_no_trait_but_the_size() -> None:
    def described(index: int) -> dict[str, object]:
        return {**dataclasses.asdict(traits(ALIKE, 0, index)), "rows": 0}

    for index in range(1, 10):
        np.testing.assert_equal(described(index), described(0))


def test_knobs_at_zero_make_hospitals_exchangeable() -> None:
    made = [hospital(ALIKE, 11, index) for index in range(40)]
    for column in (*COLUMNS, TARGET):
        assert f_oneway(*(numbers(records, column) for records in made)).pvalue > 1e-3, column


def gain_of_a_model_of_ones_own(chosen: FederationSettings) -> float:
    """AUROC at eight unseen hospitals: a model of the hospital's own rows minus one of 16 hospitals' rows."""
    made = [inputs_and_targets(hospital(chosen, 11, index)) for index in range(24)]
    model = LogisticRegression(C=0.1, solver="newton-cholesky")
    pooled = clone(model).fit(
        np.concatenate([x for x, _ in made[:16]]), np.concatenate([y for _, y in made[:16]])
    )
    gains = []
    for x, y in made[16:]:
        ours = cross_val_predict(model, x, y, cv=5, method="predict_proba")[:, 1]
        gains.append(roc_auc_score(y, ours) - roc_auc_score(y, pooled.predict_proba(x)[:, 1]))
    return statistics.fmean(gains)


def test_exchangeable_hospitals_need_no_adaptation_and_different_ones_do() -> None:
    assert gain_of_a_model_of_ones_own(ALIKE) < 0.0
    assert gain_of_a_model_of_ones_own(DEFAULT) > 0.05


# People


def test_some_people_have_two_visits_and_stay_themselves() -> None:
    records = hospital(DEFAULT, 0, 0)
    visits: dict[str, list[int]] = {}
    for row, person in enumerate(records.cells[PATIENT]):
        visits.setdefault(person, []).append(row)
    twice = [rows for rows in visits.values() if len(rows) == 2]
    assert {len(rows) for rows in visits.values()} == {1, 2}
    assert len(twice) / len(visits) == pytest.approx(DEFAULT.revisits, abs=0.01)
    for first, second in twice:
        assert all(records.cells[c][first] == records.cells[c][second] for c in ("age", "sex"))
    assert any(records.cells["heart_rate"][a] != records.cells["heart_rate"][b] for a, b in twice)


@settings(max_examples=25)
@given(st.integers(0, 50), st.sampled_from([1, 5, 10, 20]), st.sampled_from(["per_class", "rows"]))
def test_nobody_is_on_both_sides_of_a_split(index: int, shots: int, draw: str) -> None:
    table: Table = encode(SCHEMA, hospital(DEFAULT, 0, index))
    split = split_rows(table, shots, draw, 2, generator("split", index, shots))
    if split is not None:
        support, rest = (set(table.patients[rows].tolist()) for rows in split)
        assert support.isdisjoint(rest)


# The data set


def test_the_data_set_is_the_generator_under_the_studys_names() -> None:
    dataset = DATASETS.build("synthetic", {"sites": 4, "seed": 9, "shift": 0.0})
    assert isinstance(dataset, Synthetic)
    hospitals = dataset.hospitals(None)
    assert list(hospitals) == ["hospital-01", "hospital-02", "hospital-03", "hospital-04"]
    assert len(hospitals) == 4
    expected = federation(FederationSettings(sites=4, shift=0.0), 9)
    assert all(hospitals[name].records == expected[name] for name in hospitals)
    assert hospitals["hospital-01"].test is None
    assert dataset.files(None) == {}
    assert dataset.synthetic

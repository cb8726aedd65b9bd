"""Scores and their intervals are the textbook's, and two arms are compared on the same resamples."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from clinimeta.common.metrics import SCORES, accuracy, auroc
from clinimeta.common.study import Evaluation
from clinimeta.simulations.evaluation import Prediction
from clinimeta.simulations.statistics import (
    bootstrap,
    bootstrap_each,
    estimate,
    few_hospitals,
    mean_over,
    point,
    scorable,
)

BySite = Mapping[str, Sequence[Prediction]]


@pytest.fixture(autouse=True)
def _mean_score(monkeypatch: pytest.MonkeyPatch) -> None:
    """A score whose bootstrap is known: the mean of what was predicted for the second class."""
    monkeypatch.setitem(SCORES, "mean", lambda _targets, probabilities: float(probabilities[:, 1].mean()))


def judged_by(**values: Any) -> Evaluation:
    return Evaluation(**{"name": "e", "split": "unseen_sites", "bootstrap": 200, **values})


def prediction(
    site: str, values: Sequence[float], targets: Sequence[int] = (), repeat: int = 0
) -> Prediction:
    """What an arm said of a hospital's rows: `values` are the probabilities of the second class."""
    second = np.array(values, dtype=np.float64)
    known = np.array(targets or [i % 2 for i in range(len(values))], dtype=np.int64)
    return Prediction(
        site, "5", repeat, np.arange(len(second)), known, np.stack([1 - second, second], axis=1)
    )


def constant(values: Mapping[str, Sequence[float]], rows: int = 3) -> dict[str, list[Prediction]]:
    """Hospital -> one draw a value, in which every row has that value."""
    return {
        site: [prediction(site, [value] * rows, repeat=i) for i, value in enumerate(given)]
        for site, given in values.items()
    }


def random_sites(rng: np.random.Generator, sites: int, draws: int, rows: int) -> dict[str, list[Prediction]]:
    return {
        f"h{i}": [
            prediction(f"h{i}", rng.random(rows).tolist(), rng.integers(2, size=rows).tolist(), repeat)
            for repeat in range(draws)
        ]
        for i in range(sites)
    }


# The score itself


def test_the_score_is_the_mean_over_hospitals_of_their_mean_over_draws() -> None:
    by_site = constant({"ulm": [0.1, 0.3], "bonn": [0.8]})
    assert point(judged_by(), by_site, "mean") == pytest.approx((0.2 + 0.8) / 2)


def test_a_hospital_counts_the_same_however_many_rows_it_has() -> None:
    by_site = {"ulm": [prediction("ulm", [0.0] * 50)], "bonn": [prediction("bonn", [1.0])]}
    assert point(judged_by(), by_site, "mean") == 0.5


def test_pooled_the_score_is_that_of_all_rows_together() -> None:
    by_site = random_sites(np.random.default_rng(0), 4, 3, 6)
    expected = []
    for repeat in range(3):
        drawn = [draws[repeat] for draws in by_site.values()]
        targets = np.concatenate([d.targets for d in drawn])
        expected.append(auroc(targets, np.concatenate([d.probabilities for d in drawn])))
    assert point(judged_by(pooled=True), by_site, "auroc") == pytest.approx(np.mean(expected), rel=1e-12)


def test_pooled_only_the_draws_that_every_hospital_has_are_used() -> None:
    by_site = constant({"ulm": [0.2, 0.4], "bonn": [0.6]}, rows=2)
    assert point(judged_by(pooled=True), by_site, "mean") == pytest.approx((0.2 + 0.6) / 2)


def test_a_draw_without_a_score_is_left_out_of_its_hospital() -> None:
    one_class = prediction("ulm", [0.1, 0.9], [1, 1], repeat=1)
    by_site = {"ulm": [prediction("ulm", [0.1, 0.9], [0, 1]), one_class]}
    assert point(judged_by(), by_site, "auroc") == 1.0


def test_without_a_hospital_there_is_no_score() -> None:
    assert math.isnan(point(judged_by(), {}, "auroc"))
    assert np.isnan(bootstrap(judged_by(), {}, "auroc")).all()
    assert len(bootstrap(judged_by(), {}, "auroc")) == 200


def test_a_hospital_without_any_score_is_left_out() -> None:
    by_site = {
        "ulm": [prediction("ulm", [0.1, 0.9], [0, 1])],
        "bonn": [prediction("bonn", [0.1, 0.9], [1, 1])],
        "kiel": [prediction("kiel", [0.1], [0]), prediction("kiel", [0.9, 0.1], [0, 1], repeat=1)],
    }
    assert list(scorable(by_site, "auroc")) == ["ulm", "kiel"]
    assert list(scorable(by_site, "accuracy")) == ["ulm", "bonn", "kiel"]
    known = scorable(by_site, "auroc")
    assert point(judged_by(), known, "auroc") == pytest.approx((1.0 + 0.0) / 2)


# Closed forms


def test_without_variation_every_replicate_is_the_score() -> None:
    by_site = constant({"ulm": [0.3, 0.3], "bonn": [0.3, 0.3]})
    for values in ({}, {"pooled": True}, {"split": "leave_one_site_out"}):
        assert bootstrap(judged_by(**values), by_site, "mean") == pytest.approx(0.3, abs=1e-12)


def test_the_spread_over_hospitals_is_that_of_a_mean_of_resampled_hospitals() -> None:
    values = np.array([0.1, 0.25, 0.3, 0.6, 0.9, 0.95])
    by_site = constant({f"h{i}": [value] for i, value in enumerate(values)})
    replicates = bootstrap(judged_by(bootstrap=6000), by_site, "mean")
    assert replicates.mean() == pytest.approx(values.mean(), abs=0.01)
    assert replicates.var() == pytest.approx(few_hospitals(6) ** 2 * values.var() / len(values), rel=0.1)


def test_the_spread_holds_the_draws_within_a_hospital_too() -> None:
    inside = np.array([0.2, 0.5, 0.8])
    replicates = bootstrap(judged_by(bootstrap=6000), constant({"ulm": inside.tolist()}), "mean")
    assert replicates.mean() == pytest.approx(0.5, abs=0.01)
    assert replicates.var() == pytest.approx(inside.var() / 3, rel=0.1)


def test_the_spread_at_a_named_hospital_is_that_of_its_resampled_patients() -> None:
    values = np.linspace(0.1, 0.9, 12)
    by_site = {"ulm": [prediction("ulm", values.tolist())]}
    replicates = bootstrap_each(judged_by(bootstrap=6000), by_site, "mean")["ulm"]
    assert replicates.mean() == pytest.approx(values.mean(), abs=0.01)
    assert replicates.var() == pytest.approx(values.var() / 12, rel=0.1)


def test_the_same_patients_are_resampled_in_every_draw() -> None:
    values = np.linspace(0.1, 0.9, 12).tolist()
    by_site = {"ulm": [prediction("ulm", values, repeat=i) for i in range(3)]}
    replicates = bootstrap_each(judged_by(bootstrap=6000), by_site, "mean")["ulm"]
    assert replicates.var() == pytest.approx(np.var(values) / 12, rel=0.1)  # not / 36: they are not others


def test_named_hospitals_are_a_fixed_list() -> None:
    by_site = constant({"ulm": [0.1], "bonn": [0.9]})
    named = bootstrap(judged_by(split="own_test_rows"), by_site, "mean")
    assert named == pytest.approx(0.5, abs=1e-12)
    assert bootstrap(judged_by(), by_site, "mean").std() > 0.1


def test_over_named_hospitals_the_replicates_are_the_means_of_each() -> None:
    by_site = random_sites(np.random.default_rng(1), 3, 2, 8)
    chosen = judged_by(split="leave_one_site_out")
    each = bootstrap_each(chosen, by_site, "accuracy")
    assert list(each) == list(by_site)
    np.testing.assert_allclose(bootstrap(chosen, by_site, "accuracy"), np.mean(list(each.values()), axis=0))
    np.testing.assert_allclose(mean_over(each), np.mean(list(each.values()), axis=0))


def test_a_replicate_without_a_score_at_one_hospital_is_the_mean_of_the_others() -> None:
    nan = float("nan")
    found = mean_over({"ulm": np.array([0.2, nan, nan]), "bonn": np.array([0.4, 0.6, nan])})
    np.testing.assert_allclose(found, [0.3, 0.6, nan])


def test_pooled_whole_hospitals_are_resampled() -> None:
    values = np.array([0.1, 0.3, 0.8])
    by_site = constant({f"h{i}": [value] for i, value in enumerate(values)})
    replicates = bootstrap(judged_by(pooled=True, bootstrap=6000), by_site, "mean")
    assert replicates.var() == pytest.approx(few_hospitals(3) ** 2 * values.var() / 3, rel=0.1)
    resampled = values.mean() + (replicates - values.mean()) / few_hospitals(3)
    assert {round(float(r) * 30) for r in resampled} <= {
        round(10 * float(a + b + c)) for a in values for b in values for c in values
    }


# Intervals


def test_an_interval_is_the_middle_95_percent_of_the_replicates() -> None:
    found = estimate(0.5, np.linspace(0, 1, 1001))
    assert (found.value, found.low, found.high) == (0.5, pytest.approx(0.025), pytest.approx(0.975))


def test_replicates_without_a_score_do_not_count() -> None:
    found = estimate(0.5, np.array([0.4, float("nan"), 0.4]))
    assert (found.low, found.high) == (0.4, 0.4)


def test_without_a_replicate_there_is_no_interval() -> None:
    found = estimate(float("nan"), np.full(5, np.nan))
    assert math.isnan(found.low)
    assert math.isnan(found.high)


def covered(truth: float, worlds: Iterator[BySite], evaluation: Evaluation, score: str) -> float:
    """In how many worlds the interval holds the truth."""
    hits = []
    for by_site in worlds:
        found = estimate(point(evaluation, by_site, score), bootstrap(evaluation, by_site, score))
        hits.append(found.low <= truth <= found.high)
    return float(np.mean(hits))


def test_the_interval_over_hospitals_to_come_holds_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)

    def worlds() -> Iterator[BySite]:
        for _ in range(80):
            at = rng.normal(0.5, 0.1, size=16)
            yield constant(
                {f"h{i}": (mean + rng.normal(0, 0.05, size=2)).tolist() for i, mean in enumerate(at)}
            )

    share = covered(0.5, worlds(), judged_by(bootstrap=100), "mean")
    assert share == pytest.approx(0.95, abs=0.05)  # 1,000 such worlds give 0.93


def test_the_interval_over_patients_to_come_holds_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)

    def worlds() -> Iterator[BySite]:
        for _ in range(150):
            right = rng.random((2, 40)) < np.array([[0.8], [0.6]])
            yield {
                f"h{i}": [prediction(f"h{i}", row.astype(float).tolist(), [1] * 40)]
                for i, row in enumerate(right)
            }

    share = covered(0.7, worlds(), judged_by(split="own_test_rows", bootstrap=100), "accuracy")
    assert share == pytest.approx(0.95, abs=0.05)  # 1,000 such worlds give 0.93


# Two arms

EVERY_WAY = pytest.mark.parametrize(
    "values",
    [{}, {"pooled": True}, {"split": "leave_one_site_out"}, {"split": "own_test_rows", "pooled": True}],
    ids=["hospitals", "pooled", "named", "named and pooled"],
)


@EVERY_WAY
def test_an_arm_differs_from_itself_by_exactly_nothing(values: dict[str, Any]) -> None:
    by_site = random_sites(np.random.default_rng(2), 4, 3, 10)
    for score in ("auroc", "accuracy"):
        one, again = (bootstrap(judged_by(**values), by_site, score) for _ in range(2))
        np.testing.assert_array_equal(one, again)
        found = estimate(0.0, one - again)
        assert (found.low, found.high) == (0.0, 0.0)


@EVERY_WAY
def test_two_arms_are_compared_on_the_same_resamples(values: dict[str, Any]) -> None:
    by_site = random_sites(np.random.default_rng(3), 5, 3, 10)
    better = {
        site: [
            prediction(site, (d.probabilities[:, 1] + 0.125).tolist(), d.targets.tolist(), d.repeat)
            for d in drawn
        ]
        for site, drawn in by_site.items()
    }
    one, other = (bootstrap(judged_by(**values), arm, "mean") for arm in (better, by_site))
    assert one.std() > 0
    np.testing.assert_allclose(one - other, 0.125, rtol=1e-9)


def test_a_hospital_that_one_arm_cannot_score_does_not_unpair_the_others() -> None:
    by_site = random_sites(np.random.default_rng(4), 5, 2, 10)
    failed = {
        **by_site,
        "h2": [prediction("h2", [float("nan")] * 10, d.targets.tolist()) for d in by_site["h2"]],
    }
    chosen = judged_by(split="leave_one_site_out")
    one, other = (bootstrap_each(chosen, scorable(arm, "accuracy"), "accuracy") for arm in (by_site, failed))
    assert set(one) - set(other) == {"h2"}
    for site, replicates in other.items():
        np.testing.assert_array_equal(replicates, one[site])


@EVERY_WAY
def test_another_evaluation_or_score_resamples_anew(values: dict[str, Any]) -> None:
    by_site = random_sites(np.random.default_rng(5), 4, 3, 10)
    one, other = (bootstrap(judged_by(name=name, **values), by_site, "mean") for name in ("e", "f"))
    assert not np.array_equal(one, other)


@pytest.mark.parametrize("seed", range(5))
def test_a_score_lies_among_its_replicates(seed: int) -> None:
    by_site = random_sites(np.random.default_rng(seed), 3, 2, 6)
    for values in ({}, {"pooled": True}, {"split": "leave_one_site_out"}):
        chosen = judged_by(bootstrap=100, **values)
        replicates = bootstrap(chosen, by_site, "accuracy")
        assert len(replicates) == 100
        assert replicates.min() <= point(chosen, by_site, "accuracy") <= replicates.max()


def test_accuracy_over_hospitals_is_the_mean_of_accuracies() -> None:
    by_site = random_sites(np.random.default_rng(6), 3, 1, 9)
    expected = np.mean([accuracy(d.targets, d.probabilities) for (d,) in by_site.values()])
    assert point(judged_by(), by_site, "accuracy") == pytest.approx(expected)


def test_few_hospitals_widen_an_interval_and_many_do_not() -> None:
    widths = [few_hospitals(count) for count in (2, 4, 8, 32, 1000)]
    assert widths == sorted(widths, reverse=True)
    assert widths[-1] == pytest.approx(1.0, abs=0.01)
    assert few_hospitals(1) == 1.0

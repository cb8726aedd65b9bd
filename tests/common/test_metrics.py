"""Scores equal their textbook definitions, and means add up over sites in any grouping."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from clinimeta.common.metrics import (
    CLASS_SCORES,
    NUMBER_SCORES,
    SCORES,
    Mean,
    absolute_error,
    accuracy,
    auroc,
    calibration_error,
    merge,
)

OF_CLASSES = pytest.mark.parametrize("score", CLASS_SCORES.values(), ids=CLASS_SCORES.keys())
OF_NUMBERS = pytest.mark.parametrize("score", NUMBER_SCORES.values(), ids=NUMBER_SCORES.keys())
WHOLE = st.integers(-1000, 1000).map(float)
MEANS = st.dictionaries(st.sampled_from(["query_loss", "query_accuracy", "x"]), st.builds(Mean, WHOLE, WHOLE))


def two_classes(positive: Any) -> np.ndarray:
    """Probabilities of both classes from those of the second."""
    p = np.array(positive, dtype=np.float64)
    return np.stack([1 - p, p], axis=1)


@st.composite
def predictions(draw: st.DrawFn, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Targets and probabilities from few distinct values, so that ties are common."""
    rows = draw(st.integers(classes, 30))
    targets = np.array(draw(st.lists(st.integers(0, classes - 1), min_size=rows, max_size=rows)))
    assume(len(np.unique(targets)) == classes)
    grades = draw(
        st.lists(
            st.lists(st.integers(1, 4), min_size=classes, max_size=classes), min_size=rows, max_size=rows
        )
    )
    weights = np.array(grades, dtype=np.float64)
    return targets, weights / weights.sum(axis=1, keepdims=True)


# AUROC


@given(drawn=predictions(2))
def test_auroc_equals_scikit_learns_also_with_ties(drawn: tuple[np.ndarray, np.ndarray]) -> None:
    targets, probabilities = drawn
    assert auroc(targets, probabilities) == pytest.approx(
        roc_auc_score(targets, probabilities[:, 1]), abs=1e-12
    )


@given(drawn=predictions(2))
def test_auroc_is_the_share_of_pairs_in_the_right_order(drawn: tuple[np.ndarray, np.ndarray]) -> None:
    targets, probabilities = drawn
    positive, negative = (probabilities[targets == c, 1] for c in (1, 0))
    pairs = [float(p > n) + 0.5 * float(p == n) for p in positive for n in negative]
    assert auroc(targets, probabilities) == pytest.approx(np.mean(pairs), abs=1e-12)


@given(drawn=predictions(3))
def test_auroc_of_three_classes_equals_scikit_learns(drawn: tuple[np.ndarray, np.ndarray]) -> None:
    targets, probabilities = drawn
    expected = roc_auc_score(targets, probabilities, multi_class="ovo", labels=[0, 1, 2])
    assert auroc(targets, probabilities) == pytest.approx(expected, abs=1e-12)


def test_auroc_by_hand() -> None:
    targets = np.array([0, 0, 1, 1])
    assert auroc(targets, two_classes([0.1, 0.4, 0.35, 0.8])) == 0.75
    assert auroc(targets, two_classes([0.1, 0.2, 0.8, 0.9])) == 1.0
    assert auroc(targets, two_classes([0.9, 0.8, 0.2, 0.1])) == 0.0
    assert auroc(targets, two_classes([0.5, 0.5, 0.5, 0.5])) == 0.5


@pytest.mark.parametrize("classes", [2, 3])
def test_auroc_is_undefined_where_a_class_is_absent(classes: int) -> None:
    even = np.full((4, classes), 1 / classes)
    assert math.isnan(auroc(np.array([0, 0, 0, 0]), even))
    assert math.isnan(auroc(np.array([1, 1, 0, 1]), even)) == (classes == 3)


# Accuracy


def test_accuracy_counts_the_rows_whose_most_probable_class_is_true() -> None:
    probabilities = np.array([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7], [0.2, 0.5, 0.3], [0.6, 0.3, 0.1]])
    assert accuracy(np.array([0, 2, 1, 2]), probabilities) == 0.75


# Calibration error


def test_calibration_error_of_one_confidence_is_its_distance_from_the_hit_rate() -> None:
    targets = np.array([1] * 6 + [0] * 4)
    assert calibration_error(targets, two_classes([0.8] * 10)) == pytest.approx(0.2, abs=1e-12)
    assert calibration_error(targets, two_classes([0.6] * 10)) == pytest.approx(0.0, abs=1e-12)
    assert calibration_error(targets, two_classes([1.0] * 10)) == pytest.approx(0.4, abs=1e-12)


def test_calibration_error_weighs_each_bin_by_its_rows() -> None:
    """Six rows at 0.95 of which 3 hit, two rows at 0.55 of which 2 hit: 6/8 * 0.45 + 2/8 * 0.45."""
    targets = np.array([1, 1, 1, 0, 0, 0, 1, 1])
    assert calibration_error(targets, two_classes([0.95] * 6 + [0.55] * 2)) == pytest.approx(0.45, abs=1e-12)


def test_errors_of_opposite_sign_do_not_cancel_across_bins_but_do_within_one() -> None:
    targets = np.array([0, 1])
    across, within = two_classes([0.95, 0.65]), two_classes([0.92, 0.98])
    assert calibration_error(targets, across) == pytest.approx(0.5 * 0.95 + 0.5 * 0.35, abs=1e-12)
    assert calibration_error(targets, within) == pytest.approx(0.45, abs=1e-12)


@given(drawn=predictions(3), bins=st.integers(1, 20))
def test_calibration_error_equals_the_formula_bin_by_bin(
    drawn: tuple[np.ndarray, np.ndarray], bins: int
) -> None:
    targets, probabilities = drawn
    inside: dict[int, list[tuple[float, bool]]] = {}
    for target, row in zip(targets, probabilities, strict=True):
        confidence = float(row.max())
        number = min(int(confidence * bins), bins - 1)
        inside.setdefault(number, []).append((confidence, int(row.argmax()) == target))
    expected = sum(
        abs(sum(hit for _, hit in rows) - sum(confidence for confidence, _ in rows))
        for rows in inside.values()
    ) / len(targets)
    assert calibration_error(targets, probabilities, bins) == pytest.approx(expected, abs=1e-12)


# Absolute error


@given(pairs=st.lists(st.tuples(st.floats(-1e3, 1e3), st.floats(-1e3, 1e3)), min_size=1, max_size=20))
def test_absolute_error_is_the_mean_distance(pairs: list[tuple[float, float]]) -> None:
    targets, predicted = (np.array(side) for side in zip(*pairs, strict=True))
    expected = math.fsum(abs(target - value) for target, value in pairs) / len(pairs)
    assert absolute_error(targets, predicted[:, None]) == pytest.approx(expected, rel=1e-9, abs=1e-12)


# What every score promises


def test_every_score_is_of_classes_or_of_numbers() -> None:
    assert dict(SCORES) == CLASS_SCORES | NUMBER_SCORES
    assert not set(CLASS_SCORES) & set(NUMBER_SCORES)


@OF_CLASSES
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_probabilities_that_are_not_finite_have_no_score(score: Any, value: float) -> None:
    probabilities = two_classes([0.2, 0.8, 0.6])
    probabilities[1, 1] = value
    assert math.isnan(score(np.array([0, 1, 1]), probabilities))


@OF_NUMBERS
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_predicted_numbers_that_are_not_finite_have_no_score(score: Any, value: float) -> None:
    assert math.isnan(score(np.array([0.0, 1.0]), np.array([[0.5], [value]])))


@OF_CLASSES
@given(drawn=predictions(2))
def test_a_score_lies_between_zero_and_one_and_ignores_the_order_of_rows(
    score: Any, drawn: tuple[np.ndarray, np.ndarray]
) -> None:
    targets, probabilities = drawn
    value = score(targets, probabilities)
    assert 0 <= value <= 1
    assert score(targets[::-1], probabilities[::-1]) == pytest.approx(value, abs=1e-12)


# Means that add up


def test_a_mean_is_the_total_over_the_weight() -> None:
    assert Mean(3.0, 4.0).value == 0.75
    assert math.isnan(Mean(0.0, 0.0).value)


@given(a=MEANS, b=MEANS, c=MEANS)
def test_merge_is_a_commutative_monoid(a: dict[str, Mean], b: dict[str, Mean], c: dict[str, Mean]) -> None:
    assert merge(merge(a, b), c) == merge(a, merge(b, c))
    assert merge(a, b) == merge(b, a)
    assert merge(a, {}) == merge({}, a) == a


@given(values=st.lists(st.floats(-1e3, 1e3), min_size=1), cut=st.integers(0, 50))
def test_a_merged_mean_is_the_mean_over_all_rows(values: list[float], cut: int) -> None:
    def site(rows: list[float]) -> dict[str, Mean]:
        return {"query_loss": Mean(float(sum(rows)), float(len(rows)))}

    merged = merge(site(values[:cut]), site(values[cut:]))
    assert merged["query_loss"].value == pytest.approx(np.mean(values), rel=1e-9, abs=1e-9)


def test_merge_leaves_its_arguments_alone() -> None:
    left, right = {"a": Mean(1.0, 1.0)}, {"a": Mean(2.0, 1.0), "b": Mean(1.0, 1.0)}
    assert merge(left, right) == {"a": Mean(3.0, 2.0), "b": Mean(1.0, 1.0)}
    assert (left, right) == ({"a": Mean(1.0, 1.0)}, {"a": Mean(2.0, 1.0), "b": Mean(1.0, 1.0)})

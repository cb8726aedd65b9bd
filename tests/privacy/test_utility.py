"""What a promise costs and leaves to learn, in the numbers that were published."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clinimeta.common.privacy.promise import Promise
from clinimeta.common.privacy.utility import Setting, expected_utility, in_words

PROMISES = st.builds(
    Promise,
    st.floats(0.1, 20),
    st.floats(1e-10, 1e-4),
    st.sampled_from(["patient", "task"]),
    st.integers(1, 5),
)
SETTINGS = st.builds(Setting, st.integers(1, 1000), st.integers(1, 10_000), st.integers(1, 10**6))


def test_a_patient_moves_m_tasks_from_bound_to_bound() -> None:
    assert Promise(1.0, 1e-6).sensitivity(3.0) == 6.0
    assert Promise(1.0, 1e-6, tasks_a_patient=4).sensitivity(3.0) == 24.0
    assert Promise(1.0, 1e-6, "task").sensitivity(3.0) == 3.0


@pytest.mark.parametrize("values", [(0.0, 1e-6), (math.inf, 1e-6), (1.0, 0.0), (1.0, 1.0), (math.nan, 0.5)])
def test_a_promise_makes_sense(values: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="expected"):
        Promise(*values)
    with pytest.raises(ValueError, match="tasks_a_patient"):
        Promise(1.0, 1e-6, tasks_a_patient=0)


@pytest.mark.parametrize(("tasks", "noise"), [(50, 0.185), (1000, 0.0092), (4000, 0.0023)])
def test_the_published_noise_of_the_mean(tasks: int, noise: float) -> None:
    found = expected_utility(Promise(8.0, 1e-6, "task"), Setting(200, tasks, 10_000))
    assert found.noise == pytest.approx(noise, rel=0.02)
    assert found.signal == 0.01
    assert found.verdict == ("useless" if tasks == 50 else "useful")


@given(PROMISES, SETTINGS)
def test_the_verdict_follows_its_thresholds(promise: Promise, setting: Setting) -> None:
    found = expected_utility(promise, setting)
    assert found.ratio == pytest.approx(found.signal / found.noise)
    assert found.ratio_of_all == pytest.approx(found.ratio * math.sqrt(setting.rounds))
    expected = "useful" if found.ratio >= 1 else "weak" if found.ratio_of_all >= 1 else "useless"
    assert found.verdict == expected
    assert bool(found.remedies) == (found.verdict != "useful")


@given(PROMISES, SETTINGS)
def test_remedies_by_number_suffice_and_one_step_less_does_not(promise: Promise, setting: Setting) -> None:
    found = expected_utility(promise, setting)
    for remedy in found.remedies:
        number, _, rest = remedy.what.replace(",", "").partition(" ")
        if rest.startswith("tasks a round"):
            assert remedy.verdict == "useful"
            less = Setting(setting.rounds, int(number) - 1, setting.coordinates)
            assert expected_utility(promise, less).verdict != "useful"
        elif rest == "rounds":
            assert remedy.verdict == "useful"
            more = Setting(int(number) + 1, setting.tasks, setting.coordinates)
            assert expected_utility(promise, more).verdict != "useful"
        elif remedy.what.startswith("a model of"):
            assert remedy.verdict == "useful"


def test_the_sum_of_all_rounds_does_not_depend_on_their_number() -> None:
    ratios = [
        expected_utility(Promise(4.0, 1e-6), Setting(rounds, 100, 500)).ratio_of_all
        for rounds in (1, 10, 1000)
    ]
    assert ratios == pytest.approx([ratios[0]] * 3, rel=1e-6)


def test_smaller_parts_are_tried_and_larger_ones_left_out() -> None:
    found = expected_utility(Promise(4.0, 1e-6), Setting(30, 48, 2050), {"the head": 66, "all twice": 4100})
    (head,) = [remedy for remedy in found.remedies if remedy.what.startswith("the head")]
    assert head.what == "the head (66 numbers)"
    assert head.ratio == pytest.approx(found.ratio * math.sqrt(2050 / 66))
    assert not any("twice" in remedy.what for remedy in found.remedies)


def test_fewer_tasks_a_patient_are_proposed() -> None:
    found = expected_utility(Promise(4.0, 1e-6, tasks_a_patient=3), Setting(30, 48, 2050))
    assert found.remedies[-1].what.startswith("1 task a patient")
    assert found.remedies[-1].ratio == pytest.approx(3 * found.ratio)


def test_noise_for_those_who_may_drop_out_counts() -> None:
    plain, inflated = (
        expected_utility(Promise(4.0, 1e-6), Setting(30, 48, 2050, inflation=i)) for i in (1.0, 1.41)
    )
    assert inflated.noise == pytest.approx(1.41 * plain.noise)


@pytest.mark.parametrize("numbers", [(0, 1, 1), (1, 0, 1), (1, 1, 0), (1, 1, 1, 0.5)])
def test_a_setting_makes_sense(numbers: Any) -> None:
    with pytest.raises(ValueError, match="1 or more"):
        Setting(*numbers)


def test_the_words_hold_the_numbers() -> None:
    words = in_words(expected_utility(Promise(4.0, 1e-6, tasks_a_patient=2), Setting(30, 48, 2050)))
    for part in ("epsilon 4, delta 1e-06 for each patient, 2 tasks a patient", "30 rounds of 48 tasks"):
        assert part in words
    assert "useless: even all rounds together" in words
    assert "what would help" in words
    useful = in_words(expected_utility(Promise(8.0, 1e-6, "task"), Setting(200, 4000, 10_000)))
    assert "useful" in useful
    assert "what would help" not in useful

"""The temperature is the one that the losses ask for, and a changed class mix is Bayes' rule."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clinimeta.common.calibration import TEMPERATURES, choose_temperature, shift_prevalence, temperature_for
from clinimeta.common.rng import generator

KNOWN = st.dictionaries(st.integers(0, 500), st.sampled_from(TEMPERATURES), min_size=1, max_size=5)
SHARES = st.lists(st.floats(0.01, 1.0), min_size=3, max_size=3).map(
    lambda weights: torch.tensor(weights, dtype=torch.float64) / sum(weights)
)


# Choosing a temperature


def test_the_grid_is_sorted_and_holds_one() -> None:
    assert list(TEMPERATURES) == sorted(set(TEMPERATURES))
    assert 1.0 in TEMPERATURES
    assert min(TEMPERATURES) > 0


@pytest.mark.parametrize("true", TEMPERATURES)
def test_outputs_that_are_too_sure_by_a_factor_get_that_factor(true: float) -> None:
    """If the outcome follows sigmoid(z / T), the expected log loss of sigmoid(z / t) is least at t = T."""
    outputs = torch.linspace(-8, 8, 401, dtype=torch.float64)
    truth = torch.sigmoid(outputs / true)
    losses = [
        float(torch.nn.functional.binary_cross_entropy_with_logits(outputs / t, truth, reduction="sum"))
        for t in TEMPERATURES
    ]
    assert choose_temperature(losses) == true


@pytest.mark.parametrize("length", [0, len(TEMPERATURES) - 1, len(TEMPERATURES) + 1])
def test_losses_that_do_not_fit_the_grid_are_an_error(length: int) -> None:
    with pytest.raises(ValueError, match="argument"):
        choose_temperature([1.0] * length)


# Between the known sizes of support sets


@given(known=KNOWN)
def test_a_known_size_has_its_own_temperature(known: dict[int, float]) -> None:
    for shots, temperature in known.items():
        assert temperature_for(known, shots) == pytest.approx(temperature, rel=1e-12)


@given(known=KNOWN, shots=st.floats(0, 1000))
def test_between_the_known_sizes_it_stays_between_their_temperatures(
    known: dict[int, float], shots: float
) -> None:
    below = [size for size in known if size <= shots] or [min(known)]
    above = [size for size in known if size >= shots] or [max(known)]
    ends = known[max(below)], known[min(above)]
    assert min(ends) - 1e-12 <= temperature_for(known, shots) <= max(ends) + 1e-12


def test_between_two_sizes_it_is_linear_in_the_logarithm() -> None:
    """log(1 + 3) lies half way between log(1 + 0) and log(1 + 15)."""
    assert temperature_for({0: 3.0, 15: 1.0}, 3) == pytest.approx(2.0, rel=1e-12)
    assert temperature_for({15: 1.0, 0: 3.0, 100: 9.0}, 3) == pytest.approx(2.0, rel=1e-12)


def test_beyond_the_known_sizes_the_nearest_holds() -> None:
    assert temperature_for({5: 2.0, 10: 1.5}, 0) == 2.0
    assert temperature_for({5: 2.0, 10: 1.5}, 10_000) == 1.5


def test_with_nothing_known_outputs_stay_as_they_are() -> None:
    assert temperature_for({}, 5) == 1.0


# Another class mix


@given(assumed=SHARES, actual=SHARES, seed=st.integers(0, 99))
def test_the_shift_is_bayes_rule(assumed: torch.Tensor, actual: torch.Tensor, seed: int) -> None:
    """Likelihoods made up, both posteriors by Bayes' rule: one is the other one shifted."""
    likelihood = torch.rand(4, 3, generator=generator("likelihood", seed), dtype=torch.float64) + 0.01

    def posterior(prior: torch.Tensor) -> torch.Tensor:
        joint = likelihood * prior
        return joint / joint.sum(dim=1, keepdim=True)

    found = shift_prevalence(posterior(assumed), assumed, actual)
    assert torch.allclose(found, posterior(actual), rtol=1e-9)
    assert torch.allclose(found.sum(dim=1), torch.ones(4, dtype=torch.float64))


@given(assumed=SHARES, actual=SHARES)
def test_a_shift_there_and_back_changes_nothing(assumed: torch.Tensor, actual: torch.Tensor) -> None:
    start = torch.softmax(torch.randn(5, 3, generator=generator("start"), dtype=torch.float64), dim=1)
    there = shift_prevalence(start, assumed, actual)
    assert torch.allclose(shift_prevalence(there, actual, assumed), start, rtol=1e-9)
    assert torch.allclose(shift_prevalence(start, assumed, assumed), start, rtol=1e-12)


def test_a_rarer_class_becomes_less_probable() -> None:
    """Odds of 4 to 1 at even prevalence, a prior of 1 in 10: odds of 4 to 9."""
    even, rare = torch.tensor([0.5, 0.5]), torch.tensor([0.9, 0.1])
    shifted = shift_prevalence(torch.tensor([[0.2, 0.8]]), even, rare)
    assert float(shifted[0, 1]) == pytest.approx(4 / 13, rel=1e-6)
    assert math.isclose(float(shifted.sum()), 1.0, rel_tol=1e-6)


def test_where_every_temperature_is_as_good_it_stays_1() -> None:
    assert choose_temperature([2.0] * len(TEMPERATURES)) == 1.0

"""The accountant equals the exact formula, Google's, and what was published; it is monotone and picky."""

import math
from collections.abc import Callable

import dp_accounting
import mpmath
import numpy as np
import pytest
from absl import logging as absl_logging
from dp_accounting.pld.pld_privacy_accountant import PLDAccountant
from dp_accounting.rdp.rdp_privacy_accountant import RdpAccountant
from hypothesis import given, settings
from hypothesis import strategies as st

from clinimeta.common.privacy.accounting import (
    ORDERS,
    composed,
    epsilon_of,
    gaussian_delta,
    gaussian_epsilon,
    largest_mu,
    noise_multiplier,
    poisson_rdp,
    rdp_epsilon,
)

absl_logging.set_verbosity(absl_logging.FATAL)  # Google warns of orders that do not converge
WHOLE = [order for order in ORDERS if order.is_integer()]
MUS = st.floats(0.01, 20)
DELTAS = st.floats(1e-12, 0.1)


def google_rdp(rate: float, multiplier: float, rounds: int) -> RdpAccountant:
    accountant = RdpAccountant(ORDERS)
    accountant.compose(
        dp_accounting.PoissonSampledDpEvent(rate, dp_accounting.GaussianDpEvent(multiplier)), rounds
    )
    return accountant


def google_pld(rate: float, multiplier: float, rounds: int, delta: float) -> float:
    accountant = PLDAccountant()
    event = dp_accounting.GaussianDpEvent(multiplier)
    accountant.compose(event if rate == 1 else dp_accounting.PoissonSampledDpEvent(rate, event), rounds)
    return float(accountant.get_epsilon(delta))


# Exact Gaussians


@given(MUS, st.floats(0, 30))
def test_delta_is_the_textbooks(mu: float, epsilon: float) -> None:
    with mpmath.workdps(60):
        m, e = mpmath.mpf(mu), mpmath.mpf(epsilon)
        exact = mpmath.ncdf(m / 2 - e / m) - mpmath.exp(e) * mpmath.ncdf(-m / 2 - e / m)
    assert gaussian_delta(mu, epsilon) == pytest.approx(float(exact), rel=1e-6, abs=1e-300)


@given(MUS, DELTAS)
def test_epsilon_is_the_smallest_that_keeps_delta(mu: float, delta: float) -> None:
    epsilon = gaussian_epsilon(mu, delta)
    assert gaussian_delta(mu, epsilon) <= delta
    if epsilon > 0:
        assert gaussian_delta(mu, epsilon * (1 - 1e-9)) >= delta * (1 - 1e-6)


@given(st.floats(0.01, 50), DELTAS, st.integers(1, 10_000))
def test_calibration_keeps_the_promise_and_wastes_nothing(epsilon: float, delta: float, rounds: int) -> None:
    z = noise_multiplier(epsilon, delta, rounds)
    assert composed([1 / z] * min(rounds, 100)) <= largest_mu(epsilon, delta)
    assert epsilon_of(z, delta, rounds) <= epsilon
    assert epsilon_of(z, delta, rounds) == pytest.approx(epsilon, rel=1e-6)


@given(MUS, MUS, DELTAS, DELTAS)
def test_more_noise_costs_less(mu: float, other: float, delta: float, looser: float) -> None:
    low, high = sorted([mu, other])
    assert gaussian_epsilon(low, delta) <= gaussian_epsilon(high, delta)
    tight, loose = sorted([delta, looser])
    assert gaussian_epsilon(mu, loose) <= gaussian_epsilon(mu, tight)


@given(st.lists(MUS, max_size=6), st.lists(MUS, max_size=6))
def test_the_order_and_grouping_of_answers_do_not_matter(first: list[float], second: list[float]) -> None:
    together = composed([*first, *second])
    assert together == pytest.approx(composed([composed(second), composed(first)]), rel=1e-12)
    assert together == composed([*second, *first])


def test_nothing_costs_nothing() -> None:
    assert composed([]) == 0.0
    assert gaussian_epsilon(0.0, 1e-9) == 0.0


@pytest.mark.parametrize(("z", "rounds", "delta"), [(8.0, 100, 1e-5), (1.0, 1, 1e-6), (20.0, 500, 1e-8)])
def test_full_participation_is_exact(z: float, rounds: int, delta: float) -> None:
    ours, google = epsilon_of(z, delta, rounds), google_pld(1, z, rounds, delta)
    assert google == pytest.approx(ours, rel=0.02)
    assert google >= ours * (1 - 1e-4)  # Google's is a numerical upper bound of the same
    assert ours < google_rdp(1.0, z, rounds).get_epsilon(delta)


# Published numbers (SECURITY: 2.1 and 2.3)


@pytest.mark.parametrize(
    ("epsilon", "rounds", "z"),
    [(8, 50, 4.62), (8, 200, 9.23), (4, 50, 8.44), (4, 200, 16.9), (2, 50, 15.8), (2, 200, 31.5)],
)
def test_the_published_noise_multipliers(epsilon: float, rounds: int, z: float) -> None:
    assert float(f"{noise_multiplier(epsilon, 1e-6, rounds):.3g}") == z


def test_the_published_epsilons() -> None:
    assert epsilon_of(8.0, 1e-5, 100) == pytest.approx(5.6796, abs=5e-5)
    assert epsilon_of(1.5, 1e-5, 2250, 0.04) == pytest.approx(7.32911117143, rel=1e-9)  # Opacus' own test
    assert gaussian_epsilon(1 / 4.530877117, 1e-6) == pytest.approx(0.927, abs=5e-4)
    rdp = 100 * poisson_rdp(1.0, 8.0)
    assert rdp_epsilon(rdp, ORDERS, 1e-5) == pytest.approx(6.1228, abs=5e-5)


def test_the_published_divergences() -> None:
    """Of dp-accounting's own test."""
    found = 50 * poisson_rdp(0.01, 2.5, [5.0, 50.0, 100.0])
    assert found == pytest.approx([2.18075656e-3, 2.38460375e-2, 167.416308], rel=1e-7)


# Poisson samples


@given(st.floats(0.001, 0.99), st.floats(0.5, 20))
@settings(max_examples=25)
def test_whole_orders_are_googles(rate: float, multiplier: float) -> None:
    google = dict(zip(ORDERS, google_rdp(rate, multiplier, 1)._rdp, strict=True))
    expected = [google[order] for order in WHOLE]
    assert poisson_rdp(rate, multiplier, WHOLE) == pytest.approx(expected, rel=1e-6, abs=1e-14)


@pytest.mark.parametrize(("rate", "z"), [(0.04, 1.5), (0.1, 1.2), (0.9, 3.0), (0.01, 0.8)])
@pytest.mark.parametrize("order", [1.7, 2.6, 4.3, 7.1, 10.9])
def test_other_orders_are_the_integral(rate: float, z: float, order: float) -> None:
    """Google's are an upper bound: its series forgets the signs of the binomial coefficients."""

    def ratio(x: float) -> mpmath.mpf:
        density = (1 - rate) + rate * mpmath.exp((2 * x - 1) / (2 * z * z))
        return mpmath.npdf(x, 0, z) * density**order

    exact = float(mpmath.log(mpmath.quad(ratio, [-60, -20, -5, 0, 5, 20, 60])) / (order - 1))
    (found,) = poisson_rdp(rate, z, [order])
    assert found == pytest.approx(exact, rel=1e-9) or found == math.inf
    assert found <= google_rdp(rate, z, 1)._rdp[ORDERS.index(order)] * (1 + 1e-12) or found == math.inf


@pytest.mark.parametrize(
    ("rate", "z", "rounds", "delta"), [(0.04, 1.5, 2250, 1e-5), (0.1, 1.2, 200, 1e-5), (0.5, 4.0, 50, 1e-6)]
)
def test_sampled_epsilons_lie_between_the_exact_and_googles(
    rate: float, z: float, rounds: int, delta: float
) -> None:
    ours = epsilon_of(z, delta, rounds, rate)
    assert google_pld(rate, z, rounds, delta) <= ours
    assert ours <= google_rdp(rate, z, rounds).get_epsilon(delta) * (1 + 1e-9)
    assert ours == pytest.approx(google_rdp(rate, z, rounds).get_epsilon(delta), rel=2e-3)


@given(st.floats(0.001, 0.9), st.floats(0.001, 0.9), st.floats(0.6, 10), st.floats(0.6, 10))
@settings(max_examples=30)
def test_smaller_samples_and_more_noise_cost_less(rate: float, other: float, z: float, more: float) -> None:
    (few, many), (little, much) = sorted([rate, other]), sorted([z, more])
    orders = [2.0, 8.0, 32.0]
    slack = 1 + 1e-9
    assert (poisson_rdp(few, z, orders) <= poisson_rdp(many, z, orders) * slack + 1e-12).all()
    assert (poisson_rdp(rate, much, orders) <= poisson_rdp(rate, little, orders) * slack + 1e-12).all()
    assert (poisson_rdp(rate, z, orders) <= poisson_rdp(1.0, z, orders) * slack).all()
    assert (np.diff(poisson_rdp(rate, z, WHOLE)) >= -1e-12).all()


# Nonsense


@pytest.mark.parametrize(
    "nonsense",
    [
        lambda: gaussian_delta(-1.0, 1.0),
        lambda: gaussian_delta(math.nan, 1.0),
        lambda: gaussian_delta(1.0, -1.0),
        lambda: gaussian_epsilon(1.0, 0.0),
        lambda: gaussian_epsilon(math.inf, 1e-6),
        lambda: composed([1.0, -1.0]),
        lambda: largest_mu(0.0, 1e-6),
        lambda: noise_multiplier(1.0, 1e-6, 0),
        lambda: noise_multiplier(1.0, 1.0, 5),
        lambda: epsilon_of(0.0, 1e-6, 5),
        lambda: epsilon_of(1.0, 1e-6, 0),
        lambda: epsilon_of(1.0, 1e-6, 5, 1.5),
        lambda: poisson_rdp(0.0, 1.0),
        lambda: poisson_rdp(0.5, -1.0),
        lambda: poisson_rdp(0.5, 1.0, [1.0]),
        lambda: rdp_epsilon(np.ones(1), [2.0], 2.0),
    ],
)
def test_nonsense_is_named(nonsense: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match=r"is .*, expected"):
        nonsense()

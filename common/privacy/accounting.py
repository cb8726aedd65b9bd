"""What a sequence of noisy sums costs in (epsilon, delta): exact for Gaussians, Renyi for random samples.

A noise multiplier z is the noise's standard deviation over the sensitivity. One Gaussian sum is
mu-Gaussian private with mu = 1/z, and a sequence of them, however their z differ, is one Gaussian with
mu = sqrt(sum of mu^2), exactly (Dong, Roth, Su; JRSS B 2022, corollary 3.3). So no epsilons are added.

Every result is rounded to the safe side: an epsilon and a noise multiplier up.
"""

import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from jaxtyping import Float
from scipy.special import binom, log_ndtr, logsumexp

ORDERS: tuple[float, ...] = (
    *(1 + tenth / 10 for tenth in range(1, 100)),
    *(float(order) for order in range(11, 64)),
    *(128.0, 256.0, 512.0),
)
"""Renyi orders that are tried: those of Google's accountant."""
_TERMS = 512
"""Of the series for an order that is not whole; one that has not converged by then is not used."""
_SAFE = 1e-9
"""Relative margin of a calibrated noise multiplier, so that as many rounds as were planned always fit."""


def gaussian_delta(mu: float, epsilon: float) -> float:
    """The delta of a mu-Gaussian mechanism at `epsilon` (Balle & Wang, ICML 2018, theorem 8).

    Raises:
        ValueError: `mu` or `epsilon` is negative or not finite.

    >>> round(gaussian_delta(1.0, 1.0), 6)
    0.126937
    """
    _require(mu >= 0 and math.isfinite(mu), "mu", mu, "0 or more")
    _require(epsilon >= 0 and math.isfinite(epsilon), "epsilon", epsilon, "0 or more")
    if mu == 0:
        return 0.0
    below = float(log_ndtr(mu / 2 - epsilon / mu))
    above = epsilon + float(log_ndtr(-mu / 2 - epsilon / mu))
    return -math.exp(below) * math.expm1(min(0.0, above - below)) if below > -math.inf else 0.0


def gaussian_epsilon(mu: float, delta: float) -> float:
    """The smallest epsilon at which a mu-Gaussian mechanism keeps `delta`; by bisection, rounded up.

    Raises:
        ValueError: `mu` is negative or not finite, or `delta` is not between 0 and 1.

    >>> round(gaussian_epsilon(composed([1 / 8] * 100), 1e-5), 4)
    5.6796
    """
    _require_delta(delta)
    return _first(lambda epsilon: gaussian_delta(mu, epsilon) <= delta)


def composed(mus: Iterable[float]) -> float:
    """The mu of a sequence of Gaussian mechanisms: the root of the sum of squares.

    Raises:
        ValueError: one is negative or not finite.

    >>> composed([3.0, 4.0])
    5.0
    """
    every = list(mus)
    for mu in every:
        _require(mu >= 0 and math.isfinite(mu), "mu", mu, "0 or more")
    return math.sqrt(math.fsum(mu * mu for mu in every))


def largest_mu(epsilon: float, delta: float) -> float:
    """How much may be spent in all under (epsilon, delta), rounded down.

    Raises:
        ValueError: `epsilon` is not positive, or `delta` is not between 0 and 1.
    """
    _require(epsilon > 0 and math.isfinite(epsilon), "epsilon", epsilon, "over 0")
    _require_delta(delta)
    return 1 / _first(lambda z: z > 0 and gaussian_delta(1 / z, epsilon) <= delta)


def noise_multiplier(epsilon: float, delta: float, rounds: int) -> float:
    """The smallest z at which `rounds` sums over everybody keep (epsilon, delta), rounded up.

    Raises:
        ValueError: `epsilon` is not positive, `delta` not between 0 and 1, or there is no round.

    >>> round(noise_multiplier(8.0, 1e-6, 50), 2), round(noise_multiplier(4.0, 1e-6, 200), 1)
    (4.62, 16.9)
    """
    _require(rounds >= 1, "rounds", rounds, "1 or more")
    return math.sqrt(rounds) / largest_mu(epsilon, delta) * (1 + _SAFE)


def epsilon_of(multiplier: float, delta: float, rounds: int, rate: float = 1.0) -> float:
    """The epsilon of `rounds` sums with noise multiplier z, each over a Poisson sample of share `rate`.

    With `rate = 1` it is exact. Below, it is the Renyi bound, and true only if each task or patient is
    drawn independently and whoever sees the result does not know who was drawn: a coordinator that picks
    the cohort itself is not such a one.

    Raises:
        ValueError: z is not positive, `delta` or `rate` not between 0 and 1, or there is no round.
    """
    _require(multiplier > 0 and math.isfinite(multiplier), "the noise multiplier", multiplier, "over 0")
    _require(rounds >= 1, "rounds", rounds, "1 or more")
    if rate == 1.0:
        return gaussian_epsilon(math.sqrt(rounds) / multiplier, delta)
    return rdp_epsilon(rounds * poisson_rdp(rate, multiplier), ORDERS, delta)


def poisson_rdp(
    rate: float, multiplier: float, orders: Sequence[float] = ORDERS
) -> Float[np.ndarray, " orders"]:
    """The Renyi divergence, order by order, of one Gaussian sum over a Poisson sample.

    Mironov, Talwar, Zhang (2019, "Renyi Differential Privacy of the Sampled Gaussian Mechanism"), section
    3.3: the finite sum for whole orders, the two series for the others (infinite where they do not converge).

    Raises:
        ValueError: `rate` is not between 0 and 1, z not positive, or an order not over 1.
    """
    _require(0 < rate <= 1, "the sampling rate", rate, "over 0 and at most 1")
    _require(multiplier > 0 and math.isfinite(multiplier), "the noise multiplier", multiplier, "over 0")
    _require(min(orders, default=0.0) > 1, "the smallest order", min(orders, default=0.0), "over 1")
    if rate == 1.0:
        return np.array([order / (2 * multiplier**2) for order in orders])
    moment = [
        _log_moment_whole(rate, multiplier, int(order))
        if float(order).is_integer()
        else _log_moment(rate, multiplier, order)
        for order in orders
    ]
    return np.array([value / (order - 1) for value, order in zip(moment, orders, strict=True)])


def rdp_epsilon(rdp: Float[np.ndarray, " orders"], orders: Sequence[float], delta: float) -> float:
    """The best epsilon that Renyi divergences give (Canonne, Kamath, Steinke; NeurIPS 2020, prop. 12).

    Raises:
        ValueError: `delta` is not between 0 and 1.
    """
    _require_delta(delta)
    order = np.asarray(orders)
    epsilons = rdp + np.log1p(-1 / order) - (np.log(delta) + np.log(order)) / (order - 1)
    return max(0.0, float(np.min(epsilons)))


def _log_moment_whole(q: float, z: float, order: int) -> float:
    """Log of E[(density ratio)^order] for a whole order: a binomial sum."""
    k = np.arange(order + 1)
    terms = np.log(binom(order, k)) + k * math.log(q) + (order - k) * math.log1p(-q)
    return float(logsumexp(terms + (k * k - k) / (2 * z * z)))


def _log_moment(q: float, z: float, order: float) -> float:
    """The same for any order over 1: the binomial series on both sides of where the densities cross."""
    i = np.arange(_TERMS)
    middle = z * z * math.log(1 / q - 1) + 0.5
    coefficient = binom(order, i)
    with np.errstate(divide="ignore"):
        size = np.log(np.abs(coefficient))
    rest = order - i
    left = size + i * math.log(q) + rest * math.log1p(-q) + (i * i - i) / (2 * z * z)
    right = size + rest * math.log(q) + i * math.log1p(-q) + (rest * rest - rest) / (2 * z * z)
    terms = np.concatenate([left + log_ndtr((middle - i) / z), right + log_ndtr((rest - middle) / z)])
    total, sign = logsumexp(terms, b=np.tile(np.sign(coefficient), 2), return_sign=True)
    converged = sign > 0 and max(terms[_TERMS - 1], terms[-1]) < total - 30
    return float(total) if converged else math.inf


def _first(holds: Callable[[float], bool]) -> float:
    """The smallest x >= 0 from which on a monotone condition holds, to the last bit and never below it."""
    if holds(0.0):
        return 0.0
    low, high = 0.0, 1.0
    while not holds(high):
        low, high = high, 2 * high
    while (middle := (low + high) / 2) not in (low, high):
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def _require_delta(delta: float) -> None:
    _require(0 < delta < 1, "delta", delta, "between 0 and 1")


def _require(fits: bool, what: str, found: float, expected: str) -> None:
    if not fits:
        raise ValueError(f"{what} is {found}, expected {expected}")

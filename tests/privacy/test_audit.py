"""An attacker who knows everything but one patient's task: can it tell two neighbouring sums apart?

The strongest membership test there is: the canary's task points one way in one world and the opposite way
in the other, which is as far apart as one patient can move a sum. What the attacker sees goes through the
code that a site runs: clip, scale, round, add the site's share of the noise; then sites drop out. The
attacker's separation (difference of means over standard deviation along the canary) must not exceed 1/z.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pytest
import torch

from clinimeta.common.privacy.clipping import clipped_sum, with_rounding
from clinimeta.common.privacy.discrete_gaussian import discrete_gaussian
from clinimeta.common.privacy.noise import Noise
from clinimeta.common.privacy.promise import Promise
from clinimeta.common.rng import generator

REPETITIONS = 20_000
SIZE = 6
TASKS = 4
BOUND = 0.5
SCALE = 2.0**16
ERROR = 4 * math.sqrt(2 / REPETITIONS)
"""Four standard errors of a measured separation."""
Bug = Literal["", "no clip", "no noise", "split over all", "old noise", "one C"]


@dataclass(frozen=True)
class Case:
    multiplier: float = 1.0
    sites: int = 10
    answered: int = 10
    survivors: int = 10
    colluders: int = 0
    bug: Bug = ""


def site_sum(site: int, canary: float | None, *, clip: bool) -> np.ndarray:
    """A site's sum of clipped tasks; one of the first site's is the canary, far over the bound."""
    tasks = torch.randn(TASKS, SIZE, generator=generator("audit", site))
    if canary is not None:
        tasks[0] = 0.0
        tasks[0, 0] = 40 * BOUND * canary
    summed = clipped_sum({"w": tasks}, BOUND if clip else 1e9)["w"]
    return np.asarray(summed)


def released(case: Case, canary: float) -> np.ndarray:
    """What the attacker sees along the canary, in units of the vector, `[repetitions]`."""
    promise = Promise(1.0, 1e-6, "task" if case.bug == "one C" else "patient")
    sensitivity = with_rounding(promise.sensitivity(BOUND), SIZE, SCALE)
    survivors = case.sites if case.bug == "split over all" else case.survivors
    noise = Noise(case.multiplier, sensitivity, SCALE, survivors=survivors, colluders=case.colluders)
    rng = np.random.default_rng(int(canary) + 7)
    total = np.zeros(REPETITIONS)
    for site in range(case.answered):
        mine = site_sum(site, canary if site == 0 else None, clip=case.bug != "no clip")
        rounded = np.floor(SCALE * mine[0] + rng.random(REPETITIONS))
        key = bytes([site, case.bug != "old noise" and canary > 0, case.answered]).ljust(32)
        share = discrete_gaussian(key, noise.sigma, REPETITIONS)
        known = case.bug == "no noise" or site >= case.answered - case.colluders  # colluders tell theirs
        total += rounded + (0 if known else share)
    return total / SCALE


def separation(case: Case) -> float:
    there, away = released(case, 1.0), released(case, -1.0)
    if case.bug == "old noise":  # whoever sees both results subtracts them
        return float((there - away).mean() / max((there - away).std(), 1e-12))
    return float((there.mean() - away.mean()) / math.sqrt((there.var() + away.var()) / 2))


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        (Case(), 1.0),
        (Case(multiplier=2.0), 0.5),
        (Case(survivors=7), math.sqrt(7 / 10)),
        (Case(survivors=7, answered=7), 1.0),
        (Case(survivors=7, answered=7, colluders=2), 1.0),
        (Case(survivors=7, colluders=2, multiplier=1.5), math.sqrt(5 / 8) / 1.5),
        (Case(sites=1, answered=1, survivors=1), 1.0),
    ],
    ids=str,
)
def test_the_attacker_learns_what_was_promised_and_no_more(case: Case, expected: float) -> None:
    found = separation(case)
    assert found <= 1 / case.multiplier + ERROR
    assert found == pytest.approx(expected, abs=ERROR)


@pytest.mark.parametrize(
    "case",
    [
        Case(bug="no clip"),
        Case(bug="no noise"),
        Case(bug="split over all", answered=7, survivors=7),
        Case(bug="old noise"),
        Case(bug="one C"),  # enough for a task that counts or not, not for one that changes
    ],
    ids=lambda case: case.bug,
)
def test_the_audit_catches(case: Case) -> None:
    assert separation(case) > 1 / case.multiplier + ERROR

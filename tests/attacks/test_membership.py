"""Whether a task took part can be told from an update without noise, and hardly with enough of it."""

from statistics import NormalDist

import pytest
import torch
from membership import area_under_curve, score
from records import draw_task, first, summed, task_gradients, victim
from release import Mechanism, clipped, gaussian, no_noise, norms, release
from torch import Tensor

from clinimeta.common.params import map_params
from clinimeta.common.rng import generator
from clinimeta.common.typing import Params

TASKS, TRIALS = 8, 400


@pytest.fixture(scope="module")
def gradients() -> tuple[Params, float]:
    return with_canary()


def with_canary() -> tuple[Params, float]:
    """Meta-gradients of eight tasks, of which the first is the canary (wrong labels), and the clip."""
    learner = victim("table", first_order=False)
    tasks = [draw_task("table", 4, "member", i) for i in range(TASKS)]
    query = tasks[0].query
    tasks[0] = tasks[0]._replace(query=query._replace(targets=1 - query.targets))
    found = task_gradients(learner, learner.init(generator("start", 0)), tasks)
    return found, float(norms(found).median())


def advantage(gradients: Params, clip: float, mechanism: Mechanism, trials: int = TRIALS) -> float:
    """Area under the attacker's ROC curve over releases with and without the canary."""
    others = map_params(lambda g: g[1:], gradients)
    known, canary = summed(clipped(others, clip)), first(clipped(gradients, clip))

    def scores(tasks: Params, side: str) -> Tensor:
        rngs = (generator("membership", side, trial) for trial in range(trials))
        return torch.tensor([score(release(tasks, clip, mechanism, rng), known, canary) for rng in rngs])

    return area_under_curve(scores(gradients, "in"), scores(others, "out"))


def expected(z: float) -> float:
    """What no attacker can beat where the canary's norm is the clip: two Gaussians 1/z apart."""
    return NormalDist().cdf(1 / (z * 2**0.5))


def test_without_noise_membership_is_certain(gradients: tuple[Params, float]) -> None:
    assert advantage(*gradients, no_noise, trials=5) == 1.0


@pytest.mark.parametrize("z", [0.1, 1.0, 3.0, 10.0])
def test_noise_brings_membership_down_to_what_theory_says(gradients: tuple[Params, float], z: float) -> None:
    """Not below: then the attack would be too weak to prove anything. Not above: then noise is missing."""
    assert advantage(*gradients, gaussian(z)) == pytest.approx(expected(z), abs=0.05)


def test_enough_noise_leaves_little_more_than_chance(gradients: tuple[Params, float]) -> None:
    assert abs(advantage(*gradients, gaussian(10.0)) - 0.5) < 0.08


def test_noise_without_clipping_does_not_protect_who_stands_out(gradients: tuple[Params, float]) -> None:
    """A canary a hundred times as long as the rest drowns the noise unless it is shortened first."""
    found, clip = gradients
    loud = map_params(lambda g: torch.cat([100 * g[:1], g[1:]]), found)
    others, canary, noise = summed(map_params(lambda g: g[1:], loud)), first(loud), gaussian(10.0)

    def scores(total: Params, side: str) -> Tensor:
        rngs = (generator("loud", side, trial) for trial in range(50))
        return torch.tensor([score(noise(total, clip, rng), others, canary) for rng in rngs])

    assert area_under_curve(scores(summed(loud), "in"), scores(others, "out")) > 0.95
    assert advantage(loud, clip, noise) < 0.62

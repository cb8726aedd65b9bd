import pytest
import torch
from tasks import FEATURES, episodes, learner, rows, start
from torch import Tensor

from clinimeta.common.algorithms.fine_tune import FineTune
from clinimeta.common.algorithms.maml import MAML
from clinimeta.common.algorithms.meta_gradient import adapt_and_predict, task_gradients
from clinimeta.common.applications.regression import Regression
from clinimeta.common.models.linear import Linear
from clinimeta.common.params import map_params
from clinimeta.common.rng import generator
from clinimeta.common.tasks.batch import stack
from clinimeta.common.tasks.episode import Episode, Examples

MODEL, OBJECTIVE = Linear(FEATURES, 1), Regression(0)


def design(examples: Examples) -> Tensor:
    """[x, 1], so that a linear model's loss is the quadratic |design @ w - y|^2 / n."""
    x = examples.inputs["table"]
    return torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], dim=1)


def quadratic(examples: Examples) -> tuple[Tensor, Tensor]:
    """Hessian H and linear term b of that quadratic: gradient H w - b."""
    a, n = design(examples), len(examples.targets)
    return 2 / n * a.T @ a, 2 / n * a.T @ examples.targets


@pytest.mark.parametrize("steps", [0, 1, 2, 7])
@pytest.mark.parametrize("first_order", [False, True])
def test_on_a_quadratic_the_meta_gradient_has_its_closed_form(steps: int, first_order: bool) -> None:
    episode = Episode(rows("regression", 8, "s"), rows("regression", 10, "q"))
    rate = 0.05
    maml = MAML(MODEL, OBJECTIVE, inner_steps=steps, inner_rate=rate, first_order=first_order)
    params = start(maml)
    w = torch.cat([params["weight"].flatten(), params["bias"]])
    h, b = quadratic(episode.support)
    shrink = torch.linalg.matrix_power(torch.eye(len(w), dtype=w.dtype) - rate * h, steps)
    optimum = torch.linalg.solve(h, b)
    fast = optimum + shrink @ (w - optimum)
    hq, bq = quadratic(episode.query)
    expected = hq @ fast - bq if first_order else shrink @ (hq @ fast - bq)
    gradient = task_gradients(maml, params, stack([episode])).sum()
    found = torch.cat([gradient["weight"].flatten(), gradient["bias"]])
    assert torch.allclose(found, expected, rtol=1e-9, atol=1e-12)


def test_without_inner_steps_maml_is_plain_training_on_the_query_set() -> None:
    maml = MAML(MODEL, OBJECTIVE, inner_steps=0)
    plain = FineTune(MODEL, OBJECTIVE)
    support, query = rows("regression", 3, "s"), rows("regression", 5, "q")
    nothing = support._replace(weights=torch.zeros(3, dtype=torch.float64))
    params = start(maml)
    one = task_gradients(maml, params, stack([Episode(support, query)])).sum()
    other = task_gradients(plain, params, stack([Episode(nothing, query)])).sum()
    assert all(torch.allclose(one[n], other[n], rtol=1e-12) for n in one)


def test_first_order_maml_is_the_query_gradient_at_the_fast_weights() -> None:
    first = learner("maml", "mlp", "binary", first_order=True)
    (episode,) = episodes("binary", [(6, 5)])
    params = start(first)
    fast = map_params(lambda p: p.detach(), first.adapt(params, episode.support))
    plain = learner("maml", "mlp", "binary", inner_steps=0)
    expected = task_gradients(plain, fast, stack([episode])).sum()
    found = task_gradients(first, params, stack([episode])).sum()
    assert all(torch.allclose(found[n], expected[n], rtol=1e-10) for n in found)


def test_second_order_differs_from_first_order() -> None:
    (episode,) = episodes("binary", [(6, 5)])
    second, first = (learner("maml", "mlp", "binary", first_order=f) for f in (False, True))
    params = start(second)
    one, other = (task_gradients(x, params, stack([episode])).sum() for x in (second, first))
    assert any(not torch.allclose(one[n], other[n], rtol=1e-3) for n in one)


def test_an_empty_support_set_leaves_the_initial_weights() -> None:
    maml = learner("maml", "mlp", "binary")
    params = start(maml)
    empty = rows("binary", 4, "s").take(torch.arange(0))
    query = rows("binary", 5, "q")
    outputs = adapt_and_predict(maml, params, stack([Episode(empty, query)]))[0]
    assert torch.allclose(outputs, maml.model.apply(params, query.inputs), rtol=1e-12)


@pytest.mark.slow
def test_sinusoid_regression_reaches_the_published_range() -> None:
    """Finn et al. 2017, section 5.1: 10 shots, 40-40 network, one inner step of 0.01, Adam 1e-3, 25 tasks.

    An independent reproduction gave 0.64 / 0.40 / 0.26 / 0.22 after 1 / 2 / 5 / 10 steps at 5,000 outer
    steps (3.2 before adaptation); we ask for the 5-step error to be within that range.
    """
    from clinimeta.common.models.mlp import MLP
    from clinimeta.common.optim import Adam

    def waves(tasks: int, points: int, *key: str | int) -> Examples:
        rng = generator("sinusoid", *key)
        amplitude = 0.1 + 4.9 * torch.rand(tasks, 1, generator=rng)
        phase = torch.pi * torch.rand(tasks, 1, generator=rng)
        x = 10 * torch.rand(tasks, points, generator=rng) - 5
        y = amplitude * torch.sin(x - phase)
        return Examples({"table": x[..., None]}, y, torch.ones_like(y))

    def task_batch(tasks: int, *key: str | int) -> Episode:
        both = waves(tasks, 20, *key)

        def half(part: slice) -> Examples:
            return Examples(
                {"table": both.inputs["table"][:, part]}, both.targets[:, part], both.weights[:, part]
            )

        return Episode(half(slice(0, 10)), half(slice(10, 20)))

    model = MLP(1, 1, hidden=(40, 40))
    maml = MAML(model, OBJECTIVE, inner_steps=1, inner_rate=0.01)
    adam = Adam(1e-3)
    params = maml.init(generator("sinusoid init"))
    state = adam.init(params)
    for number in range(5000):
        gradient = task_gradients(maml, params, task_batch(25, number)).sum()
        params, state = adam.update(map_params(lambda g: g / 25, gradient), state, params)
    judged = task_batch(600, "test")
    error = {}
    for steps in (0, 1, 5, 10):
        adapted = MAML(model, OBJECTIVE, inner_steps=steps, inner_rate=0.01)
        outputs = adapt_and_predict(adapted, params, judged).squeeze(-1)
        error[steps] = float((outputs - judged.query.targets).square().mean())
    assert error[0] > 2.0
    assert error[1] < 0.9
    assert error[5] < 0.40
    assert error[10] < 0.35

"""The learners that generate or condition: what they compute, against torch's own and by hand."""

import pytest
import torch
from tasks import episodes, learner, rows, start
from torch.distributions import Categorical, Normal

from clinimeta.common.algorithms.base import MetaLearner, Uncertain
from clinimeta.common.algorithms.deep_set import group_means
from clinimeta.common.algorithms.hypernetwork import Hypernetwork
from clinimeta.common.algorithms.meta_gradient import adapt_and_predict, task_gradients
from clinimeta.common.algorithms.neural_process import NeuralProcess
from clinimeta.common.algorithms.perceptron import init_perceptron, perceptron
from clinimeta.common.applications.diagnosis import Diagnosis
from clinimeta.common.applications.regression import Regression
from clinimeta.common.models.mlp import MLP
from clinimeta.common.optim import Adam
from clinimeta.common.params import add, map_params
from clinimeta.common.rng import generator
from clinimeta.common.tasks.batch import pad, stack
from clinimeta.common.tasks.episode import Episode, Examples
from clinimeta.common.typing import Params

KINDS = pytest.mark.parametrize("kind", ["binary", "three classes", "regression"])
LEARNERS = pytest.mark.parametrize("name", ["hypernetwork", "neural_process"])


def nothing(support: Examples) -> Examples:
    return support._replace(weights=torch.zeros_like(support.weights))


# Perceptron and deep set


def test_a_perceptron_is_that_of_torch() -> None:
    params = init_perceptron("p", (3, 5, 4, 2), generator("p"))
    layers = [torch.nn.Linear(i, o) for i, o in ((3, 5), (5, 4), (4, 2))]
    with torch.no_grad():
        for number, layer in enumerate(layers):
            layer.weight.copy_(params[f"p.{number}.weight"].T)
            layer.bias.copy_(params[f"p.{number}.bias"])
        x = torch.randn(7, 3, generator=generator("x"))
        expected = torch.nn.Sequential(layers[0], torch.nn.ReLU(), layers[1], torch.nn.ReLU(), layers[2])(x)
    assert torch.allclose(perceptron(params, "p", x), expected, atol=1e-6)


def test_perceptrons_whose_names_begin_alike_are_told_apart() -> None:
    params = {
        **init_perceptron("p", (3, 2), generator("p")),
        **init_perceptron("p2", (3, 5, 2), generator("q")),
    }
    x = torch.ones(1, 3)
    assert torch.allclose(perceptron(params, "p", x), x @ params["p.0.weight"] + params["p.0.bias"])


def test_the_means_are_those_of_each_class_and_padding_is_in_none() -> None:
    support = pad(rows("three classes", 6, "s"), 9)
    values = torch.arange(18.0, dtype=torch.float64).reshape(9, 2)
    found = group_means(Diagnosis(3), values, support)
    assert torch.equal(found, torch.stack([values[[c, c + 3]].mean(dim=0) for c in range(3)]))
    absent = support._replace(weights=support.weights * (support.targets != 1))
    assert torch.equal(group_means(Diagnosis(3), values, absent)[1], torch.zeros(2, dtype=torch.float64))


def test_where_the_target_is_a_number_all_rows_are_one_group() -> None:
    support = pad(rows("regression", 6, "s"), 9)
    values = torch.arange(18.0, dtype=torch.float64).reshape(9, 2)
    assert torch.equal(group_means(Regression(0), values, support), values[:6].mean(dim=0, keepdim=True))


# Both


@LEARNERS
@KINDS
def test_an_empty_support_set_gives_finite_outputs(name: str, kind: str) -> None:
    chosen, (episode,) = learner(name, "mlp", kind), episodes(kind, [(6, 5)])
    params = start(chosen)
    for empty in (nothing(episode.support), episode.support.take(torch.arange(0))):
        found = task_gradients(chosen, params, stack([Episode(empty, episode.query)]))
        assert all(bool(torch.isfinite(x).all()) for x in (*found.gradients.values(), found.outputs))


def waves(tasks: int, *key: str | int) -> Episode:
    """Finn et al. 2017, section 5.1: 10 shots, 10 query points."""
    rng = generator("sinusoid", *key)
    amplitude = 0.1 + 4.9 * torch.rand(tasks, 1, generator=rng)
    phase = torch.pi * torch.rand(tasks, 1, generator=rng)
    x = 10 * torch.rand(tasks, 20, generator=rng) - 5
    y = amplitude * torch.sin(x - phase)

    def half(part: slice) -> Examples:
        return Examples({"table": x[:, part, None]}, y[:, part], torch.ones_like(y[:, part]))

    return Episode(half(slice(0, 10)), half(slice(10, 20)))


def train(chosen: MetaLearner[object], steps: int) -> tuple[Params, Params]:
    adam = Adam(3e-3)
    fresh = params = chosen.init(generator("sinusoid init"))
    state = adam.init(params)
    for number in range(steps):
        gradient = task_gradients(chosen, params, waves(25, number)).sum()
        params, state = adam.update(map_params(lambda g: g / 25, gradient), state, params)
    return fresh, params


def squared_error(chosen: MetaLearner[object], params: Params, judged: Episode) -> float:
    outputs = adapt_and_predict(chosen, params, judged).squeeze(-1)
    return float((outputs - judged.query.targets).square().mean())


@pytest.mark.parametrize("tune_steps", [0, 1])
def test_a_hypernetwork_learns_sinusoids(tune_steps: int) -> None:
    chosen = Hypernetwork(MLP(1, 1, hidden=(40, 40)), Regression(0), tune_steps=tune_steps, tune_rate=0.01)
    fresh, trained = train(chosen, 300)
    judged = waves(200, "test")
    assert squared_error(chosen, fresh, judged) > 2.5
    assert squared_error(chosen, trained, judged) < 1.0
    deaf = judged._replace(support=nothing(judged.support))
    assert squared_error(chosen, trained, deaf) > 2.0  # so it is the support set that teaches


def test_a_neural_process_learns_what_it_can_predict_and_how_well() -> None:
    chosen = NeuralProcess(MLP(1, 1, hidden=(40, 40)), Regression(0))
    fresh, trained = train(chosen, 300)
    judged = waves(200, "test")
    before, after = (task_gradients(chosen, p, judged).loss.mean() for p in (fresh, trained))
    assert after < before - 0.3
    deaf = judged._replace(support=nothing(judged.support))
    assert task_gradients(chosen, trained, deaf).loss.mean() > after + 0.2

    def with_spread(episode: Episode) -> tuple[torch.Tensor, torch.Tensor]:
        adapted = chosen.adapt(trained, episode.support)
        found = chosen.predict(trained, adapted, episode.query.inputs)[:, 0]
        return found - episode.query.targets, chosen.spread(trained, adapted, episode.query.inputs)

    with torch.no_grad():
        errors, spread = (x.flatten() for x in torch.vmap(with_spread)(judged))
    assert 0.7 < float((errors / spread).square().mean()) < 1.4  # calibrated on the whole
    sure = spread < spread.median()
    assert errors[sure].square().mean() < 0.5 * errors[~sure].square().mean()  # and row by row


# Neural process


def test_a_neural_processs_loss_is_the_negative_log_likelihood_of_a_number() -> None:
    chosen = learner("neural_process", "mlp", "regression")
    assert isinstance(chosen, Uncertain)
    params, (episode,) = start(chosen), episodes("regression", [(6, 5)])
    adapted = chosen.adapt(params, episode.support)
    mean = chosen.predict(params, adapted, episode.query.inputs)
    deviation = chosen.spread(params, adapted, episode.query.inputs)
    expected = -Normal(mean[:, 0], deviation).log_prob(episode.query.targets).mean()
    padded = Episode(episode.support, pad(episode.query, 9))
    for each in (episode, padded):
        found = chosen.meta_loss(params, each)
        assert torch.allclose(found.loss, expected, rtol=1e-12)
        assert torch.equal(found.outputs[:5], mean)


@pytest.mark.parametrize("kind", ["binary", "three classes"])
def test_a_neural_processs_loss_is_the_negative_log_likelihood_of_a_class(kind: str) -> None:
    chosen = learner("neural_process", "mlp", kind)
    params, (episode,) = start(chosen), episodes(kind, [(6, 5)])
    found = chosen.meta_loss(params, episode)
    predicted = Categorical(chosen.objective.probabilities(found.outputs))
    assert torch.allclose(found.loss, -predicted.log_prob(episode.query.targets).mean(), rtol=1e-10)


@pytest.mark.parametrize("least", [0.1, 2.0])
def test_the_spread_has_a_lower_bound(least: float) -> None:
    chosen = learner("neural_process", "mlp", "regression", least_spread=least)
    assert isinstance(chosen, NeuralProcess)
    support = rows("regression", 6, "s")
    for scale in (1.0, 30.0):
        params = map_params(lambda p, s=scale: s * p, start(chosen))
        found = chosen.spread(params, chosen.adapt(params, support), rows("regression", 99, "q").inputs)
        assert found.shape == (99,)
        assert bool((found >= least).all())


def test_only_a_learner_of_that_kind_says_how_sure_it_is() -> None:
    assert not isinstance(learner("maml", "mlp", "regression"), Uncertain)


# Hypernetwork


@KINDS
def test_tuning_lowers_the_support_loss(kind: str) -> None:
    (episode,) = episodes(kind, [(9, 5)])
    support, losses = episode.support, []
    for steps in (0, 1, 20):
        chosen = learner("hypernetwork", "mlp", kind, tune_steps=steps, tune_rate=0.05)
        params = start(chosen)
        outputs = chosen.predict(params, chosen.adapt(params, support), support.inputs)
        losses.append(float(chosen.objective.loss(outputs, support)))
    assert losses == sorted(losses, reverse=True)
    assert losses[2] < 0.97 * losses[0]


@KINDS
def test_tuning_is_gradient_descent_on_what_was_generated(kind: str) -> None:
    plain, tuned = (
        learner("hypernetwork", "mlp", kind, tune_steps=steps, tune_rate=0.05) for steps in (0, 1)
    )
    params, support = start(plain), rows(kind, 9, "s")
    made = {n: p.detach().requires_grad_() for n, p in plain.adapt(params, support).items()}
    plain.objective.loss(plain.predict(params, made, support.inputs), support).backward()
    gradient = {name: p.grad for name, p in made.items() if p.grad is not None}
    expected = add(made, gradient, -0.05)
    with torch.no_grad():  # as at a hospital
        found = tuned.adapt(params, support)
    assert found.keys() == {"weight", "bias", "scale", "shift"}
    assert all(torch.allclose(found[n], expected[n], rtol=1e-12) for n in expected)


def test_renumbering_the_classes_permutes_what_their_rows_alone_say() -> None:
    """With nothing learned about the numbers themselves: a class's rows make its column."""
    chosen = learner("hypernetwork", "mlp", "three classes", tune_steps=0)
    blind = dict(start(chosen))
    for name, unlearned in (("base.weight", slice(None)), ("encoder.0.weight", slice(-3, None))):
        blind[name] = blind[name].clone()
        blind[name][unlearned] = 0
    blind["base.bias"] = torch.zeros_like(blind["base.bias"])
    support, query = rows("three classes", 9, "s"), rows("three classes", 4, "q")
    order = torch.tensor([2, 0, 1])
    renumbered = support._replace(targets=order[support.targets])
    one, other = (chosen.predict(blind, chosen.adapt(blind, s), query.inputs) for s in (support, renumbered))
    assert torch.allclose(other[:, order], one, rtol=1e-10)

"""Per-FedAvg and FedRep do what their papers say: closed forms on quadratics, and plain gradients."""

import pytest
import torch
from tasks import FEATURES, KINDS, episodes, learner, rows, start
from torch import Tensor

from clinimeta.common.algorithms.fedrep import FedRep
from clinimeta.common.algorithms.meta_gradient import adapt_and_predict, task_gradients
from clinimeta.common.algorithms.per_fedavg import PerFedAvg, halves
from clinimeta.common.applications.diagnosis import Diagnosis
from clinimeta.common.applications.regression import Regression
from clinimeta.common.errors import StudyError
from clinimeta.common.models.linear import Linear
from clinimeta.common.models.mlp import MLP
from clinimeta.common.params import map_params
from clinimeta.common.tasks.batch import pad, stack
from clinimeta.common.tasks.episode import Episode, Examples
from clinimeta.common.typing import Params

MODEL, OBJECTIVE = Linear(FEATURES, 1), Regression(0)


def flat(params: Params) -> Tensor:
    return torch.cat([params["weight"].flatten(), params["bias"]])


def quadratic(examples: Examples) -> tuple[Tensor, Tensor]:
    """Hessian H and linear term b of a linear model's mean squared error: gradient H w - b."""
    x = examples.inputs["table"]
    a, n = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], dim=1), len(examples.targets)
    return 2 / n * a.T @ a, 2 / n * a.T @ examples.targets


# Per-FedAvg


@pytest.mark.parametrize("delta", [1e-3, 0.01, 1.0])  # on a quadratic a central difference is exact
@pytest.mark.parametrize("variant", ["HF", "FO"])
def test_on_a_quadratic_per_fedavg_is_algorithm_1(variant: str, delta: float) -> None:
    episode, rate = Episode(rows("regression", 8, "s"), rows("regression", 11, "q")), 0.05
    chosen = PerFedAvg(MODEL, OBJECTIVE, inner_rate=rate, variant=variant, delta=delta)
    params = start(chosen)
    w = flat(params)
    (h, b), (h1, b1), (h2, _) = map(
        quadratic,
        (
            episode.support,
            episode.query.take(torch.arange(0, 11, 2)),
            episode.query.take(torch.arange(1, 11, 2)),
        ),
    )
    personal = w - rate * (h @ w - b)
    expected = h1 @ personal - b1
    if variant == "HF":
        expected = expected - rate * h2 @ expected
    found = task_gradients(chosen, params, stack([episode]))
    assert torch.allclose(flat(found.sum()), expected, rtol=1e-8, atol=1e-12)
    assert torch.allclose(
        found.loss[0], OBJECTIVE.loss(MODEL.apply(split(personal), episode.query.inputs), episode.query)
    )


def split(vector: Tensor) -> Params:
    return {"weight": vector[:-1, None], "bias": vector[-1:]}


@pytest.mark.parametrize("kind", ["binary", "three classes", "regression"])
def test_the_finite_difference_is_close_to_the_hessian_itself(kind: str) -> None:
    """On a network, and in the precision of a hospital's run."""
    (episode,) = episodes(kind, [(8, 10)], dtype=torch.float32)
    chosen = learner("per_fedavg", "mlp", kind)
    assert isinstance(chosen, PerFedAvg)
    params = start(chosen, dtype=torch.float32)
    exact = {n: p.double().requires_grad_() for n, p in params.items()}
    first, second = (in_double(half) for half in halves(chosen.objective, episode.query))
    support = in_double(episode.support)

    def gradient(at: Params, batch: Examples, *, graph: bool = False) -> Params:
        loss = chosen.objective.loss(chosen.model.apply(at, batch.inputs), batch)
        return dict(zip(at, torch.autograd.grad(loss, list(at.values()), create_graph=graph), strict=True))

    slope = gradient(exact, support)
    personal = {n: (p - chosen.inner_rate * slope[n]).detach().requires_grad_() for n, p in exact.items()}
    g = gradient(personal, first)
    along = sum((x * g[n]).sum() for n, x in gradient(exact, second, graph=True).items())
    assert isinstance(along, Tensor)
    product = dict(zip(exact, torch.autograd.grad(along, list(exact.values())), strict=True))
    found = task_gradients(chosen, params, stack([episode])).sum()
    for name, p in found.items():
        assert torch.allclose(p.double(), g[name] - chosen.inner_rate * product[name], rtol=1e-3, atol=1e-4)


def in_double(rows: Examples) -> Examples:
    inputs = {name: x.double() for name, x in rows.inputs.items()}
    targets = rows.targets.double() if rows.targets.is_floating_point() else rows.targets
    return Examples(inputs, targets, rows.weights.double())


def test_the_halves_of_a_query_set_are_its_rows_in_turn_wherever_the_padding_is() -> None:
    query = pad(rows("regression", 5, "q"), 8)
    first, second = halves(OBJECTIVE, query)
    assert first.weights.tolist() == [1, 0, 1, 0, 1, 0, 0, 0]
    assert second.weights.tolist() == [0, 1, 0, 1, 0, 0, 0, 0]
    first, second = halves(OBJECTIVE, query.take(torch.tensor([5, 0, 6, 1, 2, 7])))
    assert first.weights.tolist() == [0, 1, 0, 0, 1, 0]
    assert second.weights.tolist() == [0, 0, 0, 1, 0, 0]


@pytest.mark.parametrize("targets", [[0, 1, 0, 1, 0, 1, 0, 1], [0, 0, 0, 0, 1, 1, 1, 1]])
def test_either_half_has_every_class_however_the_rows_are_ordered(targets: list[int]) -> None:
    query = pad(rows("binary", 8, "q")._replace(targets=torch.tensor(targets)), 10)
    for half in halves(Diagnosis(2), query):
        assert sorted(half.targets[half.weights > 0].tolist()) == [0, 0, 1, 1]
        assert not half.weights[8:].any()


@pytest.mark.parametrize("kind", ["binary", "three classes", "regression"])
def test_where_no_class_has_two_query_rows_both_halves_are_the_same(kind: str) -> None:
    objective, size = learner("maml", "mlp", kind).objective, max(1, KINDS[kind][1])
    first, second = halves(objective, pad(rows(kind, size, "q"), 4))
    assert first.weights.tolist() == second.weights.tolist() == [1.0] * size + [0.0] * (4 - size)
    empty = pad(rows(kind, 1, "q").take(torch.arange(0)), 3)
    assert all(not half.weights.any() for half in halves(objective, empty))


def test_without_a_query_row_per_fedavg_has_nothing_to_learn() -> None:
    chosen, support = PerFedAvg(MODEL, OBJECTIVE), rows("regression", 8, "s")
    query = support._replace(weights=torch.zeros_like(support.weights))
    gradient = task_gradients(chosen, start(chosen), stack([Episode(support, query)])).sum()
    assert not flat(gradient).any()


def test_first_order_per_fedavg_on_a_doubled_query_set_is_first_order_maml() -> None:
    (episode,) = episodes("binary", [(6, 5)])
    twice = episode._replace(query=episode.query.take(torch.arange(5).repeat_interleave(2)))
    first = learner("per_fedavg", "mlp", "binary", variant="FO")
    maml = learner("maml", "mlp", "binary", inner_steps=1, first_order=True)
    params = start(maml)
    found, expected = (
        task_gradients(x, params, stack([e])).sum() for x, e in ((first, twice), (maml, episode))
    )
    assert all(torch.allclose(found[n], expected[n], rtol=1e-10, atol=1e-14) for n in expected)


# FedRep


@pytest.mark.parametrize("kind", ["binary", "three classes", "regression"])
def test_the_body_learns_at_the_fitted_head_and_the_head_is_never_shared(kind: str) -> None:
    chosen, (episode,) = learner("fedrep", "mlp", kind), episodes(kind, [(8, 6)])
    params = start(chosen)
    fitted = map_params(lambda p: p.detach().requires_grad_(), chosen.adapt(params, episode.support))
    head, body = set(chosen.model.head), set(params) - set(chosen.model.head)
    assert all(torch.equal(fitted[n], params[n]) for n in body)
    assert all(not torch.equal(fitted[n], params[n]) for n in head)
    outputs = chosen.model.apply(fitted, episode.query.inputs)
    loss = chosen.objective.loss(outputs, episode.query)
    loss.backward()
    found = task_gradients(chosen, params, stack([episode]))
    for name in body:
        assert fitted[name].grad is not None
        assert torch.allclose(found.gradients[name][0], fitted[name].grad, rtol=1e-10, atol=1e-14)
    assert all(not found.gradients[n].any() for n in head)
    assert torch.allclose(found.loss[0], loss, rtol=1e-12)


def test_the_head_is_fitted_by_gradient_descent_with_the_body_fixed() -> None:
    model = MLP(FEATURES, 1, hidden=(5,))
    chosen = FedRep(model, OBJECTIVE, head_steps=4000, head_rate=0.1)
    params, support = start(chosen), rows("regression", 40, "s")
    fitted = chosen.adapt(params, support)
    hidden = torch.relu(support.inputs["table"] @ params["layer0.weight"] + params["layer0.bias"])
    design = torch.cat([hidden, torch.ones(40, 1, dtype=torch.float64)], dim=1)
    least_squares = torch.linalg.lstsq(design, support.targets[:, None]).solution
    found = torch.cat([fitted["layer1.weight"], fitted["layer1.bias"][None]])
    assert torch.allclose(design @ found, design @ least_squares, atol=1e-4)


def test_after_training_a_hospital_uses_the_shared_body_with_its_own_head() -> None:
    chosen, (episode,) = learner("fedrep", "mlp", "binary"), episodes("binary", [(8, 6)])
    params = start(chosen)
    expected = chosen.model.apply(chosen.adapt(params, episode.support), episode.query.inputs)
    assert torch.allclose(adapt_and_predict(chosen, params, stack([episode]))[0], expected, rtol=1e-12)


def test_a_model_that_is_all_head_has_no_body_to_share() -> None:
    with pytest.raises(StudyError, match="no body") as caught:
        FedRep(MODEL, OBJECTIVE)
    assert caught.value.remedy

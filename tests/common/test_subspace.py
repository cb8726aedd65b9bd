"""What does not learn is not sent and does not move; a low-rank gradient is the chain rule's."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tasks import episodes, learner, start
from torch.func import grad

from clinimeta.common.algorithms import ALGORITHMS
from clinimeta.common.algorithms.meta_gradient import task_gradients
from clinimeta.common.params import count, map_params, norm, shapes
from clinimeta.common.rng import generator
from clinimeta.common.subspace import ALL, Subspace, head_of, low_rank_of, subspace_of
from clinimeta.common.tasks.batch import stack
from clinimeta.common.typing import Params

LEARNERS = [("maml", "mlp"), ("protonet", "mlp"), ("meta_sgd", "mlp"), ("anil", "conv1d"), ("maml", "conv4")]
SEEDS = st.integers(0, 1000)


def full_gradients(name: str, model: str) -> tuple[Any, Params, Params, Any]:
    from tasks import width

    chosen = learner(name, model, "binary")
    params = start(chosen)
    drawn = episodes("binary", [(4, 6), (4, 6)], features=width(model))
    return chosen, params, task_gradients(chosen, params, stack(drawn)).gradients, drawn


def made_up(*lead: int, seed: int = 0) -> Params:
    rng = generator("made up", seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn((*lead, *shape), generator=rng, dtype=torch.float64)

    return {"conv": draw(6, 3, 2), "w": draw(5, 4), "short": draw(2, 7), "b": draw(4), "rate": draw()}


LOW = low_rank_of(made_up(), 2, seed=1)


def test_everything_is_passed_through_as_it_is() -> None:
    params = made_up()
    assert ALL.project(params) is ALL.at(params) is ALL.put({}, params) is params
    assert subspace_of("all", params, (), 0, 0) is ALL


@pytest.mark.parametrize(("name", "model"), LEARNERS)
def test_the_heads_gradient_is_the_restriction_of_the_full_one(name: str, model: str) -> None:
    chosen, params, gradients, _ = full_gradients(name, model)
    head = head_of(params, chosen.model.head)
    sent = head.project(gradients)
    assert 0 < count(sent) < count(gradients)
    assert all(n.endswith(chosen.model.head) for n in sent)
    assert all(sent[n] is gradients[n] for n in sent)


@pytest.mark.parametrize("name", ALGORITHMS.names())
def test_every_learner_on_an_mlp_has_a_head_or_says_no(name: str) -> None:
    chosen = learner(name, "mlp", "binary")
    params = start(chosen)
    head = head_of(params, chosen.model.head)
    assert head.size(params) < count(params)


def test_a_learner_without_a_last_layer_is_told() -> None:
    with pytest.raises(ValueError, match="no last layer"):
        subspace_of("head", {"w": torch.zeros(1)}, ("head.weight",), 0, 0)


@pytest.mark.parametrize(("name", "model"), LEARNERS)
def test_a_low_rank_gradient_is_autograds(name: str, model: str) -> None:
    """W = W0 + A B, differentiated in B by autograd, at B = 0."""
    chosen, params, gradients, drawn = full_gradients(name, model)
    low = low_rank_of(params, 2, seed=3)
    assert low.bases
    sent = low.project(gradients)
    for i, episode in enumerate(drawn):

        def loss(values: Params, episode: Any = episode) -> torch.Tensor:
            return chosen.meta_loss(low.put(params, values), episode).loss

        expected = grad(loss)(low.at(params))
        for n in sent:
            assert torch.allclose(sent[n][i], expected[n], rtol=1e-9, atol=1e-12), n


def test_a_low_rank_gradient_is_that_of_finite_differences() -> None:
    chosen, params, gradients, drawn = full_gradients("maml", "mlp")
    low = low_rank_of(params, 2, seed=3)
    at, rng, step = low.at(params), generator("direction"), 1e-6
    direction = map_params(lambda p: torch.randn(p.shape, generator=rng, dtype=p.dtype), at)
    losses = [
        chosen.meta_loss(low.put(params, map_params(lambda p, d: p + s * d, at, direction)), drawn[0]).loss  # noqa: B023
        for s in (-step, step)
    ]
    slope = sum((low.project(gradients)[n][0] * direction[n]).sum() for n in at)
    assert float((losses[1] - losses[0]) / (2 * step)) == pytest.approx(float(slope), rel=1e-5)


def test_bases_are_orthonormal_and_made_from_the_seed() -> None:
    for n, base in LOW.bases.items():
        assert base.shape == (len(made_up()[n]), 2)
        assert torch.allclose(base.T @ base, torch.eye(2, dtype=torch.float64), atol=1e-12)
        assert torch.equal(base, low_rank_of(made_up(seed=9), 2, seed=1).bases[n])
        assert not torch.allclose(base, low_rank_of(made_up(), 2, seed=2).bases[n])


def test_what_is_not_longer_than_the_rank_learns_in_full() -> None:
    assert set(LOW.bases) == {"conv", "w"}
    expected = {"conv": (2, 3, 2), "w": (2, 4), "short": (2, 7), "b": (4,), "rate": ()}
    assert shapes(LOW.at(made_up())) == expected == shapes(LOW.project(made_up()))
    with pytest.raises(ValueError, match="rank"):
        low_rank_of(made_up(), 0, seed=1)


@given(SEEDS, SEEDS)
def test_putting_and_projecting_are_inverse(seed: int, other: int) -> None:
    params, values = made_up(seed=seed), LOW.project(made_up(seed=other))
    moved = LOW.put(params, values)
    change = LOW.project(map_params(lambda a, b: a - b, moved, params))
    for n in values:
        expected = values[n] if n in LOW.bases else values[n] - params[n]
        assert torch.allclose(change[n], expected, atol=1e-12)
    assert norm(LOW.project(params)) <= norm(params) * (1 + 1e-12)


@given(SEEDS)
def test_where_it_is_is_where_it_stays(seed: int) -> None:
    params = made_up(seed=seed)
    for part in (LOW, head_of(params, ["w"])):
        stayed = part.put(params, part.at(params))
        assert all(torch.equal(stayed[n], params[n]) for n in params)


@pytest.mark.parametrize("part", [LOW, head_of(made_up(), ["w", "b"]), ALL], ids=["low rank", "head", "all"])
def test_axes_before_a_parameters_own_are_kept(part: Subspace) -> None:
    many, params = made_up(3), made_up(3, seed=5)
    each = [map_params(lambda p, i=i: p[i], many) for i in range(3)]
    theirs = [map_params(lambda p, i=i: p[i], params) for i in range(3)]
    values = part.project(many)
    for i in range(3):
        for n in values:
            assert torch.allclose(values[n][i], part.project(each[i])[n])
            assert torch.allclose(part.at(params)[n][i], part.at(theirs[i])[n])
        moved = part.put(theirs[i], part.project(each[i]))
        assert all(torch.allclose(part.put(params, values)[n][i], moved[n]) for n in params)

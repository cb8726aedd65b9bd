"""ANIL, Meta-SGD, MAML++, Reptile, iMAML and the learned optimizer, held to what they are defined by."""

import dataclasses
from typing import Any

import pytest
import torch
from tasks import FEATURES, KINDS, episodes, learner, rows, start
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from clinimeta.common.algorithms.base import MetaLearner
from clinimeta.common.algorithms.imaml import IMAML, conjugate_gradient, ravel, unravel
from clinimeta.common.algorithms.inner_loop import gradient_descent
from clinimeta.common.algorithms.learned_optimizer import LearnedOptimizer
from clinimeta.common.algorithms.maml_plus_plus import MAMLPlusPlus
from clinimeta.common.algorithms.meta_gradient import adapt_and_predict, task_gradients
from clinimeta.common.algorithms.meta_sgd import MetaSGD
from clinimeta.common.algorithms.reptile import Reptile
from clinimeta.common.algorithms.step_sizes import SPEED
from clinimeta.common.applications.regression import Regression
from clinimeta.common.errors import StudyError
from clinimeta.common.models.linear import Linear
from clinimeta.common.models.mlp import MLP
from clinimeta.common.optim import Adam
from clinimeta.common.params import is_finite, map_params, norm, part, scaled
from clinimeta.common.rng import generator
from clinimeta.common.tasks.batch import stack
from clinimeta.common.tasks.episode import Episode, Examples
from clinimeta.common.typing import Params

LINEAR, SQUARES = Linear(FEATURES, 1), Regression(0)
FAMILY = ["anil", "imaml", "learned_optimizer", "maml", "maml++", "meta_sgd", "reptile"]
KIND = pytest.mark.parametrize("kind", KINDS)


def meta_gradient(chosen: MetaLearner[Any], params: Params, *tasks: Episode) -> Params:
    return task_gradients(chosen, params, stack(tasks)).sum()


def weights_of(params: Params) -> Params:
    """The initial weights among the meta-parameters."""
    return part(params, "weights") or params


def assert_close(left: Params, right: Params, rtol: float = 1e-10) -> None:
    assert left.keys() == right.keys()
    for name in left:
        torch.testing.assert_close(left[name], right[name], rtol=rtol, atol=rtol * 1e-2)


def empty(kind: str = "binary") -> Examples:
    support = rows(kind, 4, "s")
    return support._replace(weights=torch.zeros_like(support.weights))


# --- what all of them promise ---


@pytest.mark.parametrize("algorithm", FAMILY)
@pytest.mark.parametrize("no_rows", [False, True])
def test_an_empty_support_set_leaves_the_initial_weights(algorithm: str, no_rows: bool) -> None:
    chosen = learner(algorithm, "mlp", "binary")
    params, support = start(chosen), empty()
    adapted = chosen.adapt(params, support.take(torch.arange(0)) if no_rows else support)
    assert_close(adapted, weights_of(params))


@pytest.mark.parametrize("algorithm", FAMILY)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_meta_gradient_of_an_empty_support_set_is_finite(algorithm: str, dtype: torch.dtype) -> None:
    chosen = learner(algorithm, "mlp", "binary")
    params = start(chosen, dtype=dtype)
    support = empty()._replace(inputs={"table": empty().inputs["table"].to(dtype)})
    support = support._replace(weights=support.weights.to(dtype))
    found = meta_gradient(chosen, params, Episode(support, rows("binary", 5, "q", dtype=dtype)))
    assert is_finite(found)
    assert norm(found) > 0
    assert {g.dtype for g in found.values()} == {dtype}


@pytest.mark.parametrize("algorithm", FAMILY)
def test_the_meta_gradient_can_be_traced(algorithm: str) -> None:
    """No step depends on the data: the graph taken on some tasks is right on others."""
    chosen = learner(algorithm, "mlp", "binary")
    params, some = start(chosen), stack(episodes("binary", [(6, 6), (4, 5)]))
    others = Episode(some.query, some.support)
    traced = make_fx(lambda p, b: task_gradients(chosen, p, b).gradients)(params, some)
    assert_close(traced(params, others), task_gradients(chosen, params, others).gradients)


@pytest.mark.parametrize("algorithm", ["anil", "maml++", "meta_sgd"])
def test_first_order_is_not_exact_and_differentiates_nothing_twice(algorithm: str) -> None:
    (episode,) = episodes("binary", [(6, 5)])
    second, first = (learner(algorithm, "mlp", "binary", first_order=f) for f in (False, True))
    params = start(second)
    one, other = meta_gradient(second, params, episode), meta_gradient(first, params, episode)
    assert second.exact
    assert not first.exact
    assert norm(map_params(torch.sub, one, other)) > 1e-3 * norm(one)
    fast = map_params(lambda p: p.detach(), first.adapt(params, episode.support))
    expected = meta_gradient(learner("maml", "mlp", "binary", inner_steps=0), fast, episode)
    assert_close(weights_of(other), expected)


# --- the inner loop ---


def test_weights_without_a_rate_stay_as_they_are() -> None:
    support, params = rows("regression", 6, "s"), start(learner("maml", "linear", "regression"))
    moved = gradient_descent(LINEAR, SQUARES, params, support, steps=2, rate={"bias": 0.1})
    assert torch.equal(moved["weight"], params["weight"])
    assert not torch.equal(moved["bias"], params["bias"])
    assert list(moved) == list(params)


def test_the_pull_leads_to_the_regularised_optimum() -> None:
    support, params = rows("regression", 8, "s"), start(learner("maml", "linear", "regression"))
    end = gradient_descent(LINEAR, SQUARES, params, support, steps=800, rate=0.05, pull=0.7)
    h, b = quadratic(support)
    w = vector(params)
    expected = torch.linalg.solve(h + 0.7 * torch.eye(len(w), dtype=w.dtype), b + 0.7 * w)
    assert torch.allclose(vector(end), expected, rtol=1e-9)


# --- ANIL ---


@KIND
def test_anil_leaves_the_body_untouched(kind: str) -> None:
    chosen = learner("anil", "mlp", kind)
    params = start(chosen)
    adapted = chosen.adapt(params, rows(kind, 6, "s"))
    for name in params:
        assert torch.equal(adapted[name], params[name]) == (name not in chosen.model.head)


@KIND
def test_anil_is_maml_where_the_head_is_everything(kind: str) -> None:
    (episode,) = episodes(kind, [(6, 5)])
    anil, maml = (learner(name, "linear", kind, inner_steps=3) for name in ("anil", "maml"))
    params = start(maml)
    assert_close(meta_gradient(anil, params, episode), meta_gradient(maml, params, episode))


def test_anil_teaches_the_body_through_the_outer_loop() -> None:
    chosen = learner("anil", "mlp", "binary")
    found = meta_gradient(chosen, start(chosen), *episodes("binary", [(6, 5)]))
    assert all(float(g.abs().max()) > 0 for g in found.values())


# --- learned step sizes ---


@KIND
@pytest.mark.parametrize("algorithm", ["meta_sgd", "maml++"])
@pytest.mark.parametrize("first_order", [False, True])
def test_learned_step_sizes_that_are_all_equal_are_maml(kind: str, algorithm: str, first_order: bool) -> None:
    (episode,) = episodes(kind, [(6, 5)])
    options = {"inner_steps": 3, "first_order": first_order}
    chosen = learner(algorithm, "mlp", kind, initial_rate=0.2, **options)
    maml = learner("maml", "mlp", kind, inner_rate=0.2, **options)
    params = chosen.init(generator("equal"))
    double = map_params(lambda p: p.double(), params)
    exactly = {n: torch.full_like(p, rate_like(chosen, 0.2)) for n, p in part(double, "rates").items()}
    double = {**double, **{f"rates.{n}": p for n, p in exactly.items()}}
    found = part(meta_gradient(chosen, double, episode), "weights")
    assert_close(found, meta_gradient(maml, part(double, "weights"), episode))


def rate_like(chosen: MetaSGD | MAMLPlusPlus, rate: float) -> float:
    """What the meta-parameter is where the step size is `rate`, to float64."""
    return float(torch.logit(torch.tensor(rate / chosen.max_rate, dtype=torch.float64))) / SPEED


@pytest.mark.parametrize("raw", [-1e30, -50.0, -1.0, 0.0, 0.3, 1e3, 1e30])
@pytest.mark.parametrize("kind", [MetaSGD, MAMLPlusPlus])
def test_step_sizes_stay_within_their_bound_whatever_the_outer_loop_did(
    kind: type[MetaSGD | MAMLPlusPlus], raw: float
) -> None:
    chosen = kind(LINEAR, SQUARES, max_rate=0.7)
    params = map_params(lambda p: torch.full_like(p, raw), start(chosen))
    for rate in chosen.rates(params).values():
        assert 0 <= float(rate.min()) <= float(rate.max()) <= 0.7


@pytest.mark.parametrize("kind", [MetaSGD, MAMLPlusPlus])
def test_step_sizes_start_at_the_initial_rate(kind: type[MetaSGD | MAMLPlusPlus]) -> None:
    chosen = kind(LINEAR, SQUARES, initial_rate=0.05, max_rate=0.3)
    for rate in chosen.rates(chosen.init(generator("x"))).values():
        assert torch.allclose(rate, torch.full_like(rate, 0.05), rtol=1e-6)


@pytest.mark.parametrize("kind", [MetaSGD, MAMLPlusPlus])
def test_step_sizes_cannot_start_beyond_their_bound(kind: type[MetaSGD | MAMLPlusPlus]) -> None:
    with pytest.raises(StudyError, match="beyond their bound"):
        kind(LINEAR, SQUARES, initial_rate=0.5, max_rate=0.5)


def test_meta_sgd_steps_by_each_coordinates_own_rate() -> None:
    chosen = MetaSGD(LINEAR, SQUARES, inner_steps=1, max_rate=0.5)
    params = dict(start(chosen))
    raw = torch.randn(FEATURES, 1, generator=generator("raw"), dtype=torch.float64)
    params["rates.weight"] = raw
    support = rows("regression", 6, "s")
    weights = part(params, "weights")
    plain = gradient_descent(LINEAR, SQUARES, weights, support, steps=1, rate=1.0)
    moved = chosen.adapt(params, support)["weight"] - weights["weight"]
    assert torch.allclose(
        moved, 0.5 * torch.sigmoid(SPEED * raw) * (plain["weight"] - weights["weight"]), rtol=1e-12
    )


def test_maml_plus_plus_has_a_rate_a_tensor_and_step() -> None:
    chosen = MAMLPlusPlus(MLP(3, 1, hidden=(4,)), SQUARES, inner_steps=3)
    params = chosen.init(generator("x"))
    assert {p.shape for p in part(params, "rates").values()} == {(3,)}
    assert part(params, "rates").keys() == part(params, "weights").keys()


def test_a_maml_plus_plus_step_of_rate_0_is_no_step() -> None:
    chosen = MAMLPlusPlus(LINEAR, SQUARES, inner_steps=2)
    params = dict(start(chosen))
    for name in ("rates.weight", "rates.bias"):
        params[name] = torch.tensor([-1e30, rate_like(chosen, 0.1)], dtype=torch.float64)
    support = rows("regression", 6, "s")
    expected = gradient_descent(LINEAR, SQUARES, part(params, "weights"), support, steps=1, rate=0.1)
    assert_close(chosen.adapt(params, support), expected)


@KIND
def test_the_multi_step_loss_is_the_mean_over_the_steps(kind: str) -> None:
    (episode,) = episodes(kind, [(6, 5)])
    chosen = learner("maml++", "mlp", kind, inner_steps=3, multi_step=True)
    params = start(chosen)
    each = [learner("maml", "mlp", kind, inner_steps=k) for k in (1, 2, 3)]
    weights = part(params, "weights")
    params = {
        **params,
        **{f"rates.{n}": torch.full((3,), rate_like(chosen, 0.1), dtype=torch.float64) for n in weights},
    }
    expected = [maml.meta_loss(weights, episode) for maml in each]
    found = chosen.meta_loss(params, episode)
    assert torch.allclose(found.loss, torch.stack([e.loss for e in expected]).mean(), rtol=1e-12)
    assert torch.allclose(found.outputs, expected[-1].outputs, rtol=1e-12)
    gradients = [meta_gradient(maml, weights, episode) for maml in each]
    mean = map_params(lambda *g: torch.stack(g).mean(dim=0), *gradients)
    assert_close(part(meta_gradient(chosen, params, episode), "weights"), mean)


# --- Reptile ---


@KIND
def test_one_step_of_reptile_is_the_support_gradient(kind: str) -> None:
    (episode,) = episodes(kind, [(6, 5)])
    chosen = learner("reptile", "mlp", kind, inner_steps=1, inner_rate=0.03)
    params = start(chosen)
    plain = learner("maml", "mlp", kind, inner_steps=0)
    expected = meta_gradient(plain, params, Episode(episode.support, episode.support))
    assert_close(meta_gradient(chosen, params, episode), expected, rtol=1e-9)


def test_reptile_moves_towards_where_training_on_both_halves_in_turn_leads() -> None:
    (episode,) = episodes("binary", [(6, 5)])
    chosen = learner("reptile", "mlp", "binary", inner_steps=3, inner_rate=0.05)
    assert isinstance(chosen, Reptile)
    params = start(chosen)
    phi = params
    for batch in (episode.support, episode.query, episode.support):
        phi = gradient_descent(chosen.model, chosen.objective, phi, batch, steps=1, rate=0.05)
    expected = map_params(lambda theta, end: (theta - end) / 0.05, params, phi)
    assert_close(meta_gradient(chosen, params, episode), expected)


def test_reptile_reports_the_query_loss_of_adaptation_to_the_support_set_alone() -> None:
    (episode,) = episodes("binary", [(6, 5)])
    options = {"inner_steps": 3, "inner_rate": 0.05}
    reptile, maml = (learner(name, "mlp", "binary", **options) for name in ("reptile", "maml"))
    params = start(reptile)
    found, expected = (chosen.meta_loss(params, episode) for chosen in (reptile, maml))
    assert torch.allclose(found.loss, expected.loss, rtol=1e-12)
    assert torch.allclose(found.outputs, expected.outputs, rtol=1e-12)


# --- iMAML ---


def quadratic(data: Examples) -> tuple[Tensor, Tensor]:
    """A linear model's squared error has gradient H w - b in w = (bias, weight), the order of the names."""
    x = data.inputs["table"]
    a, n = torch.cat([torch.ones(len(x), 1, dtype=x.dtype), x], dim=1), len(x)
    return 2 / n * a.T @ a, 2 / n * a.T @ data.targets


def vector(params: Params) -> Tensor:
    return torch.cat([params["bias"], params["weight"].flatten()])


@pytest.mark.parametrize("strength", [0.3, 1.0, 5.0])
@pytest.mark.parametrize("inner_steps", [0, 4])
def test_on_a_quadratic_the_implicit_gradient_has_its_closed_form(strength: float, inner_steps: int) -> None:
    """(I + H / lambda)^-1 of the query gradient at phi, however far the inner loop came."""
    episode = Episode(rows("regression", 8, "s"), rows("regression", 10, "q"))
    chosen = IMAML(LINEAR, SQUARES, inner_steps, 0.05, strength, cg_steps=FEATURES + 1)
    params = start(chosen)
    phi = vector(chosen.adapt(params, episode.support))
    (h, _), (hq, bq) = quadratic(episode.support), quadratic(episode.query)
    matrix = torch.eye(len(phi), dtype=phi.dtype) + h / strength
    expected = torch.linalg.solve(matrix, hq @ phi - bq)
    found = vector(meta_gradient(chosen, params, episode))
    assert torch.allclose(found, expected, rtol=1e-8, atol=1e-11)


@KIND
def test_the_implicit_gradient_is_the_derivative_through_a_converged_inner_loop(kind: str) -> None:
    (episode,) = episodes(kind, [(6, 5)])
    options = {"inner_steps": 150, "inner_rate": 0.1, "strength": 2.0, "cg_steps": 30}
    chosen = learner("imaml", "mlp", kind, **options)
    params = start(chosen)
    found = meta_gradient(chosen, params, episode)
    for attempt in range(3):
        rng = generator("direction", attempt)
        direction = {n: torch.randn(p.shape, generator=rng, dtype=p.dtype) for n, p in params.items()}
        up, down = (
            float(chosen.meta_loss({n: p + s * direction[n] for n, p in params.items()}, episode).loss)
            for s in (1e-5, -1e-5)
        )
        analytic = sum(float((found[n] * direction[n]).sum()) for n in params)
        assert analytic == pytest.approx((up - down) / 2e-5, rel=1e-5)


def test_a_very_strong_pull_makes_imaml_plain_training() -> None:
    (episode,) = episodes("binary", [(6, 5)])
    chosen = learner("imaml", "mlp", "binary", strength=1e9, inner_rate=1e-9)
    plain = learner("maml", "mlp", "binary", inner_steps=0)
    params = start(plain)
    assert_close(meta_gradient(chosen, params, episode), meta_gradient(plain, params, episode), rtol=1e-6)


def test_conjugate_gradient_stands_still_once_solved() -> None:
    a = torch.diag(torch.tensor([1.0, 2.0, 2.0]))
    b = torch.tensor([1.0, 1.0, 1.0])
    for steps in (2, 3, 30):
        found = conjugate_gradient(lambda x: a @ x, b, steps=steps)
        assert torch.allclose(found, torch.tensor([1.0, 0.5, 0.5]), rtol=1e-6)
    assert torch.equal(conjugate_gradient(lambda x: a @ x, torch.zeros(3), steps=5), torch.zeros(3))


def test_conjugate_gradient_stops_before_negative_curvature() -> None:
    b = torch.tensor([1.0, 2.0])
    assert torch.equal(conjugate_gradient(lambda x: -x, b, steps=5), b)
    saddle = torch.diag(torch.tensor([1.0, -0.5]))
    reached = conjugate_gradient(lambda x: saddle @ x, torch.tensor([2.0, 1.0]), steps=1)
    assert torch.equal(conjugate_gradient(lambda x: saddle @ x, torch.tensor([2.0, 1.0]), steps=9), reached)


def test_ravel_and_unravel_are_inverse_and_go_by_name() -> None:
    params = start(learner("imaml", "mlp", "binary"))
    backwards = dict(reversed(list(params.items())))
    assert torch.equal(ravel(params), ravel(backwards))
    assert_close({n: unravel(ravel(params), params)[n] for n in params}, dict(params))


# --- the learned optimizer ---


def test_the_untrained_learned_optimizer_goes_down() -> None:
    chosen = learner("learned_optimizer", "mlp", "regression", inner_steps=5)
    params, support = start(chosen), rows("regression", 9, "s")
    adapted = chosen.adapt(params, support)
    before, after = (
        chosen.objective.loss(chosen.model.apply(w, support.inputs), support)
        for w in (weights_of(params), adapted)
    )
    assert float(after) < 0.9 * float(before)


def test_the_learned_optimizer_is_the_same_function_of_every_coordinate() -> None:
    """Two features that are each other's copy, with equal weights, stay so."""
    chosen = LearnedOptimizer(LINEAR, SQUARES)
    params = dict(start(chosen))
    params["weights.weight"] = params["weights.weight"][[0, 0, 2, 3]]
    support = rows("regression", 9, "s")
    support = support._replace(inputs={"table": support.inputs["table"][:, [0, 0, 2, 3]]})
    adapted = chosen.adapt(params, support)["weight"]
    assert torch.equal(adapted[0], adapted[1])
    assert not torch.equal(adapted[0], adapted[2])


@pytest.mark.parametrize("scale", [0.01, 100.0])
def test_the_learned_optimizer_does_not_see_the_scale_of_the_loss(scale: float) -> None:
    @dataclasses.dataclass(frozen=True)
    class Scaled(Regression):
        def loss(self, outputs: Tensor, examples: Examples) -> Tensor:
            return scale * Regression.loss(self, outputs, examples)

    plain = LearnedOptimizer(LINEAR, SQUARES)
    scaled = LearnedOptimizer(LINEAR, Scaled(0))
    params, support = start(plain), rows("regression", 9, "s")
    assert_close(plain.adapt(params, support), scaled.adapt(params, support), rtol=1e-3)


def test_the_learned_optimizer_is_stable_over_five_times_the_steps_it_learned() -> None:
    """Trained with 5 steps; after 25 the query loss may be at most twice that after 5."""
    chosen = LearnedOptimizer(MLP(1, 1, hidden=(12,), activation="tanh"), SQUARES, inner_steps=5, hidden=8)
    adam = Adam(3e-3)
    params = chosen.init(generator("stable"))
    state = adam.init(params)
    for number in range(250):
        gradient = map_params(lambda g: g / 10, meta_gradient(chosen, params, *lines(10, number)))
        gradient = scaled(gradient, 1 / max(1.0, norm(gradient)))
        params, state = adam.update(gradient, state, params)
    judged = stack(lines(200, "test"))
    error: dict[int, float] = {}
    for steps in (0, 5, 25, 100):
        outputs = adapt_and_predict(dataclasses.replace(chosen, inner_steps=steps), params, judged)
        error[steps] = float((outputs.squeeze(-1) - judged.query.targets).square().mean())
    assert error[5] < 0.5 * error[0]
    assert error[25] < 2 * error[5]
    assert error[100] < 2 * error[5]


def lines(tasks: int, *key: str | int) -> list[Episode]:
    """Tasks y = a sin(x) + b x + c."""
    rng = generator("lines", *key)

    def one() -> Episode:
        a, b, c = torch.randn(3, generator=rng)
        x = 4 * torch.rand(20, 1, generator=rng) - 2
        both = Examples({"table": x}, (a * torch.sin(x) + b * x + c)[:, 0], torch.ones(20))
        return Episode(both.take(torch.arange(10)), both.take(torch.arange(10, 20)))

    return [one() for _ in range(tasks)]

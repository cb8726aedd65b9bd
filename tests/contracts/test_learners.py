"""What every registered learner promises, on every model and every kind of task it can be built for."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tasks import KINDS, combinations, episodes, learner, rows, start, width
from torch.utils._pytree import tree_map

from clinimeta.common.algorithms import ALGORITHMS
from clinimeta.common.algorithms.base import MetaLearner
from clinimeta.common.algorithms.engine import Engine
from clinimeta.common.algorithms.meta_gradient import (
    adapt_and_predict,
    task_gradients,
    task_gradients_looped,
)
from clinimeta.common.codec import decode_params, encode_params
from clinimeta.common.models import MODELS
from clinimeta.common.optim import Adam
from clinimeta.common.params import digest, map_params, norm, shapes
from clinimeta.common.rng import generator
from clinimeta.common.tasks.batch import pad, stack
from clinimeta.common.tasks.episode import Episode, Examples
from clinimeta.common.typing import Params

RAGGED = [(6, 5), (9, 7), (3, 4)]
DEFINED_OTHERWISE = {"reptile", "imaml", "fedrep", "per_fedavg"}
"""Their published update is not the derivative of a loss; see the test files of their names."""


LEARN_SLOWLY = {("neural_process", "conv4")}
Case = tuple[str, str, str]
"""Algorithm, model, kind of task."""


def usual(case: Case) -> bool:
    """What the default run tests; the rest takes minutes more, and CI runs it with `-m slow`."""
    algorithm, model, kind = case
    return model == "mlp" or (kind == "binary" and algorithm in ("maml", "protonet"))


def traced_by_default(case: Case) -> bool:
    """Tracing takes seconds."""
    algorithm, model, kind = case
    return (model == "mlp" and kind == "binary") or algorithm in ("maml", "protonet")


def parametrize(cases: list[Case], by_default: Callable[[Case], bool]) -> Any:
    marked = [pytest.param(*case, marks=() if by_default(case) else pytest.mark.slow) for case in cases]
    return pytest.mark.parametrize(("algorithm", "model", "kind"), marked)


EVERY = parametrize(combinations(), usual)
EVERY_TRACED = parametrize([c for c in combinations() if "mlp" in c or "binary" in c], traced_by_default)


def total_loss(chosen: MetaLearner[Any], params: Params, tasks: list[Episode]) -> float:
    return float(sum(chosen.meta_loss(params, episode).loss for episode in tasks))


def difference(left: Params, right: Params) -> float:
    return norm(map_params(lambda a, b: a.double() - b.double(), left, right))


def test_every_algorithm_and_every_model_is_tested() -> None:
    algorithms, models, kinds = map(set, zip(*combinations(), strict=True))
    assert algorithms == set(ALGORITHMS.names())
    assert models == set(MODELS.names())
    assert kinds == set(KINDS)


@EVERY
def test_the_meta_gradient_equals_central_differences(algorithm: str, model: str, kind: str) -> None:
    chosen, tasks = learner(algorithm, model, kind), episodes(kind, RAGGED, features=width(model))
    if not chosen.exact:
        assert algorithm in DEFINED_OTHERWISE, "its own tests hold it to its definition"
        return
    params = start(chosen)
    gradient = task_gradients(chosen, params, stack(tasks)).sum()
    for attempt in range(3):
        rng = generator("direction", attempt)
        direction = map_params(lambda p, rng=rng: torch.randn(p.shape, generator=rng, dtype=p.dtype), params)
        analytic = sum(float((gradient[n] * direction[n]).sum()) for n in gradient)
        # A long step meets curvature and the kinks of ReLU and max pooling, a short one rounding.
        assert any(
            analytic == pytest.approx(slope(chosen, params, direction, tasks, step), rel=1e-5, abs=1e-8)
            for step in (1e-5, 1e-6, 1e-7)
        )


def slope(
    chosen: MetaLearner[Any], params: Params, direction: Params, tasks: list[Episode], step: float
) -> float:
    """The central difference of the total meta-loss along a direction."""
    up, down = (map_params(lambda p, d, s=s: p + s * d, params, direction) for s in (step, -step))
    return (total_loss(chosen, up, tasks) - total_loss(chosen, down, tasks)) / (2 * step)


def float32_tolerance(chosen: MetaLearner[Any], algorithm: str) -> float:
    """How far a vmapped meta-gradient may be from the looped one; in float64 it is 1e-12 for all."""
    if chosen.model.convolutional:  # adds up in another order, which difference quotients make larger
        return 2e-5 if chosen.exact else 1e-3
    return 1e-5 if algorithm == "imaml" else 1e-6  # conjugate gradients make rounding larger


@EVERY
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_the_vmapped_meta_gradient_equals_the_looped_one(
    algorithm: str, model: str, kind: str, dtype: torch.dtype, tolerance: float
) -> None:
    chosen, batch = (
        learner(algorithm, model, kind),
        stack(episodes(kind, RAGGED, dtype=dtype, features=width(model))),
    )
    params = start(chosen, dtype=dtype)
    if dtype == torch.float32:
        tolerance = float32_tolerance(chosen, algorithm)
    fast, obvious = task_gradients(chosen, params, batch), task_gradients_looped(chosen, params, batch)
    scale = max(1.0, norm(obvious.gradients))
    assert difference(fast.gradients, obvious.gradients) <= tolerance * scale
    assert torch.allclose(fast.loss, obvious.loss, rtol=tolerance * 10, atol=tolerance)
    assert torch.allclose(fast.outputs, obvious.outputs, rtol=tolerance * 100, atol=tolerance * 10)


@EVERY_TRACED
def test_the_traced_meta_gradient_equals_the_untraced_one_to_the_bit(
    algorithm: str, model: str, kind: str
) -> None:
    """So that it does not matter to a resumed run when an engine begins to trace."""
    chosen = learner(algorithm, model, kind)
    batch = stack(episodes(kind, RAGGED, dtype=torch.float32, features=width(model)))
    params = start(chosen, dtype=torch.float32)
    plain, compiled = Engine(chosen, trace_after=100), Engine(chosen, trace_after=0)
    expected = plain.task_gradients(params, batch)
    for _ in range(3):  # torch's interpreter rewrites a graph on its second run
        found = compiled.task_gradients(params, batch)
        assert all(torch.equal(found.gradients[n], g) for n, g in expected.gradients.items())
        assert torch.equal(found.loss, expected.loss)
        assert torch.equal(found.outputs, expected.outputs)
    assert "1 of 1 shapes traced" in compiled.describe()
    obvious = task_gradients_looped(chosen, params, batch)
    tolerance = float32_tolerance(chosen, algorithm)
    assert difference(found.gradients, obvious.gradients) <= tolerance * max(1.0, norm(obvious.gradients))


@EVERY
def test_every_tensor_is_made_where_the_inputs_are(algorithm: str, model: str, kind: str) -> None:
    """On torch's device without memory, which refuses to mix with another: what a GPU would refuse, too."""
    chosen, batch = learner(algorithm, model, kind), stack(episodes(kind, RAGGED, features=width(model)))
    params, batch = tree_map(lambda x: x.to("meta"), (dict(start(chosen)), batch))
    computed = task_gradients(chosen, params, batch)
    assert {g.device.type for g in computed.gradients.values()} == {"meta"}
    assert {n: g.shape[1:] for n, g in computed.gradients.items()} == {n: p.shape for n, p in params.items()}


@EVERY
def test_padding_changes_nothing(algorithm: str, model: str, kind: str) -> None:
    chosen, (episode,) = learner(algorithm, model, kind), episodes(kind, [(6, 5)], features=width(model))
    params = start(chosen)
    padded = Episode(pad(episode.support, 11), pad(episode.query, 9))
    plain, longer = (task_gradients(chosen, params, stack([e])) for e in (episode, padded))
    assert difference(plain.sum(), longer.sum()) <= 1e-12 * max(1.0, norm(plain.sum()))
    assert torch.allclose(plain.loss, longer.loss, rtol=1e-12)
    assert torch.allclose(plain.outputs, longer.outputs[:, :5], rtol=1e-10)


@EVERY
def test_the_order_of_the_support_set_changes_nothing(algorithm: str, model: str, kind: str) -> None:
    chosen, (episode,) = learner(algorithm, model, kind), episodes(kind, [(9, 5)], features=width(model))
    params = start(chosen)
    shuffled = Episode(episode.support.take(torch.randperm(9, generator=generator("order"))), episode.query)
    plain, other = (adapt_and_predict(chosen, params, stack([e])) for e in (episode, shuffled))
    assert torch.allclose(plain, other, rtol=1e-10)


@EVERY
def test_adaptation_lowers_the_support_loss_on_a_separable_task(
    algorithm: str, model: str, kind: str
) -> None:
    """Against an empty support set and against one with mixed-up targets, at once or after some training.

    A generator or a learned distance must have learned how to use a support set; it practises on tasks
    whose classes are numbered (or whose slope points) differently each time.
    """
    if (algorithm, model) in LEARN_SLOWLY:
        pytest.skip("on convolutions a neural process learns to use a support set in thousands of steps only")
    options = {"steps": 5} if algorithm == "fine_tune" else {}  # the baseline adapts only where told to
    chosen, support = learner(algorithm, model, kind, **options), rows(kind, 12, "s", features=width(model))
    params = start(chosen)
    for attempt in range(6):
        if lowers(chosen, params, support):
            return
        params = practise(chosen, params, kind, width(model), attempt)
    assert lowers(chosen, params, support)


def lowers(chosen: MetaLearner[Any], params: Params, support: Examples) -> bool:
    with torch.no_grad():
        adapted = chosen.adapt(params, support)
        after = chosen.objective.loss(chosen.predict(params, adapted, support.inputs), support)
        nothing = support._replace(weights=torch.zeros_like(support.weights))
        turned = -support.targets if support.targets.is_floating_point() else support.targets.roll(1)
        mixed = support._replace(targets=turned)
        before = [
            chosen.objective.loss(chosen.predict(params, chosen.adapt(params, s), support.inputs), support)
            for s in (nothing, mixed)
        ]
    return all(float(after) < float(b) for b in before if bool(torch.isfinite(b)))


def practise(chosen: MetaLearner[Any], params: Params, kind: str, features: int, attempt: int) -> Params:
    """Two hundred steps of Adam on tasks that a fixed model cannot solve."""
    adam = Adam(0.01)
    state = adam.init(params)
    for step in range(200 * attempt, 200 * attempt + 200):
        tasks = [another_numbering(e, kind, step, i) for i, e in enumerate(several(kind, features, step))]
        gradient = map_params(lambda g: g / 4, task_gradients(chosen, params, stack(tasks)).sum())
        params, state = adam.update(gradient, state, params)
    return params


def several(kind: str, features: int, step: int) -> list[Episode]:
    return [
        Episode(*(rows(kind, 12, side, step, i, features=features) for side in ("support", "query")))
        for i in range(4)
    ]


def another_numbering(episode: Episode, kind: str, *key: int) -> Episode:
    """The same task with its classes renumbered, or its target's sign turned."""
    rng = generator("numbering", *key)
    classes = KINDS[kind][1]
    if not classes:
        sign = 1.0 - 2.0 * float(torch.randint(2, (), generator=rng))
        return Episode(*(half._replace(targets=sign * half.targets) for half in episode))
    order = torch.randperm(classes, generator=rng)
    return Episode(*(half._replace(targets=order[half.targets]) for half in episode))


@EVERY
def test_meta_parameters_survive_serialisation_to_the_bit(algorithm: str, model: str, kind: str) -> None:
    params = learner(algorithm, model, kind).init(generator("save"))
    read = decode_params(encode_params(params))
    assert shapes(read) == shapes(params)
    assert digest(read) == digest(params)


@EVERY
def test_the_same_seed_gives_the_same_meta_parameters(algorithm: str, model: str, kind: str) -> None:
    chosen = learner(algorithm, model, kind)
    assert digest(chosen.init(generator("x", 1))) == digest(chosen.init(generator("x", 1)))
    assert digest(chosen.init(generator("x", 1))) != digest(chosen.init(generator("x", 2)))


@EVERY
def test_the_outer_loop_improves_on_the_untrained_learner(algorithm: str, model: str, kind: str) -> None:
    chosen, tasks = learner(algorithm, model, kind), episodes(kind, RAGGED, features=width(model))
    params = start(chosen)
    before = total_loss(chosen, params, tasks)
    # The second, for learners that also learn step sizes, which are steep at first.
    assert any(total_loss(chosen, descend(chosen, params, tasks, r), tasks) < before for r in (0.02, 0.002))


def descend(chosen: MetaLearner[Any], params: Params, tasks: list[Episode], rate: float) -> Params:
    """Twenty plain outer steps."""
    for _ in range(20):
        gradient = task_gradients(chosen, params, stack(tasks)).sum()
        params = map_params(lambda p, g: p - rate * g, params, gradient)
    return params

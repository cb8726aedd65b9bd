"""The metric-based learners, each against its formula in numpy."""

from typing import Any

import numpy as np
import pytest
import torch
from tasks import FEATURES, episodes, learner, rows, start
from torch.func import grad, vmap

from clinimeta.common.algorithms.base import MetaLearner
from clinimeta.common.algorithms.mahalanobis import Mahalanobis, covariances
from clinimeta.common.algorithms.matching import Matching
from clinimeta.common.algorithms.meta_gradient import task_gradients, task_gradients_looped
from clinimeta.common.algorithms.protonet import ProtoNet
from clinimeta.common.algorithms.prototypes import cosines, squared_distances
from clinimeta.common.algorithms.relation import LEAST_SPREAD, RelationNet
from clinimeta.common.applications.diagnosis import Diagnosis
from clinimeta.common.applications.regression import Regression
from clinimeta.common.errors import StudyError
from clinimeta.common.models.linear import Linear
from clinimeta.common.params import is_finite, map_params, norm, shapes
from clinimeta.common.rng import generator
from clinimeta.common.tasks.batch import pad, stack
from clinimeta.common.tasks.episode import Episode, Examples, examples
from clinimeta.common.typing import Params

Array = np.ndarray[Any, np.dtype[np.float64]]
CLASSES, NUMBER, LINEAR = Diagnosis(3), Regression(0), Linear(FEATURES, 1)
FAMILY: list[tuple[str, dict[str, Any], str]] = [
    ("protonet", {}, "three classes"),
    ("protonet", {"distance": "cosine"}, "three classes"),
    ("matching", {}, "three classes"),
    ("matching", {}, "regression"),
    ("relation", {}, "three classes"),
    ("mahalanobis", {}, "three classes"),
]
EVERY = pytest.mark.parametrize(("algorithm", "options", "kind"), FAMILY)


def identity(embedding: int, **others: torch.Tensor) -> Params:
    """Meta-parameters of a learner on `LINEAR` whose embedding is the first `embedding` features."""
    weight = torch.eye(FEATURES, embedding, dtype=torch.float64)
    return {"embedder.weight": weight, "embedder.bias": torch.zeros(embedding, dtype=torch.float64), **others}


def scalar(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


def outputs(chosen: MetaLearner[Any], params: Params, support: Examples, query: Examples) -> Array:
    found: Array = chosen.predict(params, chosen.adapt(params, support), query.inputs).detach().numpy()
    return found


def arrays(support: Examples, query: Examples) -> tuple[Array, Array, Array]:
    return support.inputs["table"].numpy(), support.targets.numpy(), query.inputs["table"].numpy()


def means(x: Array, y: Array) -> Array:
    return np.stack([x[y == k].mean(axis=0) for k in range(3)])


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def unit(x: Array) -> Array:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


# --- what all of them promise ---


@EVERY
def test_padded_rows_change_nothing(algorithm: str, options: dict[str, Any], kind: str) -> None:
    """Whatever stands in them."""
    for prior_rows in (0.0, 2.0):
        chosen = learner(algorithm, "mlp", kind, prior_rows=prior_rows, **options)
        params, support, query = start(chosen), rows(kind, 7, "s"), rows(kind, 5, "q")
        padded = pad(support, 12)
        noise = padded._replace(inputs={"table": padded.inputs["table"].clone()}, targets=padded.targets + 0)
        noise.inputs["table"][7:], noise.targets[7:] = 50.0, 2
        expected = outputs(chosen, params, support, query)
        for longer in (padded, noise):
            np.testing.assert_allclose(outputs(chosen, params, longer, query), expected, rtol=1e-12)


@EVERY
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("left", [[], [0, 3]])
def test_with_a_prior_empty_and_one_class_support_sets_are_finite(
    algorithm: str, options: dict[str, Any], kind: str, dtype: torch.dtype, left: list[int]
) -> None:
    chosen = learner(algorithm, "mlp", kind, prior_rows=1.0, **options)
    params, query = start(chosen, dtype=dtype), rows(kind, 5, "q", dtype=dtype)
    support = rows(kind, 6, "s", dtype=dtype)  # classes 0, 1, 2, 0, 1, 2
    some = torch.zeros_like(support.weights)
    some[left] = 1.0
    for episode in (
        Episode(support.take(torch.tensor(left, dtype=torch.long)), query),
        Episode(support._replace(weights=some), query),
    ):
        found = task_gradients(chosen, params, stack([episode]))
        assert torch.isfinite(found.outputs).all()
        assert torch.isfinite(found.loss).all()
        assert found.outputs.dtype == dtype
        assert is_finite(found.sum())
        assert norm(found.sum()) > 0
        assert {g.dtype for g in found.gradients.values()} == {dtype}


@pytest.mark.parametrize(("algorithm", "options", "kind"), [f for f in FAMILY if f[2] != "regression"])
def test_without_a_prior_a_missing_class_is_not_finite(
    algorithm: str, options: dict[str, Any], kind: str
) -> None:
    """So that `clinimeta adapt` notices, and says which class is missing."""
    chosen = learner(algorithm, "mlp", kind, **options)
    only = rows(kind, 6, "s").take(torch.tensor([0, 1, 3]))
    assert not np.isfinite(outputs(chosen, start(chosen), only, rows(kind, 5, "q"))).all()


@EVERY
def test_many_prior_rows_outweigh_the_support_set(algorithm: str, options: dict[str, Any], kind: str) -> None:
    chosen = learner(algorithm, "mlp", kind, prior_rows=1e12, **options)
    params, query = start(chosen), rows(kind, 5, "q")
    if algorithm == "mahalanobis":  # its prior moves the means only
        support = rows(kind, 6, "s")
        adapted = chosen.adapt(params, support)
        assert torch.allclose(adapted.means, params["prior"], rtol=1e-9)
        return
    one, other = (outputs(chosen, params, rows(kind, n, "s", n), query) for n in (6, 9))
    np.testing.assert_allclose(one, other, rtol=1e-7, atol=1e-9)


@EVERY
def test_a_row_of_zeros_has_a_finite_gradient(algorithm: str, options: dict[str, Any], kind: str) -> None:
    """A linear embedding puts padding, and a patient at the reference values, at its bias: here 0."""
    chosen = learner(algorithm, "linear", kind, **options)
    params = dict(start(chosen))
    params["embedder.bias"] = torch.zeros_like(params["embedder.bias"])
    support, query = rows(kind, 6, "s"), rows(kind, 5, "q")
    support.inputs["table"][0], query.inputs["table"][0] = 0.0, 0.0
    found = task_gradients(chosen, params, stack([Episode(pad(support, 9), pad(query, 7))]))
    assert is_finite(found.sum())


@EVERY
def test_second_derivatives_by_vmap_equal_those_task_by_task(
    algorithm: str, options: dict[str, Any], kind: str
) -> None:
    chosen = learner(algorithm, "mlp", kind, prior_rows=1.0, **options)
    params, tasks = dict(start(chosen)), episodes(kind, [(6, 5), (6, 5)])

    def slope(params: Params, episode: Episode) -> torch.Tensor:
        gradient = grad(lambda p: chosen.meta_loss(p, episode).loss)(params)
        return sum((g.square().sum() for g in gradient.values()), start=torch.zeros(()))

    fast = vmap(grad(slope), in_dims=(None, 0))(params, stack(tasks))
    for i, episode in enumerate(tasks):
        obvious = grad(slope)(params, episode)
        for name, expected in obvious.items():
            torch.testing.assert_close(fast[name][i], expected, rtol=1e-9, atol=1e-11)


@EVERY
def test_the_meta_gradient_with_a_prior_equals_central_differences(
    algorithm: str, options: dict[str, Any], kind: str
) -> None:
    """The contract suite looks at the defaults; this looks at the other options."""
    chosen = learner(algorithm, "mlp", kind, prior_rows=1.5, **options)
    params, batch = start(chosen), stack(episodes(kind, [(6, 5), (4, 3)]))
    fast, obvious = task_gradients(chosen, params, batch), task_gradients_looped(chosen, params, batch)
    for name, expected in obvious.gradients.items():
        torch.testing.assert_close(fast.gradients[name], expected, rtol=1e-9, atol=1e-12)
    direction = {n: torch.randn(p.shape, generator=generator(n), dtype=p.dtype) for n, p in params.items()}

    def moved(step: float) -> float:
        there = {n: p + step * direction[n] for n, p in params.items()}
        return float(task_gradients(chosen, there, batch).loss.sum())

    analytic = sum(float((g * direction[n]).sum()) for n, g in fast.sum().items())
    assert analytic == pytest.approx((moved(1e-6) - moved(-1e-6)) / 2e-6, rel=1e-5)


@pytest.mark.parametrize("algorithm", ["protonet", "relation", "mahalanobis"])
def test_a_number_has_no_classes(algorithm: str) -> None:
    with pytest.raises(StudyError, match="need classes") as caught:
        learner(algorithm, "mlp", "regression")
    assert caught.value.found == "an application whose target is a number"
    assert caught.value.remedy == "choose another algorithm, such as maml"


@pytest.mark.parametrize(
    ("algorithm", "option", "value"),
    [
        ("protonet", "distance", "manhattan"),
        ("matching", "embedding", 0),
        ("matching", "prior_rows", -1.0),
        ("relation", "hidden", 0),
        ("mahalanobis", "ridge", 0.0),
    ],
)
def test_a_hyperparameter_out_of_range_is_named(algorithm: str, option: str, value: object) -> None:
    with pytest.raises(StudyError, match=option):
        learner(algorithm, "mlp", "binary", **{option: value})


# --- prototypical networks ---


def test_by_default_a_protonet_has_an_embedder_and_nothing_else() -> None:
    chosen = ProtoNet(LINEAR, CLASSES, embedding=5)
    assert shapes(chosen.init(generator("x"))) == {"embedder.weight": (FEATURES, 5), "embedder.bias": (5,)}
    full = ProtoNet(LINEAR, CLASSES, embedding=5, prior_rows=1.0, distance="cosine").init(generator("x"))
    assert shapes({n: full[n] for n in ("prior", "log_scale")}) == {"prior": (3, 5), "log_scale": ()}


def test_euclidean_scores_are_negative_squared_distances_to_the_class_means() -> None:
    support, query = rows("three classes", 7, "s"), rows("three classes", 5, "q")
    x, y, q = arrays(support, query)
    chosen = ProtoNet(LINEAR, CLASSES, embedding=FEATURES)
    expected = -((q[:, None] - means(x, y)) ** 2).sum(axis=-1)
    np.testing.assert_allclose(outputs(chosen, identity(FEATURES), support, query), expected, rtol=1e-12)


def test_cosine_scores_are_scaled_cosines_to_the_class_means() -> None:
    support, query = rows("three classes", 7, "s"), rows("three classes", 5, "q")
    x, y, q = arrays(support, query)
    chosen = ProtoNet(LINEAR, CLASSES, embedding=FEATURES, distance="cosine")
    params = identity(FEATURES, log_scale=scalar(np.log(7.0)))
    expected = 7 * unit(q) @ unit(means(x, y)).T
    np.testing.assert_allclose(outputs(chosen, params, support, query), expected, rtol=1e-7, atol=1e-8)


def test_a_prior_row_counts_as_a_row() -> None:
    support = rows("three classes", 7, "s")
    x, y, _ = arrays(support, support)
    prior = torch.arange(12, dtype=torch.float64).reshape(3, 4)
    chosen = ProtoNet(LINEAR, CLASSES, embedding=FEATURES, prior_rows=2.0)
    found = chosen.adapt(identity(FEATURES, prior=prior), support)
    many = np.concatenate([x, prior.numpy(), prior.numpy()]), np.concatenate([y, [0, 1, 2, 0, 1, 2]])
    np.testing.assert_allclose(found.numpy(), means(*many), rtol=1e-12)


def test_all_pairs_are_compared() -> None:
    left, right = (torch.randn(n, 3, generator=generator(n), dtype=torch.float64) for n in (4, 2))
    a, b = left.numpy(), right.numpy()
    np.testing.assert_allclose(cosines(left, right).numpy(), unit(a) @ unit(b).T, rtol=1e-6)
    expected = [[np.linalg.norm(r - p) ** 2 for p in b] for r in a]
    np.testing.assert_allclose(squared_distances(left, right).numpy(), expected, rtol=1e-12)


# --- matching networks ---


def test_matching_scores_are_log_probabilities_by_attention() -> None:
    support, query = rows("three classes", 7, "s"), rows("three classes", 5, "q")
    x, y, q = arrays(support, query)
    chosen = Matching(LINEAR, CLASSES, embedding=FEATURES)
    found = outputs(chosen, identity(FEATURES, log_scale=scalar(np.log(3.0))), support, query)
    attention = softmax(3 * unit(q) @ unit(x).T)
    np.testing.assert_allclose(np.exp(found), attention @ np.eye(3)[y], rtol=1e-6)
    np.testing.assert_allclose(np.exp(found).sum(axis=1), 1, rtol=1e-12)


def test_two_classes_become_one_logit() -> None:
    support, query = rows("binary", 7, "s"), rows("binary", 5, "q")
    x, y, q = arrays(support, query)
    chosen = Matching(LINEAR, Diagnosis(2), embedding=FEATURES)
    logit = outputs(chosen, identity(FEATURES, log_scale=scalar(0.0)), support, query)[:, 0]
    expected = softmax(unit(q) @ unit(x).T) @ (y == 1)
    np.testing.assert_allclose(1 / (1 + np.exp(-logit)), expected, rtol=1e-6)


def test_a_probability_too_small_for_a_float_is_still_a_finite_score() -> None:
    support, query = rows("three classes", 6, "s"), rows("three classes", 5, "q")
    chosen = Matching(LINEAR, CLASSES, embedding=FEATURES)
    params = identity(FEATURES, log_scale=scalar(np.log(1e5)))
    found = outputs(chosen, params, support, query)
    assert np.isfinite(found).all()
    assert found.min() < -1e4


def test_one_support_row_is_the_answer_to_everything() -> None:
    query = rows("regression", 5, "q")
    chosen = learner("matching", "mlp", "regression")
    one = rows("regression", 1, "s")
    found = outputs(chosen, start(chosen), one, query)
    np.testing.assert_allclose(found, np.full((5, 1), float(one.targets[0])), rtol=1e-12)
    binary = learner("matching", "mlp", "three classes")
    only = rows("three classes", 1, "s")
    assert (np.exp(outputs(binary, start(binary), only, query)) == [[1.0, 0.0, 0.0]]).all()


@pytest.mark.parametrize("bandwidth", [0.3, 1.0, 10.0])
def test_matching_a_number_is_the_nadaraya_watson_estimator(bandwidth: float) -> None:
    support, query = rows("regression", 8, "s"), rows("regression", 5, "q")
    x, y, q = arrays(support, query)
    chosen = Matching(LINEAR, NUMBER, embedding=2)
    found = outputs(chosen, identity(2, log_scale=scalar(-2 * np.log(bandwidth))), support, query)[:, 0]
    for i in range(5):
        kernel = np.exp(-((q[i, :2] - x[:, :2]) ** 2).sum(axis=1) / (2 * bandwidth**2))
        assert found[i] == pytest.approx((kernel * y).sum() / kernel.sum(), rel=1e-9)


def test_without_bandwidth_matching_a_number_is_the_nearest_neighbour() -> None:
    support, query = rows("regression", 8, "s"), rows("regression", 5, "q")
    x, y, q = arrays(support, query)
    chosen = Matching(LINEAR, NUMBER, embedding=FEATURES)
    found = outputs(chosen, identity(FEATURES, log_scale=scalar(-2 * np.log(1e-4))), support, query)[:, 0]
    nearest = ((q[:, None] - x) ** 2).sum(axis=-1).argmin(axis=1)
    np.testing.assert_allclose(found, y[nearest], rtol=1e-12)


def test_with_endless_bandwidth_matching_a_number_is_the_mean() -> None:
    support, query = rows("regression", 8, "s"), rows("regression", 5, "q")
    chosen = Matching(LINEAR, NUMBER, embedding=FEATURES)
    found = outputs(chosen, identity(FEATURES, log_scale=scalar(-60.0)), support, query)
    np.testing.assert_allclose(found, float(support.targets.mean()), rtol=1e-12)


def test_without_a_patient_the_prior_row_answers() -> None:
    chosen = Matching(LINEAR, NUMBER, embedding=2, prior_rows=1.0)
    params = identity(
        2,
        log_scale=scalar(0.0),
        prior=torch.zeros(1, 2, dtype=torch.float64),
        prior_target=torch.tensor([4.5], dtype=torch.float64),
    )
    nobody = rows("regression", 3, "s").take(torch.arange(0))
    assert (outputs(chosen, params, nobody, rows("regression", 5, "q")) == 4.5).all()


def test_a_prior_row_of_matching_counts_as_so_many_rows() -> None:
    support, query = rows("regression", 4, "s"), rows("regression", 5, "q")
    prior, target = torch.ones(1, FEATURES, dtype=torch.float64), torch.tensor([2.0], dtype=torch.float64)
    scale = {"log_scale": scalar(0.4)}
    with_prior = Matching(LINEAR, NUMBER, embedding=FEATURES, prior_rows=3.0)
    found = outputs(with_prior, identity(FEATURES, prior=prior, prior_target=target, **scale), support, query)
    more = examples(
        {"table": torch.cat([support.inputs["table"], prior, prior, prior])},
        torch.cat([support.targets, target, target, target]),
    )
    plain = Matching(LINEAR, NUMBER, embedding=FEATURES)
    np.testing.assert_allclose(found, outputs(plain, identity(FEATURES, **scale), more, query), rtol=1e-12)


# --- relation networks ---


def test_relation_scores_by_hand() -> None:
    support, query = rows("three classes", 7, "s"), rows("three classes", 5, "q")
    x, y, q = arrays(support, query)
    chosen = RelationNet(LINEAR, CLASSES, embedding=FEATURES, hidden=6)
    params = {**start(chosen), **identity(FEATURES)}
    (w0, b0), (w1, b1) = (
        (params[f"relation.{i}.weight"].numpy(), params[f"relation.{i}.bias"].numpy()) for i in (0, 1)
    )
    of_class = means(x, y)
    center = of_class.mean(axis=0)
    spread = np.sqrt(((of_class - center) ** 2).mean() + LEAST_SPREAD**2)
    found = outputs(chosen, params, support, query)
    for i in range(5):
        for k in range(3):
            pair = np.concatenate([of_class[k] - center, q[i] - center]) / spread
            score = np.maximum(pair @ w0 + b0, 0) @ w1 + b1
            assert found[i, k] == pytest.approx(score.item(), rel=1e-9)


def test_relations_do_not_depend_on_where_the_embedding_is_nor_on_its_unit() -> None:
    support, query = rows("three classes", 7, "s"), rows("three classes", 5, "q")
    chosen = RelationNet(LINEAR, CLASSES, embedding=FEATURES)
    params = {**start(chosen), **identity(FEATURES)}
    weight, bias = params["embedder.weight"], params["embedder.bias"]
    moved = {**params, "embedder.weight": 100 * weight, "embedder.bias": 100 * bias + 30.0}
    one, other = (outputs(chosen, p, support, query) for p in (params, moved))
    np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)


# --- Mahalanobis distances ---


def shrunk_covariances(x: Array, y: Array, ridge: float) -> list[Array]:
    """Q_k as section 4 of Bateni et al. says, class by class."""
    found = []
    for k in range(3):
        of_class = x[y == k]
        share = len(of_class) / (len(of_class) + 1)
        own = np.cov(of_class.T) if len(of_class) > 1 else np.zeros((x.shape[1],) * 2)
        found.append(share * own + (1 - share) * np.cov(x.T) + ridge * np.eye(x.shape[1]))
    return found


@pytest.mark.parametrize("count", [7, 12, 4])
@pytest.mark.parametrize("ridge", [1.0, 0.1])
def test_mahalanobis_scores_against_numpy(count: int, ridge: float) -> None:
    """With 4 rows, two of the classes have one."""
    support, query = rows("three classes", count, "s"), rows("three classes", 5, "q")
    x, y, q = arrays(support, query)
    chosen = Mahalanobis(LINEAR, CLASSES, embedding=FEATURES, ridge=ridge)
    found = outputs(chosen, identity(FEATURES), support, query)
    for k, (mean, shape) in enumerate(zip(means(x, y), shrunk_covariances(x, y, ridge), strict=True)):
        expected = [-(r - mean) @ np.linalg.inv(shape) @ (r - mean) / 2 for r in q]
        np.testing.assert_allclose(found[:, k], expected, rtol=1e-9)


def test_a_large_ridge_makes_the_nearest_class_that_of_euclid() -> None:
    support, query = rows("three classes", 9, "s"), rows("three classes", 40, "q")
    params = identity(FEATURES)
    round_ones = Mahalanobis(LINEAR, CLASSES, embedding=FEATURES, ridge=1e7)
    euclid = outputs(ProtoNet(LINEAR, CLASSES, embedding=FEATURES), params, support, query)
    found = outputs(round_ones, params, support, query)
    np.testing.assert_allclose(2e7 * found, euclid, rtol=1e-5)
    assert (found.argmax(axis=1) == euclid.argmax(axis=1)).all()


def test_a_class_that_spreads_reaches_farther() -> None:
    """Between a tight class at 0 and a wide one at 4, the point 1.5 is nearer to 0, yet of the wide one."""
    table = torch.tensor([[-0.1], [0.1], [0.0], [-2.0], [10.0], [4.0]], dtype=torch.float64)
    support = examples({"table": table}, torch.tensor([0, 0, 0, 1, 1, 1]))
    query = examples({"table": torch.tensor([[1.5]], dtype=torch.float64)}, torch.tensor([1]))
    params = {
        "embedder.weight": torch.ones(1, 1, dtype=torch.float64),
        "embedder.bias": torch.zeros(1, dtype=torch.float64),
    }
    model, two = Linear(1, 1), Diagnosis(2)
    assert outputs(ProtoNet(model, two, embedding=1), params, support, query) < 0
    assert outputs(Mahalanobis(model, two, embedding=1, ridge=0.01), params, support, query) > 0


def test_covariances_are_those_of_numpy_and_zero_for_one_row_or_none() -> None:
    x = torch.randn(6, 3, generator=generator("x"), dtype=torch.float64)
    member = torch.zeros(6, 3, dtype=torch.float64)
    member[:4, 0], member[5, 1] = 1.0, 1.0
    found = covariances(x, member).numpy()
    np.testing.assert_allclose(found[0], np.cov(x[:4].numpy().T), rtol=1e-12)
    assert (found[1:] == 0).all()


def test_numbers_that_are_not_finite_stay_so_instead_of_raising() -> None:
    """So that a site that diverged refuses, and does not stop the federation."""
    support, query = rows("three classes", 6, "s"), rows("three classes", 5, "q")
    chosen = Mahalanobis(LINEAR, CLASSES, embedding=FEATURES)
    params = map_params(lambda p: p * float("nan"), identity(FEATURES))
    assert np.isnan(outputs(chosen, params, support, query)).all()

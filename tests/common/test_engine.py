"""The engine: which route it takes, what it compiles, and that no choice of it changes a result."""

from typing import Any

import pytest
import torch
from tasks import episodes, learner, start, width

from clinimeta.common.algorithms import tracing
from clinimeta.common.algorithms.engine import ROW_SIZES, Engine, engine
from clinimeta.common.algorithms.meta_gradient import TaskGradients, adapt_and_predict, task_gradients_looped
from clinimeta.common.params import map_params
from clinimeta.common.tasks.batch import stack, unstack, without_marks
from clinimeta.common.tasks.episode import Episode
from clinimeta.common.typing import Params

RAGGED = [(6, 5), (9, 7), (3, 4)]
EVEN = [(6, 5)] * 3


def batch_of(model: str, sizes: list[tuple[int, int]]) -> Episode:
    return stack(episodes("binary", sizes, features=width(model)))


def assert_equal(found: TaskGradients, expected: TaskGradients, tolerance: float = 1e-12) -> None:
    for name, gradient in expected.gradients.items():
        assert torch.allclose(found.gradients[name], gradient, rtol=tolerance, atol=tolerance)
    assert torch.allclose(found.loss, expected.loss, rtol=tolerance)
    assert found.outputs.shape == expected.outputs.shape
    assert torch.allclose(found.outputs, expected.outputs, rtol=tolerance * 100)


@pytest.mark.parametrize(
    ("model", "device", "route"),
    [
        ("mlp", "cpu", "vmap"),
        ("set_encoder", "cpu", "vmap"),
        ("conv4", "cpu", "threads"),
        ("conv1d", "cpu", "threads"),
        ("conv4", "cuda", "vmap"),
    ],
)
def test_the_route_follows_the_model_and_the_device(model: str, device: str, route: str) -> None:
    assert Engine(learner("maml", model, "binary"), device).route == route


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("trace_after", [0, 10**9])
@pytest.mark.parametrize("model", ["mlp", "conv4"])
def test_no_choice_changes_a_result(model: str, trace_after: int, threads: int) -> None:
    chosen, batch = learner("maml", model, "binary"), batch_of(model, RAGGED)
    params = start(chosen)
    fast = Engine(chosen, trace_after=trace_after, threads=threads)
    for _ in range(2):
        assert_equal(fast.task_gradients(params, batch), task_gradients_looped(chosen, params, batch))
        found = fast.adapt_and_predict(params, batch)
        assert torch.allclose(found, adapt_and_predict(chosen, params, batch), rtol=1e-10)


@pytest.mark.parametrize("trace_after", [0, 10**9])
@pytest.mark.parametrize("model", ["mlp", "conv4"])
def test_each_task_may_have_its_own_parameters(model: str, trace_after: int) -> None:
    chosen, batch = learner("maml", model, "binary"), batch_of(model, EVEN)
    own: Params = map_params(lambda p: torch.stack([p, 2 * p, 0.5 * p]), start(chosen))
    found = Engine(chosen, trace_after=trace_after).task_gradients(own, batch, own_params=True)
    for i, episode in enumerate(unstack(batch)):
        alone = task_gradients_looped(chosen, map_params(lambda p, i=i: p[i], own), stack([episode]))
        for name, gradient in alone.gradients.items():
            assert torch.allclose(found.gradients[name][i], gradient[0], rtol=1e-10, atol=1e-12)


def test_what_was_chosen_and_compiled_is_described() -> None:
    chosen, batch = learner("maml", "mlp", "binary"), batch_of("mlp", RAGGED)
    fast = Engine(chosen, trace_after=1)
    assert fast.describe() == ""
    fast.task_gradients(start(chosen), batch)
    assert fast.describe() == "all tasks in one call, 0 of 1 shapes traced, on cpu"
    fast.task_gradients(start(chosen), batch)
    assert fast.describe() == "all tasks in one call, 1 of 1 shapes traced, on cpu"


def test_convolutions_are_described_by_their_threads() -> None:
    chosen = learner("maml", "conv4", "binary")
    looping = Engine(chosen, threads=3)
    looping.task_gradients(start(chosen), batch_of("conv4", EVEN))
    assert looping.describe() == "task by task on 3 threads, 0 of 1 shapes traced, on cpu"


def test_neighbouring_sizes_share_a_shape() -> None:
    """Ragged hospitals would otherwise never see a shape often enough to trace it."""
    chosen = learner("maml", "mlp", "binary")
    fast = Engine(chosen)
    for rows in (21, 22):
        fast.task_gradients(start(chosen), batch_of("mlp", [(rows, rows - 1), (20, 4)]))
    assert "of 1 shapes" in fast.describe()


def test_sizes_beyond_the_list_stay_as_they_are() -> None:
    chosen, rows = learner("maml", "mlp", "binary"), ROW_SIZES[-1] + 3
    batch = batch_of("mlp", [(rows, 4)])
    assert_equal(
        Engine(chosen).task_gradients(start(chosen), batch),
        task_gradients_looped(chosen, start(chosen), batch),
    )


def test_the_mark_of_real_rows_is_dropped_only_where_nothing_is_padded() -> None:
    assert "real" not in without_marks(batch_of("mlp", EVEN)).support.inputs
    padded = without_marks(batch_of("mlp", RAGGED))
    assert "real" in padded.support.inputs
    assert "real" in padded.query.inputs


def test_equal_learners_share_an_engine() -> None:
    assert engine(learner("maml", "mlp", "binary")) is engine(learner("maml", "mlp", "binary"))
    assert engine(learner("maml", "mlp", "binary")) is not engine(learner("anil", "mlp", "binary"))


@pytest.mark.parametrize("broken", ["_graph", "jit"])
def test_what_cannot_be_traced_is_computed_all_the_same(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> Any:
        raise RuntimeError("not for this tracer")

    if broken == "jit":
        monkeypatch.setattr(torch.jit, "trace", fails)
    else:
        monkeypatch.setattr(tracing, "_graph", fails)
    chosen, batch = learner("maml", "mlp", "binary"), batch_of("mlp", RAGGED)
    fast = Engine(chosen, trace_after=0)
    assert_equal(
        fast.task_gradients(start(chosen), batch), task_gradients_looped(chosen, start(chosen), batch)
    )

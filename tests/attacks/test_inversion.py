"""Gradient inversion must succeed where nothing is protected and fail where it is, or it proves nothing."""

import pytest
import torch
from inversion import closed_form, correlations, found, optimise
from records import Kind, draw_task, first, records, summed, task_gradients, victim
from release import clipped, gaussian, no_noise, norms, release
from torch import Tensor

from clinimeta.common.params import map_params
from clinimeta.common.rng import generator
from clinimeta.common.tasks.batch import stack
from clinimeta.common.tasks.episode import Episode
from clinimeta.common.typing import Params

ORDERS = pytest.mark.parametrize("first_order", [True, False], ids=["FOMAML", "MAML"])
REPEATS = 12


def mean_share(kind: Kind, query: int, *, first_order: bool, tasks: int = 1, z: float | None = None) -> float:
    """The mean of `shares`."""
    return sum(shares(kind, query, first_order=first_order, tasks=tasks, z=z)) / REPEATS


def shares(
    kind: Kind, query: int, *, first_order: bool, tasks: int = 1, z: float | None = None
) -> list[float]:
    """The share of query records found in each sum over `tasks`; with `z`, after clipping and noise."""
    learner = victim(kind, first_order=first_order)
    every = []
    for repeat in range(REPEATS):
        params = learner.init(generator("start", repeat))
        drawn = [draw_task(kind, query, repeat, i) for i in range(tasks)]
        gradients = task_gradients(learner, params, drawn)
        update = summed(gradients)
        if z is not None:
            clip = float(norms(gradients).median())
            update = release(gradients, clip, gaussian(z), generator("noise", repeat))
        every.append(found(torch.cat([t.query.inputs["table"] for t in drawn]), closed_form(update)))
    return every


def control(kind: Kind, query: int) -> float:
    """The mean of `controls`."""
    return sum(controls(kind, query)) / REPEATS


def controls(kind: Kind, query: int) -> list[float]:
    """The share of query records that 64 random other records show as well: what no attack need explain."""
    x, _ = records(kind)
    every = []
    for repeat in range(REPEATS):
        record = draw_task(kind, query, repeat, 0).query.inputs["table"]
        rows = torch.randperm(len(x), generator=generator("control", repeat))[:64]
        others = x[rows]
        others = others[~(torch.cdist(others, record) == 0).any(dim=1)]
        every.append(found(record, others))
    return every


# In closed form, from the first layer


@ORDERS
@pytest.mark.parametrize("kind", ["table", "picture"])
def test_a_single_query_record_is_read_off_exactly(kind: Kind, first_order: bool) -> None:
    learner = victim(kind, first_order=first_order)
    errors = []
    for repeat in range(REPEATS):
        task = draw_task(kind, 1, "single", repeat)
        gradients = task_gradients(learner, learner.init(generator("start", repeat)), [task])
        candidates = closed_form(first(gradients))
        errors.append(float((candidates - task.query.inputs["table"]).abs().max(dim=1).values.min()))
    errors.sort()
    assert errors[REPEATS // 2] < (1e-5 if first_order else 0.05)


@ORDERS
@pytest.mark.parametrize(
    ("kind", "query", "least"),
    [("table", 1, 0.95), ("table", 2, 0.9), ("picture", 1, 0.9), ("picture", 5, 0.6)],
)
def test_few_query_records_of_one_task_are_found(
    kind: Kind, query: int, least: float, first_order: bool
) -> None:
    """Second order is no defence."""
    share = mean_share(kind, query, first_order=first_order)
    assert share > least
    assert share > control(kind, query) + 0.4


@ORDERS
@pytest.mark.parametrize(("kind", "query"), [("table", 1), ("table", 2), ("picture", 5)])
def test_the_sum_over_many_tasks_shows_no_more_than_other_records_do(
    kind: Kind, query: int, first_order: bool
) -> None:
    """What secure aggregation reveals, 32 tasks of a cohort."""
    assert mean_share(kind, query, first_order=first_order, tasks=32) <= control(kind, query) + 0.05


def test_a_sum_over_few_tasks_still_leaks() -> None:
    """Why a site should not send a round of one or two tasks, and why a sum alone is not a promise."""
    assert mean_share("table", 1, first_order=True, tasks=8) > control("table", 1) + 0.2


@ORDERS
@pytest.mark.parametrize(("kind", "query"), [("table", 1), ("table", 2), ("picture", 5)])
def test_clipping_and_noise_hide_the_records_of_a_single_task(
    kind: Kind, query: int, first_order: bool
) -> None:
    assert mean_share(kind, query, first_order=first_order, z=0.1) <= control(kind, query) + 0.05


def test_clipping_alone_hides_nothing() -> None:
    """The ratio of two gradients does not know how long they are."""
    assert mean_share("table", 2, first_order=True, z=0.0) > 0.9


# By optimisation


VICTIMS = {"table": 8, "picture": 4}
STEPS = {"table": 600, "picture": 400}


def attack(kind: Kind, *, z: float | None) -> tuple[Tensor, Tensor]:
    """Correlation of each query record with what the attack made of it, and with a random other record."""
    inner_steps = 5 if kind == "table" else 1
    learner = victim(kind, first_order=True, activation="tanh", inner_steps=inner_steps)
    differentiable = victim(kind, first_order=False, activation="tanh", inner_steps=inner_steps)
    params = learner.init(generator("start", 0))
    tasks = [draw_task(kind, 2, "victim", i) for i in range(VICTIMS[kind])]
    gradients = task_gradients(learner, params, tasks)
    if z is not None:
        clip = float(norms(gradients).median())
        one = [map_params(lambda g, i=i: g[i : i + 1], gradients) for i in range(len(tasks))]
        sent = [release(g, clip, gaussian(z), generator("noise", i)) for i, g in enumerate(one)]
        gradients = map_params(lambda *parts: torch.stack(parts), *sent)
    guessed = optimise(
        differentiable, params, gradients, known(stack(tasks)), steps=STEPS[kind], rate=0.1, seed=1
    )
    truth = torch.stack([task.query.inputs["table"] for task in tasks])
    x, _ = records(kind)
    others = x[torch.randperm(len(x), generator=generator("others"))[: truth[:, :, 0].numel()]]
    return matched(truth, guessed), matched(truth, others.reshape(truth.shape))


def matched(truth: Tensor, guessed: Tensor) -> Tensor:
    """Record by record (labels say which is which), `[victims, query]`."""
    return torch.stack([correlations(t, g).diagonal() for t, g in zip(truth, guessed, strict=True)])


def known(batch: Episode) -> Episode:
    """The batch without what marks padding: nothing is padded."""
    support, query = (rows._replace(inputs={"table": rows.inputs["table"]}) for rows in batch)
    return Episode(support, query)


@pytest.mark.parametrize("kind", ["table", "picture"])
def test_optimisation_finds_the_records_of_a_single_task(kind: Kind) -> None:
    reached, others = attack(kind, z=None)
    assert float(reached.median()) > 0.9
    assert float((reached > 0.9).double().mean()) > 0.5
    assert float(reached.median()) > float(others.median()) + 0.3


@pytest.mark.parametrize("kind", ["table", "picture"])
def test_clipping_and_noise_stop_the_optimisation(kind: Kind) -> None:
    reached, _ = attack(kind, z=0.1)
    assert float(reached.median()) < 0.5
    assert not bool((reached > 0.9).any())


# The parts


def test_clipping_bounds_every_task_and_keeps_the_short() -> None:
    gradients = {"a": torch.tensor([[3.0, 0.0], [0.3, 0.0]]), "b": torch.tensor([4.0, 0.4])}
    found_: Params = clipped(gradients, 1.0)
    assert torch.allclose(norms(found_), torch.tensor([1.0, 0.5]))
    assert torch.equal(release(gradients, 10.0, no_noise, generator("x"))["b"], torch.tensor(4.4))

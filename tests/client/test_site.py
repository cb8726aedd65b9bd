"""What a site answers equals what the textbook says, and nothing but that leaves the hospital."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from clinimeta.client.site import Site, answer
from clinimeta.common import metrics
from clinimeta.common.algorithms.meta_gradient import adapt_and_predict, task_gradients_looped
from clinimeta.common.applications.diagnosis import Diagnosis
from clinimeta.common.calibration import TEMPERATURES
from clinimeta.common.codec import Envelope, encode
from clinimeta.common.metrics import Mean
from clinimeta.common.optim import SGD
from clinimeta.common.params import add, digest, map_params, norm, scaled, shapes
from clinimeta.common.records import (
    REFUSALS,
    Calibration,
    CalibrationOrder,
    Introduction,
    IntroductionOrder,
    MetaGradient,
    MetaGradientOrder,
    Order,
    Refusal,
    Reply,
    count_range,
)
from clinimeta.common.rng import generator
from clinimeta.common.study import Choice, Plan, read_study
from clinimeta.common.tasks.batch import stack
from clinimeta.common.tasks.episode import Episode, concatenate
from clinimeta.common.tasks.sampler import draw_episode, draw_episodes
from clinimeta.common.tasks.schema import Schema
from clinimeta.common.tasks.table import Records, Table
from clinimeta.common.typing import Params
from clinimeta.server.aggregation import Limits, aggregate

STUDY = """
name = "small"
primary = "maml"
data = { name = "csv_folder" }
model = { name = "mlp", hidden = [4], activation = "tanh" }
episodes = { shots = [1, 3], query = 4, tasks = 3 }

[table]
target = "sick"
classes = ["no", "yes"]
patient = "person"
columns = [{ name = "age", unit = "years", center = 50.0, scale = 10.0 }, { name = "sex", kind = "binary" }]

[[arms]]
name = "maml"
algorithm = { name = "maml", inner_steps = 2 }

[[arms]]
name = "fedavg"
algorithm = { name = "fine_tune", steps = 0 }
model = { name = "linear" }
episodes = { draw = "rows", shots = [0], query = 6, tasks = 1 }
training = { local_meta_steps = 5, local_rate = 0.1, weighting = "rows" }
"""
SECRET = "4711"
LIMITS = Limits(1e4, 1e3)


def plan(arm: str = "maml", **changes: Any) -> Plan:
    study = read_study(STUDY, "study.toml")
    return study.plan(study.arm(arm), seed=7).model_copy(update=changes)


def records(count: int = 30, *key: str | int, **cells: Sequence[str]) -> Records:
    """People of whom the older are sick more often; the last has a second row."""
    rng = generator("hospital", *key)
    age = (50 + 10 * torch.randn(count, generator=rng)).round().int().tolist()
    noise = torch.randn(count, generator=rng).tolist()
    sex = torch.randint(2, (count,), generator=rng).tolist()
    made = {
        "age": [str(a) for a in age],
        "sex": [str(s) for s in sex],
        "sick": ["yes" if a + 4 * e > 50 else "no" for a, e in zip(age, noise, strict=True)],
        "person": [str(min(i, count - 2)) for i in range(count)],
    }
    return Records("/srv/ulm/cases.csv", {**made, **cells})


def site(count: int = 30, name: str = "ulm") -> Site:
    return Site(name, records(count, name))


def fresh(chosen: Plan) -> Params:
    return chosen.learner().init(generator("received"))


def gradient_order(chosen: Plan, params: Params | None = None, *, round_number: int = 1) -> MetaGradientOrder:
    received = fresh(chosen) if params is None else params
    return MetaGradientOrder("nonce", "run", round_number, chosen.canonical(), received)


def calibration_order(chosen: Plan, temperatures: tuple[float, ...] = TEMPERATURES) -> CalibrationOrder:
    return CalibrationOrder("nonce", "run", chosen.canonical(), fresh(chosen), temperatures)


def meta_gradient(at: Site, order: MetaGradientOrder) -> MetaGradient:
    reply = answer(at, order)
    assert isinstance(reply, MetaGradient), reply
    return reply


def calibration(at: Site, order: CalibrationOrder) -> Calibration:
    reply = answer(at, order)
    assert isinstance(reply, Calibration), reply
    return reply


def drawn_by(at: Site, chosen: Plan, *, step: int = 0, round_number: int = 1) -> list[Episode]:
    """The episodes of a step: a function of the plan's seed, the round, the step and the site."""
    rng = generator("episodes", chosen.seed, round_number, step, at.name)
    return draw_episodes(at.table(chosen.table), chosen.episodes, rng)


def difference(left: Params, right: Params) -> float:
    return norm(map_params(lambda a, b: a.double() - b.double(), left, right))


# The meta-gradient


def test_a_site_sends_the_sum_of_its_tasks_meta_gradients() -> None:
    chosen = plan()
    order = gradient_order(chosen, round_number=4)
    reply = meta_gradient(site(), order)
    episodes = drawn_by(site(), chosen, round_number=4)
    expected = task_gradients_looped(chosen.learner(), order.params, stack(episodes)).sum()
    assert reply.weight == len(episodes) == 3
    assert shapes(reply.gradient) == shapes(order.params)
    assert difference(reply.gradient, expected) <= 1e-6 * norm(expected)
    assert (reply.nonce, reply.run, reply.round, reply.site) == ("nonce", "run", 4, "ulm")


def test_a_site_asked_twice_answers_the_same_and_in_another_round_otherwise() -> None:
    one, again, later = (
        digest(meta_gradient(site(), gradient_order(plan(), round_number=number)).gradient)
        for number in (1, 1, 2)
    )
    assert one == again != later


def test_the_sites_together_send_the_centralised_meta_gradient() -> None:
    chosen = plan()
    order, sites = gradient_order(chosen), [site(count, name) for name, count in SIZES.items()]
    replies = {at.name: meta_gradient(at, order) for at in sites}
    episodes = [episode for at in sites for episode in drawn_by(at, chosen)]
    central = task_gradients_looped(chosen.learner(), order.params, stack(episodes)).sum()
    federated = aggregate(replies, LIMITS, order.params)
    assert federated.weight == len(episodes)
    assert federated.gradient is not None
    assert difference(federated.gradient, scaled(central, 1 / len(episodes))) <= 1e-6


SIZES = {"ulm": 30, "bonn": 14, "kiel": 51}


def logistic_regression_step(params: Params, x: Tensor, y: Tensor, rate: float) -> Params:
    """One step of gradient descent on the mean cross-entropy, its gradient written out by hand."""
    error = torch.sigmoid(x @ params["weight"][:, 0] + params["bias"][0]) - y.to(x.dtype)
    gradient = {"weight": (x.T @ error / len(y))[:, None], "bias": error.mean()[None]}
    return add(params, gradient, -rate)


def local_training(at: Site, chosen: Plan, received: Params) -> Params:
    """ClientUpdate of McMahan et al., AISTATS 2017, algorithm 1, on the same batches as the site.

    With `proximal` the local solver of Li et al., MLSys 2020, algorithm 2: its objective is their eq. 2.
    """
    params = received
    for step in range(chosen.local_meta_steps):
        (batch,) = (concatenate(*episode) for episode in drawn_by(at, chosen, step=step))
        x, y = batch.inputs["table"].double(), batch.targets
        pull = map_params(lambda w, start: chosen.proximal * (w - start), params, received)
        params = logistic_regression_step(params, x, y, chosen.local_rate)
        params = add(params, pull, -chosen.local_rate)
    return params


@pytest.mark.parametrize("proximal", [0.0, 0.1, 2.0])
def test_several_local_steps_and_an_outer_step_of_the_same_rate_are_federated_averaging(
    proximal: float,
) -> None:
    chosen = plan("fedavg", proximal=proximal)
    order, sites = gradient_order(chosen), [site(count, name) for name, count in SIZES.items()]
    rows = {at.name: len(at.records) for at in sites}
    start = map_params(lambda p: p.double(), order.params)
    averaged = map_params(lambda p: torch.zeros_like(p), start)
    for at in sites:
        averaged = add(averaged, local_training(at, chosen, start), rows[at.name] / sum(rows.values()))
    gradient = aggregate({at.name: meta_gradient(at, order) for at in sites}, LIMITS, order.params).gradient
    assert gradient is not None
    outer = SGD(chosen.local_rate)
    stepped, _ = outer.update(gradient, outer.init(order.params), order.params)
    assert difference(averaged, start) > 0.1
    assert difference(stepped, averaged) <= 1e-6


@pytest.mark.parametrize("arm", ["maml", "fedavg"])
def test_a_proximal_term_keeps_a_site_near_what_it_received(arm: str) -> None:
    lengths = [
        norm(meta_gradient(site(), gradient_order(plan(arm, local_meta_steps=5, proximal=p))).gradient)
        for p in (0.0, 0.5, 5.0)
    ]
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[2] < 0.9 * lengths[0]


def test_a_proximal_term_says_nothing_to_a_single_local_step() -> None:
    one, other = (
        digest(meta_gradient(site(), gradient_order(plan(proximal=p))).gradient) for p in (0.0, 5.0)
    )
    assert one == other


def test_a_single_task_of_several_local_steps_weighs_one() -> None:
    reply = meta_gradient(site(), gradient_order(plan("fedavg", weighting="tasks")))
    assert reply.weight == 1.0


@pytest.mark.parametrize("steps", [1, 3])
def test_weighting_by_rows_changes_the_weight_and_not_the_mean(steps: int) -> None:
    by_tasks, by_rows = (
        meta_gradient(site(), gradient_order(plan(weighting=weighting, local_meta_steps=steps)))
        for weighting in ("tasks", "rows")
    )
    assert (by_tasks.weight, by_rows.weight) == (3.0, 30.0)
    one, other = (scaled(reply.gradient, 1 / reply.weight) for reply in (by_tasks, by_rows))
    assert difference(one, other) <= 1e-6 * norm(one)


def test_the_metrics_are_those_of_the_query_rows_before_any_local_step() -> None:
    chosen = plan()
    order = gradient_order(chosen)
    episodes = drawn_by(site(), chosen)
    expected: dict[str, Mean] = {}
    for episode in episodes:
        outputs = adapt_and_predict(chosen.learner(), order.params, stack([episode]))[0]
        expected = metrics.merge(expected, chosen.learner().objective.metrics(outputs, episode.query))
    for steps in (1, 4):
        several = gradient_order(plan(local_meta_steps=steps), order.params)
        measured = meta_gradient(site(), several).metrics
        assert measured.keys() == expected.keys() == {"query_loss", "query_accuracy"}
        for name, mean in measured.items():
            assert mean == pytest.approx(expected[name], rel=1e-5)
    assert expected["query_loss"].weight == sum(episode.query.size for episode in episodes)


def test_a_metric_that_is_not_on_the_list_never_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = Diagnosis.metrics

    def curious(self: Diagnosis, outputs: Tensor, rows: Any) -> Mapping[str, Mean]:
        return {**honest(self, outputs, rows), "oldest_patient": Mean(float(SECRET), 1.0)}

    monkeypatch.setattr(Diagnosis, "metrics", curious)
    reply = meta_gradient(site(), gradient_order(plan()))
    assert set(reply.metrics) == {"query_loss", "query_accuracy"}
    assert set(reply.metrics) <= metrics.ALLOWED


# Calibration


def test_calibration_sums_the_log_loss_of_every_query_row() -> None:
    chosen, temperatures = plan(), (0.5, 1.0, 4.0)
    order = calibration_order(chosen, temperatures)
    reply = calibration(site(), order)
    learner, table = chosen.learner(), site().table(chosen.table)
    expected = []
    for shots in chosen.episodes.shots:
        rng = generator("calibration", chosen.seed, shots, "ulm")
        episodes = [draw_episode(table, chosen.episodes, shots, rng) for _ in range(chosen.episodes.tasks)]
        for temperature in temperatures:
            total = 0.0
            for episode in episodes:
                assert episode is not None
                (outputs,) = adapt_and_predict(learner, order.params, stack([episode]))
                for logit, target in zip(outputs[:, 0].tolist(), episode.query.targets.tolist(), strict=True):
                    signed = logit / temperature if target else -logit / temperature
                    total += math.log1p(math.exp(-signed))
            expected.append(total)
    assert reply.shots == chosen.episodes.shots
    assert reply.losses == pytest.approx(expected, rel=1e-5)
    assert (reply.nonce, reply.run, reply.site) == ("nonce", "run", "ulm")


def test_nothing_is_learned_from_a_calibration() -> None:
    order = calibration_order(plan())
    before = digest(order.params)
    assert calibration(site(), order) == calibration(site(), order)
    assert digest(order.params) == before


def test_calibration_leaves_out_the_sizes_that_the_table_cannot_give(monkeypatch: pytest.MonkeyPatch) -> None:
    def only_small(table: Table, episodes: Any, shots: int, rng: Any) -> Episode | None:
        return draw_episode(table, episodes, shots, rng) if shots == 1 else None

    monkeypatch.setattr("clinimeta.client.site.draw_episode", only_small)
    reply = calibration(site(), calibration_order(plan()))
    assert reply.shots == (1,)
    assert len(reply.losses) == len(TEMPERATURES)


# Introduction


@given(st.integers(1, 3000))
def test_an_introduction_gives_a_range_and_never_the_count(count: int) -> None:
    rows = Records("ulm.csv", {"age": ["50"] * count})
    reply = answer(Site("ulm", rows), IntroductionOrder("nonce"))
    assert isinstance(reply, Introduction)
    assert reply.rows_from <= count <= reply.rows_to
    assert reply.rows_to - reply.rows_from >= 9
    neighbour = answer(
        Site("ulm", Records("ulm.csv", {"age": ["50"] * reply.rows_to})), IntroductionOrder("nonce")
    )
    assert reply == neighbour


@pytest.mark.parametrize("count", [0, 9, 10, 99_999, 100_000, 5_000_000])
def test_every_count_has_a_range(count: int) -> None:
    low, high = count_range(count)
    assert low <= count <= high


def test_a_site_names_its_software() -> None:
    reply = answer(site(), IntroductionOrder("n"))
    assert isinstance(reply, Introduction)
    assert reply.software.startswith("clinimeta ")
    assert (reply.nonce, reply.site) == ("n", "ulm")


# What never leaves

ORDERS = {
    "introduction": lambda _: IntroductionOrder("nonce"),
    "meta-gradient": gradient_order,
    "calibration": calibration_order,
}
EVERY_ORDER = pytest.mark.parametrize("make", ORDERS.values(), ids=list(ORDERS))


def sent(reply: Reply) -> Envelope:
    """Everything that a reply puts on the wire."""
    assert not isinstance(reply, Refusal), reply
    return encode(reply)


@EVERY_ORDER
@pytest.mark.parametrize("normalise", ["study", "site"])
@pytest.mark.parametrize("arm", ["maml", "fedavg"])
def test_no_bit_of_an_answer_depends_on_a_test_row(make: Any, normalise: str, arm: str) -> None:
    chosen = plan(arm, table=plan().table.model_copy(update={"normalise": normalise}))
    test = tuple(i % 3 == 0 for i in range(30))
    rows = records(30, "ulm")
    changed = {
        "age": ["99" if held else age for age, held in zip(rows.cells["age"], test, strict=True)],
        "sick": ["yes" if held else sick for sick, held in zip(rows.cells["sick"], test, strict=True)],
    }
    order: Order = make(chosen)
    one = sent(answer(Site("ulm", rows, test), order))
    other = sent(answer(Site("ulm", records(30, "ulm", **changed), test), order))
    assert one == other
    moved = sent(answer(Site("ulm", records(30, "ulm", **changed)), order))
    assert make is ORDERS["introduction"] or moved != one  # as training rows they would have counted


@EVERY_ORDER
def test_an_answer_holds_no_cell_and_no_identifier(make: Any) -> None:
    people = [f"{SECRET}-{i}" for i in range(30)]
    reply = answer(Site("ulm", records(30, "ulm", person=people)), make(plan()))
    envelope = sent(reply)
    assert SECRET not in json.dumps(dict(envelope.fields), default=str)
    assert all(SECRET.encode() not in data for data in envelope.tensors.values())


def test_the_tables_kept_between_calls_change_no_answer() -> None:
    tables: dict[Schema, Table] = {}
    order = gradient_order(plan())
    first, second = (sent(answer(site(), order, tables)) for _ in range(2))
    assert first == second == sent(answer(site(), order))
    assert list(tables) == [plan().table]


def test_an_encoded_table_is_used_again() -> None:
    tables: dict[Schema, Table] = {}
    order = gradient_order(plan())
    expected = sent(answer(site(), order, tables))
    unreadable = Site("ulm", Records("gone.csv", {}))
    assert sent(answer(unreadable, order, tables)) == expected


# Refusals


def refusal(at: Site, order: Order) -> Refusal:
    reply = answer(at, order)
    assert isinstance(reply, Refusal), reply
    assert reply.code in REFUSALS
    assert (reply.nonce, reply.site) == ("nonce", at.name)
    assert SECRET not in reply.reason
    assert "/srv" not in reply.reason
    return reply


BOTH = pytest.mark.parametrize("make", [gradient_order, calibration_order])


@BOTH
@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff",
        b"{}",
        b"[1]",
        b"null",
        b"7",
        plan().canonical() + b" ",
        plan().canonical().replace(b'"maml"', b'"mamba"'),
        plan().canonical().replace(b'"inner_steps":2', b'"inner_steps":-2'),
        plan().canonical().replace(b'"inner_steps"', b'"inner_step"'),
    ],
)
def test_a_plan_that_cannot_be_followed_is_refused(make: Any, data: bytes) -> None:
    assert refusal(site(), dataclasses.replace(make(plan()), plan=data)).code == "bad_plan"


def changed(**tensors: Tensor | None) -> Params:
    params = {**fresh(plan()), **{name.replace("__", "."): tensor for name, tensor in tensors.items()}}
    return {name: tensor for name, tensor in params.items() if tensor is not None}


@BOTH
@pytest.mark.parametrize(
    "params",
    [
        {},
        changed(layer0__bias=None),
        changed(extra=torch.zeros(1)),
        changed(layer0__bias=torch.zeros(5)),
        changed(layer0__bias=torch.tensor([0.0, 0.0, 0.0, math.nan])),
        changed(layer0__bias=torch.tensor([0.0, 0.0, 0.0, math.inf])),
        changed(layer0__bias=torch.zeros(4, dtype=torch.float64)),
        changed(layer0__bias=torch.zeros(4, dtype=torch.int64)),
    ],
    ids=["none", "one less", "one more", "shape", "NaN", "infinite", "float64", "int64"],
)
def test_parameters_that_do_not_fit_the_plan_are_refused(make: Any, params: Params) -> None:
    assert refusal(site(), dataclasses.replace(make(plan()), params=params)).code == "bad_order"


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf])
def test_a_temperature_that_makes_no_sense_is_refused(temperature: float) -> None:
    assert refusal(site(), calibration_order(plan(), (1.0, temperature))).code == "bad_order"


@BOTH
def test_a_table_without_a_column_is_refused_by_the_columns_name_alone(make: Any) -> None:
    rows = records(30, "ulm")
    cells = {name: column for name, column in rows.cells.items() if name != "sex"}
    reply = refusal(Site("ulm", Records(rows.where, {**cells, "other": [SECRET] * 30})), make(plan()))
    assert reply.code == "table_mismatch"
    assert "'sex'" in reply.reason
    assert "cases.csv" not in reply.reason
    assert "other" not in reply.reason


@BOTH
def test_a_table_with_a_bad_cell_is_refused_without_its_place_or_value(make: Any) -> None:
    ages = [*records(30, "ulm").cells["age"][:-1], f"x{SECRET}"]
    reply = refusal(Site("ulm", records(30, "ulm", age=ages)), make(plan()))
    assert reply.code == "table_mismatch"
    assert "'age'" in reply.reason
    assert "line" not in reply.reason
    assert "cases.csv" not in reply.reason


@BOTH
def test_a_table_too_small_for_a_task_is_refused(make: Any) -> None:
    rows = records(4, "ulm", sick=["no", "yes", "no", "no"])
    assert refusal(Site("ulm", rows), make(plan())).code == "too_few_rows"


@BOTH
def test_a_hospital_of_test_rows_only_has_nothing_to_answer_with(make: Any) -> None:
    assert refusal(Site("ulm", records(30, "ulm"), (True,) * 30), make(plan())).code == "too_few_rows"


@BOTH
def test_a_result_that_is_not_finite_stays_at_home(make: Any) -> None:
    wild = plan(algorithm=Choice(name="maml", inner_steps=9, inner_rate=3e38))
    assert refusal(site(), make(wild)).code == "not_finite"


def test_neither_a_site_nor_its_table_shows_a_value() -> None:
    rows = records(30, "ulm", person=[SECRET] * 30)
    assert SECRET not in repr(Site("ulm", rows))

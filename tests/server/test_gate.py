"""The hold-out gate: a harmful step is undone, a healthy training does not notice, a stop changes nothing."""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_federation import NAME, NAMES, ROUNDS, Poison, job, losses, poisoner, train
from structlog.testing import capture_logs

from clinimeta.client import app as client
from clinimeta.client.site import Site
from clinimeta.common.errors import GateError, NumericalError, QuorumError
from clinimeta.common.metrics import Mean
from clinimeta.common.optim import SGD
from clinimeta.common.params import digest, norm
from clinimeta.common.records import Order, Reply
from clinimeta.common.safeguards import GateSettings
from clinimeta.server.app import Job
from clinimeta.server.gate import Gate
from clinimeta.server.training import RoundSummary, TrainingState, step
from clinimeta.simulations.batched import BatchedEngine
from clinimeta.simulations.loopback import LoopbackEngine


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> Poison:
    return poisoner(monkeypatch)


def rollbacks(to_do: Job) -> list[int]:
    return [summary.rollbacks for summary in to_do.run_dir.rounds()]


def same(left: TrainingState, right: TrainingState) -> bool:
    return (left.round, digest(left.params), digest(left.optimizer)) == (
        right.round,
        digest(right.params),
        digest(right.optimizer),
    )


# A whole training


@pytest.mark.parametrize(
    ("outer", "engine"),
    [("sgd", LoopbackEngine(encode=False)), ("adam", BatchedEngine())],
    ids=["loopback", "batched"],
)
def test_a_healthy_training_is_the_same_to_the_bit_with_and_without(
    tmp_path: Path, engine: Any, outer: str
) -> None:
    options = {"rounds": 12, "outer": {"name": outer, "rate": 0.3}}
    off, on = job(tmp_path / "off", **options), job(tmp_path / "on", gate={"on": True}, **options)
    assert same(train(off, engine), train(on, engine))
    assert losses(off) == losses(on)
    assert rollbacks(on) == rollbacks(off) == [0] * 12


def test_the_last_step_costs_one_round_more(tmp_path: Path) -> None:
    off, on = job(tmp_path / "off"), job(tmp_path / "on", gate={"on": True})
    train(off)
    train(on)
    sent = [[summary.bytes_down for summary in to_do.run_dir.rounds()] for to_do in (off, on)]
    assert sent[1] == [*sent[0][:-1], 2 * sent[0][-1]]


def test_without_a_gate_a_poisoned_round_does_harm(tmp_path: Path, poison: Poison) -> None:
    """Without this the next tests would prove nothing. The norm checks let it through."""
    poison(3)
    to_do = job(tmp_path)
    train(to_do)
    assert all(not summary.refused for summary in to_do.run_dir.rounds())
    assert losses(to_do)[3] > 3 * losses(to_do)[2]


@pytest.mark.parametrize("at", [1, 3, ROUNDS])
def test_a_poisoned_round_is_rolled_back(tmp_path: Path, poison: Poison, at: int) -> None:
    poison(at)
    to_do = job(tmp_path, gate={"on": True})
    states: dict[int, TrainingState] = {}

    def remember(summary: RoundSummary) -> None:
        state = to_do.run_dir.latest(NAME, to_do.plan.digest)
        assert state is not None
        states[summary.round] = state

    with capture_logs() as logs:
        train(replace(to_do, notify=remember))
    undone = min(at + 1, ROUNDS)  # the last step is judged at once
    assert rollbacks(to_do) == [int(number == undone) for number in range(1, ROUNDS + 1)]
    if at > 1:
        assert digest(states[undone].params) == digest(states[at - 1].params)
        assert digest(states[undone].optimizer) == digest(states[at - 1].optimizer)
    assert [log["round"] for log in logs if log["event"] == "an outer step was undone"] == [undone]
    assert all(loss < 1.5 for number, loss in enumerate(losses(to_do), 1) if number != at + 1)


def test_what_hospitals_can_no_longer_compute_with_is_rolled_back(tmp_path: Path, poison: Poison) -> None:
    """Parameters so bad that no meta-gradient is finite: too few usable answers."""
    poison(3, strength=1e30)
    options: dict[str, Any] = {"model": "mlp", "max_norm": 1e33, "max_norm_ratio": 1e33}
    with pytest.raises(QuorumError, match="not_finite"):
        train(job(tmp_path / "off", **options))
    to_do = job(tmp_path / "on", gate={"on": True}, **options)
    state = train(to_do)
    assert rollbacks(to_do) == [0, 0, 0, 1, 0, 0]
    assert norm(state.params) < 100


def test_sites_that_are_silent_are_not_the_gates_business(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = client.answer

    def answer(site: Site, order: Order, tables: Any = None) -> Reply:
        if getattr(order, "round", 0) == 3 and site.name in NAMES[:5]:
            raise RuntimeError("no power")
        return honest(site, order, tables)

    monkeypatch.setattr(client, "answer", answer)
    with pytest.raises(QuorumError, match="round 3"):
        train(job(tmp_path, gate={"on": True}))


def test_too_many_rollbacks_end_the_training_and_say_so(tmp_path: Path, poison: Poison) -> None:
    poison(*range(2, 20))
    to_do = job(tmp_path, rounds=20, gate={"on": True, "max_rollbacks": 2, "shrink": 1.0})
    with pytest.raises(GateError, match=r"query loss .* over the limit .*2 steps were undone before"):
        train(to_do)
    assert sum(rollbacks(to_do)) == 2


class _StopError(Exception):
    pass


@pytest.mark.parametrize("stop_after", [2, 3, 4])
def test_a_stopped_training_decides_as_an_uninterrupted_one(
    tmp_path: Path, poison: Poison, stop_after: int
) -> None:
    def stop(summary: RoundSummary) -> None:
        if summary.round == stop_after:
            raise _StopError

    poison(3)
    uninterrupted = job(tmp_path / "whole", gate={"on": True})
    whole = train(uninterrupted)
    stopped = job(tmp_path / "stopped", gate={"on": True})
    with pytest.raises(_StopError):
        train(replace(stopped, notify=stop))
    assert same(train(stopped), whole)
    assert rollbacks(stopped) == rollbacks(uninterrupted) == [0, 0, 0, 1, 0, 0]
    assert losses(stopped) == losses(uninterrupted)


# Step by step


GATE = Gate(GateSettings(on=True, factor=2.0, margin=0.1, window=3, shrink=0.5, max_rollbacks=2))
RATE = SGD(1.0)
UPHILL = {"w": torch.tensor([4.0, 0.0])}


def state() -> TrainingState:
    params = {"w": torch.tensor([1.0, 2.0])}
    return TrainingState(0, params, RATE.init(params))


def loss_of(value: float) -> Mapping[str, Mean]:
    return {"query_loss": Mean(2 * value, 2.0)}


def accepted(start: TrainingState, *values: float) -> TrainingState:
    """The state after rounds with these losses."""
    for value in values:
        start, why = GATE.judge(start, loss_of(value))
        assert not why
        start, why = GATE.step(start, UPHILL, RATE)
        assert not why
    return start


def test_a_loss_is_compared_with_the_best_of_the_window() -> None:
    after = accepted(state(), 0.15, 0.2, 0.25, 0.4)
    assert GATE.judge(after, loss_of(0.49))[1] == ""
    undone, why = GATE.judge(after, loss_of(0.51))
    assert "0.51 is over the limit of 0.5" in why
    assert digest(undone.params) == digest(
        step(step(step(state(), UPHILL, RATE), UPHILL, RATE), UPHILL, RATE).params
    )


@pytest.mark.parametrize(
    "metrics", [{}, loss_of(math.nan), loss_of(math.inf), {"query_loss": Mean(0.0, 0.0)}], ids=str
)
def test_what_cannot_be_judged_is_undone(metrics: Mapping[str, Mean]) -> None:
    before = state()
    after, _ = GATE.step(GATE.judge(before, metrics)[0], UPHILL, RATE)
    undone, why = GATE.judge(after, metrics)
    assert why
    assert digest(undone.params) == digest(before.params)


def test_after_a_rollback_steps_are_shorter_until_accepted_again() -> None:
    start = accepted(state(), 0.5)
    lengths = []
    for value in (9.0, 0.5, 0.5, 0.5):
        start, why = GATE.judge(start, loss_of(value))
        if not why:
            before = start.params["w"]
            start, _ = GATE.step(start, UPHILL, SGD(1.0))
            lengths.append(float((before - start.params["w"]).norm()))
    assert lengths == [2.0, 4.0, 4.0]


def test_two_rollbacks_in_a_row_shorten_twice() -> None:
    start = accepted(state(), 0.5)
    start, _ = GATE.judge(start, loss_of(9.0))
    start, why = GATE.judge(start, loss_of(9.0))  # nothing to undo: these parameters were accepted before
    assert not why
    start, _ = GATE.step(start, UPHILL, RATE)
    start, why = GATE.judge(start, loss_of(9.0))
    assert why
    after, _ = GATE.step(start, UPHILL, RATE)
    assert float((start.params["w"] - after.params["w"]).norm()) == 1.0


def test_one_more_than_allowed_is_an_error() -> None:
    start = accepted(state(), 0.5)
    for _ in range(2):
        start, why = GATE.judge(start, loss_of(9.0))
        assert why
        start = accepted(start, 0.5)
    with pytest.raises(GateError, match="`max_rollbacks` allows"):
        GATE.judge(start, loss_of(9.0))


def test_a_loss_below_zero_has_room_too() -> None:
    """A log-likelihood may be negative; twice of it would be better, not worse."""
    start = accepted(state(), -1.0, -1.1, -0.9)
    assert GATE.judge(start, loss_of(0.05))[1] == ""
    assert GATE.judge(start, loss_of(0.15))[1]


def test_a_gate_that_is_off_does_nothing() -> None:
    off, before = Gate(GateSettings()), state()
    judged, why = off.judge(before, {})
    assert judged is before
    after, _ = off.step(before, UPHILL, RATE)
    assert (why, after.gate, off.pending(after)) == ("", {}, False)
    with pytest.raises(NumericalError):
        off.step(before, {"w": torch.tensor([math.inf, 0.0])}, RATE)


def test_a_step_out_of_the_numbers_leaves_the_state_and_counts_the_round() -> None:
    before = state()
    after, why = GATE.step(before, {"w": torch.tensor([math.inf, 0.0])}, RATE)
    assert "finite numbers" in why
    assert (after.round, digest(after.params)) == (1, digest(before.params))
    assert not GATE.pending(after)

"""A whole training over Flower's real messages in one process: what fails is left out and named, and every
run of the same seed ends at the same bits, encoded or not, whatever the order, also when it was stopped."""

import math
import struct
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import structlog
import tomli_w
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, RecordDict
from flwr.supercore.run import Run

from clinimeta.client.app import client_app
from clinimeta.client.site import Site
from clinimeta.common.calibration import TEMPERATURES
from clinimeta.common.codec import encode
from clinimeta.common.errors import NumericalError, QuorumError, RecordError
from clinimeta.common.flower_records import MESSAGE_TYPES, from_flower, to_flower
from clinimeta.common.params import digest
from clinimeta.common.records import (
    REFUSALS,
    Calibration,
    CalibrationOrder,
    Introduction,
    IntroductionOrder,
    MetaGradient,
    MetaGradientOrder,
    Refusal,
)
from clinimeta.common.rng import generator
from clinimeta.common.study import Faults, Study, read_study
from clinimeta.common.tasks.sampler import Episodes
from clinimeta.common.tasks.table import Records
from clinimeta.server.app import Job, Outcome, fresh_nonce, server_app
from clinimeta.server.store import RunDir
from clinimeta.server.training import RoundSummary
from clinimeta.simulations import loopback
from clinimeta.simulations.failures import Fault, FaultPlan
from clinimeta.simulations.loopback import LoopbackEngine, LoopbackGrid, VirtualClock, WireTap, run_loopback

NAMES = ("bern", "graz", "lund", "oulu", "pisa", "ulm")
DEADLINE_S = 60.0
SECRET = 4711.0625
"""A cell's value at one hospital: exact in binary, and like no other number here."""


def study(**training: Any) -> Study:
    values = {
        "name": "tiny",
        "primary": "maml",
        "data": {"name": "synthetic"},
        "table": {"target": "ill", "classes": ["0", "1"], "columns": [{"name": "age"}, {"name": "crp"}]},
        "model": {"name": "linear"},
        "episodes": {"shots": [1, 2], "query": 3, "tasks": 2},
        "training": {"rounds": 3, "deadline_s": DEADLINE_S, "outer": {"name": "adam", "rate": 0.1}}
        | training,
        "arms": [{"name": "maml", "algorithm": {"name": "maml", "inner_steps": 1, "first_order": True}}],
    }
    return read_study(tomli_w.dumps(values), "tiny.toml")


def hospital(name: str, rows: int = 12) -> Site:
    x = torch.randn(rows, 2, generator=generator("loopback", name))
    y = [str(i % 2) for i in range(rows)]
    ages = [f"{float(v) + i % 2:.3f}" for i, v in enumerate(x[:, 0])]
    if name == "ulm":
        ages[0] = str(SECRET)
    return Site(
        name, Records(f"{name}.csv", {"age": ages, "crp": [f"{float(v):.3f}" for v in x[:, 1]], "ill": y})
    )


SITES = {name: hospital(name) for name in NAMES}


def open_site(context: Context) -> Site:
    return SITES[str(context.node_config["site"])]


def job(path: Path, *, seed: int = 0, calibrate: bool = False, **training: Any) -> Job:
    path.mkdir(exist_ok=True)
    chosen = study(**training)
    arm = chosen.arms[0]
    plan = chosen.plan(arm, seed)
    return Job("seed0/all/maml", plan, arm.training, RunDir(path), calibrate=plan if calibrate else None)


def train(to_do: Job, sites: Mapping[str, Site] = SITES, **engine: Any) -> Outcome:
    outcome = Outcome()
    LoopbackEngine(**engine)(to_do, outcome, sites)
    return outcome


def weights(outcome: Outcome) -> str:
    assert outcome.state is not None
    return digest(outcome.state.params)


def faulty(fault: Fault, share: float, rounds: int = 1) -> tuple[FaultPlan, dict[int, set[str]]]:
    """A plan that spares the introductions (order 1) and hits some, but fewer than half, in each round.

    Returns it and whom it hits: round -> sites.
    """
    for seed in range(10_000):
        plan = FaultPlan(Faults(**{fault.value: share}), seed)
        hit = {n: {s for s in NAMES if plan.fault(s, n + 1) is fault} for n in range(rounds + 1)}
        if not hit[0] and all(0 < len(hit[n]) < len(NAMES) / 2 for n in range(1, rounds + 1)):
            return plan, {n: hit[n] for n in range(1, rounds + 1)}
    raise AssertionError("no such seed")


def run_with(to_do: Job, plan: FaultPlan) -> tuple[Outcome, VirtualClock, list[RoundSummary]]:
    outcome, clock = Outcome(), VirtualClock()
    grid = LoopbackGrid(client_app(open_site), {site: {"site": site} for site in NAMES}, clock, faults=plan)
    run_loopback(server_app(to_do, outcome, clock=clock), grid)
    return outcome, clock, to_do.run_dir.rounds()


# A training from introduction to temperatures


def test_a_training_runs_all_its_rounds_and_says_what_happened(tmp_path: Path) -> None:
    told: list[RoundSummary] = []
    to_do = replace(
        job(tmp_path, calibrate=True), notify=told.append, curve=lambda number, _params: {"n": float(number)}
    )
    outcome = train(to_do)
    assert outcome.state is not None
    assert outcome.state.round == 3
    assert sorted(outcome.introductions) == list(NAMES)
    assert (outcome.introductions["ulm"].rows_from, outcome.introductions["ulm"].rows_to) == (10, 19)
    assert set(outcome.temperatures) == {1, 2}
    assert set(outcome.temperatures.values()) <= set(TEMPERATURES)
    assert told == to_do.run_dir.rounds()
    order = MetaGradientOrder(fresh_nonce(), to_do.name, 1, to_do.plan.canonical(), outcome.state.params)
    assert {summary.bytes_down for summary in told} == {6 * encode(order).size}
    assert len({summary.bytes_up for summary in told}) == 1
    for number, summary in enumerate(told, start=1):
        assert (summary.training, summary.arm, summary.round) == (to_do.name, "maml", number)
        assert (summary.cohort, summary.accepted) == (6, 6)
        assert (summary.refused, summary.silent) == ({}, ())
        assert set(summary.metrics) == {"query_loss", "query_accuracy"}
        assert summary.gradient_norm > 0
        assert summary.curve == {"n": float(number)}


def test_temperatures_are_those_of_the_plan_that_asks_for_them(tmp_path: Path) -> None:
    """An arm that another one trains is calibrated as it adapts, not as its teacher does."""
    to_do = job(tmp_path, rounds=1)
    other = to_do.plan.model_copy(update={"arm": "other", "episodes": Episodes(shots=(3,), tasks=2)})
    outcome = train(replace(to_do, calibrate=other))
    assert set(outcome.temperatures) == {3}


def test_a_training_begins_when_its_hospitals_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome, clock = Outcome(), VirtualClock()
    grid = LoopbackGrid(client_app(open_site), {name: {"site": name} for name in NAMES}, clock)
    everyone = list(grid.get_node_ids())
    monkeypatch.setattr(
        LoopbackGrid, "get_node_ids", lambda _grid: everyone[:2] if clock.now() < 10 else everyone
    )
    run_loopback(server_app(replace(job(tmp_path, rounds=0), sites=6), outcome, clock=clock), grid)
    assert sorted(outcome.introductions) == list(NAMES)


def test_training_learns_something(tmp_path: Path) -> None:
    to_do = job(tmp_path, rounds=12)
    train(to_do, encode=False)
    losses = [summary.metrics["query_loss"] for summary in to_do.run_dir.rounds()]
    assert np.mean(losses[-4:]) < np.mean(losses[:4]) - 0.02


def test_a_round_asks_a_cohort_only(tmp_path: Path) -> None:
    to_do = job(tmp_path, cohort_size=2, rounds=6)
    train(to_do, encode=False)
    assert [(s.cohort, s.accepted) for s in to_do.run_dir.rounds()] == [(2, 2)] * 6


def test_no_rounds_leave_the_fresh_parameters(tmp_path: Path) -> None:
    to_do = job(tmp_path, rounds=0)
    outcome = train(to_do)
    fresh = to_do.plan.learner().init(generator("init", to_do.plan.seed))
    assert weights(outcome) == digest(fresh)
    assert outcome.temperatures == {}


# The same bits


def test_the_same_seed_ends_at_the_same_bits_and_another_does_not(tmp_path: Path) -> None:
    first, again, other = (
        train(job(tmp_path / str(i), seed=seed), encode=False) for i, seed in enumerate((0, 0, 1))
    )
    assert weights(first) == weights(again) != weights(other)


def test_flowers_encoding_changes_no_bit(tmp_path: Path) -> None:
    encoded = job(tmp_path / "encoded", calibrate=True)
    plain = job(tmp_path / "plain", calibrate=True)
    one, other = train(encoded, encode=True), train(plain, encode=False)
    assert weights(one) == weights(other)
    assert one.temperatures == other.temperatures
    assert [replace(s, seconds=0) for s in encoded.run_dir.rounds()] == [
        replace(s, seconds=0) for s in plain.run_dir.rounds()
    ]


def test_the_order_of_the_hospitals_changes_no_bit(tmp_path: Path) -> None:
    forward, backward = (
        train(job(tmp_path / str(i), calibrate=True), {name: SITES[name] for name in order}, encode=False)
        for i, order in enumerate((NAMES, NAMES[::-1]))
    )
    assert weights(forward) == weights(backward)
    assert forward.temperatures == backward.temperatures


class _StopError(Exception):
    pass


@pytest.mark.parametrize("stop_after", [1, 2])
def test_a_stopped_training_resumes_to_the_same_bits(tmp_path: Path, stop_after: int) -> None:
    def stop(summary: RoundSummary) -> None:
        if summary.round == stop_after:
            raise _StopError

    uninterrupted = job(tmp_path / "whole")
    whole = train(uninterrupted, encode=False)
    stopped = job(tmp_path / "stopped")
    with pytest.raises(_StopError):
        train(replace(stopped, notify=stop), encode=False)
    resumed: list[int] = []
    outcome = train(replace(stopped, notify=lambda s: resumed.append(s.round)), encode=False)
    assert resumed == list(range(stop_after + 1, 4))
    assert weights(outcome) == weights(whole)
    assert [s.metrics for s in stopped.run_dir.rounds()] == [
        s.metrics for s in uninterrupted.run_dir.rounds()
    ]


def test_a_training_that_crashed_before_its_checkpoint_takes_the_round_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    to_do = job(tmp_path)

    def crash(*_: Any) -> None:
        raise _StopError

    with monkeypatch.context() as patch:
        patch.setattr(RunDir, "checkpoint", crash)
        with pytest.raises(_StopError):
            train(to_do, encode=False)
    assert [s.round for s in to_do.run_dir.rounds()] == [1]
    train(to_do, encode=False)
    assert [s.round for s in to_do.run_dir.rounds()] == [1, 2, 3]


# What goes wrong


@pytest.mark.parametrize("fault", Fault)
def test_a_fault_ends_with_the_round_completed_without_those_sites_and_named(
    tmp_path: Path, fault: Fault
) -> None:
    plan, hit = faulty(fault, 0.25, rounds=3)
    outcome, _, rounds = run_with(job(tmp_path), plan)
    assert outcome.state is not None
    assert outcome.state.round == 3
    for summary in rounds:
        named = set(summary.refused) | set(summary.silent)
        assert named == hit[summary.round]
        assert summary.accepted == 6 - len(named)
        assert (named == set(summary.silent)) == (fault in (Fault.SILENT, Fault.SLOW))


def test_a_hospital_whose_every_gradient_is_corrupt_is_still_known_by_name(tmp_path: Path) -> None:
    """Corruption is of gradients; an introduction comes through, so that the report can name the hospital."""
    with pytest.raises(QuorumError) as caught:
        train(job(tmp_path, attempts=1), faults=Faults(corrupt=1.0))
    assert set(caught.value.missing) == set(NAMES)
    assert "silent" not in caught.value.missing.values()


def test_an_error_of_flowers_is_named_by_its_code_alone(tmp_path: Path) -> None:
    plan, hit = faulty(Fault.ERROR, 0.25)
    _, _, (summary,) = run_with(job(tmp_path, rounds=1), plan)
    assert set(summary.refused) == hit[1]
    assert all(reason.startswith("Flower error ") for reason in summary.refused.values())
    assert "injected" not in str(summary)


def test_missing_sites_are_logged_by_name(tmp_path: Path) -> None:
    plan, hit = faulty(Fault.SILENT, 0.25)
    with structlog.testing.capture_logs() as logs:
        run_with(job(tmp_path, rounds=1), plan)
    (event,) = [log for log in logs if log["event"] == "sites missing from a round"]
    assert set(event["silent"]) == hit[1]


@pytest.mark.parametrize("fault", [Fault.SILENT, Fault.SLOW])
def test_the_clock_waits_for_the_deadline_and_nobody_else_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Fault
) -> None:
    def forbidden(_seconds: float) -> None:
        raise AssertionError("somebody sleeps for real")

    monkeypatch.setattr(time, "sleep", forbidden)
    plan, _ = faulty(fault, 0.25, rounds=2)
    _, clock, _ = run_with(job(tmp_path, rounds=2), plan)
    assert clock.now() == pytest.approx(2 * DEADLINE_S)


def test_when_all_answer_no_time_passes_at_all(tmp_path: Path) -> None:
    _, clock, _ = run_with(job(tmp_path), FaultPlan(Faults()))
    assert clock.now() == 0.0


def test_a_site_that_is_only_a_little_slow_is_waited_for(tmp_path: Path) -> None:
    clock, outcome = VirtualClock(), Outcome()
    to_do = job(tmp_path, rounds=1)
    grid = LoopbackGrid(
        client_app(open_site),
        {site: {"site": site} for site in NAMES},
        clock,
        faults=FaultPlan(Faults(slow=1.0)),
        slow_s=10.0,
    )
    run_loopback(server_app(to_do, outcome, clock=clock), grid)
    (summary,) = to_do.run_dir.rounds()
    assert summary.accepted == 6
    assert clock.now() == 24.0  # introduction and round: each seen at the first look after 10 s, every 3 s


def test_a_round_below_its_quorum_stops_the_training_and_names_the_missing(tmp_path: Path) -> None:
    to_do = job(tmp_path, quorum=1.0, attempts=2)
    small = {**SITES, "ulm": hospital("ulm", rows=2)}
    with pytest.raises(QuorumError) as caught:
        train(to_do, small)
    assert caught.value.missing == {"ulm": "refused: too_few_rows"}
    assert (caught.value.round_number, caught.value.quorum) == (1, 6)


def test_a_hospital_that_was_silent_is_asked_again_where_the_quorum_needs_it(tmp_path: Path) -> None:
    plan, hit = faulty(Fault.SILENT, 0.25)
    again = {site for site in hit[1] if plan.fault(site, 3) is None}
    assert again == hit[1], "the plan must spare the second attempt"
    _, clock, (summary,) = run_with(job(tmp_path, rounds=1, quorum=1.0), plan)
    assert (summary.accepted, summary.silent) == (6, ())
    assert clock.now() == pytest.approx(DEADLINE_S)


def test_with_everyone_silent_there_is_nobody_to_ask(tmp_path: Path) -> None:
    with pytest.raises(QuorumError, match="nobody else is there"):
        train(job(tmp_path), faults=Faults(silent=1.0))


def test_an_outer_step_out_of_the_finite_numbers_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(NumericalError, match="round 1"):
        train(job(tmp_path, outer={"name": "sgd", "rate": 1e300}))


def test_a_node_that_claims_anothers_name_is_left_out_with_it(tmp_path: Path) -> None:
    """Nobody can say which of the two is the hospital, so neither is asked."""
    to_do = job(tmp_path)
    claimed = {**SITES, "oulu": replace(SITES["oulu"], name="ulm")}
    with structlog.testing.capture_logs() as logs:
        outcome = train(to_do, claimed)
    assert sorted(outcome.introductions) == ["bern", "graz", "lund", "pisa"]
    assert all((s.cohort, s.accepted) == (4, 4) for s in to_do.run_dir.rounds())
    assert [(log["site"], log["nodes"]) for log in logs if "several nodes" in log["event"]] == [("ulm", 2)]


def test_a_name_claimed_after_the_introduction_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from clinimeta.client import app

    def impostor(site: Site, order: Any, tables: Any) -> Any:
        reply = honest(site, order, tables)
        return (
            replace(reply, site="bern") if site.name == "ulm" and isinstance(reply, MetaGradient) else reply
        )

    honest = app.answer
    monkeypatch.setattr(app, "answer", impostor)
    to_do = job(tmp_path, rounds=1)
    train(to_do)
    (summary,) = to_do.run_dir.rounds()
    assert summary.refused == {"ulm": "answers in another site's name"}
    assert summary.accepted == 5


# What leaves a hospital


def test_the_wire_is_tapped_in_both_directions_and_no_cell_crosses_it(tmp_path: Path) -> None:
    seen: dict[str, list[bytes]] = {"down": [], "up": []}
    tap: WireTap = lambda direction, data: seen[direction].append(data)  # noqa: E731 (its type is the point)
    train(job(tmp_path, calibrate=True), tap=tap)
    assert all(sum(map(len, parts)) > 1000 for parts in seen.values())
    up = b"".join(seen["up"])
    assert b"ulm" in up
    for cell in (f"{SECRET}".encode(), struct.pack("<d", SECRET), struct.pack("<f", SECRET)):
        assert cell not in up
    assert b"ulm.csv" not in up


def test_without_encoding_there_is_no_wire_to_tap(tmp_path: Path) -> None:
    seen: list[bytes] = []
    train(job(tmp_path, rounds=1), encode=False, tap=lambda _direction, data: seen.append(data))
    assert seen == []


def speak(content: RecordDict, kind: str = "query.introduction", site: str = "ulm") -> Any:
    """Hand a message to a hospital's ClientApp; the record that it answers."""
    grid = LoopbackGrid(client_app(lambda _context: SITES[site]), {site: {}}, VirtualClock())
    (node,) = grid.get_node_ids()
    (reply,) = grid.send_and_receive([grid.create_message(content, kind, node, "1")])
    return from_flower(reply.content)


def test_an_order_that_is_a_record_of_ours_is_answered() -> None:
    reply = speak(to_flower(IntroductionOrder("n")))
    assert isinstance(reply, Introduction)
    assert (reply.nonce, reply.site) == ("n", "ulm")


UNKNOWN = {
    "nothing": RecordDict({}),
    "foreign records": RecordDict({"config": ConfigRecord({"lr": 0.1})}),
    "empty records": RecordDict({"fields": ConfigRecord({}), "tensors": ArrayRecord({})}),
    "an unknown kind": RecordDict(
        {"fields": ConfigRecord({"kind": "Order", "version": 1, "nonce": "n"}), "tensors": ArrayRecord({})}
    ),
    "a reply": to_flower(Refusal("n", "bern", "internal", "no")),
    "another reply": to_flower(Calibration("n", "run", "bern", (), ())),
}


@pytest.mark.parametrize("message_type", MESSAGE_TYPES.values())
@pytest.mark.parametrize("name", UNKNOWN)
def test_content_that_is_no_order_is_refused(name: str, message_type: str) -> None:
    reply = speak(UNKNOWN[name], message_type)
    assert reply == Refusal("", "ulm", "bad_order", REFUSALS["bad_order"])


PLAN = study().plan(study().arms[0], 0)
PARAMS = PLAN.learner().init(generator("x"))


@pytest.mark.parametrize(
    ("params", "plan", "code"),
    [
        ({}, PLAN.canonical(), "bad_order"),
        ({**PARAMS, "bias": torch.zeros(2)}, PLAN.canonical(), "bad_order"),
        ({**PARAMS, "bias": torch.tensor([math.nan])}, PLAN.canonical(), "bad_order"),
        (PARAMS, PLAN.canonical() + b" ", "bad_plan"),
        (PARAMS, b"3", "bad_plan"),
        (PARAMS, PLAN.canonical().replace(b'"maml"', b'"os.system"'), "bad_plan"),
        (PARAMS, PLAN.canonical().replace(b'"crp"', b'"weight"'), "table_mismatch"),
    ],
    ids=[
        "no parameters",
        "a wrong shape",
        "NaN",
        "not canonical",
        "no plan",
        "unknown algorithm",
        "no such column",
    ],
)
def test_an_order_that_does_not_fit_is_refused_with_its_nonce(params: Any, plan: bytes, code: str) -> None:
    for order in (
        MetaGradientOrder("n", "run", 1, plan, params),
        CalibrationOrder("n", "run", plan, params, TEMPERATURES),
    ):
        reply = speak(to_flower(order), MESSAGE_TYPES[type(order)])
        assert isinstance(reply, Refusal)
        assert (reply.nonce, reply.site, reply.code) == ("n", "ulm", code)
        assert "ulm.csv" not in reply.reason


def test_an_exception_becomes_a_refusal_that_holds_nothing_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("patient 4711 has no age")

    monkeypatch.setattr("clinimeta.client.app.answer", broken)
    with structlog.testing.capture_logs() as logs:
        reply = speak(to_flower(IntroductionOrder("n")))
    assert reply == Refusal("n", "ulm", "internal", REFUSALS["internal"])
    assert "4711" not in str(encode(reply))
    assert [log["error"] for log in logs if log["event"] == "answer failed"] == ["RuntimeError"]
    assert "4711" not in str(logs)


@pytest.mark.parametrize(
    ("content", "nonce"),
    [(to_flower(IntroductionOrder("n")), "n"), (RecordDict({}), "")],
    ids=["an order", "no order"],
)
def test_a_site_that_cannot_be_opened_is_a_refusal_that_holds_nothing_of_why(
    content: RecordDict, nonce: str
) -> None:
    def broken(_context: Context) -> Site:
        raise FileNotFoundError("/home/dr-meier/patient-4711.csv")

    grid = LoopbackGrid(client_app(broken), {"ulm": {}}, VirtualClock())
    (node,) = grid.get_node_ids()
    with structlog.testing.capture_logs() as logs:
        (reply,) = grid.send_and_receive([grid.create_message(content, "query.introduction", node, "1")])
    record = from_flower(reply.content)
    assert isinstance(record, Refusal)
    assert (record.nonce, record.code, record.reason) == (nonce, "internal", REFUSALS["internal"])
    assert [log["error"] for log in logs if "error" in log] == ["FileNotFoundError"]
    assert "4711" not in str(record) + str(logs)


def test_a_site_is_opened_once_and_its_table_encoded_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, encoded = Counter[str](), Counter[str]()

    def counting(context: Context) -> Site:
        opened[str(context.node_config["site"])] += 1
        return open_site(context)

    table = Site.table
    monkeypatch.setattr(
        Site, "table", lambda site, schema: encoded.update([site.name]) or table(site, schema)
    )
    outcome, clock = Outcome(), VirtualClock()
    grid = LoopbackGrid(client_app(counting), {name: {"site": name} for name in NAMES}, clock)
    run_loopback(server_app(job(tmp_path, calibrate=True), outcome, clock=clock), grid)
    assert opened == Counter(NAMES)
    assert encoded == Counter(NAMES)


# Flower's own interface


def test_the_grid_is_flowers_grid() -> None:
    clock = VirtualClock()
    grid = LoopbackGrid(
        client_app(lambda c: SITES[str(c.node_config["site"])]), {n: {"site": n} for n in NAMES}, clock
    )
    nodes = list(grid.get_node_ids())
    assert len(set(nodes)) == 6
    assert [info.node_id for info in grid.get_nodes()] == nodes
    other = Run.create_empty(9)
    grid.set_run(other)
    assert grid.run is other
    orders = [
        grid.create_message(to_flower(IntroductionOrder(str(n))), "query.introduction", n, "1") for n in nodes
    ]
    replies = list(grid.send_and_receive(orders, timeout=5.0))
    assert clock.now() == 5.0
    assert [reply.metadata.src_node_id for reply in replies] == nodes
    assert [from_flower(reply.content).nonce for reply in replies] == [str(node) for node in nodes]


def test_a_reply_is_pulled_once_and_only_when_it_is_due() -> None:
    clock = VirtualClock()
    grid = LoopbackGrid(
        client_app(lambda _context: SITES["ulm"]),
        {"ulm": {}},
        clock,
        faults=FaultPlan(Faults(slow=1.0)),
        slow_s=10.0,
    )
    (node,) = grid.get_node_ids()
    (sent,) = grid.push_messages(
        [grid.create_message(to_flower(IntroductionOrder("n")), "query.introduction", node, "")]
    )
    assert list(grid.pull_messages([sent])) == []
    clock.sleep(9.0)
    assert list(grid.pull_messages([sent])) == []
    clock.sleep(1.0)
    (reply,) = grid.pull_messages([sent])
    assert reply.metadata.reply_to_message_id == sent
    assert list(grid.pull_messages([sent])) == []
    assert list(grid.pull_messages(["message-never-sent"])) == []


def test_a_fault_of_the_grid_itself_is_not_taken_for_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loopback, "inflate_object_from_contents", lambda *_: RecordDict({}))
    with pytest.raises(RecordError, match="came out of the wire as something else"):
        speak(to_flower(IntroductionOrder("n")))

"""The chronicle says what a training's own record says, changes nothing of it, and stops it never."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from chronicles import START, Store
from small_federation import NAMES, Poison, job, poisoner, train

from clinimeta.client import app as client
from clinimeta.client.site import Site
from clinimeta.common.errors import GateError, QuorumError
from clinimeta.common.params import digest
from clinimeta.common.records import MetaGradient, MetaGradientOrder, Order, Refusal, Reply
from clinimeta.common.study import Faults
from clinimeta.server.aggregation import Aggregate
from clinimeta.server.chronicle_tables import answers, attempts, rounds
from clinimeta.server.database import Database
from clinimeta.server.flow import Failure, Round
from clinimeta.server.observing import (
    Arrived,
    Asked,
    Ended,
    Judged,
    RoundBegun,
    RoundEnded,
    Silent,
    TrainingBegun,
)
from clinimeta.simulations.loopback import LoopbackEngine

PARAMS = {"w": torch.ones(2)}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(Database.open(tmp_path / "coordinator.sqlite"))
    yield store
    store.database.engine.dispose()


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> Poison:
    return poisoner(monkeypatch)


def stable(row: Any) -> dict[str, Any]:
    return {name: getattr(row, name) for name in ("round", "cohort", "accepted", "bytes_down", "bytes_up")}


def test_it_holds_the_runs_own_record_and_changes_nothing(store: Store, tmp_path: Path) -> None:
    to_do = store.observed(tmp_path / "run", rounds=3)
    heard = train(to_do)
    assert digest(heard.params) == digest(train(job(tmp_path / "alone", rounds=3)).params)
    for row, summary in zip(store.rows(rounds), to_do.run_dir.rounds(), strict=True):
        assert {name: row[name] for name in stable(summary)} == stable(summary)
        assert json.loads(row["metrics"]) == summary.metrics
        assert (row["gradient_norm"], row["seconds"]) == (summary.gradient_norm, summary.seconds)
        assert (row["why"], row["epsilon"], row["ended"] > row["started"]) == ("", None, True)
    for number in (1, 2, 3):
        found = store.rows(answers, round=number)
        assert [(row["site"], row["phase"]) for row in found] == [(name, "received") for name in NAMES]
        summary = to_do.run_dir.rounds()[number - 1]
        assert {row["site"]: json.loads(row["metrics"]) for row in found} == summary.by_site
        assert sum(row["bytes_up"] for row in found) == summary.bytes_up
        assert sum(row["bytes_down"] for row in found) == summary.bytes_down
        assert all(row["seconds"] > 0 for row in found)


def test_sites_that_fail_are_named_with_what_they_came_to(store: Store, tmp_path: Path) -> None:
    engine = LoopbackEngine(faults=Faults(silent=0.1, error=0.1, corrupt=0.1))
    to_do = store.observed(tmp_path / "run", quorum=0.3)
    train(to_do, engine)
    seen = set()
    for summary in to_do.run_dir.rounds():
        last = {row["site"]: row for row in store.rows(answers, round=summary.round)}
        for site, row in last.items():
            expected = "refused" if site in summary.refused else "received"
            assert row["phase"] == ("silent" if site in summary.silent else expected), (summary, row)
            assert bool(row["code"]) == bool(row["sentence"]) == (row["phase"] != "received")
            seen.add(row["phase"])
    assert seen == {"received", "refused", "silent"}


def test_silence_is_told_before_a_site_is_asked_again(store: Store, tmp_path: Path) -> None:
    train(
        store.observed(tmp_path / "run", rounds=3, quorum=1.0, attempts=9),
        LoopbackEngine(faults=Faults(silent=0.2)),
    )
    found = store.rows(answers)
    assert {row["phase"] for row in found if row["attempt"] == 1} == {"received", "silent"}
    assert {(row["round"], row["site"]) for row in found if row["attempt"] == 2} == {
        (row["round"], row["site"]) for row in found if (row["attempt"], row["phase"]) == (1, "silent")
    }


def order(number: int, nonce: str) -> MetaGradientOrder:
    return MetaGradientOrder(nonce, "run", number, b"plan", PARAMS)


def reply(asked: MetaGradientOrder, site: str) -> MetaGradient:
    return MetaGradient(asked.nonce, "run", asked.round, site, 1.0, PARAMS, {})


def begun(tmp_path: Path, after: int = 0) -> TrainingBegun:
    return TrainingBegun("run", "run", job(tmp_path / "plan").plan, after)


def judged(number: int, *accepted: str, refused: dict[str, str], silent: tuple[str, ...] = ()) -> Judged:
    by_site = {site: {"query_loss": 0.5} for site in accepted}
    return Judged(number, Round(Aggregate(PARAMS, 1.0, {}, accepted, refused, by_site), silent))


def test_a_round_is_told_as_it_goes(store: Store, tmp_path: Path) -> None:
    """What a person who watches sees: asked, here but not judged, and what came of it."""
    orders = {site: order(1, site) for site in ("graz", "lund", "oulu", "ulm")}
    chronicle = store.tell(begun(tmp_path), RoundBegun(1, tuple(orders)))

    def phases() -> dict[tuple[str, int], str]:
        return {(row["site"], row["attempt"]): row["phase"] for row in store.rows(answers)}

    chronicle.tell(Asked(orders, dict.fromkeys(orders, 100)))
    assert phases() == {(site, 1): "asked" for site in orders}
    come = {"graz": orders["graz"], "lund": orders["lund"], "oulu": orders["oulu"]}
    replies = {
        "graz": reply(orders["graz"], "graz"),
        "lund": Refusal("lund", "lund", "too_few_rows", "bed 7 is empty"),
        "oulu": Failure("Flower error 2"),
    }
    chronicle.tell(Arrived(come, replies, {"graz": 70, "lund": 7, "oulu": 0}))
    assert phases() == {
        ("graz", 1): "adapted",
        ("lund", 1): "refused",
        ("oulu", 1): "refused",
        ("ulm", 1): "asked",
    }
    chronicle.tell(Silent({"ulm": orders["ulm"]}))
    again = {"oulu": order(1, "oulu 2"), "ulm": order(1, "ulm 2")}
    chronicle.tell(Asked(again, dict.fromkeys(again, 100)))
    chronicle.tell(Asked({"ulm": again["ulm"]}, {"ulm": 100}))  # it was lost, and is no third attempt
    assert phases()["ulm", 1] == "silent"
    assert phases()["ulm", 2] == phases()["oulu", 2] == "asked"
    chronicle.tell(Arrived({"ulm": again["ulm"]}, {"ulm": reply(again["ulm"], "ulm")}, {"ulm": 70}))
    refused = {"lund": "refused: too_few_rows", "ulm": "norm 9 is over the limit of 3"}
    chronicle.tell(judged(1, "graz", refused=refused, silent=("oulu",)))
    found = {(row["site"], row["attempt"]): row for row in store.rows(answers)}
    assert {key: row["phase"] for key, row in found.items()} == {
        ("graz", 1): "received",
        ("lund", 1): "refused",
        ("oulu", 1): "refused",
        ("oulu", 2): "silent",
        ("ulm", 1): "silent",
        ("ulm", 2): "refused",
    }
    assert found["lund", 1]["code"] == "too_few_rows"
    assert (found["ulm", 2]["code"], found["ulm", 2]["sentence"]) == ("unusable", refused["ulm"])
    assert (found["ulm", 2]["bytes_down"], found["ulm", 2]["bytes_up"]) == (200, 70)
    assert found["graz", 1]["seconds"] == 1.0
    assert json.loads(found["graz", 1]["metrics"]) == {"query_loss": 0.5}
    assert "bed 7" not in store.text(), "a hospital's own words are not kept"


def test_a_round_that_too_few_answered_says_why(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = client.answer

    def refusing(site: Site, asked: Order, tables: Any = None) -> Reply:
        if isinstance(asked, MetaGradientOrder):
            return Refusal(asked.nonce, site.name, "not_approved", "nobody has")
        return honest(site, asked, tables)

    monkeypatch.setattr(client, "answer", refusing)
    with pytest.raises(QuorumError):
        train(store.observed(tmp_path / "run"))
    (row,) = store.rows(rounds)
    assert (row["round"], row["why"], row["accepted"]) == (1, "round 1: 0 usable answers, 4 needed", 0)
    assert row["ended"] is not None
    found = [(row["site"], row["phase"], row["code"]) for row in store.rows(answers)]
    assert found == [(name, "refused", "not_approved") for name in NAMES]


def test_rounds_that_go_on_from_an_earlier_checkpoint_leave_no_later_rows(
    store: Store, tmp_path: Path
) -> None:
    orders = {number: {"ulm": order(number, f"n{number}")} for number in (1, 2, 3)}
    chronicle = store.tell(begun(tmp_path))
    for number, asked in orders.items():
        for news in (RoundBegun(number, ("ulm",)), Asked(asked, {"ulm": 1})):
            chronicle.tell(news)
    store.tell(begun(tmp_path, after=1))
    assert [row["round"] for row in store.rows(rounds)] == [1]
    assert [row["round"] for row in store.rows(answers)] == [1]
    assert store.rows(rounds)[0]["why"] == "its end was not written down"


def test_changes_only_grow_through_crashes_too(store: Store, tmp_path: Path) -> None:
    seen = 0
    for after in (0, 2, 0):
        chronicle = store.tell(begun(tmp_path, after))
        for number in (after + 1, after + 2):
            chronicle.tell(RoundBegun(number, ("ulm",)))
            change = store.rows(rounds, round=number)[0]["change"]
            assert change > seen
            seen = change


def test_steps_that_the_gate_undid_are_counted(store: Store, tmp_path: Path, poison: Poison) -> None:
    poison(3, 4)
    to_do = store.observed(tmp_path / "run", gate={"on": True, "factor": 1.2}, max_norm_ratio=1e9)
    train(to_do)
    kept = [(s.round, s.rollbacks, s.accepted) for s in to_do.run_dir.rounds()]
    assert [(r["round"], r["rollbacks"], r["accepted"]) for r in store.rows(rounds)] == kept
    assert sum(rollbacks for _, rollbacks, _ in kept) > 0


def test_numbers_that_are_none_become_null(store: Store, tmp_path: Path) -> None:
    to_do = store.observed(tmp_path / "run", rounds=1)
    train(to_do)
    (summary,) = to_do.run_dir.rounds()
    odd = replace(summary, metrics={"query_loss": float("nan")}, gradient_norm=float("inf"))
    store.tell(begun(tmp_path), RoundBegun(1, ()), RoundEnded(odd))
    (row,) = store.rows(rounds)
    assert (json.loads(row["metrics"]), row["gradient_norm"]) == ({"query_loss": None}, None)
    assert store.rows(attempts) == []


def test_what_ended_it_is_kept_and_cut(store: Store, tmp_path: Path) -> None:
    store.tell(begun(tmp_path), RoundBegun(1, ("ulm",)), Ended(GateError("undone " * 1000)))
    (row,) = store.rows(rounds)
    assert row["why"].startswith("undone undone")
    assert len(row["why"]) == 2000
    assert row["started"] > START.isoformat()

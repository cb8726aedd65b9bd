"""Under secure aggregation the chronicle says who was lost in which phase, and what the sums have cost."""

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from chronicles import Store
from small_federation import NAMES, job, train

from clinimeta.client import app as client
from clinimeta.client.site import Site
from clinimeta.common.errors import QuorumError
from clinimeta.common.params import digest
from clinimeta.common.privacy.accounting import gaussian_epsilon
from clinimeta.common.protection import Protection
from clinimeta.common.records import Masking, MaskingOrder, Order, Refusal, Reply
from clinimeta.common.secagg import messages
from clinimeta.server.app import Job
from clinimeta.server.chronicle_tables import answers, attempts, openings, rounds
from clinimeta.server.database import Database
from clinimeta.server.masked_attempts import AGAIN

PHASES = ("advert", "shares", "masked", "confirm", "unmask")
THRESHOLD = 2 * len(NAMES) // 3 + 1


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(Database.open(tmp_path / "coordinator.sqlite"))
    yield store
    store.database.engine.dispose()


def masked(to_do: Job, **protection: Any) -> Job:
    given = Protection(answers="masked", **protection)
    return replace(to_do, plan=to_do.plan.model_copy(update={"protection": given}))


def phases_of(order: Order) -> set[tuple[int, str]]:
    """(attempt, phase) of the requests in an order."""
    if not isinstance(order, MaskingOrder):
        return set()
    requests = [messages.from_bytes(data) for data in order.requests]
    return {(0, messages.phase_of(request)) for request in requests}  # type: ignore[arg-type]


class Absent:
    """Sites that say no to, or fail at, some phases of the first round that they are asked in."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, when: dict[str, str], times: int = 1) -> None:
        self.when, self.left = when, dict.fromkeys(when, times)
        honest = client.answer

        def answer(site: Site, order: Order, tables: Any = None) -> Reply:
            here = {phase for _, phase in phases_of(order)}
            if self.left.get(site.name) and self.when[site.name] in here:
                self.left[site.name] -= 1
                return Refusal(order.nonce, site.name, "budget_spent", "of the patient in bed 7")
            return honest(site, order, tables)

        monkeypatch.setattr(client, "answer", answer)


def test_an_attempt_that_went_well(store: Store, tmp_path: Path) -> None:
    to_do = masked(store.observed(tmp_path / "run", rounds=3))
    heard = train(to_do)
    assert digest(heard.params) == digest(train(masked(job(tmp_path / "alone", rounds=3))).params)
    found = store.rows(attempts)
    assert [(row["round"], row["attempt"]) for row in found] == [(1, 1), (2, 1), (3, 1)]
    for row in found:
        assert (row["asked"], row["threshold"], row["survivors"]) == (len(NAMES), THRESHOLD, len(NAMES))
        assert (row["aborted"], json.loads(row["lost"])) == ("", {})
        times = json.loads(row["phases"])
        assert tuple(times) == PHASES
        assert all(begun <= ended for begun, ended in times.values())
        assert row["begun"] == times["advert"][0]
        assert row["ended"] is not None
    for row in store.rows(answers):
        assert (row["phase"], row["metrics"]) == ("received", ""), "no hospital's own numbers"
    said = sum(summary.bytes_up for summary in to_do.run_dir.rounds())
    assert sum(row["bytes_up"] for row in store.rows(answers)) == said
    assert store.rows(openings) == []


@pytest.mark.parametrize("phase", PHASES)
def test_who_was_lost_in_which_phase(
    phase: str, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Absent(monkeypatch, {"pisa": phase})
    train(masked(store.observed(tmp_path / "run", rounds=1)))
    (row,) = store.rows(attempts)
    assert json.loads(row["lost"]) == {phase: {"pisa": "budget_spent"}}
    counts = phase in ("confirm", "unmask")
    assert row["survivors"] == len(NAMES) - (not counts)
    (pisa,) = store.rows(answers, site="pisa")
    assert pisa["phase"] == ("received" if counts else "dropped")
    if not counts:
        assert pisa["code"] == "budget_spent"
        assert pisa["sentence"].startswith(f"{phase}: ")
    assert "bed 7" not in store.text()


def test_an_attempt_that_was_given_up_and_the_one_after_it(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Absent(monkeypatch, dict.fromkeys(("bern", "graz", "lund"), "confirm"))
    train(masked(store.observed(tmp_path / "run", rounds=2)))
    first, second, *rest = store.rows(attempts)
    assert first["aborted"] == f"confirm: 4 hospitals left, {THRESHOLD} needed"
    assert set(json.loads(first["lost"])["confirm"]) == {"bern", "graz", "lund"}
    assert (first["survivors"], second["survivors"]) == (None, len(NAMES))
    assert (second["round"], second["attempt"], second["aborted"]) == (1, 2, "")
    found = [(row["round"], row["attempt"], row["survivors"], row["aborted"]) for row in rest]
    assert found == [(2, 1, None, AGAIN), (2, 2, len(NAMES), "")]
    assert all(row["ended"] for row in store.rows(attempts))
    last = {row["site"]: row["phase"] for row in store.rows(answers, round=1, attempt=2)}
    assert last == dict.fromkeys(NAMES, "received")


def test_a_round_that_cannot_be_opened(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Absent(monkeypatch, dict.fromkeys(("bern", "graz", "lund"), "masked"), times=9)
    with pytest.raises(QuorumError):
        train(masked(store.observed(tmp_path / "run", rounds=2, attempts=2)))
    (row,) = store.rows(rounds)
    assert row["why"] == f"round 1: 4 usable answers, {THRESHOLD} needed"
    assert [bool(a["aborted"]) for a in store.rows(attempts, round=1)] == [True, True]
    assert {a["phase"] for a in store.rows(answers, site="graz")} == {"dropped"}


def test_a_hospitals_own_words_are_not_kept(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither where they are a code of its own."""
    honest = client.answer

    def answer(site: Site, order: Order, tables: Any = None) -> Reply:
        if isinstance(order, MaskingOrder) and site.name in ("graz", "lund", "ulm"):
            said = messages.to_bytes(messages.Refusal(site.name, "advert", "bed 7", "bed 7 is empty"))
            return Masking(order.nonce, order.run, site.name, (said,))
        return honest(site, order, tables)

    monkeypatch.setattr(client, "answer", answer)
    with pytest.raises(QuorumError):
        train(masked(store.observed(tmp_path / "run", attempts=1), min_cohort=5))
    assert {row["code"] for row in store.rows(answers, site="graz")} == {"unknown"}
    assert "bed 7" not in store.text()


NOISY = {"epsilon": 8.0, "delta": 1e-6, "noise_multiplier": 3.0, "clip": 1.0}


def test_epsilon_grows_with_each_sum_that_was_seen(store: Store, tmp_path: Path) -> None:
    to_do = masked(store.observed(tmp_path / "run", rounds=2), **NOISY)
    train(replace(to_do, masked_as="t 1"))
    expected = [gaussian_epsilon(math.sqrt(seen) / 3.0, 1e-6) for seen in (1, 2, 3)]
    assert [row["epsilon"] for row in store.rows(rounds)] == pytest.approx(expected[:2])
    (tmp_path / "run" / "trainings" / to_do.name / "round-00002.safetensors").unlink()
    again = masked(store.observed(tmp_path / "run", rounds=2), **NOISY)
    train(replace(again, masked_as="t 2"))
    assert [row["epsilon"] for row in store.rows(rounds)] == pytest.approx([expected[0], expected[2]])
    seen = [(row["round"], row["name"]) for row in store.rows(openings)]
    assert seen == [(1, "t 1"), (2, "t 1"), (2, "t 2")]


def test_a_masked_answer_that_is_here_is_told_before_the_sum_is(store: Store, tmp_path: Path) -> None:
    """A listener in between sees each phase begin and end."""
    seen: set[tuple[str, str]] = set()
    to_do = masked(store.observed(tmp_path / "run", rounds=1))
    chronicle = to_do.observer

    class Between:
        def tell(self, news: Any) -> None:
            chronicle.tell(news)
            begun = json.loads((store.rows(attempts) or [{"phases": "{}"}])[0]["phases"])
            open_now = [phase for phase, (_, ended) in begun.items() if ended is None]
            seen.update((row["phase"], "".join(open_now)) for row in store.rows(answers))

    train(replace(to_do, observer=Between()))
    assert {("asked", "advert"), ("asked", "masked"), ("masked", "masked"), ("masked", "unmask")} <= seen
    assert ("received", "") in seen

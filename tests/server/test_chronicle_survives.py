"""Crashes, full disks and faults of its own: the chronicle holds no round twice, and ends none."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import structlog
from chronicles import Store
from small_federation import ROUNDS, job, train

from clinimeta.common.params import digest
from clinimeta.common.study import Faults
from clinimeta.server.chronicle_tables import answers, rounds
from clinimeta.server.database import Database
from clinimeta.server.observing import (
    News,
    RoundBegun,
)
from clinimeta.server.store import RunDir
from clinimeta.simulations.loopback import LoopbackEngine


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(Database.open(tmp_path / "coordinator.sqlite"))
    yield store
    store.database.engine.dispose()


class KilledError(BaseException):
    """The process ends here."""


def kill_at(number: int, monkeypatch: pytest.MonkeyPatch, *, before: bool) -> None:
    """The process ends just before, or just after, the checkpoint of a round."""
    write = RunDir.checkpoint

    def killed(run_dir: RunDir, training: str, state: Any, plan: str) -> None:
        if state.round == number and before:
            raise KilledError
        write(run_dir, training, state, plan)
        if state.round == number:
            raise KilledError

    monkeypatch.setattr(RunDir, "checkpoint", killed)


@pytest.mark.parametrize("before", [True, False])
def test_after_a_crash_a_repeated_round_replaces_its_rows(
    before: bool, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = LoopbackEngine(faults=Faults(error=0.05))
    kill_at(3, monkeypatch, before=before)
    with pytest.raises(KilledError):
        train(store.observed(tmp_path / "run", rounds=4), engine)
    monkeypatch.undo()
    assert {row["phase"] for row in store.rows(answers, round=3)} == {"received", "refused"}
    to_do = store.observed(tmp_path / "run", rounds=4)
    train(to_do)
    assert [row["round"] for row in store.rows(rounds)] == [1, 2, 3, 4]
    assert [row["round"] for row in store.rows(rounds) if row["ended"] is None] == []
    summary = to_do.run_dir.rounds()[2]
    found = store.rows(answers, round=3)
    assert len({row["site"] for row in found}) == len(found) == summary.cohort, "none twice"
    refused = {row["site"] for row in found if row["phase"] == "refused"}
    assert refused == set(summary.refused) == (set() if before else {"oulu"})
    measured = {row["site"]: json.loads(row["metrics"]) for row in found if row["metrics"]}
    assert measured == summary.by_site


def test_a_full_disk_ends_no_round_and_is_said_once(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = store.observed(tmp_path / "full")
    pages = 1_000_000

    def limit(summary: Any) -> None:
        nonlocal pages
        pages = {1: 1, 3: 1_000_000}.get(summary.round, pages)

    change = Database.change

    def change_within(database: Database) -> Any:
        with database.engine.connect() as connection:
            connection.exec_driver_sql(f"PRAGMA max_page_count={pages}")  # of a connection that is used again
        return change(database)

    monkeypatch.setattr(Database, "change", change_within)
    # Rows as long as a page, so that each needs room of its own.
    monkeypatch.setattr("clinimeta.server.chronicle_page.spread_of", lambda _: {"filler": [0.1] * 2000})
    with structlog.testing.capture_logs() as logs:
        state = train(replace(full, notify=limit))
    assert digest(state.params) == digest(train(job(tmp_path / "free")).params)
    said = [log for log in logs if "chronicle" in log["event"]]
    assert len(said) >= 1
    assert all(log["error"] == "OperationalError" for log in said)
    assert [row["round"] for row in store.rows(rounds) if row["seconds"]][-3:] == [4, 5, 6], "room again"
    done = {row["round"] for row in store.rows(rounds) if row["seconds"] is not None}
    assert len(done) < ROUNDS, "the disk was full"


def test_an_observer_that_is_broken_ends_no_round(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    chronicle = store.chronicle()

    def broken(_page: object, news: News) -> None:
        raise KeyError(type(news).__name__)

    with structlog.testing.capture_logs() as logs:
        monkeypatch.setattr(type(chronicle), "_write", lambda _self, page, news: broken(page, news))
        for number in (1, 2):
            chronicle.tell(RoundBegun(number, ()))
    assert [log["error"] for log in logs] == ["KeyError"]

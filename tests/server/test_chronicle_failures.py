"""Failures of the coordinator's own processes: kept in words, without what a stranger's error may hold."""

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from clinimeta.common.errors import GateError, UserError
from clinimeta.common.supervision import Child, Supervisor
from clinimeta.server import daemon, failures
from clinimeta.server.database import Database
from clinimeta.server.failures import failed, last_failure, last_failures, told


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database.open(tmp_path / "coordinator.sqlite")
    yield database
    database.engine.dispose()


def every(database: Database, process: str = "") -> list[tuple[str, str, str, str]]:
    with database.engine.connect() as connection:
        found = last_failures(connection, process=process)
    return [(one.process, one.what, one.where, one.remedy) for one in found]


@pytest.mark.parametrize(
    ("code", "said"),
    [("import sys; sys.exit(7)", "exit code 7"), ("import os; os.kill(os.getpid(), 9)", "signal 9")],
)
def test_a_child_that_ends_is_written_down_with_how(code: str, said: str, database: Database) -> None:
    supervisor = Supervisor([Child("link", [sys.executable, "-c", code])], daemon._ended(database))
    end = time.monotonic() + 60
    try:
        while not every(database) and time.monotonic() < end:
            supervisor.tend()
            time.sleep(0.02)
    finally:
        supervisor.stop()
    process, what, _, remedy = every(database)[-1]
    assert (process, remedy) == ("link", failures.SEE_LOG)
    assert said in what


def test_our_own_errors_are_kept_in_their_words_and_others_by_kind(database: Database) -> None:
    told(database, "daemon", UserError("no room", where="hub", found="3 MiB", remedy="make some"))
    told(database, "round-loop-0", GateError("undone too often"), "study-1")
    told(database, "round-loop-0", ValueError("of the patient in bed 7"))
    assert every(database) == [
        ("round-loop-0", "it ended with ValueError", "", failures.SEE_LOG),
        ("round-loop-0", "undone too often", "study-1", failures.SEE_LOG),
        ("daemon", "no room: 3 MiB", "hub", "make some"),
    ]
    assert len(every(database, "daemon")) == 1


def test_only_the_last_are_kept(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    with database.engine.connect() as connection:
        assert last_failure(connection) is None
    monkeypatch.setattr(failures, "KEPT", 3)
    for number in range(5):
        failed(database, "link", f"fault {number}")
    assert [what for _, what, _, _ in every(database)] == ["fault 4", "fault 3", "fault 2"]
    with database.engine.connect() as connection:
        newest = last_failure(connection, "link")
        assert newest is not None
        assert newest.what == "fault 4"
        assert [one.what for one in last_failures(connection, before=newest.number)] == ["fault 3", "fault 2"]


def test_a_failure_that_cannot_be_written_is_logged(database: Database) -> None:
    with database.change() as connection:
        connection.exec_driver_sql("DROP TABLE failures")
    with structlog.testing.capture_logs() as logs:
        failed(database, "link", "fault")
    assert [(log["process"], log["error"]) for log in logs] == [("link", "OperationalError")]

"""Events: a chain in which any change shows, found by their words, and what the operator types about it."""

import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from enrolling import HOUR, hospital

from clinimeta.common.errors import UserError
from clinimeta.server import chronicle_tables, enrolment
from clinimeta.server.audit import START, Actor, audit, chained, head, verify_events
from clinimeta.server.config import Home
from clinimeta.server.daemon import make_home
from clinimeta.server.database import MIGRATIONS, Database, events, metadata
from clinimeta.server.enrolment import Keys
from clinimeta.server.invitations import open_invitations, withdraw
from clinimeta.simulations.cli import app, run

NAMES = ("Basel", "Graz", "St. Gallen", "Ulm")


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return make_home(
        tmp_path / "hub", "hub", ["127.0.0.1"], host="127.0.0.1", port=1, control_port=2, health_port=3
    )


@pytest.fixture
def database(home: Home) -> Iterator[Database]:
    database = Database.open(home.database)
    for name in NAMES:
        enrolment.invite(database, name, HOUR, "Ada")
    with database.change() as connection:
        enrolment.record(connection, Actor("Ada", "admin", "left the consortium"), "revoked", "Ulm")
    yield database
    database.engine.dispose()


def typed(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str]:
    capsys.readouterr()
    code = run(lambda: app(args=[str(word) for word in words], standalone_mode=False))
    said = capsys.readouterr()
    return code, said.out + said.err


def found(database: Database, *arguments: Any, **options: Any) -> list[tuple[int, str]]:
    with database.engine.connect() as connection:
        return [(event.number, event.about) for event in audit(connection, *arguments, **options)]


# The chain

TAMPERING = {
    **{
        f"another {name}": (f"UPDATE events SET {name} = 'x' WHERE number = 3", 3)  # noqa: S608 (ours)
        for name in ("at", "who", "what", "about", "detail", "role", "reason")
    },
    "another hash": ("UPDATE events SET hash = zeroblob(32) WHERE number = 3", 3),
    "no hash": ("UPDATE events SET hash = x'' WHERE number = 3", 3),
    "one taken out": ("DELETE FROM events WHERE number = 3", 3),
    "the first taken out": ("DELETE FROM events WHERE number = 1", 1),
    "two swapped": ("UPDATE events SET number = number - 7 WHERE number IN (3, 4)", 3),  # to -4 and -3
    "one put in": ("INSERT INTO events (at, who, what, about, detail) VALUES ('', '', '', '', '')", 6),
}


def test_a_chain_that_nobody_touched_is_sound(database: Database) -> None:
    assert verify_events(database) is None
    with database.engine.connect() as connection:
        number, digest = head(connection)
    (last,) = database.rows(sa.select(events).where(events.c.number == 5))
    assert (number, digest) == (5, last["hash"].hex())
    assert (last["role"], last["reason"]) == ("admin", "left the consortium")


@pytest.mark.parametrize("how", TAMPERING)
def test_the_first_event_that_was_tampered_with_is_named(database: Database, how: str) -> None:
    statement, number = TAMPERING[how]
    with database.change() as connection:
        connection.exec_driver_sql(statement)
        if how == "two swapped":
            connection.exec_driver_sql("UPDATE events SET number = -number WHERE number < 0")
    assert verify_events(database) == number


def test_no_two_events_have_one_chain() -> None:
    """A field's end is part of what is hashed."""
    event = dict.fromkeys(("at", "who", "role", "what", "about", "detail", "reason"), "") | {"number": 1}
    first = chained(START, {**event, "who": "a", "role": "b"})
    assert first != chained(START, {**event, "who": "ab"})
    assert first != chained(b"\1" * 32, {**event, "who": "a", "role": "b"})
    assert len(first) == 32


def test_who_acts_on_itself_is_a_hospital(database: Database) -> None:
    one = hospital()
    token = enrolment.invite(database, "Wien", HOUR, "Ada", automatic=True)
    enrolment.enrol(database, token, Keys(b"node", one.own.public), "clinimeta")
    roles = {row["what"]: row["role"] for row in database.rows(sa.select(events))}
    assert (roles["enrolled"], roles["approved"], roles["invited"]) == ("hospital", "invitation", "operator")
    assert verify_events(database) is None


def older(path: Path) -> None:
    """A database as the version before has made it, with two events."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    engine = sa.create_engine(f"sqlite:///{path}")
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        for about in ("Ulm", "Graz"):
            connection.execute(
                sa.text(
                    "INSERT INTO events (at, who, what, about, detail) VALUES ('t', 'Ada', 'w', :a, 'd')"
                ),
                {"a": about},
            )
    engine.dispose()


def test_events_from_before_are_chained_and_found(tmp_path: Path) -> None:
    older(tmp_path / "old.sqlite")
    database = Database.open(tmp_path / "old.sqlite")
    assert verify_events(database) is None
    with database.change() as connection:
        enrolment.record(connection, "Ada", "approved", "Ulm")
    assert verify_events(database) is None
    assert found(database, "ulm") == [(3, "Ulm"), (1, "Ulm")]
    with database.change() as connection:
        connection.exec_driver_sql("UPDATE events SET about = 'Bern' WHERE number = 1")
    assert verify_events(database) == 1
    database.engine.dispose()


def test_the_migrations_make_the_tables_that_the_code_describes(database: Database) -> None:
    assert {"rounds", "answers", "attempts"} <= set(chronicle_tables.metadata.tables)
    words = "events_words"  # the index of words is SQLite's own kind of table

    def ours(_thing: object, name: str | None, kind: str, _reflected: bool, _to: object) -> bool:
        return not (kind == "table" and str(name).startswith(words))

    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"include_object": ours})
        assert compare_metadata(context, metadata) == []


# Search


def test_words_and_their_beginnings_find_events_the_newest_first(database: Database) -> None:
    assert found(database) == [(5, "Ulm"), (4, "Ulm"), (3, "St. Gallen"), (2, "Graz"), (1, "Basel")]
    assert found(database, "gall") == [(3, "St. Gallen")]
    assert found(database, "ULM ada") == [(5, "Ulm"), (4, "Ulm")]
    assert found(database, "consortium") == [(5, "Ulm")]
    assert found(database, "ulm basel") == []


@pytest.mark.parametrize("odd", ['"', '"" OR ""', "*", "a* OR b", "NEAR(", "x:y", "-", "\0", "'; --", "st."])
def test_no_search_is_an_error(database: Database, odd: str) -> None:
    assert found(database, odd) in ([], found(database), [(3, "St. Gallen")])


def test_pages_follow_each_other(database: Database) -> None:
    pages, before = [], 2**62
    while page := found(database, before=before, limit=2):
        pages.append(page)
        before = page[-1][0]
    assert [len(page) for page in pages] == [2, 2, 1]
    assert [event for page in pages for event in page] == found(database)
    assert found(database, "ulm", before=5) == [(4, "Ulm")]


# What the operator types


@pytest.mark.usefixtures("database")
def test_events_are_listed_the_newest_last(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    code, said = typed(capsys, "coordinator", "events", "--last", 2, "--json", "--home", home.path)
    rows = json.loads(said)
    assert (code, [(row["number"], row["about"]) for row in rows]) == (0, [(4, "Ulm"), (5, "Ulm")])
    assert rows[1]["reason"] == "left the consortium"
    said = typed(capsys, "coordinator", "events", "--search", "gallen", "--home", home.path)[1]
    assert "St. Gallen" in said
    assert "Graz" not in said


def test_the_operator_hears_whether_the_record_is_sound(
    home: Home, database: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("coordinator", "events", "--verify", "--home", home.path)
    assert typed(capsys, *words)[0] == 0
    said = json.loads(typed(capsys, *words, "--json")[1])
    assert (said["sound"], said["events"]) == (True, 5)
    with database.change() as connection:
        connection.exec_driver_sql("UPDATE events SET who = 'Bob' WHERE number = 2")
    code, text = typed(capsys, *words)
    assert code == 2
    assert "event 2 does not fit" in text


def test_an_invitation_that_was_taken_back_is_worth_nothing(
    home: Home, database: Database, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    token = enrolment.invite(database, "Wien", HOUR, "Ada")
    where = ("coordinator", "invitations", "--home", home.path)
    listed = json.loads(typed(capsys, *where, "--json")[1])
    assert [row["site"] for row in listed] == [*NAMES, "Wien"]
    assert "token" not in listed[0]
    assert typed(capsys, *where, "--withdraw", "Wien") == (0, "taken back: 1\n")
    with pytest.raises(UserError):
        enrolment.enrol(database, token, Keys(b"node", bytes(32)), "clinimeta")
    assert "Wien" not in typed(capsys, *where)[1]
    code, text = typed(capsys, *where, "--withdraw", "Wien")
    assert (code, "no open invitation" in text) == (2, True)
    assert found(database, "withdrew")[0][1] == "Wien"
    later = enrolment.now() + HOUR + timedelta(seconds=1)
    monkeypatch.setattr(enrolment, "now", lambda: later)
    assert "no invitation is open" in typed(capsys, *where)[1]


def test_used_invitations_are_not_open_and_cannot_be_taken_back(database: Database) -> None:
    token = enrolment.invite(database, "Wien", HOUR, "Ada")
    enrolment.enrol(database, token, Keys(b"node", bytes(32)), "clinimeta")
    assert "Wien" not in {invitation.site for invitation in open_invitations(database)}
    with pytest.raises(UserError, match="no open invitation"):
        withdraw(database, "Wien", "Ada")

"""The console's queries: each finds what it says, in pages, by an index, and in few looks however long."""

import statistics
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from clinimeta.common.errors import UserError
from clinimeta.server import round_views, views
from clinimeta.server.chronicle_tables import answers, rounds
from clinimeta.server.database import Database, experiments, sites
from clinimeta.server.sightings import Facts, see
from clinimeta.simulations.benchmarks import console_store
from clinimeta.simulations.benchmarks.console_store import MASKED, PLAIN, START, STUDY, fill, queries

SITES, ROUNDS = 7, 12
NOW = START + timedelta(days=365)


def filled(path: Path, hospitals: int = SITES, count: int = ROUNDS) -> Database:
    database = Database.open(path)
    fill(database, hospitals=hospitals, rounds=count)
    return database


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    found = filled(tmp_path_factory.mktemp("views") / "hub.sqlite")
    yield found
    found.engine.dispose()


@pytest.fixture
def connection(database: Database) -> Iterator[sa.Connection]:
    with database.engine.connect() as connection:
        yield connection


def asked(connection: sa.Connection, ask: Callable[[sa.Connection], object]) -> list[tuple[str, Any]]:
    """The statements that a query sends, with their values."""
    found: list[tuple[str, Any]] = []

    def note(_c: object, _cursor: object, statement: str, values: Any, *_: object) -> None:
        found.append((statement, values))

    sa.event.listen(connection, "before_cursor_execute", note)
    try:
        ask(connection)
    finally:
        sa.event.remove(connection, "before_cursor_execute", note)
    return found


SCREENS = [*queries(ROUNDS)]


@pytest.mark.parametrize("screen", SCREENS)
def test_each_screen_looks_into_an_index(screen: str, connection: sa.Connection) -> None:
    for statement, values in asked(connection, queries(ROUNDS)[screen]):
        plan = [str(row[3]) for row in connection.exec_driver_sql("EXPLAIN QUERY PLAN " + statement, values)]
        looks = [step for step in plan if step.startswith(("SEARCH", "SCAN"))]
        assert looks
        for step in looks:
            # The two that count everybody, and the index of words, are scans of an index and not of a table.
            whole = "COVERING INDEX sites_by_state" in step or "VIRTUAL TABLE INDEX" in step
            assert step.startswith("SEARCH") or whole, plan
        assert "USE TEMP B-TREE FOR ORDER BY" not in plan, "whole tables would be sorted for a page"


def test_a_table_without_its_index_would_be_seen(tmp_path: Path) -> None:
    database = filled(tmp_path / "bare.sqlite", 2, 3)
    with database.engine.connect() as connection:
        connection.exec_driver_sql("DROP INDEX answers_by_site")
        ((statement, values),) = [
            one
            for one in asked(connection, queries(3)["site"])
            if "FROM answers" in one[0].replace("\n", " ")
        ]
        plan = connection.exec_driver_sql("EXPLAIN QUERY PLAN " + statement, values).all()
    assert any(str(row[3]).startswith("SCAN") for row in plan)


@pytest.mark.parametrize("screen", SCREENS)
def test_many_rows_take_no_more_looks_than_few(
    screen: str, connection: sa.Connection, tmp_path: Path
) -> None:
    few = filled(tmp_path / "few.sqlite", 2, 2)
    with few.engine.connect() as other:
        looks = len(asked(other, queries(2)[screen]))
    assert 1 <= looks == len(asked(connection, queries(ROUNDS)[screen])) <= 3


def test_the_same_numbers_give_the_same_rows(database: Database, tmp_path: Path) -> None:
    again = filled(tmp_path / "again.sqlite")
    for table in (sites, experiments, rounds, answers, console_store.TABLES.sightings):
        query = sa.select(table).order_by(*table.primary_key)
        assert database.rows(query) == again.rows(query)
    assert len(database.rows(sa.select(answers))) == SITES * ROUNDS


def paged(ask: Callable[[Any], Any], first: Any, key: Callable[[Any], Any]) -> list[Any]:
    """All pages in a row."""
    found, after = list[Any](), first
    while page := ask(after):
        found += page
        after = key(page[-1])
        assert len(found) < 10_000, "pages that do not end"
    return found


def test_pages_together_are_the_whole(connection: sa.Connection) -> None:
    c = connection
    whole = round_views.timeline(c, PLAIN, 3).answers
    assert [line.site for line in whole] == sorted(line.site for line in whole)
    assert len(whole) == SITES
    for found, expected in (
        (
            paged(lambda a: round_views.rounds_after(c, PLAIN, a, limit=5), 0, lambda one: one.round),
            round_views.rounds_after(c, PLAIN),
        ),
        (
            paged(lambda a: round_views.rounds_since(c, PLAIN, a, limit=5), 0, lambda one: one.change),
            round_views.rounds_after(c, PLAIN),
        ),
        (
            paged(
                lambda a: round_views.timeline(c, PLAIN, 3, after=a, limit=3).answers,
                (0, ""),
                lambda one: (one.attempt, one.site),
            ),
            whole,
        ),
        (
            paged(
                lambda a: round_views.aggregation(c, MASKED, after=a, limit=5),
                (0, 0),
                lambda one: (one.round, one.attempt),
            ),
            round_views.aggregation(c, MASKED),
        ),
        (
            paged(
                lambda a: round_views.privacy(c, STUDY, after=a, limit=5),
                ("", 0),
                lambda one: (one.experiment, one.round),
            ),
            round_views.privacy(c, STUDY),
        ),
        (
            paged(lambda a: views.federation(c, NOW, after=a, limit=3).sites, "", lambda one: one.name),
            views.federation(c, NOW).sites,
        ),
        (paged(lambda b: views.runs(c, before=b, limit=1), "~", lambda one: one.made_at), views.runs(c)),
    ):
        assert found == list(expected)
        assert len(found) > 1


def test_the_spread_is_that_of_the_answers_that_count(connection: sa.Connection) -> None:
    for line in round_views.spread(connection, PLAIN, "query_accuracy"):
        every = round_views.timeline(connection, PLAIN, line.round).answers
        values = [one.metrics["query_accuracy"] for one in every if one.phase == "received"]
        measured = [value for value in values if value is not None]
        assert (line.least, line.most, line.sites) == (min(measured), max(measured), len(measured))
        assert line.median == pytest.approx(statistics.median(measured))
        assert line.least <= line.lower <= line.median <= line.upper <= line.most
    assert len(round_views.spread(connection, PLAIN)) == ROUNDS
    assert round_views.spread(connection, MASKED) == (), "only sums were seen"
    assert round_views.spread(connection, PLAIN, "no metric") == ()


def test_what_is_new_is_all_that_changed_since(tmp_path: Path) -> None:
    database = filled(tmp_path / "live.sqlite", 2, 4)
    with database.engine.connect() as connection:
        assert [line.round for line in round_views.rounds_since(connection, PLAIN, 2)] == [3, 4]
        assert round_views.rounds_since(connection, PLAIN, 4) == ()
        assert round_views.timeline(connection, PLAIN, 2, since=2).answers == ()
    with database.change() as connection:
        connection.execute(rounds.update().where(rounds.c.round == 2).values(change=99, why="again"))
    with database.engine.connect() as connection:
        assert [(line.round, line.why) for line in round_views.rounds_since(connection, PLAIN, 4)] == [
            (2, "again")
        ]


def test_a_hospital_shows_where_it_was_and_what_it_was_asked(connection: sa.Connection) -> None:
    found = views.site(connection, "Hospital 003", NOW)
    assert {line.site for line in found.answers} == {"Hospital 003"}
    assert [line.round for line in found.answers] == list(range(ROUNDS, 0, -1))
    assert found.presence[0].until > found.presence[1].until
    assert found.presence[0].facts.rows_to == found.line.rows_to == 199
    with pytest.raises(UserError, match="no hospital of this name"):
        views.site(connection, "Hospital 999", NOW)


def test_the_federation_counts_who_is_there(tmp_path: Path) -> None:
    database = Database.open(tmp_path / "hub.sqlite")
    fill(database, hospitals=4, rounds=1)
    later = NOW + timedelta(days=1)
    with database.change() as connection:
        connection.execute(sites.update().where(sites.c.name == "Hospital 003").values(state="revoked"))
        for name, ago_s in (("Hospital 000", 10), ("Hospital 001", 31), ("Hospital 003", 5)):
            see(connection, name, later - timedelta(seconds=ago_s), Facts("approved"))
    with database.engine.connect() as connection:
        found = views.federation(connection, later, limit=2)
        assert (found.by_state, found.present) == ({"approved": 3, "revoked": 1}, 1)
        assert [(line.name, line.present) for line in found.sites] == [
            ("Hospital 000", True),
            ("Hospital 001", False),
        ]


def test_runs_show_their_last_round_and_can_be_chosen(connection: sa.Connection) -> None:
    assert [line.id for line in views.runs(connection)] == [MASKED, PLAIN]
    line = views.run(connection, PLAIN)
    assert line.metrics == round_views.rounds_after(connection, PLAIN)[-1].metrics
    assert (line.epsilon, views.run(connection, MASKED).epsilon) == (None, 8.0)
    assert len(line.participants) == SITES
    assert views.runs(connection, state="finished") == ()
    assert len(views.runs(connection, state="running", study=STUDY)) == 2
    assert views.runs(connection, study="other") == ()
    with pytest.raises(UserError, match="no such experiment"):
        views.run(connection, "other")


def test_a_run_that_has_not_begun_shows_no_round(tmp_path: Path) -> None:
    database = filled(tmp_path / "new.sqlite", 2, 1)
    with database.change() as connection:
        connection.execute(rounds.update().values(seconds=None, ended=None))
    with database.engine.connect() as connection:
        assert views.run(connection, PLAIN).metrics == {}
        assert round_views.timeline(connection, PLAIN, 99).round is None


def test_attempts_and_spending_read_back_as_they_were_written(connection: sa.Connection) -> None:
    first = round_views.aggregation(connection, MASKED)[0]
    assert (first.threshold, first.survivors) == (2 * SITES // 3 + 1, SITES - 1)
    assert first.lost == {"masked": {"Hospital 001": "silent"}}
    assert list(first.phases) == ["advert", "shares", "masked", "confirm", "unmask"]
    spent = round_views.privacy(connection, STUDY)
    assert {one.experiment for one in spent} == {MASKED}
    assert [one.epsilon for one in spent] == sorted(one.epsilon for one in spent)
    assert round_views.privacy(connection, "other") == ()


def test_the_benchmark_says_how_large_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    console_store.main(tmp_path / "hub.sqlite", 2, 3)
    said = capsys.readouterr().out
    assert said.startswith("2 sites, 3 rounds: ")
    assert all(f"\n{screen} " in said for screen in SCREENS)
    with pytest.raises(UserError, match="there already"):
        console_store.main(tmp_path / "hub.sqlite", 2, 3)

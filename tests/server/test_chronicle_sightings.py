"""Presence in intervals: nothing that was seen is lost in them, and nothing is in them that was not seen."""

import itertools
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from chronicles import START
from enrolling import HOUR, Hub, hospital
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.exc import OperationalError

from clinimeta.common.records import Introduction
from clinimeta.server import sightings, views
from clinimeta.server.chronicle_tables import sightings as table
from clinimeta.server.daemon import make_home
from clinimeta.server.database import Database
from clinimeta.server.enrolment_api import enrolment_app
from clinimeta.server.sightings import EVERY, GONE, Facts, Lookout, Presence, introduced, known, seen

GAPS = st.integers(0, 70).map(lambda seconds: timedelta(seconds=seconds))
SAID = st.builds(
    Facts,
    st.sampled_from(["approved", "revoked"]),
    st.sampled_from([None, "clinimeta 1", "clinimeta 2"]),
    budget_left=st.sampled_from([None, 0.0, 1.5]),
)
SIGHTINGS = st.lists(st.tuples(GAPS, SAID), max_size=40)


def times(sighted: list[tuple[timedelta, Facts]]) -> list[tuple[datetime, Facts]]:
    at, found = START, []
    for gap, said in sighted:
        at += gap
        found.append((at, said))
    return found


def compacted(sighted: list[tuple[datetime, Facts]]) -> list[Presence]:
    found: list[Presence] = []
    for at, said in sighted:
        now, is_new = seen(found[-1] if found else None, at, said)
        found[len(found) - (not is_new) :] = [now]
    return found


@given(SIGHTINGS)
def test_each_interval_is_one_run_of_sightings(sighted: list[tuple[timedelta, Facts]]) -> None:
    """Against the plain definition: a run ends where a gap is too long or something else was said."""
    runs: list[list[datetime]] = []
    facts: list[Facts] = []
    for at, said in times(sighted):
        now = known(facts[-1], said) if facts else said
        if facts and at == runs[-1][-1]:
            continue  # of two at one moment the first counts
        if not runs or at - runs[-1][-1] > GONE or now != facts[-1]:
            runs.append([])
            facts.append(now)
        runs[-1].append(at)
    expected = [Presence(run[0], run[-1], fact) for run, fact in zip(runs, facts, strict=True)]
    assert compacted(times(sighted)) == expected


@given(SIGHTINGS)
def test_who_was_seen_was_there_then_and_who_was_not_was_gone(
    sighted: list[tuple[timedelta, Facts]],
) -> None:
    found, moments = compacted(times(sighted)), [at for at, _ in times(sighted)]
    for at in moments:
        assert sum(one.since <= at <= one.until for one in found) == 1
    for one in found:
        assert {one.since, one.until} <= set(moments)
        inside = sorted({at for at in moments if one.since <= at <= one.until})
        assert all(b - a <= GONE for a, b in itertools.pairwise(inside))
    for a, b in itertools.pairwise(found):
        assert a.until < b.since
        assert a.facts != b.facts or b.since - a.until > GONE


@given(SIGHTINGS, st.integers(0, 100))
def test_a_sighting_that_comes_late_changes_nothing(
    sighted: list[tuple[timedelta, Facts]], late_s: int
) -> None:
    moments = times(sighted) or [(START, Facts("approved"))]
    late = (moments[-1][0] - timedelta(seconds=late_s), Facts("revoked", "clinimeta 9"))
    assert compacted([*moments, late]) == compacted(moments)


class Clock:
    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    home = make_home(
        tmp_path / "hub", "hub", ["127.0.0.1"], host="127.0.0.1", port=1, control_port=2, health_port=3
    )
    hub = Hub(Database.open(home.database), None)  # type: ignore[arg-type]  # set next
    hub.http = TestClient(enrolment_app(home, hub.deactivated.append), raise_server_exceptions=False)
    yield hub
    hub.database.engine.dispose()


def rows(database: Database) -> list[tuple[str, str, str, str]]:
    every = database.rows(sa.select(table).order_by(table.c.number))
    return [(row["site"], row["since"], row["until"], row["standing"]) for row in every]


def line(hub: Hub, now: datetime) -> views.SiteLine:
    with hub.database.engine.connect() as connection:
        (found,) = views.federation(connection, now).sites
    return found


def test_a_hospital_that_asks_how_it_stands_was_there(hub: Hub) -> None:
    ulm, now = hospital(), datetime.now(UTC)
    assert hub.post("enrol", ulm.body(hub.invite(automatic=True))) == 200
    assert line(hub, now).last_contact is None
    assert not line(hub, now).present
    assert hub.post("status", {**ulm.says("status", now), "proof": "00" * 64}) == 403
    assert rows(hub.database) == [], "anybody could say so"
    assert hub.post("status", ulm.says("status", now)) == 200
    ((site, since, until, standing),) = rows(hub.database)
    assert (site, since, standing) == ("ulm", until, "approved")
    contact = datetime.fromisoformat(until)
    assert line(hub, contact + GONE).present
    assert not line(hub, contact + GONE + timedelta(seconds=1)).present
    assert line(hub, contact + HOUR).last_contact == until


def test_presence_is_written_seldom_and_what_changed_at_once(hub: Hub, clock: Clock) -> None:
    lookout, written = Lookout(hub.database, clock), []
    for second in range(60):
        clock.now = START + timedelta(seconds=second)
        before = rows(hub.database)
        lookout.saw("ulm", Facts("approved"))
        if rows(hub.database) != before:
            written.append(second)
    assert written == list(range(0, 60, int(EVERY.total_seconds())))
    assert len(rows(hub.database)) == 1
    lookout.saw("ulm", Facts("revoked"))
    assert [row[3] for row in rows(hub.database)] == ["approved", "revoked"]
    lookout.saw("graz", Facts("approved"))
    assert {row[0] for row in rows(hub.database)} == {"ulm", "graz"}


def test_what_a_hospital_says_when_an_experiment_begins_is_kept_beside(hub: Hub, clock: Clock) -> None:
    hub.post("enrol", hospital().body(hub.invite(automatic=True)))
    Lookout(hub.database, clock).saw("ulm", Facts("approved"))
    clock.now += timedelta(seconds=5)
    said = Introduction("n", "ulm", "clini\x1b[2Jmeta 2", 20, 49)
    introduced(Lookout(hub.database, clock), {"ulm": said})
    clock.now += timedelta(seconds=20)
    Lookout(hub.database, clock).saw("ulm", Facts("approved"))
    found = line(hub, clock.now)
    assert (found.software, found.rows_from, found.rows_to) == ("clini[2Jmeta 2", 20, 49)
    assert len(rows(hub.database)) == 2, "what was not said again is no change"


def test_a_sighting_that_cannot_be_written_harms_nobody(
    hub: Hub, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OperationalError("INSERT", None, Exception("database or disk is full"))

    monkeypatch.setattr(sightings, "see", full)
    Lookout(hub.database, clock).saw("ulm", Facts("approved"))
    assert rows(hub.database) == []

"""Real daemons, TLS and node keys: the same model as the simulation's, also when somebody is killed hard."""

import os
import signal
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path

import pytest
from daemons import Federation, held_at, pause_at, until
from simulated import simulated

from clinimeta.common.study import Study
from clinimeta.common.tasks.table import Records
from clinimeta.server import round_views, views
from clinimeta.server.database import Database
from clinimeta.server.failures import last_failure

pytestmark = [
    pytest.mark.service,
    pytest.mark.data,
    pytest.mark.timeout(400),
    pytest.mark.xdist_group("service"),
]


@pytest.fixture(scope="module")
def expected(study: Study, tables: Mapping[str, Records], tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The undisturbed run's model."""
    return simulated(study, tables, tmp_path_factory.mktemp("simulated") / "run")


def test_the_four_heart_disease_hospitals_give_the_same_model_as_the_simulation(
    federation: Federation, study_text: str, expected: bytes
) -> None:
    name = federation.run(study_text)
    experiment = federation.finished(name)
    assert federation.model_path(name).read_bytes() == expected
    assert experiment["submissions"] == 1
    assert [row["accepted"] for row in federation.rounds(name)] == [4] * experiment["rounds"]
    chronicled(federation, name)


def chronicled(federation: Federation, name: str) -> None:
    """What a console reads of it afterwards: each round once, ended, and with all who answered."""
    with Database.open(federation.hub.folder / "coordinator.sqlite").engine.connect() as connection:
        lines = round_views.rounds_since(connection, name)
        kept = [(row["round"], row["accepted"], row["metrics"]) for row in federation.rounds(name)]
        assert [(line.round, line.accepted, line.metrics) for line in lines] == kept
        assert all(line.ended and not line.why for line in lines)
        for line in lines:
            answers = round_views.timeline(connection, name, line.round).answers
            assert {one.site for one in answers if one.phase == "received"} == set(federation.sites)
        assert {one.state for one in views.federation(connection, datetime.now(UTC)).sites} == {"approved"}


def test_hospitals_that_run_are_seen_to_be_there(federation: Federation) -> None:
    with Database.open(federation.hub.folder / "coordinator.sqlite").engine.connect() as connection:

        def present() -> int:
            connection.rollback()  # a new look
            return views.federation(connection, datetime.now(UTC)).present

        until(lambda: present() == len(federation.sites), 60)
        for line in views.federation(connection, datetime.now(UTC)).sites:
            assert (line.rows_to or 0) > (line.rows_from or 0), "as they said when they were asked"


def disturbed(
    federation: Federation, study_text: str, disturb: Callable[[str], None], expected: bytes
) -> None:
    name = federation.run(study_text)
    disturb(name)
    experiment = federation.finished(name)
    assert federation.model_path(name).read_bytes() == expected
    assert [row["round"] for row in federation.rounds(name)] == [*range(1, experiment["rounds"] + 1)]
    chronicled(federation, name)


def test_a_site_is_killed_while_idle(federation: Federation, study_text: str, expected: bytes) -> None:
    site = federation.sites["hungary"]

    def disturb(name: str) -> None:
        until(lambda: federation.rounds(name), 60)
        site.kill()
        time.sleep(2)
        site.start(wait=False)

    disturbed(federation, study_text, disturb, expected)


@pytest.mark.parametrize(
    "function",
    [
        pytest.param("clinimeta.client.meta_gradients:meta_gradients", id="computing"),
        pytest.param("flwr.supernode.runtime.run_clientapp:push_message", id="sending"),
    ],
)
def test_a_site_is_killed_while(
    federation: Federation, study_text: str, expected: bytes, function: str, tmp_path: Path
) -> None:
    site, marker = federation.sites["cleveland"], tmp_path / "held"
    site.stop()
    site.start(**pause_at(function, marker, skip=1))

    def disturb(_name: str) -> None:
        assert held_at(marker) == site.process.pid
        site.kill()
        site.start(wait=False)

    disturbed(federation, study_text, disturb, expected)


@pytest.mark.parametrize(
    "function",
    [
        pytest.param("clinimeta.server.link:Link._pull", id="waiting"),
        pytest.param("clinimeta.server.aggregation:aggregate", id="aggregating"),
        pytest.param("clinimeta.common.files:sync", id="writing a checkpoint"),
    ],
)
def test_the_round_loop_is_killed_while(
    federation: Federation, study_text: str, expected: bytes, function: str, tmp_path: Path
) -> None:
    marker = tmp_path / "held"
    federation.hub.stop()
    federation.hub.start(**pause_at(function, marker, skip=2))

    def disturb(_name: str) -> None:
        pid = held_at(marker)
        assert pid in federation.hub.children().values()
        os.kill(pid, signal.SIGKILL)

    disturbed(federation, study_text, disturb, expected)
    with Database.open(federation.hub.folder / "coordinator.sqlite").engine.connect() as connection:
        found = last_failure(connection, "round-loop-0")
    assert found is not None
    assert "signal 9" in found.what


@pytest.mark.parametrize(
    "function",
    [
        pytest.param("", id="waiting"),
        pytest.param("flwr.superlink.servicer.fleet.fleet_handlers:push_object", id="receiving"),
    ],
)
def test_the_superlink_is_killed_while(
    federation: Federation, study_text: str, expected: bytes, function: str, tmp_path: Path
) -> None:
    marker = tmp_path / "held"
    if function:
        federation.hub.stop()
        federation.hub.start(**pause_at(function, marker, skip=2))

    def disturb(name: str) -> None:
        if function:
            pid = held_at(marker)
        else:
            until(lambda: federation.rounds(name), 60)
            pid = federation.hub.children()["clinimeta.server.superlink"]
        os.kill(pid, signal.SIGKILL)

    disturbed(federation, study_text, disturb, expected)

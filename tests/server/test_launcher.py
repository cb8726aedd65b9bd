"""Flower kept in line with the database: who may connect, and what is begun when the disk is full."""

from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from flwr.proto.control_pb2 import ListNodesResponse
from flwr.proto.node_pb2 import NodeInfo
from flwr.supercore.control.control_http_client import ControlHttpClient

from clinimeta.server import enrolment, experiments
from clinimeta.server.config import Home
from clinimeta.server.control import Control
from clinimeta.server.daemon import make_home
from clinimeta.server.database import Database
from clinimeta.server.launcher import Launcher


class Flower(ControlHttpClient):
    """A SuperLink's Control API: like Flower's, it goes on listing nodes that were unregistered."""

    def __init__(self) -> None:
        self.known: dict[int, NodeInfo] = {}
        self.refused_keys: set[bytes] = set()
        self.asked: list[str] = []

    def ListNodes(self, request: Any) -> ListNodesResponse:  # noqa: N802 (flwr's name)
        return ListNodesResponse(nodes_info=self.known.values())

    def RegisterNode(self, request: Any) -> Any:  # noqa: N802
        self.asked.append(f"register {request.name}")
        if request.public_key in self.refused_keys:
            raise self._no(409)
        node = len(self.known) + 1
        self.known[node] = NodeInfo(node_id=node, public_key=request.public_key, status="offline")
        return self.known[node]

    def UnregisterNode(self, request: Any) -> None:  # noqa: N802
        self.asked.append(f"unregister {request.node_id}")
        if self.known[request.node_id].status == "unregistered":
            raise self._no(404)
        self.known[request.node_id].status = "unregistered"

    def _no(self, status: int) -> httpx.HTTPStatusError:
        request = httpx.Request("POST", "http://127.0.0.1/")
        return httpx.HTTPStatusError("no", request=request, response=httpx.Response(status))


@dataclass(slots=True)
class Hub:
    database: Database
    flower: Flower = field(default_factory=Flower)

    def enrol(self, site: str) -> None:
        token = enrolment.invite(self.database, site, timedelta(hours=1), "operator", automatic=True)
        keys = enrolment.Keys(f"node key of {site}".encode(), f"own key of {site}".encode())
        enrolment.enrol(self.database, token, keys, "")

    def tick(self) -> list[str]:
        """What Flower is asked for in one look at the database."""
        self.flower.asked.clear()
        Launcher(self.database).nodes(Control(self.flower))
        return [*self.flower.asked]


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return make_home(
        tmp_path / "hub", "hub", ["127.0.0.1"], host="127.0.0.1", port=1, control_port=2, health_port=3
    )


@pytest.fixture
def hub(home: Home) -> Hub:
    return Hub(Database.open(home.database))


def test_who_is_revoked_is_removed_once_and_the_others_are_registered(hub: Hub) -> None:
    hub.enrol("ulm")
    assert hub.tick() == ["register ulm"]
    assert hub.tick() == []
    enrolment.revoke(hub.database, "ulm", "operator", "left")
    hub.enrol("graz")
    assert hub.tick() == ["unregister 1", "register graz"]
    assert hub.tick() == []


def test_a_key_that_nobody_enrolled_is_removed(hub: Hub) -> None:
    hub.flower.known[7] = NodeInfo(node_id=7, public_key=b"somebody's", status="online")
    assert hub.tick() == ["unregister 7"]


def test_a_hospital_that_flower_refuses_stops_no_other(hub: Hub) -> None:
    hub.enrol("bern")
    hub.enrol("ulm")
    hub.flower.refused_keys = {b"node key of bern"}
    assert hub.tick() == ["register bern", "register ulm"]
    assert {site.name: site.node_id for site in enrolment.known(hub.database)} == {"bern": None, "ulm": 1}


def test_a_link_that_does_not_answer_is_the_daemons_matter(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(_flower: Flower, _request: Any) -> None:
        raise httpx.ConnectError("refused")

    monkeypatch.setattr(Flower, "ListNodes", nobody)
    with pytest.raises(httpx.ConnectError):
        hub.tick()


def test_while_an_experiment_is_held_it_says_why(
    hub: Hub, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    from clinimeta.common.study import read_study
    from clinimeta.simulations import studies

    hub.enrol("bern")
    hub.enrol("ulm")
    study = read_study(studies.text_of("heart-disease"), "study.toml")
    name = experiments.start(home, hub.database, study, ["bern", "ulm"], "operator").id
    Launcher(hub.database).hold(experiments.NO_ROOM)
    found = experiments.find(hub.database, name)
    assert (found.state, found.detail, found.submissions) == ("waiting", experiments.NO_ROOM, 0)

    experiments.update(hub.database, name, state="running", detail="")
    found = experiments.find(hub.database, name)
    assert experiments.as_shown(home, found) == found
    monkeypatch.setattr(experiments, "has_room", lambda _home: False)
    shown = experiments.as_shown(home, found)
    assert (shown.state, shown.detail) == ("waiting", experiments.NO_ROOM)
    experiments.update(hub.database, name, state="finished")
    found = experiments.find(hub.database, name)
    assert experiments.as_shown(home, found) == found

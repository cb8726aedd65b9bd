"""What Prometheus is told, and that the dashboard asks for nothing else."""

import json
import re
from datetime import timedelta
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from clinimeta.client import daemon as site_daemon
from clinimeta.client.config import Home as SiteHome
from clinimeta.common.health import Health
from clinimeta.server import enrolment, experiments
from clinimeta.server.config import Home
from clinimeta.server.daemon import make_home
from clinimeta.server.database import Database
from clinimeta.server.enrolment import Keys
from clinimeta.server.store import RunDir
from clinimeta.server.telemetry import LAST, Telemetry, last_round
from clinimeta.server.training import RoundSummary
from clinimeta.simulations import studies

ENDS = {"link": 2, "round-loop-0": 0}
DASHBOARD = Path(__file__).resolve().parents[2] / "packaging" / "grafana" / "clinimeta.json"


@pytest.fixture
def home(tmp_path: Path) -> Home:
    made = make_home(
        tmp_path / "hub", "hub", ["127.0.0.1"], host="127.0.0.1", port=1, control_port=2, health_port=3
    )
    database = Database.open(made.database)
    for number, name in enumerate(("Ulm", "Bern", "Graz")):
        token = enrolment.invite(database, name, timedelta(hours=1), "ada", automatic=name != "Graz")
        enrolment.enrol(database, token, Keys(bytes([number]), bytes([number]) * 32), "")
    experiments.start(made, database, studies.find("default"), ["Ulm", "Bern"], "ada")
    return made


def told(home: Home) -> dict[tuple[str, ...], float]:
    """Name and labels (in order of their names) -> value."""
    registry = CollectorRegistry()
    registry.register(Telemetry(home, Database.open(home.database), ENDS))
    text = generate_latest(registry).decode()
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_hospitals_and_experiments_are_counted_by_state(home: Home) -> None:
    found = told(home)
    assert found["clinimeta_hospitals", "approved"] == 2
    assert found["clinimeta_hospitals", "waiting"] == 1
    assert found["clinimeta_hospitals", "revoked"] == 0
    assert found["clinimeta_experiments", "queued"] == 1
    assert found["clinimeta_process_restarts", "link"] == 2


def test_an_experiment_is_told_of_while_it_is_not_over(home: Home) -> None:
    database = Database.open(home.database)
    (one,) = experiments.every(database)
    summary = RoundSummary(one.id, "maml", 3, 2, 1, {}, (), {"query_loss": 0.5}, 2.0, 8, 9, 1.5, {}, 1)
    folder = RunDir.open(home.experiments / one.id)
    folder.append_round(summary)
    with (folder.path / "metrics.jsonl").open("ab") as file:
        file.write(b'{"round": 4, "accep')
    experiments.update(database, one.id, state="running", round=3)
    found = told(home)
    assert found["clinimeta_experiment_round", one.id, "default"] == 3
    assert found["clinimeta_round_metric", one.id, "query_loss", "default"] == 0.5
    values = {name: found[f"clinimeta_round_{name}", one.id, "default"] for name in LAST}
    assert values == {name: getattr(summary, name) for name in LAST}
    experiments.update(database, one.id, state="finished")
    assert not any(one.id in labels for labels in told(home))


def test_a_run_without_rounds_has_no_last_one(home: Home) -> None:
    (one,) = experiments.every(Database.open(home.database))
    assert last_round(home, one.id) == {}
    assert ("clinimeta_round_seconds", one.id, "default") not in told(home)


def test_the_dashboard_asks_only_for_what_there_is(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    (one,) = experiments.every(Database.open(home.database))
    summary = RoundSummary(one.id, "maml", 3, 2, 1, {}, (), {"query_loss": 0.5}, 2.0, 8, 9, 1.5, {}, 1)
    RunDir.open(home.experiments / one.id).append_round(summary)
    health = Health(0)
    monkeypatch.setattr(site_daemon, "open_hospital", lambda _home: _NoHospital())
    site_daemon.Answering(SiteHome(home.path), health)
    health.registry.register(Telemetry(home, Database.open(home.database), ENDS))
    there = set(re.findall(r"^(\w+)", generate_latest(health.registry).decode(), re.MULTILINE))
    health._server.server_close()
    asked = {
        name
        for panel in json.loads(DASHBOARD.read_text())["panels"]
        for target in panel["targets"]
        for name in re.findall(r"\b(?:clinimeta|process)_\w+", target["expr"])
    }
    assert asked - there == set()
    assert {f"clinimeta_round_{name}" for name in LAST} <= asked


class _NoHospital:
    def app(self) -> None: ...

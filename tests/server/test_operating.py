"""What the operator types, without a daemon: each command changes or reads the database and says so."""

import json
from datetime import timedelta
from pathlib import Path

import pytest
import torch

from clinimeta.common.errors import RecordError, UserError
from clinimeta.common.findings import Finding, require_no_fault, shown
from clinimeta.common.roster_file import SignedRoster
from clinimeta.common.study import Study
from clinimeta.common.trained_model import TrainedModel
from clinimeta.server import enrolment, experiments
from clinimeta.server.config import Home
from clinimeta.server.daemon import make_home
from clinimeta.server.database import Database
from clinimeta.server.doctor import examine
from clinimeta.server.enrolment import Keys
from clinimeta.server.export import privacy_words
from clinimeta.server.status import experiment_lines, experiment_values, status_of
from clinimeta.server.store import RunDir
from clinimeta.server.training import RoundSummary
from clinimeta.simulations import studies
from clinimeta.simulations.cli import app, run
from clinimeta.simulations.protecting import protected

SITES = ("Basel", "Graz", "Ulm")


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return make_home(
        tmp_path / "hub", "hub", ["127.0.0.1"], host="127.0.0.1", port=1, control_port=2, health_port=3
    )


@pytest.fixture
def database(home: Home) -> Database:
    database = Database.open(home.database)
    for number, name in enumerate(SITES):
        token = enrolment.invite(database, name, timedelta(hours=1), "Ada", automatic=True)
        enrolment.enrol(database, token, Keys(b"node%d" % number, bytes([number]) * 32), "clinimeta 0")
    return database


@pytest.fixture
def study() -> Study:
    return studies.find("heart-disease")


def typed(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str]:
    capsys.readouterr()
    code = run(lambda: app(args=[str(word) for word in words], standalone_mode=False))
    said = capsys.readouterr()
    return code, said.out + said.err


def test_an_experiment_from_start_to_model_card(
    home: Home, database: Database, study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ("--home", home.path)
    assert "no experiment was started yet" in typed(capsys, "list", *where)[1]
    code, name = typed(capsys, "run", "heart-disease", *where)
    name = name.strip()
    assert code == 0
    assert "queued" in typed(capsys, "list", *where)[1]
    assert typed(capsys, "export", name, "--out", tmp_path / "out", *where)[0] == 2
    assert typed(capsys, "stop", name, *where) == (0, f"{name} is to stop\n")
    experiments.update(database, name, state="stopped")
    assert "goes on from round 0" in typed(capsys, "resume", name, *where)[1]
    finished(home, database, study, name)
    assert "over" in typed(capsys, "stop", name, *where)[1]
    assert json.loads(typed(capsys, "show", name, "--json", *where)[1])["last_round"]["round"] == 2
    shown = typed(capsys, "show", name, *where)[1]
    assert "last round: 3 of 3 hospitals, 1.0 s, 9 KiB down, 1 KiB up" in shown
    assert "  query accuracy: 0.6667" in shown
    assert "  Chur gave no answer: refused: not_approved" in shown
    assert "  Bern was silent" in shown
    assert "{" not in shown
    assert typed(capsys, "export", name, "--out", tmp_path / "out", *where)[0] == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "MODEL_CARD.md",
        "manifest.json",
        "model.safetensors",
    }
    card = (tmp_path / "out" / "MODEL_CARD.md").read_text()
    assert "| Basel | 20 to 49 |" in card
    assert "| query_accuracy | 0.500 | 0.600 | 0.900 | 3 |" in card
    assert "not differentially private" in card or "no differential privacy" in card
    assert typed(capsys, "export", name, "--out", tmp_path / "out", *where)[0] == 2


def finished(home: Home, database: Database, study: Study, name: str) -> None:
    run_dir, plan = RunDir.open(home.experiments / name), study.plan(study.trained, 42)
    by_site = {site: {"query_accuracy": value} for site, value in zip(SITES, (0.5, 0.9, 0.6), strict=True)}
    for number in (1, 2):
        run_dir.append_round(
            RoundSummary(
                *(name, "maml", number, 3, 3, {"Chur": "refused: not_approved"}, ("Bern",)),
                *({"query_accuracy": 2 / 3}, 0.1, 9 * 1024, 1024, 1.0, {}, 0, by_site),
            )
        )
    params = plan.learner().init(torch.Generator())
    run_dir.write_bytes("model.safetensors", TrainedModel(plan, params, {5: 1.5}).to_bytes())
    site = {"rows_from": 20, "rows_to": 49, "software": "clinimeta 0"}
    values = {"experiment": name, "coordinator": "hub", "finished": "today", "software": "clinimeta 0"}
    run_dir.write_manifest({**values, "sites": dict.fromkeys(SITES, site)})
    experiments.update(database, name, state="finished", round=2)


def test_words_on_privacy_say_what_was_seen_and_promised(study: Study) -> None:
    masked = protected(study, masked=True, epsilon=8.0, delta=1e-6, clip=1.0)
    assert "no differential privacy" in privacy_words(study.plan(study.trained, 1))
    words = privacy_words(masked.plan(masked.trained, 1))
    assert "sums over hospitals only" in words
    assert "epsilon 8" in words


def test_a_study_needs_enough_hospitals_that_may_take_part(
    home: Home, database: Database, study: Study
) -> None:
    with pytest.raises(UserError, match="too few hospitals"):
        experiments.start(home, database, study, ["Ulm"], "Ada")
    with pytest.raises(UserError, match="cannot take part"):
        experiments.start(home, database, study, ["Ulm", "Bern"], "Ada")
    with pytest.raises(UserError, match="no such experiment"):
        experiments.find(database, "nothing")


def test_secure_aggregation_needs_a_roster_of_all_who_take_part(
    home: Home, database: Database, study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    masked = protected(study, masked=True, epsilon=0.0, delta=1e-6, clip=1.0)
    with pytest.raises(UserError, match="needs a roster") as missing:
        experiments.start(home, database, masked, list(SITES), "Ada")
    assert missing.value.found == "no roster"
    sites = typed(capsys, "coordinator", "list", "--json", "--home", home.path)[1]
    (tmp_path / "sites.json").write_text(sites)
    code, said = typed(capsys, "consortium", "init", tmp_path / "keys")
    assert code == 0
    key = bytes.fromhex(said.splitlines()[0].split()[-1])
    assert typed(capsys, "consortium", "init", tmp_path / "keys")[0] == 2
    for version in (1, 2):
        code, said = typed(
            capsys, "consortium", "sign", tmp_path / "keys", "--sites", tmp_path / "sites.json"
        )
        assert (code, f"roster {version} " in said, "Basel: " in said) == (0, True, True)
    signed = SignedRoster.from_bytes((tmp_path / "keys" / "roster.json").read_bytes())
    assert [member.site for member in signed.verified(key, at_least=2).members] == list(SITES)
    with pytest.raises(RecordError):
        signed.verified(bytes(32))
    with pytest.raises(RecordError):
        signed.verified(key, at_least=3)
    assert typed(capsys, "coordinator", "roster", tmp_path / "sites.json", "--home", home.path)[0] == 2
    assert (
        typed(capsys, "coordinator", "roster", tmp_path / "keys" / "roster.json", "--home", home.path)[0] == 0
    )
    assert experiments.start(home, database, masked, list(SITES), "Ada").state == "queued"
    (tmp_path / "sites.json").write_text("[]nonsense")
    assert typed(capsys, "consortium", "sign", tmp_path / "keys", "--sites", tmp_path / "sites.json")[0] == 2


def test_a_hospital_is_approved_revoked_and_listed(
    home: Home, database: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ("--home", home.path)
    code, token = typed(capsys, "coordinator", "invite", "Bern", "--json", *where)
    assert code == 0
    secret = json.loads(token)["token"].split(".")[0]
    enrolment.enrol(database, secret, Keys(b"bern", bytes(31) + b"b"), "clinimeta 0")
    assert "waiting" in typed(capsys, "coordinator", "list", *where)[1]
    assert "waiting for your approval" in typed(capsys, "coordinator", "doctor", *where)[1]
    assert typed(capsys, "coordinator", "approve", "Bern", *where)[0] == 0
    assert typed(capsys, "coordinator", "approve", "Bern", *where)[0] == 2
    assert typed(capsys, "coordinator", "revoke", "Bern", "--reason", "left", *where)[0] == 0
    assert typed(capsys, "coordinator", "revoke", "Bern", "--reason", "left", *where)[0] == 2
    assert typed(capsys, "coordinator", "rotate", "Bern", *where)[0] == 2
    assert typed(capsys, "coordinator", "rotate", "Ulm", *where)[0] == 0
    said = typed(capsys, "coordinator", "status", *where)[1]
    assert "3 approved, 1 revoked" in said
    assert json.loads(typed(capsys, "coordinator", "status", "--json", *where)[1])["pid"] is None
    assert "it was not running" in typed(capsys, "coordinator", "down", *where)[1]


def test_the_doctor_finds_what_is_wrong(home: Home, database: Database, study: Study) -> None:
    assert all(finding.state != "fault" for finding in examine(home) if "port" not in finding.about)
    home.key.chmod(0o644)
    name = experiments.start(home, database, study, list(SITES), "Ada").id
    experiments.update(database, name, state="failed", detail="poisoned")
    faults = {finding.about for finding in examine(home) if finding.state == "fault"}
    assert {"server key", name} <= faults
    experiments.update(database, name, state="waiting", detail="for Ulm")
    assert any(finding.about == name and finding.state == "warning" for finding in examine(home))
    assert "for Ulm" in "\n".join(status_of(home).lines())
    assert "because: for Ulm" in experiment_lines(experiment_values(home, database, name))


def test_findings_are_shown_with_their_fix() -> None:
    findings = [Finding("disk", "good", "3 GiB free"), Finding("clock", "fault", "9 s ahead", "set it")]
    assert "to do: set it" in shown(findings, as_json=False)
    assert json.loads(shown(findings, as_json=True))[1]["state"] == "fault"
    with pytest.raises(UserError, match="mended"):
        require_no_fault(findings)
    require_no_fault(findings[:1])


def test_a_new_certificate_is_by_the_same_authority(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    before = home.certificate.read_bytes()
    words = ("coordinator", "certificate", "--home", home.path, "--name-in-certificate", "hub.example.org")
    assert typed(capsys, *words)[0] == 0
    assert home.certificate.read_bytes() != before
    assert home.key.stat().st_mode & 0o077 == 0

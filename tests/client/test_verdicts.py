"""What hospitals would answer to a plan: fetched, held against the policy, written down, said."""

from pathlib import Path
from typing import Any

import pytest
from asked_hub import Hub
from guarded import BASE, masked

from clinimeta.client.approvals import Approvals
from clinimeta.client.config import Home
from clinimeta.client.enrol import enrol, standing
from clinimeta.client.folder import make_home
from clinimeta.client.hospital import Hospital, open_hospital
from clinimeta.client.verdicts import Verdicts
from clinimeta.common.errors import LedgerFileError, UserError
from clinimeta.server import enrolment, proposals
from clinimeta.server.enrolment import now
from clinimeta.server.witness import newest

ROWS = "age,crp,sick,person\n" + "".join(
    f"{50 + i},{i % 7},{'yes' if i % 2 else 'no'},p{i}\n" for i in range(40)
)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    return Hub(tmp_path / "hub", monkeypatch)


@pytest.fixture
def home(tmp_path: Path, hub: Hub) -> Home:
    made = make_home(tmp_path / "ulm", address="hub.test:9443", data="p.csv", port=1, health_port=2)
    (made.path / "p.csv").write_text(ROWS)
    enrol(made, hub.token("enrol"))
    return made


def said(hub: Hub, plan: str) -> Any:
    with hub.database.engine.connect() as connection:
        return proposals.verdicts_on(connection, plan)


def asked(home: Home, hospital: Hospital, verdicts: Verdicts) -> None:
    """As the daemon does every ten seconds."""
    verdicts.answer(hospital, standing(home).proposals)


def test_a_hospital_says_what_it_would_refuse_and_again_when_that_changes(home: Home, hub: Hub) -> None:
    hospital, verdicts = open_hospital(home), Verdicts(home)
    asked(home, hospital, verdicts)
    assert hospital.ledger.records() == []
    proposals.propose(hub.database, BASE, "ada")
    asked(home, hospital, verdicts)
    asked(home, hospital, verdicts)
    (record,) = hospital.ledger.records()
    assert record.entry.kind == "Verdict"
    assert set(record.entry.numbers["codes"]) == {"not_approved", "secure_aggregation_required"}
    assert len(said(hub, BASE.digest)["ulm"].reasons) == 2
    assert [one.digest for one in Approvals(home.approvals).pending()] == [BASE.digest]
    receipt = newest(hub.database, "ulm", enrolment.find(hub.database, "ulm").keys.identity)
    assert receipt is not None
    assert receipt[0].number == 1, "counter-signed"
    Approvals(home.approvals).approve(BASE.digest, "Grace")
    settings = home.path / "site.toml"
    settings.write_text(settings.read_text().replace('= "required"', '= "optional"'))
    asked(home, open_hospital(home), verdicts)
    assert said(hub, BASE.digest)["ulm"].reasons == ()
    assert len(hospital.ledger.records()) == 2


def test_another_plan_than_was_named_is_not_looked_at(
    home: Home, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    proposals.propose(hub.database, BASE, "ada")
    hospital = open_hospital(home)
    for other in (masked().canonical(), b"{", b"x" * (1 << 20)):
        monkeypatch.setattr(proposals, "content_of", lambda *_, found=other: found)
        asked(home, hospital, Verdicts(home))
    assert hospital.ledger.records() == []
    assert Approvals(home.approvals).pending() == ()
    assert said(hub, BASE.digest) == {}


def test_what_cannot_be_written_down_is_not_said(
    home: Home, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    proposals.propose(hub.database, BASE, "ada")
    hospital = open_hospital(home)

    def full(*_: object) -> None:
        raise LedgerFileError("the ledger cannot be written", where="here", found="full")

    monkeypatch.setattr(type(hospital.ledger), "append", full)
    with pytest.raises(LedgerFileError):
        asked(home, hospital, Verdicts(home))
    assert said(hub, BASE.digest) == {}


def test_nobody_else_hears_or_says_anything(home: Home, hub: Hub) -> None:
    proposals.propose(hub.database, BASE, "ada")
    hospital, verdicts = open_hospital(home), Verdicts(home)
    digests = standing(home).proposals
    enrolment.revoke(hub.database, "ulm", "ada", "left")
    assert standing(home).proposals == ()
    with pytest.raises(UserError, match="refuses"):
        verdicts.answer(hospital, digests)
    assert said(hub, BASE.digest) == {}


def test_a_proposal_is_open_for_a_while(hub: Hub) -> None:
    proposals.propose(hub.database, BASE, "ada")
    assert proposals.open_proposals(hub.database, now()) == [BASE.digest]
    assert proposals.open_proposals(hub.database, now() + proposals.LIFE * 1.1) == []
    with pytest.raises(UserError, match="nobody asked"):
        proposals.hear(hub.database, "ulm", "0" * 64, (), now())

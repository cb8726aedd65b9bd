"""The policy as a hospital's people use it: approve by command, edit the file, reload, read the ledger."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from flwr.app import Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from guarded import BASE, ME, STUDY, fresh, masked, orders_for
from structlog.testing import capture_logs

from clinimeta.client.activity import refusals
from clinimeta.client.approvals import Approvals
from clinimeta.client.config import Home
from clinimeta.client.daemon import Answering
from clinimeta.client.folder import make_home
from clinimeta.client.gate import entry_of
from clinimeta.client.keys import identity
from clinimeta.client.ledger import Ledger
from clinimeta.client.rules import reads_table
from clinimeta.common.flower_records import from_flower, to_flower
from clinimeta.common.health import Health
from clinimeta.common.records import (
    Calibration,
    Introduction,
    Masking,
    MetaGradient,
    Quantised,
    Refusal,
    Reply,
)
from clinimeta.common.study import read_study
from clinimeta.simulations.cli import main

ADA = "Dr. Ada Byron"
ROWS = "age,crp,sick,person\n" + "".join(
    f"{50 + i},{i % 7},{'yes' if i % 2 else 'no'},p{i}\n" for i in range(40)
)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    made = make_home(tmp_path / "site", address="hub:9443", data="p.csv", port=9543, health_port=9545)
    (made.path / "p.csv").write_text(ROWS)
    who = {"site": ME, "coordinator": "hub", "coordinator_key": "00" * 32}
    made.enrolment.write_text(json.dumps(who))
    return made


def site(*words: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["site", *words])
    return int(ended.value.code or 0)


# The command


def test_a_person_sees_what_waits_and_decides(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    approvals, where = Approvals(home.approvals), ("--home", str(home.path))
    approvals.keep(masked())
    assert site("approve", *where) == 0
    assert "It is the first of its kind here." in capsys.readouterr().out
    assert site("approve", masked().digest[:12], *where) == 2
    assert approvals.approved() == ()
    assert site("approve", masked().digest[:12], "--by", ADA, "--reason", "vote 12/26", *where) == 0
    approvals.keep(BASE)
    capsys.readouterr()
    assert site("approve", *where) == 0
    shown = capsys.readouterr().out
    assert "secure aggregation: required by the plan -> switched off  (weaker)" in shown
    assert f"To approve it: clinimeta site approve {BASE.digest[:12]}" in shown
    assert "Your policy would refuse it even then:\n  " in shown
    assert "(secure_aggregation_required)" in shown
    assert "(not_approved)" not in shown
    edit(home, {"secure_aggregation": "optional"})
    assert site("approve", *where) == 0
    assert "Your policy would answer it once it is approved." in capsys.readouterr().out
    (home.path / "p.csv").unlink()
    assert site("approve", *where) == 0
    assert "What your policy would refuse cannot be said: there is no such file" in capsys.readouterr().out
    assert site("approve", BASE.digest[:12], "--withdraw", "--by", ADA, *where) == 0
    (stands,) = approvals.approved()
    assert stands.plan == masked()
    assert stands.approval is not None
    assert (stands.approval.by, stands.approval.reason) == (ADA, "vote 12/26")
    assert approvals.decisions().withdrawn == {BASE.digest}


def test_a_study_that_somebody_brings_is_decided_before_any_order(home: Home, tmp_path: Path) -> None:
    (tmp_path / "study.toml").write_text(tomli_w.dumps(STUDY))
    words = ("approve", "--study", str(tmp_path / "study.toml"), "--home", str(home.path))
    approvals = Approvals(home.approvals)
    assert site(*words) == 2
    assert approvals.approved() == ()
    study = read_study(tomli_w.dumps(STUDY), "study.toml")
    plan = study.plan(study.arms[0], study.seeds[0])
    assert site(*words, "--by", ADA) == 0
    assert [one.plan for one in approvals.approved()] == [plan]
    assert site(*words, "--by", ADA, "--withdraw") == 0
    assert approvals.approved() == ()
    assert approvals.decisions().withdrawn == {plan.digest}


def test_a_dry_run_shows_what_would_be_sent_and_sends_nothing(
    home: Home, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    study = tmp_path / "study.toml"
    study.write_text(tomli_w.dumps(STUDY))
    assert site("dry-run", str(study), "--home", str(home.path)) == 0
    shown = capsys.readouterr().out
    assert "nothing was sent" in shown
    assert "(secure_aggregation_required)" in shown
    assert "length (L2)" in shown
    assert "in all, over" in shown
    assert not any(word in shown for word in ("nonce", "{", "'total'"))
    assert Ledger(home.ledger, identity(home, ME)).records() == []
    edit(
        home,
        {"secure_aggregation": "optional", "auto_approve": True, "columns": ["age", "crp", "sick", "person"]},
    )
    assert site("dry-run", str(study), "--home", str(home.path)) == 0
    assert "your policy would let it go" in capsys.readouterr().out


def test_the_budget_that_is_shown_is_the_lower_of_the_files_and_the_policys(
    home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ("--home", str(home.path))
    assert site("budget", *where) == 0
    assert "epsilon 0 of 10 (delta 1e-05) is spent" in capsys.readouterr().out
    for limit, shown in ((2.0, 2), (50.0, 10)):
        edit(home, {"lifetime_epsilon": limit})
        assert site("budget", *where, "--json") == 0
        assert json.loads(capsys.readouterr().out)["lifetime_epsilon"] == shown


# The daemon


@pytest.fixture
def answering(home: Home) -> Iterator[Answering]:
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1  # Flower's, process-wide
    health = Health(0)
    yield Answering(home, health)
    health._server.server_close()


def edit(home: Home, policy: dict[str, Any]) -> None:
    values = {
        "coordinator": {"address": "hub:9443"},
        "data": {"kind": "csv", "path": "p.csv"},
        "policy": policy,
    }
    (home.path / "site.toml").write_text(tomli_w.dumps(values))


def code_of(answering: Answering, kind: str = "meta-gradient") -> str:
    """What leaves when an order comes, and that the ledger has it under the policy that allowed it."""
    which = {"introduction": "query.introduction", "meta-gradient": "train.meta_gradient"}[kind]
    message = Message(to_flower(orders_for(BASE)[kind]), 7, which)
    reply = from_flower(answering(message, Context(1, 7, {}, RecordDict(), {})).content)
    (record,) = answering.hospital.ledger.records(last=1)
    assert record.entry.policy == answering.hospital.policy
    assert record.entry.outcome == (reply.code if isinstance(reply, Refusal) else "sent")
    return reply.code if isinstance(reply, Refusal) else "none"


def test_a_hospital_that_was_just_made_refuses_what_nobody_has_approved(answering: Answering) -> None:
    assert code_of(answering) == "not_approved"
    assert code_of(answering, "introduction") == "none"


def test_a_reload_exchanges_the_whole_policy_and_a_wrong_one_changes_nothing(
    home: Home, answering: Answering
) -> None:
    Approvals(home.approvals).keep(BASE)
    Approvals(home.approvals).approve(BASE.digest, ADA)
    assert code_of(answering) == "secure_aggregation_required"
    edit(home, {"secure_aggregation": "optional"})
    assert code_of(answering) == "secure_aggregation_required"
    answering.reload()
    assert code_of(answering) == "none"
    lenient = answering.hospital.policy
    for wrong in ({"secure_aggregation": "optional", "min_cohrt": 9}, {"min_rows": "many"}):
        edit(home, wrong)
        with capture_logs() as logs:
            answering.reload()
        assert [line["log_level"] for line in logs] == ["error"]
        assert "the old ones stay" in answering._health.note
        assert (answering.hospital.policy, code_of(answering)) == (lenient, "none")
    edit(home, {"secure_aggregation": "optional", "min_rows": 41})
    answering.reload()
    assert code_of(answering) == "too_few_rows"
    assert answering.hospital.policy != lenient


# The ledger


def replies(refused: bool) -> Iterator[tuple[str, Any, Reply]]:
    """An answer, or a refusal, to each kind of order."""
    params = fresh(BASE)
    answers = {
        "introduction": Introduction("n", ME, "clinimeta", 20, 49),
        "meta-gradient": MetaGradient("n", "run", 1, ME, 4.0, params, {}),
        "quantised": Quantised("n", "run", 1, ME, bytes(16)),
        "masking, first": Masking("n", "run", ME, (b"advert",)),
        "masking, between": Masking("n", "run", ME, (b"shares",)),
        "masking, with parameters": Masking("n", "run", ME, (b"masked",)),
        "calibration": Calibration("n", "run", ME, (1,), (0.5, 0.5)),
    }
    for kind, order in orders_for(BASE).items():
        yield kind, order, Refusal("n", ME, "not_approved", "no") if refused else answers[kind]


def test_the_ledger_counts_as_todays_what_the_policy_means_by_an_answer(home: Home) -> None:
    ledger = Ledger(home.ledger, identity(home, ME))
    expected = 0
    for refused in (False, True):
        for _, order, reply in replies(refused):
            ledger.append(entry(reply, order, "2026-11-23T23:59:59+00:00"))
            ledger.append(entry(reply, order, "2026-11-24T00:00:00+00:00"))
            expected += reads_table(order) and not refused
            assert ledger.answers_on("2026-11-23") == ledger.answers_on("2026-11-24") == expected
    assert expected == 4
    assert ledger.answers_on("2026-11-22") == 0


def test_a_refusal_is_in_the_ledger_with_its_code_and_study(home: Home) -> None:
    Ledger(home.ledger, identity(home, ME))
    made = [entry(reply, order, "2026-11-23") for _, order, reply in replies(refused=True)]
    assert {(one.kind, one.outcome) for one in made} == {("Refusal", "not_approved")}
    assert [one.plan for one in made].count(BASE.digest) == 5
    assert refusals(made) == {"not_approved": 7}


def entry(reply: Reply, order: Any, when: str) -> Any:
    plan = BASE if getattr(order, "plan", b"") else None
    return entry_of(reply, order, plan, at=when, to="hub", policy="00", cost=None, size=9)

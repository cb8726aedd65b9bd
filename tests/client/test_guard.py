"""The guard decides by the policy and approvals of this moment; what waits is kept, both sides record it."""

from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import small_federation
from guarded import (
    BASE,
    LENIENT,
    TODAY,
    Hospital,
    Touched,
    at,
    masked,
    orders_for,
    plan_of,
    promising,
)
from structlog.testing import capture_logs

from clinimeta.client.approvals import AUTO, MOST_BY_POLICY, MOST_PENDING, Approvals
from clinimeta.client.guard import Guard, bytes_of
from clinimeta.client.policy import Policy
from clinimeta.client.site import Site, answer
from clinimeta.common.errors import ApprovalError
from clinimeta.common.plan import Plan
from clinimeta.common.records import Introduction, Refusal, Reply
from clinimeta.common.study import Choice
from clinimeta.server.app import Outcome
from clinimeta.simulations.loopback import LoopbackEngine

LISTED = {"auto_approve": True, "columns": ("sick", "age", "crp", "person")}


@pytest.fixture
def here(tmp_path: Path) -> Hospital:
    tmp_path.chmod(0o700)
    return Hospital(tmp_path)


def asked(here: Hospital, guard: Guard, plan: Plan = BASE, kind: str = "meta-gradient") -> Reply | str:
    """The answer, or that the site reached for its table."""
    try:
        return answer(here.site(guard), orders_for(plan)[kind])
    except Touched:
        return "reads"


def code_of(reply: Reply | str) -> str:
    return reply.code if isinstance(reply, Refusal) else "none"


@pytest.mark.parametrize(
    ("kind", "plan"),
    [
        ("meta-gradient", BASE),
        ("calibration", BASE),
        ("quantised", plan_of(protection={"answers": "quantised"})),
        ("quantised", promising(answers="quantised", noise="local")),
    ],
)
def test_an_approved_plan_is_answered(kind: str, plan: Plan, here: Hospital) -> None:
    here.approve(plan)
    assert asked(here, here.guard(), plan, kind) == "reads"


def test_a_plan_that_nobody_has_seen_waits_for_a_person_and_is_answered_once_approved(here: Hospital) -> None:
    guard = here.guard()
    assert code_of(asked(here, guard)) == "not_approved"
    (waiting,) = here.approvals().pending()
    assert waiting.plan == BASE
    assert [event.what for event in waiting.events] == ["seen"]
    here.approvals().approve(BASE.digest, "Dr. Ada Byron")
    assert asked(here, guard) == "reads"
    here.approvals().withdraw(BASE.digest, "Dr. Ada Byron")
    assert code_of(asked(here, guard)) == "not_approved"
    assert here.approvals().pending() == ()


def test_a_plan_that_the_policy_refuses_anyway_waits_too_so_that_a_person_sees_why(here: Hospital) -> None:
    guard = here.guard(algorithms=(), models=())
    assert code_of(asked(here, guard)) == "not_approved"
    here.approve(BASE)
    assert code_of(asked(here, guard)) == "algorithm_not_allowed"
    found = guard.would_refuse(BASE, identity=True, budget=True)
    assert [verdict.code for verdict in found] == ["algorithm_not_allowed", "model_not_allowed"]


def test_a_flood_of_plans_is_refused_and_not_kept_and_hides_no_study_that_somebody_brings(
    here: Hospital,
) -> None:
    guard, approvals = here.guard(), here.approvals()
    for seed in range(100, 100 + MOST_PENDING):
        approvals.keep(plan_of(seed=seed))
    with capture_logs() as logs:
        assert code_of(asked(here, guard)) == "not_approved"
    assert "too many plans wait for approval; this one is not kept" in [line["event"] for line in logs]
    assert not approvals.knows(BASE)
    assert len(approvals.pending()) == MOST_PENDING
    assert approvals.keep(BASE, None)
    approvals.approve(BASE.digest, "Dr. Ada Byron")
    assert asked(here, guard) == "reads"


def test_a_full_disk_changes_nothing_for_the_coordinator(
    here: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> bool:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Approvals, "keep", full)
    with capture_logs() as logs:
        assert code_of(asked(here, here.guard())) == "not_approved"
    assert "a plan could not be kept for approval" in [line["event"] for line in logs]


def test_an_approval_ends(here: Hospital) -> None:
    here.approve(BASE)
    guard = here.guard(approval_days=30)
    here.now[0] = at(TODAY + timedelta(days=29), hour=23)
    assert asked(here, guard) == "reads"
    here.now[0] = at(TODAY + timedelta(days=30), hour=0)
    reply = asked(here, guard)
    assert code_of(reply) == "not_approved"
    assert isinstance(reply, Refusal)
    assert "ended on 2026-12-23" in reply.reason
    here.approvals().approve(BASE.digest, "Dr. Ada Byron")
    assert asked(here, guard) == "reads"


# Approval by the policy


def test_the_policy_approves_by_itself_only_where_it_says_so_and_leaves_a_record(here: Hospital) -> None:
    assert code_of(asked(here, here.guard())) == "not_approved"
    assert asked(here, here.guard(**LISTED)) == "reads"
    (dossier,) = here.approvals().approved()
    assert dossier.approval is not None
    assert (dossier.approval.by, dossier.plan) == (AUTO, BASE)
    assert asked(here, here.guard(**LISTED)) == "reads"
    (same,) = here.approvals().approved()
    assert same == dossier
    assert code_of(asked(here, here.guard())) == "not_approved"


def test_the_policy_approves_nothing_that_it_would_refuse(here: Hospital) -> None:
    guard = here.guard(**LISTED, algorithms=("protonet",))
    assert code_of(asked(here, guard)) == "algorithm_not_allowed"
    assert not here.approvals().knows(BASE)


def test_what_a_person_withdrew_no_policy_approves_again(here: Hospital) -> None:
    assert asked(here, here.guard(**LISTED)) == "reads"
    here.approvals().withdraw(BASE.digest, "Dr. Ada Byron")
    assert code_of(asked(here, here.guard(**LISTED))) == "not_approved"
    assert here.approvals().approve_by_policy(BASE) != ""
    assert here.approvals().approved() == ()


def test_a_policy_approves_a_bounded_number_of_plans(here: Hospital, monkeypatch: pytest.MonkeyPatch) -> None:
    assert MOST_BY_POLICY == 200
    monkeypatch.setattr("clinimeta.client.approvals.MOST_BY_POLICY", 2)
    guard = here.guard(**LISTED)
    assert [asked(here, guard, plan_of(seed=seed)) for seed in (1, 2)] == ["reads", "reads"]
    assert code_of(asked(here, guard, plan_of(seed=3))) == "not_approved"
    assert asked(here, guard, plan_of(seed=1)) == "reads"
    (waiting,) = here.approvals().pending()
    here.approvals().approve(waiting.digest, "Dr. Ada Byron")
    assert asked(here, guard, plan_of(seed=3)) == "reads"


# What else the guard says


def test_secure_aggregation_is_told_the_plans_that_would_be_answered(here: Hospital) -> None:
    good, small = masked(), masked(min_cohort=2)
    here.approve(good)
    here.approve(small)
    here.approve(promising())
    guard = here.guard(min_cohort=3, payload_bytes=8000)
    digests = {bytes.fromhex(plan.digest) for plan in (good, promising())}
    found = guard.party_policy(budget=True)
    assert found.plans == digests
    assert (found.min_cohort, found.max_size) == (3, 2000)
    assert guard.party_policy(budget=False).plans == {bytes.fromhex(good.digest)}
    here.approvals().withdraw(good.digest, "Dr. Ada Byron")
    assert guard.party_policy(budget=False).plans == frozenset()


def test_an_introduction_tells_a_range_or_nothing_and_needs_no_table(here: Hospital) -> None:
    for policy, told in (({}, (100, 199)), ({"introduction_rows": "none"}, (0, 10**9))):
        reply = asked(here, here.guard(**policy), kind="introduction")
        assert isinstance(reply, Introduction)
        assert (reply.rows_from, reply.rows_to) == told


@pytest.mark.parametrize("kind", ["introduction", "masking, between", "meta-gradient"])
def test_an_order_that_is_too_large_is_refused_whatever_it_asks(kind: str, here: Hospital) -> None:
    here.approve(BASE)
    order = replace(orders_for(BASE)[kind], nonce="n" * 9000)  # type: ignore[type-var]
    reply = answer(here.site(here.guard(payload_bytes=8999)), order)
    assert code_of(reply) == "too_large"
    assert here.guard(payload_bytes=20_000).first_look(order, identity=True, budget=True) is None


def test_an_order_is_as_large_as_what_is_in_it() -> None:
    order = orders_for(BASE)["meta-gradient"]
    wider = replace(order, params={"w": order.params["weight"].new_zeros(1000)})  # type: ignore
    assert bytes_of(wider) - bytes_of(replace(wider, params={})) == 4001  # type: ignore[type-var]
    assert bytes_of(replace(order, run="run" * 9)) == bytes_of(order) + 24  # type: ignore[type-var]


def test_a_policy_is_exchanged_as_a_whole(here: Hospital) -> None:
    """What a reload does: another guard, and what was decided stays decided."""
    here.approve(BASE)
    guard = here.guard()
    stricter = replace(guard, policy=Policy(**{**LENIENT, "models": ()}))
    assert asked(here, guard) == "reads"
    assert code_of(asked(here, stricter)) == "model_not_allowed"
    assert asked(here, guard) == "reads"


def test_damaged_approvals_stop_every_answer(here: Hospital) -> None:
    here.approve(BASE)
    (file,) = (here.folder / "approvals" / "decided").iterdir()
    file.write_text(file.read_text().replace("approved", "approve_"))
    with pytest.raises(ApprovalError, match="damaged"):
        asked(here, here.guard())


# Both sides' records


def test_a_refusal_is_in_the_sites_log_and_in_the_coordinators_record_of_the_round(tmp_path: Path) -> None:
    job = small_federation.job(tmp_path / "run", rounds=1)
    (tmp_path / "state").mkdir(mode=0o700)
    here = Hospital(tmp_path / "state")
    refusing = here.guard()
    sites: dict[str, Site] = {**small_federation.SITES}
    sites["ulm"] = replace(sites["ulm"], guard=refusing)
    with capture_logs() as logs:
        LoopbackEngine()(job, Outcome(), sites)
    (line,) = [line for line in logs if line["event"] == "order refused"]
    assert (line["code"], line["round"]) == ("not_approved", 1)
    (record,) = job.run_dir.rounds()
    assert record.accepted == 6
    assert record.refused == {"ulm": "refused: not_approved"}
    (waiting,) = here.approvals().pending()
    assert waiting.digest == job.plan.digest
    assert waiting.plan.algorithm == Choice(name="maml", inner_steps=1, first_order=True)  # type: ignore

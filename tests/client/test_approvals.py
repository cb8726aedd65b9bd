"""What people have decided stays decided: on disk, the owner's only, whole, with who, when and why."""

import json
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from guarded import BASE, TODAY, at, masked, plan_of

from clinimeta.client import approvals as module
from clinimeta.client.approvals import Approvals
from clinimeta.common.errors import ApprovalError, UserError

ADA = "Dr. Ada Byron"


@pytest.fixture
def now() -> list[datetime]:
    return [at(TODAY)]


@pytest.fixture
def kept(tmp_path: Path, now: list[datetime]) -> Approvals:
    def clock() -> datetime:
        now[0] += timedelta(minutes=1)
        return now[0]

    return Approvals(tmp_path / "approvals", clock)


def again(kept: Approvals) -> Approvals:
    """The same folder, as another process would open it."""
    return Approvals(kept.folder)


def test_a_decision_is_kept_with_who_when_and_why(kept: Approvals) -> None:
    assert kept.keep(BASE)
    assert not kept.keep(BASE)
    kept.approve(BASE.digest, f"  {ADA} ", " ethics vote 12/26 ")
    kept.withdraw(BASE.digest, "Grace Hopper", "the study has ended")
    kept.approve(BASE.digest, ADA)
    (dossier,) = again(kept).approved()
    assert dossier.plan == BASE
    assert [(event.what, event.by, event.reason) for event in dossier.events] == [
        ("seen", "", ""),
        ("approved", ADA, "ethics vote 12/26"),
        ("withdrawn", "Grace Hopper", "the study has ended"),
        ("approved", ADA, ""),
    ]
    times = [event.at for event in dossier.events]
    assert times == sorted(times)
    assert times[0] == datetime(2026, 11, 23, 12, 1, tzinfo=UTC)
    assert dossier.approved_on == TODAY


def test_a_plan_is_pending_or_approved_or_withdrawn(kept: Approvals) -> None:
    plans = [plan_of(seed=seed) for seed in range(4)]
    for plan in plans:
        kept.keep(plan)
    kept.approve(plans[0].digest, ADA)
    kept.approve(plans[1].digest, ADA)
    kept.withdraw(plans[1].digest, ADA)
    kept.withdraw(plans[2].digest, ADA, "not here")
    same = again(kept)
    assert [one.plan for one in same.pending()] == [plans[3]]
    assert [one.plan for one in same.approved()] == [plans[0]]
    stands = same.decisions()
    assert set(stands.approved) == {plans[0].digest}
    assert stands.withdrawn == {plans[1].digest, plans[2].digest}
    assert all(map(same.knows, plans))
    assert not same.knows(plan_of(seed=9))
    assert [event.what for event, _ in same.history()] == ["seen"] * 4 + ["approved"] * 2 + ["withdrawn"] * 2


def test_the_plans_that_wait_are_listed_in_the_order_in_which_they_came(kept: Approvals) -> None:
    plans = [plan_of(seed=seed) for seed in range(6)]
    for plan in plans:
        kept.keep(plan)
    assert [one.plan for one in kept.pending()] == plans


@pytest.mark.parametrize("by", ["", "   ", "auto", "Ada\nByron", "Ada\x1b[2J", "x" * 201])
def test_a_decision_needs_a_persons_name(by: str, kept: Approvals) -> None:
    kept.keep(BASE)
    for decide in (kept.approve, kept.withdraw):
        with pytest.raises(ApprovalError, match="name of who decides"):
            decide(BASE.digest, by)
    assert kept.decisions() == again(kept).decisions()
    assert [one.plan for one in kept.pending()] == [BASE]


def test_a_plan_is_found_by_the_beginning_of_its_digest_where_that_is_one_plans_only(
    kept: Approvals, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans = [plan_of(seed=seed) for seed in range(3)]
    for plan in plans:
        kept.keep(plan)
    assert kept.find(plans[1].digest[:8]).plan == plans[1]
    assert kept.find(plans[1].digest).plan == plans[1]
    for which in (
        "",
        plans[0].digest[:7],
        plans[0].digest + "0",
        "../../etc",
        "*" * 8,
        plans[0].digest.upper(),
    ):
        with pytest.raises(ApprovalError, match="not a plan's digest"):
            kept.approve(which, ADA)
    with pytest.raises(ApprovalError, match="no plans have this digest"):
        kept.approve("0" * 8, ADA)
    monkeypatch.setattr(module, "SHORTEST", 1)
    shared = next(a for a in "0123456789abcdef" if sum(p.digest.startswith(a) for p in many(kept)) > 1)
    with pytest.raises(ApprovalError, match="give more of its digits"):
        kept.approve(shared, ADA)
    assert kept.approved() == ()


def many(kept: Approvals) -> list[Any]:
    plans = [plan_of(seed=seed) for seed in range(20)]
    for plan in plans:
        kept.keep(plan)
    return plans


def test_what_was_withdrawn_is_not_withdrawn_again(kept: Approvals) -> None:
    kept.keep(BASE)
    kept.withdraw(BASE.digest, ADA)
    with pytest.raises(ApprovalError, match="withdrawn or turned down before"):
        kept.withdraw(BASE.digest, ADA)


def test_a_plan_is_compared_with_the_nearest_one_that_was_approved(kept: Approvals) -> None:
    other_study, other_arm = plan_of(study="stroke"), plan_of(arm="protonet")
    same_arm, newer = plan_of(seed=8), plan_of(seed=9)
    assert kept.last_approved(BASE) is None
    for plan, expected in (
        (other_study, other_study),
        (other_arm, other_arm),
        (same_arm, same_arm),
        (plan_of(study="stroke", seed=5), same_arm),
        (newer, newer),
        (BASE, newer),
    ):
        kept.keep(plan)
        kept.approve(plan.digest, ADA)
        assert kept.last_approved(BASE) == expected
    kept.withdraw(newer.digest, ADA)
    assert kept.last_approved(BASE) == same_arm


# On the disk


def test_folders_and_files_are_the_owners_only(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        kept = Approvals(tmp_path / "approvals")
        kept.keep(BASE)
        kept.keep(masked())
        kept.approve(BASE.digest, ADA)
    finally:
        os.umask(before)
    modes = {p.relative_to(tmp_path): p.stat().st_mode & 0o777 for p in (tmp_path / "approvals").rglob("*")}
    assert {mode for path, mode in modes.items() if (tmp_path / path).is_dir()} == {0o700}
    assert {mode for path, mode in modes.items() if (tmp_path / path).is_file()} == {0o600}
    assert sum(path.suffix == ".json" for path in modes) == 2


@pytest.mark.parametrize(("where", "mode"), [("", 0o750), ("decided", 0o770), ("pending", 0o701)])
def test_a_folder_that_others_may_enter_is_refused(where: str, mode: int, kept: Approvals) -> None:
    (kept.folder / where).chmod(mode)
    with pytest.raises(UserError, match="others could change what this site has approved"):
        again(kept)


def test_what_others_could_have_written_is_not_believed(kept: Approvals) -> None:
    kept.keep(BASE)
    kept.approve(BASE.digest, ADA)
    file = kept.folder / "decided" / f"{BASE.digest}.json"
    file.chmod(0o660)
    with pytest.raises(UserError, match="chmod 600"):
        kept.decisions()
    file.chmod(0o600)
    assert set(kept.decisions().approved) == {BASE.digest}
    file.rename(kept.folder / "elsewhere.json")
    file.symlink_to(kept.folder / "elsewhere.json")
    with pytest.raises(UserError):
        kept.decisions()


DAMAGES = {
    "cut off": lambda text: text[: len(text) // 2],
    "empty": lambda _: "",
    "another plan": lambda text: text.replace('"seed": 7', '"seed": 8'),
    "another format": lambda text: text.replace('"format": 1', '"format": 2'),
    "another event": lambda text: text.replace('"approved"', '"allowed"'),
    "a further key": lambda text: text.replace('"format": 1', '"format": 1, "more": 2'),
    "no events": lambda text: json.dumps({**json.loads(text), "events": []}),
    "no time zone": lambda text: text.replace("Z", "").replace("+00:00", ""),
    "a list": lambda _: "[]",
    "deep": lambda _: "[" * 100_000,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_record_is_named_and_never_taken_for_an_approval(damage: str, kept: Approvals) -> None:
    kept.keep(BASE)
    kept.approve(BASE.digest, ADA)
    file = kept.folder / "decided" / f"{BASE.digest}.json"
    changed = DAMAGES[damage](file.read_text())
    assert changed != file.read_text()
    file.write_text(changed)
    with pytest.raises(ApprovalError, match="the record of a plan is damaged") as found:
        again(kept).decisions()
    assert found.value.where == str(file)


def test_a_file_under_another_plans_name_approves_nothing(kept: Approvals) -> None:
    kept.keep(BASE)
    kept.approve(BASE.digest, ADA)
    decided = kept.folder / "decided"
    other = decided / f"{masked().digest}.json"
    other.write_bytes((decided / f"{BASE.digest}.json").read_bytes())
    other.chmod(0o600)
    with pytest.raises(ApprovalError, match="damaged"):
        kept.decisions()


MOMENTS = {
    "before the file has its name": (os, "replace", False),
    "before the plan waits no more": (Path, "unlink", True),
    "when it was told": (None, "", True),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_decision_is_whole_or_not_there_wherever_the_process_is_killed(
    moment: str, kept: Approvals
) -> None:
    kept.keep(BASE)
    where, name, stands = MOMENTS[moment]
    reads, writes = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            if where is not None:
                setattr(where, name, dying)
            kept.approve(BASE.digest, ADA)
            os.write(writes, b"told")
        finally:
            die()
    os.close(writes)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    assert os.read(reads, 9) == (b"told" if where is None else b"")
    os.close(reads)
    same = again(kept)
    assert [one.plan for one in same.approved()] == ([BASE] if stands else [])
    assert [one.plan for one in same.pending()] == ([] if stands else [BASE])
    waits = kept.folder / "pending" / f"{BASE.digest}.json"
    assert waits.exists() == (moment != "when it was told")
    same.withdraw(BASE.digest, ADA)
    assert same.pending() == same.approved() == ()


def dying(path: Path, *to: Any, **_: Any) -> None:
    """Dies, but not where a temporary file is cleared up before it is written."""
    if ".part" not in str(path) or to:
        die()


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_many_at_once_lose_no_decision(kept: Approvals) -> None:
    same = Approvals(kept.folder)
    plans = [plan_of(seed=seed) for seed in range(12)]

    def decide(number: int) -> None:
        plan = plans[number // 4]
        same.keep(plan)
        same.approve(plan.digest, f"person {number}")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(decide, range(48)))
    approved = same.approved()
    assert len(approved) == 12
    said = sorted(event.by for one in approved for event in one.events if event.what == "approved")
    assert said == sorted(f"person {number}" for number in range(48))
    assert same.pending() == ()

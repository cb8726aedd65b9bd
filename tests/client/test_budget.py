"""The budget is asked first, recorded, and only then spent: exactly, by many processes, through kill -9."""

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clinimeta.client.budget import Allowance, Answer, Budget
from clinimeta.common.errors import BudgetConflictError, BudgetError, BudgetFileError, BudgetSpentError
from clinimeta.common.privacy.accounting import composed, gaussian_epsilon, largest_mu, noise_multiplier

STUDY = Allowance(4.0, 1e-6)
LIFETIME = Allowance(8.0, 1e-6)
Z = noise_multiplier(4.0, 1e-6, 5)
"""With this noise the study's budget lasts five answers."""


def answer(number: int = 1, study: str = "study-a", **changes: object) -> Answer:
    return replace(Answer(study, "run", number, 1, "content", Z, 2.0), **changes)  # type: ignore[arg-type]


@pytest.fixture
def budget(tmp_path: Path) -> Budget:
    made = Budget.create(tmp_path / "private" / "budget.sqlite", LIFETIME)
    return replace(made, clock=lambda: datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC))


def test_as_many_rounds_as_were_planned_fit_and_none_more(budget: Budget) -> None:
    for number in range(1, 6):
        assert not budget.reserve(answer(number), STUDY).again
    assert budget.spent("study-a") == pytest.approx(4.0, rel=1e-6)
    with pytest.raises(BudgetSpentError, match=r"of this study is spent: epsilon 4\.000 so far") as refused:
        budget.reserve(answer(6), STUDY)
    assert (refused.value.scope, refused.value.epsilon) == ("study", 4.0)
    assert refused.value.would_be > 4
    assert len(budget.history()) == 5


@given(rounds=st.integers(1, 12), epsilon=st.floats(0.05, 20), delta=st.floats(1e-12, 1e-3))
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_calibrated_plan_fits_exactly(
    tmp_path_factory: pytest.TempPathFactory, rounds: int, epsilon: float, delta: float
) -> None:
    allowance = Allowance(epsilon, delta)
    budget = Budget.create(tmp_path_factory.mktemp("b") / "private" / "b.sqlite", allowance)
    z = noise_multiplier(epsilon, delta, rounds)
    for number in range(rounds):
        budget.reserve(answer(number, multiplier=z), allowance)
    with pytest.raises(BudgetSpentError):
        budget.reserve(answer(rounds, multiplier=z), allowance)


def test_the_lifetime_binds_across_studies_with_different_noise(budget: Budget) -> None:
    multipliers = [Z, 2 * Z, Z / 1.5]
    for i, z in enumerate(multipliers):
        budget.reserve(answer(i, f"study-{i}", multiplier=z), STUDY)
    mu = composed(1 / z for z in multipliers)
    assert budget.spent() == gaussian_epsilon(mu, 1e-6)
    assert budget.spent() < sum(budget.spent(f"study-{i}") for i in range(3))
    left = (largest_mu(8.0, 1e-6) ** 2 - mu**2) ** 0.5
    large = Allowance(100.0, 1e-6)
    with pytest.raises(BudgetSpentError, match="over all studies, is spent") as refused:
        budget.reserve(answer(9, "study-9", multiplier=0.999 / left), large)
    assert refused.value.scope == "lifetime"
    assert not budget.reserve(answer(9, "study-9", multiplier=1.001 / left), large).again


def test_a_refusal_leaves_nothing_behind(budget: Budget) -> None:
    with pytest.raises(BudgetSpentError):
        budget.reserve(answer(multiplier=0.01), STUDY)
    assert budget.history() == ()
    assert budget.spent() == budget.spent("study-a") == 0.0
    assert not budget.reserve(answer(), Allowance(1e-3 + 4, 1e-6)).again  # nor is the study's promise fixed


def test_the_same_answer_costs_once_and_keeps_its_key(budget: Budget) -> None:
    first, second = budget.reserve(answer(), STUDY), budget.reserve(answer(), STUDY)
    assert (first.again, second.again) == (False, True)
    assert first.key == second.key
    assert len(first.key) == 32
    assert len(budget.history()) == 1
    assert first.key.hex() not in repr(first)
    assert budget.reserve(answer(2), STUDY).key != first.key


@pytest.mark.parametrize(
    "changes",
    [{"content": "other"}, {"multiplier": 2 * Z}, {"sensitivity": 1.0}, {"study": "study-b"}],
    ids=str,
)
def test_another_answer_under_the_same_name_is_refused(budget: Budget, changes: dict[str, object]) -> None:
    budget.reserve(answer(), STUDY)
    with pytest.raises(BudgetConflictError, match="round 1, attempt 1 of run 'run'"):
        budget.reserve(answer(**changes), STUDY)
    assert not budget.reserve(answer(attempt=2, content="other"), STUDY).again
    assert len(budget.history()) == 2


def test_a_studys_promise_is_fixed_by_its_first_answer(budget: Budget) -> None:
    budget.reserve(answer(), STUDY)
    with pytest.raises(BudgetConflictError, match="promised epsilon 4"):
        budget.reserve(answer(2), Allowance(6.0, 1e-6))


def test_forgotten_keys_cannot_be_had_again(budget: Budget) -> None:
    keys = [budget.reserve(answer(number), STUDY).key for number in (1, 2)]
    budget.forget_keys("run", before_round=2)
    with pytest.raises(BudgetConflictError, match="is over"):
        budget.reserve(answer(1), STUDY)
    assert budget.reserve(answer(2), STUDY).key == keys[1]
    assert keys[0] not in budget.path.read_bytes()
    assert keys[1] in budget.path.read_bytes()


def test_the_history_is_readable(budget: Budget) -> None:
    budget.reserve(answer(), STUDY)
    budget.reserve(answer(2, "study-b"), STUDY)
    assert [entry.answer for entry in budget.history()] == [answer(), answer(2, "study-b")]
    (entry,) = budget.history("study-b")
    assert entry.at == "2026-01-02T03:04:05+00:00"
    assert (
        budget.spent("study-b") == budget.spent("study-b", delta=1e-6) > budget.spent("study-b", delta=1e-4)
    )
    assert budget.spent("unknown") == 0.0
    assert Budget.open(budget.path).history() == budget.history()
    assert budget.lifetime() == LIFETIME


@pytest.mark.parametrize("multiplier", [0.0, -1.0, float("nan"), float("inf")])
def test_noise_that_is_none_is_refused(budget: Budget, multiplier: float) -> None:
    with pytest.raises(ValueError, match="noise multiplier"):
        budget.reserve(answer(multiplier=multiplier), STUDY)


@pytest.mark.parametrize(("epsilon", "delta"), [(0.0, 1e-6), (-1.0, 1e-6), (1.0, 0.0), (1.0, 1.0)])
def test_an_allowance_makes_sense(epsilon: float, delta: float) -> None:
    with pytest.raises(ValueError, match="expected"):
        Allowance(epsilon, delta)


# The file


def test_the_file_is_for_the_site_alone(budget: Budget) -> None:
    budget.reserve(answer(), STUDY)
    assert budget.path.stat().st_mode & 0o777 == 0o600
    assert budget.path.parent.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(("which", "mode"), [("file", 0o640), ("file", 0o604), ("folder", 0o750)])
def test_looser_modes_are_refused(budget: Budget, which: str, mode: int) -> None:
    (budget.path if which == "file" else budget.path.parent).chmod(mode)
    with pytest.raises(BudgetFileError, match="others may read") as refused:
        budget.reserve(answer(), STUDY)
    assert "chmod" in refused.value.remedy
    with pytest.raises(BudgetFileError):
        Budget.open(budget.path)


def test_a_link_is_refused(budget: Budget) -> None:
    link = budget.path.with_name("link.sqlite")
    link.symlink_to(budget.path)
    with pytest.raises(BudgetFileError):
        Budget.open(link)


def test_a_missing_budget_is_not_a_full_one(budget: Budget) -> None:
    budget.path.unlink()
    with pytest.raises(BudgetFileError, match="no privacy budget here"):
        budget.reserve(answer(), STUDY)
    with pytest.raises(BudgetFileError, match="no privacy budget here"):
        Budget.open(budget.path)
    assert not budget.path.exists()


def test_a_budget_is_never_made_anew_over_another(budget: Budget) -> None:
    with pytest.raises(BudgetFileError, match="already"):
        Budget.create(budget.path, LIFETIME)


def test_a_folder_that_others_enter_gets_no_budget(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    with pytest.raises(BudgetFileError, match="others may read"):
        Budget.create(tmp_path / "b.sqlite", LIFETIME)
    assert not (tmp_path / "b.sqlite").exists()


def test_a_damaged_or_foreign_file_is_refused(budget: Budget) -> None:
    budget.path.write_bytes(b"no database at all" * 100)
    with pytest.raises(BudgetFileError, match="cannot be used"):
        Budget.open(budget.path)
    budget.path.write_bytes(b"")
    sqlite3.connect(budget.path).execute("CREATE TABLE lifetime (epsilon, delta)")
    with pytest.raises(BudgetFileError, match="of another program"):
        Budget.open(budget.path)


def test_refusals_are_of_one_kind() -> None:
    assert issubclass(BudgetSpentError, BudgetError)
    assert issubclass(BudgetConflictError, BudgetError)


# Other processes


SPEND = """
import sys
from pathlib import Path
from clinimeta.client.budget import Allowance, Answer, Budget
from clinimeta.common.errors import BudgetSpentError
path, run, multiplier = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
budget = Budget.open(path)
for number in range(10_000):
    try:
        answer = Answer("study-a", run, number, 1, "c", multiplier, 2.0)
        reservation = budget.reserve(answer, Allowance(4.0, 1e-6))
    except BudgetSpentError:
        break
    print(number, reservation.key.hex(), flush=True)
"""


def spending(budget: Budget, run: str, multiplier: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SPEND, str(budget.path), run, str(multiplier)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ.copy())


def lines(process: subprocess.Popen[str]) -> Iterator[tuple[int, str]]:
    assert process.stdout is not None
    for line in process.stdout:
        number, _, key = line.strip().partition(" ")
        if line.endswith("\n"):
            yield int(number), key


def test_what_was_recorded_survives_kill_9(budget: Budget) -> None:
    seen: dict[tuple[str, int], str] = {}
    for run in ("first", "second"):
        process = spending(budget, run, 100 * Z)
        for number, key in lines(process):
            seen[run, number] = key
            if number == 12:
                os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    recorded = {(e.answer.run, e.answer.round): e.answer for e in Budget.open(budget.path).history()}
    assert set(seen) <= set(recorded)
    for name, key in seen.items():
        again = budget.reserve(recorded[name], STUDY)
        assert again.again
        assert again.key.hex() == key
    assert not budget.reserve(answer(1), STUDY).again


def test_processes_at_once_never_overspend_together(budget: Budget) -> None:
    z = noise_multiplier(4.0, 1e-6, 40)
    processes = [spending(budget, f"run-{i}", z) for i in range(3)]
    granted = [len(list(lines(process))) for process in processes]
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert sum(granted) == 40 == len(budget.history())
    assert budget.spent("study-a") <= 4.0

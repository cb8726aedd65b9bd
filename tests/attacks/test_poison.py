"""Sites that send poison in every round of a training: what each protection makes of it."""

from pathlib import Path
from typing import Any

import pytest
from small_federation import Poison, job, losses, poisoner, train

from clinimeta.common.errors import QuorumError

ROBUST: list[dict[str, Any]] = [
    {"rule": "norm_clipped_mean"},
    {"rule": "trimmed_mean", "trim": 0.3},
    {"rule": "median"},
    {"rule": "multi_krum", "bad_sites": 2},
]
ROUNDS = 6


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> Poison:
    return poisoner(monkeypatch)


def query_losses(path: Path, **training: Any) -> list[float]:
    to_do = job(path, rounds=ROUNDS, **training)
    train(to_do)
    return losses(to_do)


def test_two_of_seven_sites_that_send_poison_ruin_the_plain_mean(tmp_path: Path, poison: Poison) -> None:
    """Within the norm limits, which are generous. Without this the next test would prove nothing."""
    healthy = query_losses(tmp_path / "healthy")
    poison(*range(1, ROUNDS + 1), strength=30.0)
    assert query_losses(tmp_path / "poisoned")[-1] > 5 * healthy[-1]


@pytest.mark.parametrize("aggregation", ROBUST, ids=lambda a: a["rule"])
@pytest.mark.parametrize("strength", [30.0, 300.0])
def test_under_a_robust_rule_the_training_still_learns(
    tmp_path: Path, poison: Poison, aggregation: dict[str, Any], strength: float
) -> None:
    poison(*range(1, ROUNDS + 1), strength=strength)
    found = query_losses(tmp_path, aggregation=aggregation)
    assert sum(found[-3:]) < sum(found[:3]) - 0.03


def test_a_bad_site_can_stall_krum_where_the_cohort_is_as_small_as_allowed(
    tmp_path: Path, poison: Poison
) -> None:
    """It only has to be refused, or silent. Named, so that somebody can act; a larger cohort has room."""
    poison(1, strength=1e5)
    with pytest.raises(QuorumError, match=r"6 usable answers, 7 needed .*graz|5 usable answers, 7 needed"):
        train(job(tmp_path, aggregation={"rule": "multi_krum", "bad_sites": 2}))


def test_a_damaged_answer_is_refused_before_any_rule(tmp_path: Path, poison: Poison) -> None:
    poison(1, 2, strength=float("inf"))
    to_do = job(tmp_path, rounds=2)
    train(to_do)
    refused = [summary.refused for summary in to_do.run_dir.rounds()]
    assert refused == [{"graz": "not finite", "ulm": "not finite"}] * 2

"""A site's policy: safe by default, strict about its keys, named by a digest, and explained on its page."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from clinimeta.client.approvals import MOST_BY_POLICY, MOST_PENDING
from clinimeta.client.budget import Allowance, Answer, Budget
from clinimeta.client.config import TEMPLATE, Home
from clinimeta.client.hospital import budget_of, policy_digest, policy_of
from clinimeta.client.policy import Policy, read_policy
from clinimeta.client.rules import PLAN_BYTES, RULES
from clinimeta.common.errors import BudgetSpentError, StudyError
from clinimeta.common.records import REFUSALS

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "site-policy.md").read_text(encoding="utf-8")


def test_what_nobody_has_decided_is_decided_the_safe_way() -> None:
    policy = read_policy({}, "site.toml")
    assert policy == Policy()
    assert not policy.auto_approve
    assert policy.secure_aggregation == "required"
    assert policy.min_cohort == 3


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"min_cohrt": 3}, "did you mean 'min_cohort'"),
        ({"algorithms": ["mamml"]}, "no algorithm; did you mean 'maml'"),
        ({"models": ["liner"]}, "no model; did you mean 'linear'"),
        ({"metrics": ["oldest_patient"]}, "no metric"),
        ({"auto_approve": True}, "needs a list of `columns`"),
        ({"auto_approve": True, "columns": "any"}, "needs a list of `columns`"),
        ({"auto_approve": "yes"}, "auto_approve"),
        ({"columns": "age"}, "columns"),
        ({"secure_aggregation": "off"}, "secure_aggregation"),
        ({"promise": True}, "promise"),
        ({"min_rows": 0}, "min_rows"),
        ({"min_rows": 20.5}, "min_rows"),
        ({"min_cohort": 1}, "min_cohort"),
        ({"min_tasks": 0}, "min_tasks"),
        ({"approval_days": 0}, "approval_days"),
        ({"rounds_a_day": -1}, "rounds_a_day"),
        ({"payload_bytes": 0}, "payload_bytes"),
        ({"max_epsilon": 0.0}, "max_epsilon"),
        ({"max_delta": 1.0}, "max_delta"),
        ({"lifetime_epsilon": float("inf")}, "lifetime_epsilon"),
        ({"lifetime_delta": 0.0}, "lifetime_delta"),
        ("any", "a table"),
    ],
)
def test_a_policy_that_could_be_misread_is_refused(values: Any, says: str) -> None:
    with pytest.raises(StudyError, match=r"site\.toml, \[policy\]") as refused:
        read_policy(values, "site.toml, [policy]")
    assert re.search(says, str(refused.value)), str(refused.value)


def test_the_file_that_init_writes_has_the_defaults(tmp_path: Path) -> None:
    text = TEMPLATE.format(address='"hub:9443"', data='"p.csv"', port=9543, health_port=9545)
    (tmp_path / "site.toml").write_text(text)
    assert policy_of(Home(tmp_path)) == Policy()


def test_a_policy_has_a_digest_that_every_key_changes() -> None:
    others = {
        "auto_approve": True,
        "approval_days": 1,
        "algorithms": ("maml",),
        "models": ("mlp",),
        "columns": ("age",),
        "min_rows": 1,
        "min_cohort": 4,
        "min_tasks": 1,
        "secure_aggregation": "optional",
        "promise": "required",
        "max_epsilon": 1.0,
        "max_delta": 1e-6,
        "lifetime_epsilon": 1.0,
        "lifetime_delta": 1e-6,
        "rounds_a_day": 1,
        "payload_bytes": 1,
        "metrics": (),
        "calibration": False,
        "introduction_rows": "none",
    }
    assert set(others) == set(Policy.model_fields)
    made = [
        Policy(),
        *(Policy.model_validate({"columns": ("sick",), key: one}) for key, one in others.items()),
    ]
    assert len({policy_digest(policy) for policy in made}) == len(made)
    assert policy_digest(Policy()) == policy_digest(Policy(min_rows=20))


def test_a_lowered_lifetime_counts_at_once_and_a_raised_one_never(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.state.mkdir(mode=0o700)
    made = budget_of(home, Policy(lifetime_epsilon=5.0))
    for policy, most in ((2.0, 2.0), (50.0, 5.0)):
        budget = budget_of(home, Policy(lifetime_epsilon=policy))
        assert answers_within(budget, f"study-{policy}") <= most
        assert budget.lifetime() == made.lifetime()


def answers_within(budget: Budget, study: str) -> float:
    """What a study that is promised much may spend until it is refused."""
    for number in range(200):
        try:
            budget.reserve(Answer(study, study, number, 0, "c", 3.0, 1.0), Allowance(90.0, 1e-5))
        except BudgetSpentError:
            assert number > 0
            return budget.spent()
    raise AssertionError("never refused")


# The page


def rows(heading: str) -> list[list[str]]:
    """The cells of the table under a heading."""
    section = PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_page_has_every_key_with_its_default_and_no_other() -> None:
    told = {cells[0].strip("`"): cells[1].strip("`") for cells in rows("Every key")}
    assert set(told) == set(Policy.model_fields)
    read = read_policy(tomllib.loads("\n".join(f"{key} = {value}" for key, value in told.items())), "page")
    assert read == Policy()


def test_the_page_has_every_refusal_of_the_policy() -> None:
    told = {cells[0].strip("`") for cells in rows("What a refusal means")}
    assert set(RULES) <= told <= set(REFUSALS)


def test_the_examples_of_the_page_are_policies() -> None:
    examples = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    assert len(examples) >= 3
    for example in examples:
        read_policy(tomllib.loads(example)["policy"], "page")


def test_the_page_gives_the_bounds_that_hold() -> None:
    for number in (MOST_PENDING, MOST_BY_POLICY):
        assert f"{number} plans" in PAGE
    assert PLAN_BYTES == 1 << 20
    assert "over 1 MiB" in PAGE

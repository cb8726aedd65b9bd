"""The hospital's own policy: what it lets happen to its records, from its own file (run by the site).

A policy is the `[policy]` section of the site's file, so nobody outside can change it. `rules.judge` holds an
order against it before a record is looked at.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Lt
from pydantic import model_validator

from clinimeta.client.budget import Allowance
from clinimeta.common import metrics
from clinimeta.common.algorithms import ALGORITHMS
from clinimeta.common.errors import nearest
from clinimeta.common.models import MODELS
from clinimeta.common.secagg.policy import Policy as PartyPolicy
from clinimeta.common.settings import Settings, parse

Names = tuple[str, ...] | Literal["any"]


class Policy(Settings):
    """What this site lets happen to its records, whatever the coordinator says; each default is the safe one.

    A plan is answered only if a person at the site has approved it, within the last `approval_days`. With
    `auto_approve` the policy approves what violates nothing else in it; then `columns` must be listed.
    A list is of names; "any" stands for whatever the approved plan names, and an empty list for nothing.
    `min_cohort` is the fewest hospitals whose masked sum may be opened, `min_tasks` the fewest tasks in what
    the coordinator sees: the smallest sum that may be opened, or without masks the site's own answer.
    `promise` is differential privacy of a whole study for each patient, with noise that the hospitals
    add themselves; any promise over `max_epsilon` or `max_delta` is refused. `lifetime_epsilon` and
    `lifetime_delta` are for all studies together; they can be lowered later, and not raised over what they
    were when the budget's file was made (`budget`).
    `payload_bytes` bounds an order and its answer, `rounds_a_day` the answers that are made from the table.
    """

    auto_approve: bool = False
    approval_days: Annotated[int, Ge(1)] = 365
    algorithms: Names = "any"
    models: Names = "any"
    columns: Names = "any"
    min_rows: Annotated[int, Ge(1)] = 20
    min_cohort: Annotated[int, Ge(2)] = 3
    min_tasks: Annotated[int, Ge(1)] = 3
    secure_aggregation: Literal["required", "optional"] = "required"
    promise: Literal["required", "optional"] = "optional"
    max_epsilon: Annotated[float, Gt(0)] = 10.0
    max_delta: Annotated[float, Gt(0), Lt(1)] = 1e-5
    lifetime_epsilon: Annotated[float, Gt(0)] = 10.0
    lifetime_delta: Annotated[float, Gt(0), Lt(1)] = 1e-5
    rounds_a_day: Annotated[int, Ge(0)] = 1000
    payload_bytes: Annotated[int, Ge(1)] = 64 << 20
    metrics: Names = "any"
    calibration: bool = True
    introduction_rows: Literal["range", "none"] = "range"

    @model_validator(mode="after")
    def _names_are_known(self) -> "Policy":
        known: tuple[tuple[str, Names, Iterable[str]], ...] = (
            ("algorithm", self.algorithms, ALGORITHMS.names()),
            ("model", self.models, MODELS.names()),
            ("metric", self.metrics, metrics.ALLOWED),
        )
        for kind, names, there in known:
            for name in () if names == "any" else names:
                if name not in there:
                    raise ValueError(f"'{name}' is no {kind}; {nearest(name, there)}")
        if self.auto_approve and self.columns == "any":
            raise ValueError("auto_approve needs a list of `columns`: nobody looks at what a plan reads")
        return self

    @property
    def lifetime(self) -> Allowance:
        """What all studies together may spend on one patient."""
        return Allowance(self.lifetime_epsilon, self.lifetime_delta)


def read_policy(values: Any, where: str) -> Policy:
    """The policy in a `[policy]` section, as TOML gives it.

    Raises:
        StudyError: an unknown key, or a value that does not fit; names the nearest key.
    """
    return parse(Policy, values, where)


def to_secagg(policy: Policy, approved: Iterable[str]) -> PartyPolicy:
    """The same limits for the site's part in secure aggregation; `approved` are digests in hexadecimal."""
    plans = frozenset(bytes.fromhex(digest) for digest in approved)
    return PartyPolicy(plans, min_cohort=policy.min_cohort, max_size=policy.payload_bytes // 4)


@dataclass(frozen=True, slots=True)
class Facts:
    """All that a decision may use besides policy, approvals, order and plan. Nothing of it is read for one.

    `rows` is a count made when the site started. `answers_today` counts the answers of this UTC day that were
    made from the table (`rules.reads_table`), refusals apart. `identity` and `budget`: whether the site has a
    key for secure aggregation, and a privacy budget.
    """

    today: date
    rows: int
    answers_today: int
    order_bytes: int
    identity: bool
    budget: bool


@dataclass(frozen=True, slots=True)
class Verdict:
    """No, with a code of `records.REFUSALS` and a sentence that names a limit and no value of a patient."""

    code: str
    reason: str

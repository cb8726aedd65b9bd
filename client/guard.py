"""Who stands before the records: policy, approvals and what is known without looking (run by the site)."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

import structlog

from clinimeta.client.approvals import Approvals, Decisions
from clinimeta.client.policy import Facts, Policy, Verdict, to_secagg
from clinimeta.client.rules import every, is_approved, judge
from clinimeta.common.plan import Plan
from clinimeta.common.records import Order, count_range
from clinimeta.common.secagg.policy import Policy as PartyPolicy
from clinimeta.common.typing import Params

log = structlog.get_logger()

UNKNOWN_ROWS = (0, 10**9)
"""The range of rows of a site that does not tell how many it has."""


@dataclass(frozen=True, slots=True)
class Guard:
    """Decides before each answer; `Site.guard`. A simulated hospital has none.

    `rows` was counted when the site started. `answers_today` counts, from the site's own record, the answers
    of this UTC day that were made from the table (`rules.reads_table`).
    """

    policy: Policy
    approvals: Approvals
    rows: int
    answers_today: Callable[[], int]
    clock: Callable[[], datetime] = field(default=lambda: datetime.now(UTC))

    def first_look(self, order: Order, *, identity: bool, budget: bool) -> Verdict | None:
        """Why the order gets no answer, as far as can be said before its plan is read; or None."""
        facts = self._facts(order, 0, identity=identity, budget=budget)
        return judge(self.policy, Decisions(), order, None, facts)

    def refusal(self, order: Order, plan: Plan, *, identity: bool, budget: bool) -> Verdict | None:
        """Why the order gets no answer, or None. A plan that nobody has decided about waits for a person."""
        decisions = self.approvals.decisions()
        facts = self._facts(order, self.answers_today(), identity=identity, budget=budget)
        verdict = judge(self.policy, decisions, order, plan, facts)
        if verdict is None and not is_approved(self.policy, decisions, plan, facts.today):
            # The policy approves, unless a person has withdrawn the plan at this very moment.
            why_not = self.approvals.approve_by_policy(plan)
            verdict = Verdict("not_approved", why_not) if why_not else None
        if verdict is not None and verdict.code == "not_approved":
            self._keep(plan)
        return verdict

    def would_refuse(self, plan: Plan, *, identity: bool, budget: bool) -> tuple[Verdict, ...]:
        """All that stands between a plan and an answer now, for the person who looks at it."""
        facts = self._facts(None, 0, identity=identity, budget=budget)
        return every(self.policy, self.approvals.decisions(), None, plan, facts)

    def party_policy(self, *, budget: bool) -> PartyPolicy:
        """The same policy and approvals for the site's part in secure aggregation, as they are now.

        Its plans are those that would be answered, so that a site drops out of a round before it begins
        rather than in its middle. How many answers were given today is left to the order that reads.
        """
        decisions, facts = self.approvals.decisions(), self._facts(None, 0, identity=True, budget=budget)
        answered = (
            digest
            for digest, dossier in decisions.approved.items()
            if judge(self.policy, decisions, None, dossier.plan, facts) is None
        )
        return to_secagg(self.policy, answered)

    def rows_told(self) -> tuple[int, int]:
        """The range of the number of rows that an introduction gives."""
        return count_range(self.rows) if self.policy.introduction_rows == "range" else UNKNOWN_ROWS

    def _facts(self, order: Order | None, answers_today: int, *, identity: bool, budget: bool) -> Facts:
        return Facts(
            today=self.clock().astimezone(UTC).date(),
            rows=self.rows,
            answers_today=answers_today,
            order_bytes=0 if order is None else bytes_of(order),
            identity=identity,
            budget=budget,
        )

    def _keep(self, plan: Plan) -> None:
        try:
            kept = self.approvals.keep(plan)
        except OSError as error:  # a full disk changes nothing for the coordinator
            log.error("a plan could not be kept for approval", plan=plan.digest, error=error.strerror)
            return
        if kept:
            log.warning("a plan waits for approval", plan=plan.digest)
        elif not self.approvals.knows(plan):
            log.warning("too many plans wait for approval; this one is not kept", plan=plan.digest)


def bytes_of(order: Order) -> int:
    """How large an order is: text, bytes and tensors, at least."""
    return sum(_size(getattr(order, field.name)) for field in dataclasses.fields(order))


def _size(value: str | bytes | float | tuple[bytes | float, ...] | Params) -> int:
    match value:
        case str():
            return len(value.encode(errors="replace"))
        case bytes():
            return len(value)
        case tuple():
            return sum(map(_size, value))
        case int() | float():
            return 8
        case _:
            return sum(len(name) + p.numel() * p.element_size() for name, p in value.items())

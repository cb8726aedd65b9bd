"""The rules of a site's policy: may this order be answered? Pure functions, asked before a record is read.

A rule is one entry of `RULES`: its code, and a function that says what is wrong. It sees the policy, what
people at the site have approved, the order, and a few facts that were known before the order came.
"""

from collections.abc import Callable, Iterator, Mapping
from datetime import date, timedelta
from typing import NamedTuple

from clinimeta.client.approvals import AUTO, Decisions, Dossier
from clinimeta.client.plan_words import columns_read, shown
from clinimeta.client.policy import Facts, Policy, Verdict
from clinimeta.common.contributions import added_by_sites, metrics_of
from clinimeta.common.errors import StudyError
from clinimeta.common.plan import Plan
from clinimeta.common.records import REFUSALS, CalibrationOrder, IntroductionOrder, MaskingOrder, Order

PLAN_BYTES = 1 << 20
"""A plan over a mebibyte is read by nobody; it is refused before it is parsed or kept."""


class Case(NamedTuple):
    """What the rules look at. Without `plan` only those are asked that need none; without `order`: of any."""

    policy: Policy
    decisions: Decisions
    order: Order | None
    plan: Plan | None
    facts: Facts


def judge(
    policy: Policy, decisions: Decisions, order: Order | None, plan: Plan | None, facts: Facts
) -> Verdict | None:
    """The first rule that the order violates, or None: then the site may answer it."""
    return next(_violations(Case(policy, decisions, order, plan, facts)), None)


def every(
    policy: Policy, decisions: Decisions, order: Order | None, plan: Plan | None, facts: Facts
) -> tuple[Verdict, ...]:
    """All rules that are violated, for a person who asks what would be refused, and why."""
    return tuple(_violations(Case(policy, decisions, order, plan, facts)))


def reads_table(order: Order) -> bool:
    """Whether an answer would be made from the site's records, and counts as one of today's."""
    if isinstance(order, MaskingOrder):
        return bool(order.params)
    return not isinstance(order, IntroductionOrder)


def largest_answer(order: Order, plan: Plan) -> int:
    """Bytes that the answer has at most, names and framing included; known before it is made."""
    if isinstance(order, CalibrationOrder):
        return _FRAMING + 8 * len(plan.episodes.shots) * (1 + len(order.temperatures))
    params = {} if isinstance(order, IntroductionOrder) else order.params
    return _FRAMING + sum(len(n) + 100 + p.numel() * max(4, p.element_size()) for n, p in params.items())


_FRAMING = 4096
Rule = Callable[[Case], str]
"""What is wrong, in a sentence; empty where nothing is."""


def _violations(case: Case) -> Iterator[Verdict]:
    for code, rule in RULES.items():
        reason = rule(case)
        if reason:
            yield Verdict(code, reason)


def _of_plan(rule: Callable[[Policy, Plan], str]) -> Rule:
    """A rule that looks at the plan alone."""
    return lambda case: "" if case.plan is None else rule(case.policy, case.plan)


def _too_large(case: Case) -> str:
    policy, _, order, plan, facts = case
    most = policy.payload_bytes
    if facts.order_bytes > most:
        return f"the order is larger than the {most} bytes that the site takes"
    if len(getattr(order, "plan", b"")) > PLAN_BYTES:
        return f"the plan is larger than the {PLAN_BYTES} bytes that the site reads"
    if order is not None and plan is not None and largest_answer(order, plan) > most:
        return f"the answer could be larger than the {most} bytes that the site sends"
    return ""


def _no_identity(case: Case) -> str:
    masked = case.plan is not None and case.plan.protection.answers == "masked"
    needed = masked or isinstance(case.order, MaskingOrder)
    return REFUSALS["no_identity"] if needed and not case.facts.identity else ""


def is_approved(policy: Policy, decisions: Decisions, plan: Plan, today: date) -> bool:
    """Whether an approval of this plan stands: a person's, or the policy's while it approves by itself."""
    dossier = decisions.approved.get(plan.digest)
    return dossier is not None and _why_not(policy, dossier, today) == ""


def _why_not(policy: Policy, dossier: Dossier, today: date) -> str:
    assert dossier.approval is not None
    if dossier.approval.by == AUTO and not policy.auto_approve:
        return "nobody at the site has approved this plan yet; its policy had, and approves none any more"
    ended = dossier.approved_on + timedelta(days=policy.approval_days)
    return f"the approval of this plan ended on {ended}" if today >= ended else ""


def _not_approved(case: Case) -> str:
    policy, decisions, _, plan, facts = case
    if plan is None:
        return ""
    digest = plan.digest
    if digest in decisions.withdrawn:
        return "the site has turned this plan down, or withdrawn its approval"
    if policy.auto_approve:
        return ""
    if digest not in decisions.approved:
        return "nobody at the site has approved this plan yet"
    return _why_not(policy, decisions.approved[digest], facts.today)


def _too_many_rounds(case: Case) -> str:
    most = case.policy.rounds_a_day
    over = case.order is not None and case.plan is not None and case.facts.answers_today >= most
    return f"the site has given the {most} answers that it gives a day" if over else ""


def _too_few_rows(case: Case) -> str:
    least = case.policy.min_rows
    few = case.facts.rows < least and not isinstance(case.order, IntroductionOrder)
    return f"the site has fewer than the {least} rows that its policy asks for" if few else ""


def _algorithm(policy: Policy, plan: Plan) -> str:
    allowed = policy.algorithms == "any" or plan.algorithm.name in policy.algorithms
    return "" if allowed else f"the site does not allow the algorithm '{shown(plan.algorithm.name)}'"


def _model(policy: Policy, plan: Plan) -> str:
    allowed = policy.models == "any" or plan.model.name in policy.models
    return "" if allowed else f"the site does not allow the model '{shown(plan.model.name)}'"


def _column(policy: Policy, plan: Plan) -> str:
    columns = () if policy.columns == "any" else columns_read(plan)
    others = (column for column in columns if column not in policy.columns)
    return next((f"the site does not allow the column '{shown(column)}' to be read" for column in others), "")


def _unmasked(policy: Policy, plan: Plan) -> str:
    allowed = policy.secure_aggregation == "optional" or plan.protection.answers == "masked"
    return "" if allowed else "the site answers under secure aggregation only, and the plan goes without"


def _cohort(policy: Policy, plan: Plan) -> str:
    found, least = plan.protection.min_cohort, policy.min_cohort
    allowed = plan.protection.answers != "masked" or found >= least
    return "" if allowed else f"the plan opens sums over {found} hospitals, and the site asks for {least}"


def _tasks(policy: Policy, plan: Plan) -> str:
    hospitals = plan.protection.min_cohort if plan.protection.answers == "masked" else 1
    found, least = plan.episodes.tasks * hospitals, policy.min_tasks
    return "" if found >= least else f"a sum over {found} tasks would be seen, and the site asks for {least}"


def _no_promise(policy: Policy, plan: Plan) -> str:
    if policy.promise == "optional" or (plan.protection.epsilon and added_by_sites(plan)):
        return ""
    if plan.protection.epsilon:
        return "the coordinator, not the hospitals, would add the noise that the plan promises"
    return "the site answers under differential privacy only, and the plan promises none"


def _weak_promise(policy: Policy, plan: Plan) -> str:
    epsilon, delta = plan.protection.epsilon, plan.protection.delta
    if epsilon > policy.max_epsilon:
        return f"the plan promises epsilon {epsilon:g}, and the site asks for {policy.max_epsilon:g} at most"
    if epsilon and delta > policy.max_delta:
        return f"the plan promises delta {delta:g}, and the site asks for {policy.max_delta:g} at most"
    return ""


def _no_budget(case: Case) -> str:
    promised = case.plan is not None and case.plan.protection.epsilon > 0
    return REFUSALS["no_budget"] if promised and not case.facts.budget else ""


def _metric(policy: Policy, plan: Plan) -> str:
    if policy.metrics == "any":
        return ""
    try:
        leaving = metrics_of(plan)
    except StudyError:  # an application that is not there measures nothing, and gets no further
        return ""
    others = (name for name in leaving if name not in policy.metrics)
    return next((f"the metric '{name}' would leave the site, which does not allow it" for name in others), "")


def _calibration(case: Case) -> str:
    asked = isinstance(case.order, CalibrationOrder)
    return REFUSALS["calibration_not_allowed"] if asked and not case.policy.calibration else ""


RULES: Mapping[str, Rule] = {
    "too_large": _too_large,
    "no_identity": _no_identity,
    "not_approved": _not_approved,
    "too_many_rounds": _too_many_rounds,
    "too_few_rows": _too_few_rows,
    "algorithm_not_allowed": _of_plan(_algorithm),
    "model_not_allowed": _of_plan(_model),
    "column_not_allowed": _of_plan(_column),
    "secure_aggregation_required": _of_plan(_unmasked),
    "cohort_too_small": _of_plan(_cohort),
    "too_few_tasks": _of_plan(_tasks),
    "promise_required": _of_plan(_no_promise),
    "promise_too_weak": _of_plan(_weak_promise),
    "no_budget": _no_budget,
    "metric_not_allowed": _of_plan(_metric),
    "calibration_not_allowed": _calibration,
}
"""Code -> the one rule that has it, in the order in which they are asked: what is fundamental first."""

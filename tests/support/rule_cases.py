"""For each rule of a site's policy: what it must refuse, and next to it what it must let pass."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

from guarded import LENIENT, TODAY, at, facts, masked, orders_for, plan_of, promising

from clinimeta.client.approvals import AUTO, Decisions, Dossier, Event
from clinimeta.client.policy import Facts, Policy
from clinimeta.client.rules import largest_answer
from clinimeta.common.plan import Plan
from clinimeta.common.records import MetaGradientOrder, Order


@dataclass(frozen=True, slots=True)
class Case:
    """What a rule is asked; `stands` says how the plan's approval stands at the site."""

    order: str = "meta-gradient"
    plan: Plan = field(default_factory=plan_of)
    stands: str = "approved"
    days: int = 0
    known: Facts = field(default_factory=facts)
    policy: Mapping[str, Any] = field(default_factory=dict)
    changed: Callable[[Order], Order] = field(default=lambda order: order)
    planless: bool = False

    def arguments(self) -> tuple[Policy, Decisions, Order | None, Plan | None, Facts]:
        """As `rules.judge` takes them."""
        order = None if self.order == "any" else self.changed(orders_for(self.plan)[self.order])
        policy = Policy(**{**LENIENT, **self.policy})
        plan = None if self.planless else self.plan
        return policy, decisions(self.plan, self.stands, self.days), order, plan, self.known


def decisions(plan: Plan, stands: str, days: int = 0) -> Decisions:
    """Made so many days ago."""
    event = Event(
        what="approved", at=at(TODAY - timedelta(days=days)), by=AUTO if stands == "auto" else "A. B."
    )
    if stands in ("approved", "auto"):
        return Decisions({plan.digest: Dossier(plan, (event,))})
    return Decisions({}, frozenset({plan.digest}) if stands == "withdrawn" else frozenset())


def with_plan_of(size: int) -> Callable[[Order], Order]:
    """The same order with so many bytes for a plan."""

    def changed(order: Order) -> Order:
        assert isinstance(order, MetaGradientOrder)
        return replace(order, plan=b"x" * size)

    return changed


ANSWER = largest_answer(orders_for(plan_of())["meta-gradient"], plan_of())
LISTED = {"auto_approve": True, "columns": ("sick", "age", "crp", "person")}
REFUSED: Mapping[str, tuple[Case, ...]] = {
    "too_large": (
        Case(known=facts(order_bytes=10_001), policy={"payload_bytes": 10_000}),
        Case(known=facts(order_bytes=0), policy={"payload_bytes": 4000}),
        Case(known=facts(order_bytes=0), policy={"payload_bytes": ANSWER - 1}),
        Case(changed=with_plan_of((1 << 20) + 1), planless=True),
    ),
    "no_identity": (
        Case(plan=masked(), known=facts(identity=False)),
        Case(order="any", plan=masked(), known=facts(identity=False)),
        Case(order="masking, between", planless=True, known=facts(identity=False)),
    ),
    "not_approved": (
        Case(stands="new"),
        Case(stands="withdrawn"),
        Case(stands="withdrawn", policy=LISTED),
        Case(days=365),
        Case(days=7, policy={"approval_days": 7}),
        Case(stands="auto"),
        Case(order="any", stands="new"),
        Case(order="masking, first", plan=masked(), stands="new"),
    ),
    "too_many_rounds": (
        Case(known=facts(answers_today=1000)),
        Case(known=facts(answers_today=3), policy={"rounds_a_day": 3}),
        Case(policy={"rounds_a_day": 0}),
    ),
    "too_few_rows": (
        Case(known=facts(rows=19), policy={"min_rows": 20}),
        Case(order="masking, between", planless=True, known=facts(rows=19), policy={"min_rows": 20}),
        Case(order="any", known=facts(rows=19), policy={"min_rows": 20}),
    ),
    "algorithm_not_allowed": (Case(policy={"algorithms": ()}), Case(policy={"algorithms": ("protonet",)})),
    "model_not_allowed": (Case(policy={"models": ()}), Case(policy={"models": ("mlp",)})),
    "column_not_allowed": (
        Case(policy={"columns": ("sick", "age", "person")}),
        Case(policy={"columns": ("age", "crp", "person")}),
        Case(policy={"columns": ("sick", "age", "crp")}),
        Case(policy={"columns": ()}),
    ),
    "secure_aggregation_required": (
        Case(policy={"secure_aggregation": "required"}),
        Case(plan=plan_of(protection={"answers": "quantised"}), policy={"secure_aggregation": "required"}),
    ),
    "cohort_too_small": (
        Case(plan=masked(min_cohort=2)),
        Case(plan=masked(min_cohort=4), policy={"min_cohort": 5}),
    ),
    "too_few_tasks": (
        Case(policy={"min_tasks": 5}),
        Case(plan=masked(min_cohort=3), policy={"min_tasks": 13}),
    ),
    "promise_required": (
        Case(policy={"promise": "required"}),
        Case(plan=masked(), policy={"promise": "required"}),
        Case(plan=promising(answers="quantised"), policy={"promise": "required"}),
    ),
    "promise_too_weak": (
        Case(plan=promising(epsilon=10.5)),
        Case(plan=promising(delta=2e-5)),
        Case(plan=promising(epsilon=3.0), policy={"max_epsilon": 2.9}),
    ),
    "no_budget": (Case(plan=promising(), known=facts(budget=False)),),
    "metric_not_allowed": (
        Case(policy={"metrics": ()}),
        Case(policy={"metrics": ("query_loss",)}),
        Case(plan=masked(), policy={"metrics": ("query_accuracy",)}),
    ),
    "calibration_not_allowed": (Case(order="calibration", policy={"calibration": False}),),
}
PASSED: Mapping[str, tuple[Case, ...]] = {
    "too_large": (
        Case(known=facts(order_bytes=10_000), policy={"payload_bytes": 10_000}),
        Case(known=facts(order_bytes=0), policy={"payload_bytes": ANSWER}),
        Case(order="any", known=facts(order_bytes=0), policy={"payload_bytes": 1}),
        Case(order="calibration", planless=True),
        Case(changed=with_plan_of(1 << 20), planless=True),
    ),
    "no_identity": (
        Case(known=facts(identity=False)),
        Case(order="introduction", planless=True, known=facts(identity=False)),
        Case(plan=masked()),
    ),
    "not_approved": (
        Case(days=364),
        Case(stands="auto", policy=LISTED),
        Case(stands="new", policy=LISTED),
        Case(stands="auto", days=400, policy=LISTED),
        Case(order="introduction", planless=True, stands="withdrawn"),
    ),
    "too_many_rounds": (
        Case(known=facts(answers_today=999)),
        Case(order="any", known=facts(answers_today=1000)),
        Case(order="masking, between", planless=True, known=facts(answers_today=1000)),
    ),
    "too_few_rows": (
        Case(known=facts(rows=20), policy={"min_rows": 20}),
        Case(order="introduction", planless=True, known=facts(rows=0)),
    ),
    "algorithm_not_allowed": (Case(policy={"algorithms": ("protonet", "maml")}),),
    "model_not_allowed": (Case(policy={"models": ("linear",)}),),
    "column_not_allowed": (Case(policy={"columns": ("sick", "age", "crp", "person", "other")}),),
    "secure_aggregation_required": (Case(plan=masked(), policy={"secure_aggregation": "required"}),),
    "cohort_too_small": (
        Case(plan=masked(min_cohort=5), policy={"min_cohort": 5}),
        Case(plan=plan_of(protection={"min_cohort": 1}), policy={"min_cohort": 5}),
    ),
    "too_few_tasks": (
        Case(policy={"min_tasks": 4}),
        Case(plan=masked(min_cohort=3), policy={"min_tasks": 12}),
    ),
    "promise_required": (
        Case(plan=promising(), policy={"promise": "required"}),
        Case(plan=promising(answers="quantised", noise="local"), policy={"promise": "required"}),
    ),
    "promise_too_weak": (Case(plan=promising(epsilon=10.0, delta=1e-5)), Case(plan=masked(delta=0.5))),
    "no_budget": (Case(plan=promising()), Case(known=facts(budget=False))),
    "metric_not_allowed": (
        Case(policy={"metrics": ("query_loss", "query_accuracy")}),
        Case(plan=promising(), policy={"metrics": ()}),
    ),
    "calibration_not_allowed": (
        Case(order="calibration"),
        Case(order="meta-gradient", policy={"calibration": False}),
    ),
}

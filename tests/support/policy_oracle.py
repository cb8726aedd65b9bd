"""What a site's policy promises, said a second time: which codes an order deserves; and what to ask about."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from guarded import BASE, masked, plan_of, promising

from clinimeta.client.guard import bytes_of
from clinimeta.common.contributions import metrics_of
from clinimeta.common.plan import Plan
from clinimeta.common.records import CalibrationOrder, IntroductionOrder, MaskingOrder, Order
from clinimeta.common.study import Choice

COLUMNS = ("sick", "age", "crp", "person")
PLANS = (
    BASE,
    plan_of(seed=8),
    plan_of(algorithm=Choice(name="protonet")),
    plan_of(model=Choice(name="mlp", hidden=[3])),
    plan_of(episodes={"tasks": 2}),
    plan_of(episodes={"tasks": 400}),
    plan_of(table={"patient": ""}),
    plan_of(table={"target": "died"}),
    plan_of(table={"columns": BASE.table.columns[:1]}),
    plan_of(protection={"answers": "quantised"}),
    masked(),
    masked(min_cohort=2),
    masked(min_cohort=9),
    promising(),
    promising(epsilon=20.0),
    promising(delta=1e-3),
    promising(noise="local"),
    promising(answers="quantised"),
    promising(answers="quantised", noise="local"),
)
STRICTER: tuple[Mapping[str, Any], ...] = (
    {},
    {"auto_approve": True, "columns": COLUMNS},
    {"auto_approve": True, "columns": ("sick", "age")},
    {"approval_days": 1},
    {"approval_days": 30},
    {"algorithms": ()},
    {"algorithms": ("protonet",)},
    {"models": ("mlp",)},
    {"columns": COLUMNS},
    {"columns": ("sick", "age", "person")},
    {"min_rows": 50},
    {"min_cohort": 5},
    {"min_tasks": 12},
    {"secure_aggregation": "required"},
    {"promise": "required"},
    {"max_epsilon": 3.0},
    {"max_delta": 1e-7},
    {"rounds_a_day": 1},
    {"payload_bytes": 1500},
    {"payload_bytes": 4500},
    {"metrics": ("query_loss",)},
    {"calibration": False},
)


@dataclass(frozen=True, slots=True)
class Situation:
    """What the hospital is in when an order comes."""

    stands: str
    days: int
    rows: int
    answers_today: int
    identity: bool
    budget: bool


def violated(policy: Mapping[str, Any], now: Situation, order: Order, plan: Plan) -> set[str]:
    """What the policy page promises, said once more: the codes of all that is wrong with the order."""
    introduces, told = isinstance(order, IntroductionOrder), bool(getattr(order, "plan", b""))
    protection = plan.protection
    hidden = protection.answers == "masked"
    own_noise = protection.epsilon > 0 and (hidden or protection.noise == "local")
    read = {plan.table.target, *(column.name for column in plan.table.columns)} - {""}
    if plan.table.patient:
        read.add(plan.table.patient)
    params = {} if isinstance(order, CalibrationOrder) else getattr(order, "params", {})
    largest = 4096 + sum(4 * p.numel() + len(name) + 100 for name, p in params.items())
    if isinstance(order, CalibrationOrder):
        largest += 8 * (1 + len(order.temperatures)) * len(plan.episodes.shots)
    payload = policy.get("payload_bytes", 64 << 20)
    stands = {
        "approved": now.days < policy.get("approval_days", 365),
        "auto": policy.get("auto_approve", False),
        "new": policy.get("auto_approve", False),
        "pending": policy.get("auto_approve", False),
        "withdrawn": False,
    }[now.stands] or (now.stands != "withdrawn" and policy.get("auto_approve", False))

    def lists(key: str, names: set[str]) -> bool:
        return policy.get(key, "any") == "any" or names <= set(policy[key])

    of_any = {
        "too_large": bytes_of(order) > payload,
        "no_identity": isinstance(order, MaskingOrder) and not now.identity,
        "too_few_rows": not introduces and now.rows < policy["min_rows"],
        "calibration_not_allowed": isinstance(order, CalibrationOrder)
        and not policy.get("calibration", True),
    }
    of_plan = {
        "too_large": largest > payload,
        "no_identity": hidden and not now.identity,
        "not_approved": not stands,
        "too_many_rounds": now.answers_today >= policy.get("rounds_a_day", 1000),
        "algorithm_not_allowed": not lists("algorithms", {plan.algorithm.name}),
        "model_not_allowed": not lists("models", {plan.model.name}),
        "column_not_allowed": not lists("columns", read),
        "secure_aggregation_required": policy["secure_aggregation"] == "required" and not hidden,
        "cohort_too_small": hidden and protection.min_cohort < policy.get("min_cohort", 3),
        "too_few_tasks": plan.episodes.tasks * (protection.min_cohort if hidden else 1) < policy["min_tasks"],
        "promise_required": policy.get("promise") == "required" and not own_noise,
        "promise_too_weak": protection.epsilon > policy.get("max_epsilon", 10.0)
        or (protection.epsilon > 0 and protection.delta > policy.get("max_delta", 1e-5)),
        "no_budget": protection.epsilon > 0 and not now.budget,
        "metric_not_allowed": not lists("metrics", set(metrics_of(plan))),
    }
    return {code for rules in (of_any, of_plan if told else {}) for code, wrong in rules.items() if wrong}

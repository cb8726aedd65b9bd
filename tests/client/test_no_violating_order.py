"""No order that violates a site's policy reaches its table; whatever the policy lets pass does."""

import json
import tempfile
from collections.abc import Iterator, Mapping
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from guarded import (
    BASE,
    LENIENT,
    TODAY,
    Hospital,
    Touched,
    at,
    facts,
    fresh,
    orders_for,
)
from hypothesis import HealthCheck, assume, event, given, settings
from hypothesis import strategies as st
from policy_oracle import PLANS, STRICTER, Situation, violated
from rule_cases import decisions

from clinimeta.client import site as site_module
from clinimeta.client.guard import bytes_of
from clinimeta.client.policy import Policy
from clinimeta.client.rules import every
from clinimeta.client.site import answer
from clinimeta.common.contributions import ring_of
from clinimeta.common.plan import Plan
from clinimeta.common.records import (
    REFUSALS,
    CalibrationOrder,
    Introduction,
    IntroductionOrder,
    Masking,
    MaskingOrder,
    MetaGradientOrder,
    Order,
    QuantisedOrder,
    Refusal,
    Reply,
)
from clinimeta.common.secagg.site import Opened
from clinimeta.common.secagg.terms import Terms

USUALLY = st.sampled_from([True, True, True, False])
SITUATIONS = st.builds(
    Situation,
    stands=st.sampled_from(["approved", "approved", "approved", "new", "pending", "withdrawn", "auto"]),
    days=st.sampled_from([0, 0, 1, 29, 30, 364, 365]),
    rows=st.sampled_from([100, 50, 49, 1]),
    answers_today=st.sampled_from([0, 0, 1, 999, 1000]),
    identity=USUALLY,
    budget=USUALLY,
)
POLICIES = st.lists(st.sampled_from(STRICTER), max_size=2).map(
    lambda stricter: {**LENIENT, **{k: v for one in stricter for k, v in one.items()}}
)


@cache
def orders(plan: Plan) -> Mapping[str, Order]:
    return orders_for(plan)


def opens(_party: Any, order: MaskingOrder, contribute: Any) -> Masking:
    """A party that agrees to whatever it is asked: only the site itself is left to say no."""
    if order.params:
        plan = Plan.from_bytes(order.plan)
        ring = ring_of(plan, plan.subspace().at(order.params), 5)
        cohort = plan.protection.min_cohort
        parts = (1, "run", 1, 0, ring.dim, ring.bound, ring.columns, 5, cohort, "two_thirds", 0)
        contribute(Opened(Terms(*parts, bytes(32), bytes(32), ()), cohort))
    return Masking(order.nonce, order.run, "bern", ())


@pytest.fixture(autouse=True)
def _agreeable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site_module, "masking", opens)


@pytest.fixture(scope="module")
def homes() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def ask(home: Path, policy: Mapping[str, Any], now: Situation, order: Order, plan: Plan) -> Reply | None:
    """The answer of a hospital in this situation; None where it reached for its table."""
    with tempfile.TemporaryDirectory(dir=home) as folder:
        hospital = Hospital(Path(folder))
        hospital.now[0] = at(TODAY - timedelta(days=now.days))
        approvals = hospital.approvals()
        if now.stands == "auto":
            assert approvals.approve_by_policy(plan) == ""
        elif now.stands != "new":
            approvals.keep(plan)
        if now.stands == "approved":
            approvals.approve(plan.digest, "Dr. Ada Byron")
        if now.stands == "withdrawn":
            approvals.withdraw(plan.digest, "Dr. Ada Byron")
        hospital.now[0] = at(TODAY)
        guard = hospital.guard(rows=now.rows, answers_today=now.answers_today, **policy)
        site = Hospital(home).site(guard, identity=now.identity, budget=now.budget)
        try:
            return answer(site, order)
        except Touched:
            return None


SHARED = [HealthCheck.function_scoped_fixture]
ORDERS = sorted(orders_for(BASE), key=lambda kind: kind == "introduction")


@settings(max_examples=1000)
@given(policy=POLICIES, now=SITUATIONS, plan=st.sampled_from(PLANS), kind=st.sampled_from(ORDERS))
def test_the_rules_find_all_that_is_wrong_and_nothing_else(
    policy: Mapping[str, Any], now: Situation, plan: Plan, kind: str
) -> None:
    order = orders(plan)[kind]
    known = facts(
        rows=now.rows,
        answers_today=now.answers_today,
        order_bytes=bytes_of(order),
        identity=now.identity,
        budget=now.budget,
    )
    told = plan if getattr(order, "plan", b"") else None
    found = every(Policy(**policy), decisions(plan, now.stands, now.days), order, told, known)
    assert {verdict.code for verdict in found} == violated(policy, now, order, plan)


@settings(suppress_health_check=SHARED, max_examples=250)
@given(
    policy=POLICIES,
    now=SITUATIONS,
    plan=st.sampled_from(PLANS),
    kind=st.sampled_from(ORDERS),
)
def test_no_violating_order_reaches_the_table_and_the_others_do(
    policy: Mapping[str, Any], now: Situation, plan: Plan, kind: str, homes: Path
) -> None:
    order = orders(plan)[kind]
    wrong = violated(policy, now, order, plan)
    event("refused" if wrong else f"{kind} passes")
    reply = ask(homes, policy, now, order, plan)
    if wrong:
        assert isinstance(reply, Refusal), wrong
        assert reply.code in wrong
        assert reply.code in REFUSALS
    elif isinstance(order, IntroductionOrder | MaskingOrder) and not getattr(order, "params", {}):
        assert isinstance(reply, Introduction | Masking)
    elif fits(order, plan):
        assert reply is None  # it reached for the table, and so would have answered
    else:
        assert isinstance(reply, Refusal)
        assert reply.code == "not_protected"


def fits(order: Order, plan: Plan) -> bool:
    """Whether the order asks for an answer as the plan protects it."""
    if isinstance(order, CalibrationOrder):
        return not plan.protection.in_whole_numbers
    kinds = {"plain": MetaGradientOrder, "quantised": QuantisedOrder, "masked": MaskingOrder}
    return isinstance(order, kinds[plan.protection.answers])


NOW = Situation("approved", 0, 100, 0, True, True)
KINDS = st.sampled_from(["meta-gradient", "quantised", "masking, with parameters", "calibration"])


def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [leaf for key, one in inner for leaf in leaves(one, (*path, key))] or [path]


LEAVES = leaves(json.loads(BASE.canonical()))
OTHERS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(0, 9),
    st.floats(0, 9),
    st.text(max_size=5),
    st.just([]),
    st.just({}),
)


@settings(suppress_health_check=SHARED, max_examples=50)
@given(path=st.sampled_from(LEAVES), value=OTHERS, kind=KINDS)
def test_an_approved_plan_of_which_anything_was_changed_is_another(
    path: tuple[Any, ...], value: Any, kind: str, homes: Path
) -> None:
    values = json.loads(BASE.canonical())
    group = values
    for key in path[:-1]:
        group = group[key]
    assume(json.dumps(group[path[-1]]) != json.dumps(value))
    group[path[-1]] = value
    data = json.dumps(values, sort_keys=True, separators=(",", ":")).encode()
    reply = ask(homes, LENIENT, NOW, with_plan(kind, data), BASE)
    assert isinstance(reply, Refusal)
    assert reply.code in {"not_approved", "bad_plan"}


@settings(suppress_health_check=SHARED, max_examples=50)
@given(data=st.binary(min_size=1, max_size=60), kind=KINDS)
def test_bytes_that_are_no_plan_reach_nothing(data: bytes, kind: str, homes: Path) -> None:
    reply = ask(homes, LENIENT, NOW, with_plan(kind, data), BASE)
    assert isinstance(reply, Refusal)
    assert reply.code == "bad_plan"


def with_plan(kind: str, data: bytes) -> Order:
    params = fresh(BASE)
    made: dict[str, Order] = {
        "meta-gradient": MetaGradientOrder("nonce", "run", 1, data, params),
        "quantised": QuantisedOrder("nonce", "run", 1, data, 5, params),
        "masking, with parameters": MaskingOrder("nonce", "run", 1, data, (b"?",), params),
        "calibration": CalibrationOrder("nonce", "run", data, params, (1.0,)),
    }
    return made[kind]

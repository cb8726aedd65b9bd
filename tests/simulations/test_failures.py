"""Faults come as often as asked, to the same orders each time; no corrupt answer passes for a sound one."""

import math
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clinimeta.common.metrics import Mean
from clinimeta.common.params import digest, is_finite, shapes
from clinimeta.common.records import MetaGradient, MetaGradientOrder
from clinimeta.common.rng import generator
from clinimeta.common.study import Faults, Training
from clinimeta.server.aggregation import Limits, check
from clinimeta.simulations.failures import Fault, FaultPlan, corrupt

SITES = [f"hospital-{i:02d}" for i in range(40)]
LIMITS = Limits(Training().max_norm, Training().max_norm_ratio)
SHAPES = st.dictionaries(
    st.text(max_size=3), st.lists(st.integers(1, 3), max_size=3).map(tuple), min_size=1, max_size=3
)


def conversation(shapes_of: dict[str, tuple[int, ...]], site: str) -> tuple[MetaGradientOrder, MetaGradient]:
    """An order and a sound answer to it."""
    rng = generator("failures", site)
    params = {name: torch.zeros(shape) for name, shape in shapes_of.items()}
    gradient = {name: torch.randn(shape, generator=rng) for name, shape in shapes_of.items()}
    order = MetaGradientOrder("nonce", "run", 1, b"", params)
    return order, MetaGradient("nonce", "run", 1, site, 4.0, gradient, {"query_loss": Mean(1.0, 4.0)})


# Which order fails


def test_a_fault_is_a_function_of_seed_site_and_order() -> None:
    faults = Faults(silent=0.2, slow=0.2, error=0.2, corrupt=0.2)
    plans = [FaultPlan(faults, seed) for seed in (1, 1, 2)]
    first, again, other = ([plan.fault(s, n) for s in SITES for n in range(10)] for plan in plans)
    assert first == again
    assert first != other
    assert [plans[0].fault(s, 1) for s in SITES] != [plans[0].fault(s, 2) for s in SITES]
    assert len({plans[0].fault(site, 1) for site in SITES}) > 1


def test_without_faults_nothing_fails() -> None:
    plan = FaultPlan(Faults())
    assert all(plan.fault(site, order) is None for site in SITES for order in range(25))


@pytest.mark.parametrize("fault", Fault)
def test_a_fault_of_share_one_happens_each_time(fault: Fault) -> None:
    plan = FaultPlan(Faults(**{fault.value: 1.0}))
    assert all(plan.fault(site, order) is fault for site in SITES for order in range(5))


def test_every_kind_of_fault_has_its_share() -> None:
    assert {fault.value for fault in Fault} == set(Faults.model_fields)
    shares = {"silent": 0.1, "slow": 0.2, "error": 0.3, "corrupt": 0.15}
    plan = FaultPlan(Faults(**shares), seed=5)
    drawn = Counter(plan.fault(site, order) for site in SITES for order in range(100))
    for fault in Fault:
        expected, total = shares[fault.value], 4000
        assert abs(drawn[fault] / total - expected) < 5 * math.sqrt(expected * (1 - expected) / total)
    assert drawn[None] > 0


# What a corrupt answer looks like


@given(shapes_of=SHAPES, site=st.text(max_size=4), number=st.integers(0, 1000))
def test_a_corrupt_answer_is_never_taken_for_a_sound_one(
    shapes_of: dict[str, tuple[int, ...]], site: str, number: int
) -> None:
    order, sound = conversation(shapes_of, site)
    assert check(sound, site, order, LIMITS) is None
    assert check(corrupt(sound, site, number), site, order, LIMITS) is not None


def test_each_kind_of_damage_is_noticed_for_what_it_is() -> None:
    order, sound = conversation({"b": (2,), "w": (3, 2)}, "ulm")
    damaged = [corrupt(sound, "ulm", number) for number in range(64)]
    reasons = {str(check(reply, "ulm", order, LIMITS)) for reply in damaged}
    (outsized,) = reasons - {"not finite", "wrong names or shapes"}
    assert "is over the limit" in outsized
    assert len(reasons) == 3
    bad = [reply.gradient["b"] for reply in damaged if not is_finite(reply.gradient)]
    assert any(bool(torch.isnan(b).any()) for b in bad)
    assert any(bool(torch.isinf(b).any()) for b in bad)


def test_damage_is_the_same_each_time_and_leaves_the_answer_itself_alone() -> None:
    _, sound = conversation({"b": (2,), "w": (3, 2)}, "ulm")
    before = digest(sound.gradient)
    for number in range(8):
        one, other = (corrupt(sound, "ulm", number) for _ in range(2))
        assert digest(one.gradient) == digest(other.gradient) != before
        assert torch.equal(one.gradient["w"], sound.gradient["w"])
        assert (one.nonce, one.site, one.weight, one.metrics) == (
            *(sound.nonce, sound.site),
            *(sound.weight, sound.metrics),
        )
    assert digest(sound.gradient) == before
    assert shapes(sound.gradient) == {"b": (2,), "w": (3, 2)}

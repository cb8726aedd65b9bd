"""Robust rules: a minority of bad sites steers none of them, and where nobody is bad they change little."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from poison import POISONS
from torch import Tensor

from clinimeta.common.params import map_params, scaled
from clinimeta.common.records import MetaGradient
from clinimeta.common.rng import generator
from clinimeta.common.safeguards import AggregationSettings, Rule
from clinimeta.common.typing import Params
from clinimeta.server import robust
from clinimeta.server.aggregation import Limits, aggregate
from clinimeta.server.robust import RULES, combine, median, multi_krum, norm_clipped_mean, trimmed_mean

SHAPES = {"layer.weight": (40, 30), "layer.bias": (30,), "rate": ()}
LIKE = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
ENTRIES = sum(math.prod(shape) for shape in SHAPES.values())
SITES, BAD = 20, 4
RULE_OF: dict[str, AggregationSettings] = {
    "norm_clipped_mean": AggregationSettings(rule="norm_clipped_mean"),
    "trimmed_mean": AggregationSettings(rule="trimmed_mean", trim=0.2),
    "median": AggregationSettings(rule="median"),
    "multi_krum": AggregationSettings(rule="multi_krum", bad_sites=BAD),
}
NO_LIMITS = Limits(max_norm=math.inf, max_norm_ratio=math.inf)


def unflatten(flat: Tensor) -> Params:
    """`[sites, entries]` as stacked updates."""
    parts = torch.split(flat, [math.prod(shape) for shape in SHAPES.values()], dim=1)
    return {n: p.reshape(len(flat), *s) for (n, s), p in zip(SHAPES.items(), parts, strict=True)}


def flat(update: Params) -> Tensor:
    return torch.cat([update[name].double().flatten() for name in SHAPES])


def honest(sites: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """The true direction, of norm 1, and each site's view of it, as far off as it is long."""
    rng = generator("robust", seed)
    truth = torch.randn(ENTRIES, generator=rng)
    truth = truth / truth.norm()
    return truth, truth + torch.randn(sites, ENTRIES, generator=rng) / ENTRIES**0.5


def attacked(poison: str, seed: int = 0) -> tuple[Tensor, Tensor]:
    """The true direction and what the coordinator gets, `[sites, entries]`."""
    truth, good = honest(SITES - BAD, seed)
    return truth, torch.cat([POISONS[poison](good, BAD), good])


def cosine(left: Tensor, right: Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(left.double(), right.double(), dim=0))


def replies(updates: Tensor, weight: float = 2.0) -> dict[str, MetaGradient]:
    def reply(i: int) -> MetaGradient:
        gradient = scaled(map_params(lambda u: u[i], unflatten(updates)), weight)
        return MetaGradient("nonce", "run", 1, f"site{i:02d}", weight, gradient, {})

    return {f"site{i:02d}": reply(i) for i in range(len(updates))}


def combined(updates: Tensor, rule: AggregationSettings, limits: Limits = NO_LIMITS) -> Tensor:
    found = aggregate(replies(updates), limits, LIKE, rule).gradient
    assert found is not None
    return flat(found)


# Attacks


@pytest.mark.parametrize("poison", POISONS)
@pytest.mark.parametrize("rule", RULE_OF)
def test_four_bad_sites_of_twenty_do_not_steer_a_robust_rule(rule: str, poison: str) -> None:
    truth, updates = attacked(poison)
    found = combined(updates, RULE_OF[rule])
    assert cosine(found, truth) > 0.9
    assert float(found.norm()) < 2.0


@pytest.mark.parametrize(("poison", "below"), [("sign flip", -0.5), ("huge", 0.1)])
def test_the_plain_mean_without_checks_is_steered(poison: str, below: float) -> None:
    """Without this the attacks above would prove nothing."""
    truth, updates = attacked(poison)
    assert cosine(combined(updates, AggregationSettings()), truth) < below


def test_an_attack_within_the_norm_moves_the_plain_mean_further_than_krum() -> None:
    """Not so "a little is enough", which is made to be chosen: there Krum only bounds the damage."""
    truth, updates = attacked("sign flip in norm")
    plain, krum = (combined(updates, rule) for rule in (AggregationSettings(), RULE_OF["multi_krum"]))
    assert float((krum - truth).norm()) < float((plain - truth).norm()) / 1.2


def test_the_norm_checks_keep_what_is_outsized_out_of_the_plain_mean() -> None:
    truth, updates = attacked("huge")
    found = aggregate(replies(updates), Limits(max_norm=1e4, max_norm_ratio=1000.0), LIKE)
    assert len(found.refused) == BAD
    assert found.gradient is not None
    assert cosine(flat(found.gradient), truth) > 0.9


@pytest.mark.parametrize("rule", RULE_OF)
def test_without_an_attack_a_robust_rule_is_about_as_good_as_the_mean(rule: str) -> None:
    truth, updates = honest(SITES)
    assert cosine(combined(updates, RULE_OF[rule]), truth) > 0.95


# Properties


def draw(sites: int, seed: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(sites, ENTRIES, generator=generator("draw", seed))


@given(sites=st.integers(11, 14), seed=st.integers(0, 99))
@pytest.mark.parametrize("rule", RULE_OF)
def test_the_order_of_the_sites_changes_nothing(rule: str, sites: int, seed: int) -> None:
    updates = draw(sites, seed)
    shuffled = updates[torch.randperm(sites, generator=generator("shuffle", seed))]
    one, other = (flat(combine(unflatten(u.double()), RULE_OF[rule])) for u in (updates, shuffled))
    assert torch.allclose(one, other, rtol=1e-12, atol=1e-12)


@given(sites=st.integers(11, 14), seed=st.integers(0, 99), scale=st.sampled_from([0.0, 1e-3, 1.0, 1e6]))
@pytest.mark.parametrize("rule", RULE_OF)
def test_equal_updates_give_that_update(rule: str, sites: int, seed: int, scale: float) -> None:
    update = draw(1, seed, scale)
    assert torch.equal(combined(update.expand(sites, -1), RULE_OF[rule]), update[0].double())


EXTREME = st.floats(-(2.0**100), 2.0**100, width=32)


@given(bad=st.lists(EXTREME, min_size=1, max_size=BAD), sites=st.integers(10, 17), seed=st.integers(0, 99))
def test_outliers_leave_median_and_trimmed_mean_within_the_honest_range(
    bad: list[float], sites: int, seed: int
) -> None:
    good = draw(sites - len(bad), seed)
    updates = torch.cat([good, torch.tensor(bad)[:, None].expand(-1, ENTRIES)])
    low, high = good.min(dim=0).values.double(), good.max(dim=0).values.double()
    for found in (median(unflatten(updates)), trimmed_mean(unflatten(updates), cut=len(bad))):
        assert bool((flat(found) >= low).all())
        assert bool((flat(found) <= high).all())


@pytest.mark.parametrize("sites", [1, 2, 3, 8, 9])
@pytest.mark.parametrize("block", [7, 1 << 14])
def test_the_blocked_median_is_numpys(sites: int, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(robust, "BLOCK", block)
    updates = draw(sites, 1).double()
    assert np.allclose(flat(median(unflatten(updates))), np.median(updates.numpy(), axis=0), rtol=1e-14)


@pytest.mark.parametrize(("sites", "cut"), [(1, 0), (5, 0), (5, 1), (5, 2), (8, 3)])
def test_the_trimmed_mean_is_the_mean_of_what_sorting_leaves(sites: int, cut: int) -> None:
    updates = draw(sites, 2).double()
    expected = updates.sort(dim=0).values[cut : sites - cut].mean(dim=0)
    assert torch.allclose(flat(trimmed_mean(unflatten(updates), cut=cut)), expected, rtol=1e-13, atol=1e-14)


def test_krum_takes_who_is_close_to_the_others() -> None:
    """Scores against the definition, distance by distance."""
    updates, bad = draw(9, 3).double(), 2
    squares = torch.cdist(updates, updates) ** 2
    nearest = [squares[i][torch.arange(9) != i].sort().values[: 9 - bad - 2].sum() for i in range(9)]
    chosen = torch.stack(nearest).sort().indices[: 9 - bad]
    found = flat(multi_krum(unflatten(updates), bad_sites=bad))
    assert torch.allclose(found, updates[chosen].mean(dim=0), rtol=1e-12)


def test_krum_is_not_blinded_by_what_overflows() -> None:
    updates = draw(9, 4).double()
    updates[:2] *= 1e200
    assert float(flat(multi_krum(unflatten(updates), bad_sites=2)).norm()) < 1e3


def test_a_given_norm_is_where_updates_are_cut() -> None:
    updates = draw(4, 5).double()
    expected = (updates / updates.norm(dim=1, keepdim=True)).mean(dim=0)
    assert torch.allclose(flat(norm_clipped_mean(unflatten(updates), clip=1.0)), expected, rtol=1e-12)
    shorter = flat(norm_clipped_mean(unflatten(updates), clip=1e9))
    assert torch.allclose(shorter, updates.mean(dim=0), rtol=1e-12)


@pytest.mark.parametrize("rule", RULE_OF)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_number_types_and_shapes_stay(rule: str, dtype: torch.dtype) -> None:
    found = combine(map_params(lambda u: u.to(dtype), unflatten(draw(11, 6))), RULE_OF[rule])
    assert {name: tuple(t.shape) for name, t in found.items()} == SHAPES
    assert {t.dtype for t in found.values()} == {dtype}


@pytest.mark.parametrize("rule", RULE_OF)
def test_a_tensor_without_entries_stays_empty(rule: str) -> None:
    found = combine({"w": torch.ones(11, 2), "none": torch.zeros(11, 0)}, RULE_OF[rule])
    assert (found["none"].shape, found["w"].tolist()) == ((0,), [1.0, 1.0])


# Weights, and how many sites a rule needs


@pytest.mark.parametrize("rule", RULE_OF)
def test_a_claimed_weight_buys_no_influence(rule: str) -> None:
    """Every site counts once, whatever number of rows it claims."""
    updates = draw(12, 7)
    claimed = replies(updates) | {"site00": replies(updates, 1024.0)["site00"]}
    plain, heavy = (
        aggregate(r, NO_LIMITS, LIKE, RULE_OF[rule]).gradient for r in (replies(updates), claimed)
    )
    assert plain is not None
    assert heavy is not None
    assert all(torch.equal(plain[name], heavy[name]) for name in plain)


@pytest.mark.parametrize("rule", RULE_OF)
def test_below_what_a_rule_needs_there_is_no_gradient(rule: str) -> None:
    needed = RULE_OF[rule].least_sites
    assert aggregate(replies(draw(needed, 8)), NO_LIMITS, LIKE, RULE_OF[rule]).gradient is not None
    found = aggregate(replies(draw(needed - 1, 8)), NO_LIMITS, LIKE, RULE_OF[rule])
    assert (found.gradient, len(found.accepted)) == (None, needed - 1)


@pytest.mark.parametrize(
    ("rule", "options", "sites"),
    [(trimmed_mean, {"cut": 2}, 4), (trimmed_mean, {"cut": -1}, 4), (multi_krum, {"bad_sites": 1}, 4)],
)
def test_a_rule_refuses_too_few_sites(rule: Any, options: dict[str, int], sites: int) -> None:
    with pytest.raises(ValueError, match="sites"):
        rule(unflatten(draw(sites, 9)), **options)


@given(trim=st.floats(0.01, 0.49), sites=st.integers(1, 200))
def test_at_least_the_asked_share_is_cut_and_somebody_is_left(trim: float, sites: int) -> None:
    cut = AggregationSettings(rule="trimmed_mean", trim=trim).cut(sites)
    assert 2 * cut < sites
    assert cut >= trim * sites - 1e-6 or cut == (sites - 1) // 2


def test_every_rule_that_a_study_may_name_is_there() -> None:
    assert {"mean", *RULES} == set(Rule.__args__) == {"mean", *RULE_OF}

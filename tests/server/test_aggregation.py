"""What the coordinator accepts, why it refuses the rest, and that the sum is the plain weighted mean."""

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clinimeta.common.metrics import ALLOWED, Mean
from clinimeta.common.params import digest, norm, scaled, shapes
from clinimeta.common.records import MetaGradient, MetaGradientOrder
from clinimeta.common.rng import generator
from clinimeta.common.typing import Params
from clinimeta.server.aggregation import Limits, aggregate, check

LIMITS = Limits(max_norm=100.0, max_norm_ratio=10.0)
NO_LIMITS = Limits(max_norm=math.inf, max_norm_ratio=math.inf)
SHAPES = {"weight": (3, 2), "bias": (2,), "rate": ()}
LIKE = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
ORDER = MetaGradientOrder("nonce", "run", 7, b"plan", LIKE)


def draw(*key: str | int, dtype: torch.dtype = torch.float32) -> Params:
    rng = generator("aggregation", *key)
    return {name: torch.randn(shape, generator=rng).to(dtype) for name, shape in SHAPES.items()}


def reply(
    site: str = "ulm", *, gradient: Params | None = None, weight: float = 4.0, **changes: Any
) -> MetaGradient:
    sound = MetaGradient(
        "nonce",
        "run",
        7,
        site,
        weight,
        draw(site) if gradient is None else gradient,
        {"query_loss": Mean(2.0, 4.0)},
    )
    return replace(sound, **changes)


def of_norm(site: str, size: float, weight: float = 4.0) -> MetaGradient:
    """A reply whose norm a task is `size`."""
    gradient = draw(site, dtype=torch.float64)
    return reply(site, gradient=scaled(gradient, size * weight / norm(gradient)), weight=weight)


# One reply on its own


def test_a_sound_reply_is_accepted() -> None:
    assert check(reply(), "ulm", ORDER, LIMITS) is None


@pytest.mark.parametrize(
    "changes", [{"nonce": "another"}, {"nonce": ""}, {"run": "another"}, {"round": 6}, {"round": 8}], ids=str
)
def test_an_answer_to_another_order_is_refused(changes: dict[str, Any]) -> None:
    assert check(reply(**changes), "ulm", ORDER, LIMITS) == "answers another order"


def test_an_answer_in_another_sites_name_is_refused() -> None:
    assert check(reply("bern"), "ulm", ORDER, LIMITS) == "answers in another site's name"


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("wrong", [(1,), (2, 3), (2, 1), (3, 2, 1), (0,)], ids=str)
def test_a_wrong_shape_is_refused(name: str, wrong: tuple[int, ...]) -> None:
    gradient = {**draw("ulm"), name: torch.zeros(wrong)}
    assert check(reply(gradient=gradient), "ulm", ORDER, LIMITS) == "wrong names or shapes"


@pytest.mark.parametrize(
    "gradient",
    [
        {},
        {name: g for name, g in draw("ulm").items() if name != "bias"},
        {**draw("ulm"), "extra": torch.zeros(1)},
        {("Bias" if name == "bias" else name): g for name, g in draw("ulm").items()},
    ],
    ids=["nothing", "one missing", "one too many", "one misspelt"],
)
def test_wrong_names_are_refused(gradient: Params) -> None:
    assert check(reply(gradient=gradient), "ulm", ORDER, LIMITS) == "wrong names or shapes"


def test_names_in_another_order_are_accepted() -> None:
    backwards = dict(reversed(draw("ulm").items()))
    assert check(reply(gradient=backwards), "ulm", ORDER, LIMITS) is None


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.complex64]
)
def test_a_wrong_number_type_is_refused(name: str, dtype: torch.dtype) -> None:
    gradient = draw("ulm")
    gradient = {**gradient, name: gradient[name].to(dtype)}
    assert check(reply(gradient=gradient), "ulm", ORDER, LIMITS) == "wrong number type"


@pytest.mark.parametrize("weight", [0.0, -0.0, -1.0, math.inf, -math.inf, math.nan])
def test_a_weight_that_is_not_positive_and_finite_is_refused(weight: float) -> None:
    assert check(reply(weight=weight), "ulm", ORDER, LIMITS) == "a weight that is not positive"


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_gradient_with_one_entry_that_is_not_finite_is_refused(name: str, value: float) -> None:
    gradient = draw("ulm")
    gradient[name].view(-1)[-1] = value
    assert check(reply(gradient=gradient), "ulm", ORDER, LIMITS) == "not finite"


@pytest.mark.parametrize(
    "metrics",
    [
        {"patient_4711": Mean(1.0, 1.0)},
        {"query_loss": Mean(1.0, 1.0), "age": Mean(63.0, 1.0)},
        {"query_loss": Mean(math.nan, 1.0)},
        {"query_loss": Mean(math.inf, 1.0)},
        {"query_loss": Mean(1.0, math.inf)},
        {"query_loss": Mean(1.0, math.nan)},
        {"query_loss": Mean(1.0, -1.0)},
    ],
    ids=str,
)
def test_metrics_that_are_not_on_the_list_or_not_finite_are_refused(metrics: dict[str, Mean]) -> None:
    reason = check(reply(metrics=metrics), "ulm", ORDER, LIMITS)
    assert reason == "metrics that are not finite or not on the list"


@pytest.mark.parametrize("metrics", [{}, {name: Mean(-1.0, 0.0) for name in ALLOWED}], ids=["none", "all"])
def test_metrics_on_the_list_are_accepted(metrics: dict[str, Mean]) -> None:
    assert check(reply(metrics=metrics), "ulm", ORDER, LIMITS) is None


@pytest.mark.parametrize("weight", [0.5, 1.0, 400.0])
def test_an_outsized_norm_a_task_is_refused(weight: float) -> None:
    order = replace(ORDER, params={name: p.double() for name, p in LIKE.items()})
    assert check(of_norm("ulm", 99.9, weight), "ulm", order, LIMITS) is None
    assert check(of_norm("ulm", 100.1, weight), "ulm", order, LIMITS) == "norm 100 is over the limit of 100"


def test_a_norm_that_overflows_is_refused() -> None:
    order = replace(ORDER, params={"w": torch.zeros(2, dtype=torch.float64)})
    huge = reply(gradient={"w": torch.full((2,), 1e300, dtype=torch.float64)})
    assert check(huge, "ulm", order, LIMITS) == "norm inf is over the limit of 100"


# All replies together


def test_from_three_replies_on_one_far_beyond_the_median_is_refused() -> None:
    replies = {site: of_norm(site, size) for site, size in [("a", 1.0), ("b", 2.0), ("c", 20.1)]}
    found = aggregate(replies, LIMITS, LIKE)
    assert found.accepted == ("a", "b")
    assert set(found.refused) == {"c"}
    assert "norm 20.1" in found.refused["c"]
    assert "times the cohort's median" in found.refused["c"]


def test_one_within_the_ratio_to_the_median_is_accepted() -> None:
    replies = {site: of_norm(site, size) for site, size in [("a", 1.0), ("b", 2.0), ("c", 19.9)]}
    assert aggregate(replies, LIMITS, LIKE).accepted == ("a", "b", "c")


def test_the_ratio_is_taken_of_norms_a_task() -> None:
    """A site with a hundred tasks sends a sum a hundred times as long."""
    replies = {site: of_norm(site, 1.0, weight) for site, weight in [("a", 1.0), ("b", 1.0), ("c", 100.0)]}
    assert aggregate(replies, LIMITS, LIKE).accepted == ("a", "b", "c")


def test_the_refused_do_not_count_in_anything() -> None:
    sound = {site: of_norm(site, 1.0) for site in ("a", "b", "c")}
    alone, together = (aggregate(r, LIMITS, LIKE) for r in (sound, {**sound, "d": of_norm("d", 50.0)}))
    assert alone.gradient is not None
    assert together.gradient is not None
    assert digest(together.gradient) == digest(alone.gradient)
    assert (together.weight, together.metrics) == (alone.weight, alone.metrics)
    assert list(together.refused) == ["d"]


def test_of_two_replies_nobody_can_say_which_is_outsized() -> None:
    replies = {"a": of_norm("a", 1e-6), "b": of_norm("b", 90.0)}
    found = aggregate(replies, Limits(max_norm=100.0, max_norm_ratio=1.5), LIKE)
    assert (found.accepted, found.refused) == (("a", "b"), {})


def test_gradients_that_are_all_zero_are_accepted() -> None:
    replies = {site: reply(site, gradient=LIKE) for site in ("a", "b", "c")}
    assert aggregate(replies, LIMITS, LIKE).accepted == ("a", "b", "c")


def test_with_no_reply_there_is_no_gradient() -> None:
    found = aggregate({}, LIMITS, LIKE)
    assert (found.gradient, found.weight, found.metrics) == (None, 0.0, {})
    assert (found.accepted, found.refused) == ((), {})


WEIGHTS = st.floats(1e-3, 1e3)
VALUES = st.lists(st.floats(-1e3, 1e3, width=32), min_size=3, max_size=3)


@given(drawn=st.dictionaries(st.text(max_size=3), st.tuples(WEIGHTS, VALUES), min_size=1, max_size=6))
def test_the_aggregate_is_the_plain_weighted_mean(drawn: dict[str, tuple[float, list[float]]]) -> None:
    """Each site sends a sum that stands for its weight; the mean is the sums' sum over the weights' sum."""
    replies = {
        site: reply(site, weight=weight, gradient={"w": torch.tensor(values), "b": torch.tensor(values[0])})
        for site, (weight, values) in drawn.items()
    }
    like = {"w": torch.zeros(3, dtype=torch.float64), "b": torch.zeros((), dtype=torch.float64)}
    found = aggregate(replies, NO_LIMITS, like)
    weight = math.fsum(weight for weight, _ in drawn.values())
    expected = [math.fsum(values[i] for _, values in drawn.values()) / weight for i in range(3)]
    assert found.gradient is not None
    assert found.gradient["w"].tolist() == pytest.approx(expected, rel=1e-9, abs=1e-9)
    assert float(found.gradient["b"]) == pytest.approx(expected[0], rel=1e-9, abs=1e-9)
    assert found.weight == pytest.approx(weight, rel=1e-12)
    assert found.accepted == tuple(sorted(drawn))
    assert found.metrics["query_loss"] == Mean(2.0 * len(drawn), 4.0 * len(drawn))


def test_equal_sums_of_weighted_means_give_the_mean_over_all_tasks() -> None:
    """Two tasks at one site and one at another: the mean over three tasks, not over two sites."""
    replies = {
        "a": reply("a", weight=2.0, gradient={"w": torch.tensor([1.0 + 2.0])}),
        "b": reply("b", weight=1.0, gradient={"w": torch.tensor([6.0])}),
    }
    found = aggregate(replies, NO_LIMITS, {"w": torch.zeros(1)})
    assert found.gradient is not None
    assert found.gradient["w"].tolist() == [3.0]


def test_the_order_of_arrival_changes_no_bit() -> None:
    replies = {site: reply(site, weight=1.0 + i / 3) for i, site in enumerate(["d", "a", "c", "b"])}
    digests = set()
    for order in itertools.permutations(replies):
        found = aggregate({site: replies[site] for site in order}, LIMITS, LIKE)
        assert found.gradient is not None
        digests.add((digest(found.gradient), found.weight, found.metrics["query_loss"], found.accepted))
    assert len(digests) == 1


def test_sums_do_not_lose_the_small_to_the_large() -> None:
    """In float32, 2^24 + 1 + ... + 1 stays 2^24."""
    sizes = [2.0**24, *[1.0] * 16, -(2.0**24)]
    replies = {f"{i:02d}": reply(weight=1.0, gradient={"w": torch.tensor([s])}) for i, s in enumerate(sizes)}
    found = aggregate(replies, NO_LIMITS, {"w": torch.zeros(1)})
    assert found.gradient is not None
    assert float(found.gradient["w"]) == pytest.approx(16 / 18, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_aggregate_has_the_names_order_and_number_types_of_the_parameters(dtype: torch.dtype) -> None:
    like = {name: torch.zeros(shape, dtype=dtype) for name, shape in SHAPES.items()}
    backwards = dict(reversed(draw("a", dtype=dtype).items()))
    gradient = aggregate({"a": reply("a", gradient=backwards)}, NO_LIMITS, like).gradient
    assert gradient is not None
    assert list(gradient) == list(like)
    assert shapes(gradient) == SHAPES
    assert {g.dtype for g in gradient.values()} == {dtype}


def test_a_weight_that_no_site_can_have_is_refused() -> None:
    limits = Limits(max_norm=1e4, max_norm_ratio=1e3, max_weight=4.0)
    heavy = MetaGradient("n", "run", 1, "ulm", 5.0, {"w": torch.ones(2)}, {})
    order = MetaGradientOrder("n", "run", 1, b"plan", {"w": torch.zeros(2)})
    assert check(heavy, "ulm", order, limits) == "a weight over the limit of 4"
    assert check(replace(heavy, weight=4.0), "ulm", order, limits) is None

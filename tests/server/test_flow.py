"""A round as a conversation, driven by hand: who is asked, how often, and what comes of it. No Flower."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import pytest
import torch

from clinimeta.common.calibration import TEMPERATURES
from clinimeta.common.errors import QuorumError
from clinimeta.common.metrics import Mean
from clinimeta.common.records import (
    REFUSALS,
    Calibration,
    CalibrationOrder,
    Introduction,
    MetaGradient,
    MetaGradientOrder,
    Order,
    Refusal,
    Reply,
)
from clinimeta.server.aggregation import Limits
from clinimeta.server.flow import Failure, Flow, Round, calibration_round, meta_round

SITES = ("bern", "graz", "lund", "ulm")
PARAMS = {"w": torch.tensor([1.0, 2.0])}
LIMITS = Limits(max_norm=100.0, max_norm_ratio=10.0)
R = TypeVar("R")
Answer = Callable[[Any, str], Reply | Failure | None]
"""What a site says to an order sent to it; None is silence."""


def counting_nonce() -> Callable[[], str]:
    numbers = itertools.count()
    return lambda: f"nonce-{next(numbers)}"


def sound(order: MetaGradientOrder, site: str) -> MetaGradient:
    gradient = {"w": torch.tensor([float(len(site)), 1.0])}
    return MetaGradient(
        order.nonce, order.run, order.round, site, 2.0, gradient, {"query_loss": Mean(1.0, 2.0)}
    )


def silent(_order: MetaGradientOrder, _site: str) -> None:
    return None


def failing(_order: MetaGradientOrder, _site: str) -> Failure:
    return Failure("Flower error 2")


def refusing(order: MetaGradientOrder, site: str) -> Refusal:
    return Refusal(order.nonce, site, "too_few_rows", "the table is too small for a task of this study")


def not_finite(order: MetaGradientOrder, site: str) -> MetaGradient:
    return replace(sound(order, site), gradient={"w": torch.tensor([1.0, math.nan])})


def outsized(order: MetaGradientOrder, site: str) -> MetaGradient:
    return replace(sound(order, site), gradient={"w": torch.tensor([0.0, 190.0])})


def converse(
    flow: Flow[R], answers: Sequence[dict[str, Answer]], otherwise: Answer = sound
) -> tuple[list[dict[str, Order]], R]:
    """Hold the conversation. `answers[i]` says who does something else than `otherwise` in attempt i.

    Returns the orders of each attempt and the flow's result.
    """
    asked: list[dict[str, Order]] = []
    try:
        orders = next(flow)
        for behaviour in answers:
            asked.append(dict(orders))
            replies = {site: behaviour.get(site, otherwise)(order, site) for site, order in orders.items()}
            orders = flow.send({site: reply for site, reply in replies.items() if reply is not None})
    except StopIteration as finished:
        assert len(asked) == len(answers), "asked less often than expected"
        return asked, finished.value
    raise AssertionError(f"asked once more than expected: {sorted(orders)}")


def a_round(**changes: Any) -> Flow[Round]:
    options = {"quorum": 2, "attempts": 3, "limits": LIMITS, "nonce": counting_nonce()} | changes
    return meta_round("run", 7, b"plan", PARAMS, SITES, **options)


def who(asked: list[dict[str, Order]]) -> list[list[str]]:
    return [sorted(orders) for orders in asked]


# A round


def test_when_all_answer_all_count_and_are_asked_once() -> None:
    asked, done = converse(a_round(), [{}])
    assert who(asked) == [list(SITES)]
    assert done.aggregate.accepted == SITES
    assert (done.aggregate.refused, done.silent) == ({}, ())
    assert done.aggregate.weight == 8.0
    assert done.aggregate.gradient is not None
    assert done.aggregate.gradient["w"].tolist() == [(4 + 4 + 4 + 3) / 8, 4 / 8]
    assert done.aggregate.metrics == {"query_loss": Mean(4.0, 8.0)}


def test_each_order_says_what_to_do_under_a_nonce_of_its_own() -> None:
    asked, _ = converse(a_round(quorum=4), [{"ulm": silent, "bern": silent}, {}])
    orders = [order for attempt in asked for order in attempt.values()]
    assert len({order.nonce for order in orders}) == len(orders) == 6
    for order in orders:
        assert isinstance(order, MetaGradientOrder)
        assert (order.run, order.round, order.plan) == ("run", 7, b"plan")
        assert order.params is PARAMS


def test_a_silent_site_does_not_hold_up_a_round_that_has_its_quorum() -> None:
    asked, done = converse(a_round(), [{"ulm": silent}])
    assert len(asked) == 1
    assert done.aggregate.accepted == ("bern", "graz", "lund")
    assert done.silent == ("ulm",)


def test_all_who_answer_count_also_beyond_the_quorum() -> None:
    _, done = converse(a_round(quorum=1), [{}])
    assert done.aggregate.accepted == SITES


def test_only_the_missing_are_asked_again() -> None:
    asked, done = converse(a_round(quorum=3), [{"ulm": silent, "bern": failing}, {"ulm": silent}])
    assert who(asked) == [list(SITES), ["bern", "ulm"]]
    assert done.aggregate.accepted == ("bern", "graz", "lund")
    assert done.silent == ("ulm",)


def test_a_failure_that_is_mended_at_the_second_attempt_is_forgotten() -> None:
    _, done = converse(a_round(quorum=4), [{"ulm": failing, "bern": not_finite}, {}])
    assert done.aggregate.accepted == SITES
    assert done.aggregate.refused == {}


def test_a_failure_that_lasts_is_named_with_its_reason() -> None:
    _, done = converse(a_round(quorum=3), [{"ulm": failing}])
    assert done.aggregate.refused == {"ulm": "Flower error 2"}
    assert done.silent == ()


def test_a_failure_followed_by_silence_keeps_its_reason() -> None:
    behaviour = [{"ulm": failing, "bern": silent}, {"ulm": silent}]
    _, done = converse(a_round(quorum=3), behaviour)
    assert done.aggregate.refused == {"ulm": "Flower error 2"}
    assert done.silent == ()


def test_a_refusal_is_not_argued_with() -> None:
    asked, done = converse(a_round(quorum=3), [{"bern": silent, "ulm": refusing}, {}])
    assert who(asked) == [list(SITES), ["bern"]]
    assert done.aggregate.accepted == ("bern", "graz", "lund")
    assert done.aggregate.refused == {"ulm": "refused: too_few_rows"}


def test_when_only_refusals_are_missing_nobody_is_asked_again() -> None:
    flow = a_round(quorum=3)
    with pytest.raises(QuorumError) as caught:
        converse(flow, [{"bern": refusing, "ulm": refusing}])
    assert caught.value.missing == dict.fromkeys(("bern", "ulm"), "refused: too_few_rows")


@pytest.mark.parametrize("code", REFUSALS)
def test_every_known_refusal_is_named_by_its_code(code: str) -> None:
    _, done = converse(a_round(), [{"ulm": lambda order, site: Refusal(order.nonce, site, code, "because")}])
    assert done.aggregate.refused == {"ulm": f"refused: {code}"}


def test_an_unknown_refusal_does_not_put_its_words_into_the_report() -> None:
    def odd(order: MetaGradientOrder, site: str) -> Refusal:
        return Refusal(order.nonce, site, "<script>", "patient 4711")

    _, done = converse(a_round(), [{"ulm": odd}])
    assert done.aggregate.refused == {"ulm": "refused: unknown reason"}


def test_an_unusable_answer_is_refused_and_named_and_the_round_goes_on() -> None:
    asked, done = converse(a_round(), [{"ulm": not_finite}])
    assert len(asked) == 1
    assert done.aggregate.accepted == ("bern", "graz", "lund")
    assert done.aggregate.refused == {"ulm": "not finite"}
    assert done.silent == ()


def test_an_answer_out_of_proportion_is_refused_and_named_and_the_round_goes_on() -> None:
    _, done = converse(a_round(), [{"ulm": outsized}])
    assert done.aggregate.accepted == ("bern", "graz", "lund")
    assert list(done.aggregate.refused) == ["ulm"]
    assert "median" in done.aggregate.refused["ulm"]
    assert done.silent == ()


def test_what_two_answers_cannot_judge_is_judged_when_more_have_come() -> None:
    """From three usable answers on there is a median to be measured against."""
    behaviour: list[dict[str, Answer]] = [{"ulm": outsized, "bern": silent, "graz": silent}, {}]
    asked, done = converse(a_round(quorum=3), behaviour)
    assert who(asked) == [list(SITES), ["bern", "graz"]]
    assert list(done.aggregate.refused) == ["ulm"]


def test_for_an_answer_out_of_proportion_the_silent_are_asked_again() -> None:
    """Three answered, but only two of them count towards the quorum of three."""
    asked, done = converse(a_round(quorum=3), [{"ulm": outsized, "bern": silent}, {}])
    assert who(asked) == [list(SITES), ["bern"]]
    assert done.aggregate.accepted == ("bern", "graz", "lund")
    assert list(done.aggregate.refused) == ["ulm"]


def test_an_answer_to_an_earlier_order_is_refused() -> None:
    earlier: list[MetaGradientOrder] = []

    def silent_but_listening(order: MetaGradientOrder, _site: str) -> None:
        earlier.append(order)

    def late(_order: MetaGradientOrder, site: str) -> MetaGradient:
        return sound(earlier[0], site)

    behaviour: list[dict[str, Answer]] = [{"bern": silent, "ulm": silent_but_listening}, {"ulm": late}]
    _, done = converse(a_round(quorum=3), behaviour)
    assert done.aggregate.accepted == ("bern", "graz", "lund")
    assert done.aggregate.refused == {"ulm": "answers another order"}


def test_an_answer_in_another_sites_name_is_refused() -> None:
    _, done = converse(a_round(), [{"ulm": lambda order, _site: sound(order, "bern")}])
    assert done.aggregate.refused == {"ulm": "answers in another site's name"}
    assert done.aggregate.accepted == ("bern", "graz", "lund")


@pytest.mark.parametrize(
    "odd",
    [
        Introduction("n", "ulm", "clinimeta 0", 0, 9),
        Calibration("n", "run", "ulm", (), ()),
    ],
    ids=lambda record: type(record).__name__,
)
def test_another_record_in_an_answers_place_is_refused(odd: Any) -> None:
    _, done = converse(a_round(), [{"ulm": lambda _order, _site: odd}])
    assert done.aggregate.refused == {"ulm": "not an answer to this order"}


def test_an_answer_of_a_site_that_was_not_asked_is_not_heard() -> None:
    flow = a_round()
    orders = next(flow)
    replies = {site: sound(order, site) for site, order in orders.items()}
    with pytest.raises(StopIteration) as finished:
        flow.send({**replies, "riga": sound(orders["ulm"], "riga")})
    assert finished.value.value.aggregate.accepted == SITES


@pytest.mark.parametrize("attempts", [1, 2, 5])
def test_a_quorum_not_reached_is_an_error_that_names_the_missing_and_why(attempts: int) -> None:
    behaviour: list[dict[str, Answer]] = [{"bern": silent, "graz": failing, "ulm": refusing}]
    behaviour += [{"bern": silent, "graz": failing}] * (attempts - 1)
    with pytest.raises(QuorumError) as caught:
        converse(a_round(quorum=3, attempts=attempts), behaviour)
    error = caught.value
    assert (error.round_number, error.accepted, error.quorum) == (7, 1, 3)
    assert error.missing == {"bern": "silent", "graz": "Flower error 2", "ulm": "refused: too_few_rows"}
    assert "lund" not in str(error)
    assert all(site in str(error) and why in str(error) for site, why in error.missing.items())


def test_the_silent_are_asked_as_often_as_allowed_and_no_more() -> None:
    heard: list[str] = []

    def listening(_order: MetaGradientOrder, site: str) -> None:
        heard.append(site)

    with pytest.raises(QuorumError) as caught:
        converse(a_round(quorum=1, attempts=3), [{}, {}, {}], otherwise=listening)
    assert caught.value.missing == dict.fromkeys(SITES, "silent")
    assert heard == [*SITES] * 3


def test_an_answer_out_of_proportion_does_not_count_towards_the_quorum() -> None:
    with pytest.raises(QuorumError) as caught:
        converse(a_round(quorum=4, attempts=1), [{"ulm": outsized}])
    assert (caught.value.accepted, list(caught.value.missing)) == (3, ["ulm"])
    assert "median" in caught.value.missing["ulm"]


def test_a_round_without_anyone_to_ask_is_a_quorum_error() -> None:
    flow = meta_round("run", 1, b"", PARAMS, [], quorum=1, attempts=3, limits=LIMITS, nonce=counting_nonce())
    with pytest.raises(QuorumError, match="nobody else is there"):
        converse(flow, [{}])


# Calibration

WIDTH = len(TEMPERATURES)


def losses(best: float, scale: float = 1.0) -> tuple[float, ...]:
    return tuple(scale * (1 + abs(math.log(t / best))) for t in TEMPERATURES)


def calibrated(**changes: Any) -> Answer:
    def answer(order: CalibrationOrder, site: str) -> Calibration:
        known = Calibration(order.nonce, order.run, site, (1, 5), losses(2.0) + losses(1.0))
        return replace(known, **changes)

    return answer


def calibration(sites: Sequence[str] = SITES) -> Flow[dict[int, float]]:
    return calibration_round("run", b"plan", PARAMS, sites, nonce=counting_nonce())


def test_each_size_of_support_set_gets_its_best_temperature() -> None:
    asked, found = converse(calibration(), [{}], otherwise=calibrated())
    assert found == {1: 2.0, 5: 1.0}
    for order in asked[0].values():
        assert isinstance(order, CalibrationOrder)
        assert (order.run, order.plan, order.temperatures) == ("run", b"plan", TEMPERATURES)
        assert order.params is PARAMS
    assert len({order.nonce for order in asked[0].values()}) == len(SITES)


def test_losses_add_up_over_sites() -> None:
    """Three sites with few rows would have it at 0.5, one with many at 4."""
    many = calibrated(shots=(5,), losses=losses(4.0, 100.0))
    _, found = converse(calibration(), [{"ulm": many}], otherwise=calibrated(shots=(5,), losses=losses(0.5)))
    assert found == {5: 4.0}
    few = calibrated(shots=(5,), losses=losses(4.0, 1.0))
    _, found = converse(calibration(), [{"ulm": few}], otherwise=calibrated(shots=(5,), losses=losses(0.5)))
    assert found == {5: 0.5}


def test_sizes_that_only_some_sites_can_measure_are_kept_in_order() -> None:
    large = calibrated(shots=(20, 5), losses=losses(0.7) + losses(1.0))
    _, found = converse(calibration(), [{"bern": large}], otherwise=calibrated())
    assert list(found.items()) == [(1, 2.0), (5, 1.0), (20, 0.7)]


def test_a_site_is_asked_once_and_whoever_answers_helps() -> None:
    others: dict[str, Answer] = {"bern": silent, "graz": failing, "lund": refusing}
    asked, found = converse(calibration(), [others], otherwise=calibrated())
    assert who(asked) == [list(SITES)]
    assert found == {1: 2.0, 5: 1.0}


@pytest.mark.parametrize("nobody", [silent, failing, refusing])
def test_without_any_answer_there_is_no_temperature(nobody: Answer) -> None:
    assert converse(calibration(), [{}], otherwise=nobody)[1] == {}


def malformed() -> Iterator[tuple[str, dict[str, Any]]]:
    strong = losses(10.0, 1e6)
    yield "another order's nonce", {"nonce": "another", "losses": strong * 2}
    yield "another site's name", {"site": "riga", "losses": strong * 2}
    yield "a loss too few", {"losses": (strong * 2)[:-1]}
    yield "a loss too many", {"losses": (*strong * 2, 1.0)}
    yield "losses for no size", {"shots": (), "losses": strong}
    yield "sizes without losses", {"shots": (1, 5), "losses": ()}
    yield "infinite losses", {"losses": (math.inf,) * (2 * WIDTH)}
    yield "one infinite loss", {"losses": (math.inf, *(strong * 2)[1:])}
    yield "a negative loss", {"losses": (-1e9, *(strong * 2)[1:])}
    yield "a negative infinite loss", {"losses": (-math.inf, *(strong * 2)[1:])}
    yield "a negative size", {"shots": (-1, 5), "losses": strong * 2}
    yield "a size twice", {"shots": (5, 5), "losses": strong * 2}


@pytest.mark.parametrize("name", dict(malformed()))
def test_a_foreign_or_malformed_answer_changes_nothing(name: str) -> None:
    odd = calibrated(**dict(malformed())[name])
    _, found = converse(calibration(), [{"ulm": odd}], otherwise=calibrated())
    assert found == {1: 2.0, 5: 1.0}


def test_another_record_in_a_calibrations_place_changes_nothing() -> None:
    def odd(order: CalibrationOrder, site: str) -> MetaGradient:
        return MetaGradient(order.nonce, order.run, 1, site, 1.0, PARAMS, {})

    _, found = converse(calibration(), [{"ulm": odd}], otherwise=calibrated())
    assert found == {1: 2.0, 5: 1.0}

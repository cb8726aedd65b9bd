"""A round as a conversation without I/O: yield orders, be sent the replies, return what came of it.

The Flower grid, the loopback grid and the tests drive the same generators. A site that fell silent is
simply missing from the replies.
"""

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias, TypeVar

from clinimeta.common.calibration import TEMPERATURES, choose_temperature
from clinimeta.common.errors import QuorumError
from clinimeta.common.records import (
    REFUSALS,
    Calibration,
    CalibrationOrder,
    MetaGradient,
    MetaGradientOrder,
    Order,
    Refusal,
    Reply,
)
from clinimeta.common.safeguards import AggregationSettings
from clinimeta.common.typing import Params
from clinimeta.server.aggregation import Aggregate, Limits, aggregate, check

Nonce: TypeAlias = Callable[[], str]
Orders: TypeAlias = Mapping[str, Order]
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Failure:
    """Flower's own error in place of an answer (a crashed app, a lost node), or unreadable bytes."""

    reason: str


Replies: TypeAlias = Mapping[str, Reply | Failure]
Flow: TypeAlias = Generator[Orders, Replies, R]
Asked = TypeVar("Asked", bound=Order)
Usable = TypeVar("Usable")

NOT_AN_ANSWER = "not an answer to this order"


@dataclass(frozen=True, slots=True)
class Round:
    """A round that reached its quorum: the aggregate, and who was silent to the end."""

    aggregate: Aggregate
    silent: tuple[str, ...]


def meta_round(
    run: str,
    number: int,
    plan: bytes,
    params: Params,
    cohort: Sequence[str],
    *,
    quorum: int,
    attempts: int,
    limits: Limits,
    nonce: Nonce,
    like: Params | None = None,
    rule: AggregationSettings | None = None,
) -> Flow[Round]:
    """Ask the cohort for meta-gradients until `quorum` usable ones are there, and combine them by `rule`.

    A meta-gradient has the names and shapes of `like` (None: of `params`). Otherwise as `ask_until`.

    Raises:
        QuorumError: the quorum was not reached.
    """

    def order() -> MetaGradientOrder:
        return MetaGradientOrder(nonce(), run, number, plan, params)

    def read(reply: Reply, order: MetaGradientOrder, site: str) -> MetaGradient | str:
        if not isinstance(reply, MetaGradient):
            return NOT_AN_ANSWER
        return check(reply, site, order, limits, like) or reply

    def combine(usable: Mapping[str, MetaGradient]) -> Aggregate:
        return aggregate(usable, limits, params if like is None else like, rule)

    return ask_until(number, cohort, order, read, combine, quorum=quorum, attempts=attempts)


def ask_until(
    number: int,
    cohort: Sequence[str],
    order: Callable[[], Asked],
    read: Callable[[Reply, Asked, str], Usable | str],
    combine: Callable[[Mapping[str, Usable]], Aggregate],
    *,
    quorum: int,
    attempts: int,
) -> Flow[Round]:
    """Ask the cohort until `quorum` usable answers are there, and combine them.

    All that answer in the first attempt count. Only where they are too few are those that were silent
    or failed asked again, up to `attempts` times in all; a refusal is an answer and is not argued with.

    Args:
        number: of the round.
        cohort: the sites to ask.
        order: makes one site's order, with a nonce of its own.
        read: what of a site's reply to its order is usable, or why nothing is.
        combine: the usable answers in one, of which it may leave out some; called with `quorum` or more.
        quorum: how many `combine` must accept.
        attempts: how often a site is asked at most.

    Raises:
        QuorumError: the quorum was not reached.
    """
    usable, refused, waiting = dict[str, Usable](), dict[str, str](), list(cohort)
    found = Aggregate(None, 0.0, {}, (), {})
    for _ in range(attempts):
        orders = {site: order() for site in waiting}
        replies = yield orders
        for site in waiting:
            if site in replies:
                reply = replies[site]
                answer = (
                    why_not(reply)
                    if isinstance(reply, Failure | Refusal)
                    else read(reply, orders[site], site)
                )
                if isinstance(answer, str):
                    refused[site] = answer
                else:
                    usable[site] = answer
                    refused.pop(site, None)
        if len(usable) >= quorum:
            found = combine(usable)
            if len(found.accepted) >= quorum:
                break
        waiting = [site for site in waiting if site not in usable and worth_asking(replies.get(site))]
        if not waiting:
            break
    refused |= found.refused
    if len(found.accepted) < quorum:
        accepted = usable.keys() - found.refused.keys()
        missing = {site: refused.get(site, "silent") for site in cohort if site not in accepted}
        raise QuorumError(number, len(accepted), quorum, missing)
    silent = tuple(site for site in sorted(cohort) if site not in usable and site not in refused)
    return Round(replace(found, refused=refused), silent)


def calibration_round(
    run: str, plan: bytes, params: Params, sites: Sequence[str], *, nonce: Nonce
) -> Flow[dict[int, float]]:
    """Ask all sites how sure the adapted learner may be: size of support set -> best temperature.

    No quorum: whoever answers helps, and with no answer at all the temperature stays 1.
    """
    orders = {site: CalibrationOrder(nonce(), run, plan, params, TEMPERATURES) for site in sites}
    replies = yield orders
    totals: dict[int, list[float]] = {}
    for site in sorted(sites):
        reply = replies.get(site)
        if not isinstance(reply, Calibration) or not _is_usable(reply, orders[site], site):
            continue
        width = len(TEMPERATURES)
        for i, shots in enumerate(reply.shots):
            losses = reply.losses[i * width : (i + 1) * width]
            before = totals.get(shots, [0.0] * width)
            totals[shots] = [a + b for a, b in zip(before, losses, strict=True)]
    return {shots: choose_temperature(losses) for shots, losses in sorted(totals.items())}


def _is_usable(reply: Calibration, order: CalibrationOrder, site: str) -> bool:
    """Whether it answers this order, with one finite loss for each temperature and size of support set."""
    return (
        (reply.nonce, reply.run, reply.site) == (order.nonce, order.run, site)
        and len(reply.losses) == len(order.temperatures) * len(reply.shots)
        and len(set(reply.shots)) == len(reply.shots)
        and min(reply.shots, default=-1) >= 0
        and all(math.isfinite(loss) and loss >= 0 for loss in reply.losses)
    )


def why_not(reply: Reply | Failure) -> str:
    """What to write down of an answer that is not the one asked for."""
    if isinstance(reply, Refusal):
        known = reply.code if reply.code in REFUSALS else "unknown reason"
        return f"refused: {known}"
    return reply.reason if isinstance(reply, Failure) else NOT_AN_ANSWER


def worth_asking(reply: Reply | Failure | None) -> bool:
    """Silence, a failure or a damaged answer may pass; a refusal stands."""
    return not isinstance(reply, Refusal)

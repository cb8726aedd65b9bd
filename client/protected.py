"""A site's answers in whole numbers, with masks or without (run by the site).

Both are the same numbers: the site's clipped sum, its weight and its metrics through the quantiser.
"""

import functools
import hashlib
from collections.abc import Callable
from dataclasses import replace

from clinimeta.client.meta_gradients import meta_gradients
from clinimeta.common.contributions import added_by_sites, contribution, model_digest, noise_of, ring_of
from clinimeta.common.errors import BoundError, RecordError
from clinimeta.common.plan import Plan
from clinimeta.common.privacy.discrete_gaussian import discrete_gaussian
from clinimeta.common.privacy.noise import Noise
from clinimeta.common.records import (
    Masking,
    MaskingOrder,
    MetaGradientOrder,
    Quantised,
    QuantisedOrder,
    Refusal,
)
from clinimeta.common.secagg import messages
from clinimeta.common.secagg.messages import AdvertRequest, MaskedRequest, Request, UnmaskRequest
from clinimeta.common.secagg.messages import Answer as SecureAnswer
from clinimeta.common.secagg.refusal import CODES
from clinimeta.common.secagg.ring import Contribution, rounding_key
from clinimeta.common.secagg.site import Opened
from clinimeta.common.secagg.site import Site as Party
from clinimeta.common.tasks.table import Table


class Unable(Exception):  # noqa: N818 (it is an answer on its way out, not an error)
    """The site has nothing to add; holds the `Refusal` that says why."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.code)
        self.refusal = refusal


def quantised(
    plan: Plan, order: QuantisedOrder, site: str, table: Table, seed: bytes, key: bytes, device: str
) -> Quantised:
    """The site's words without masks: rounding from `seed`, noise, where sites add it, from `key`.

    Raises:
        Unable: the table is too small, or a result is not finite or over its bound.
    """
    ring = ring_of(plan, plan.subspace().at(order.params), order.sites)
    added = contributed(plan, order, site, table, device)
    if added_by_sites(plan):
        added = with_noise(added, noise_of(plan, ring), key)
    try:
        words = ring.quantise(added, rounding_key(seed, order.run, order.round, site))
    except BoundError:
        text = "the site's own sum is not finite, or over the bound that was agreed"
        raise Unable(Refusal(order.nonce, site, "not_finite", text)) from None
    return Quantised(order.nonce, order.run, order.round, site, words.astype("<u4", copy=False).tobytes())


def masking(party: Party, order: MaskingOrder, contribute: Callable[[Opened], Contribution]) -> Masking:
    """The answers of secure aggregation's five phases; `contribute` is called in the third only.

    A plan whose approval was withdrawn meanwhile gets no further answer but the last phase's: by then the sum
    is agreed on, and the others may need this site's shares to open it.

    Raises:
        RecordError: what came is no request, or not of this round and its plan.
        Unable: from `contribute`.
    """
    answers = []
    for data in order.requests:
        request = messages.from_bytes(data)
        if not isinstance(request, Request):
            raise RecordError("an answer in a request's place")
        opened = None if isinstance(request, AdvertRequest) else party.opened(request.key)
        answer: SecureAnswer | messages.Refusal
        if _is_withdrawn(party, request, opened):
            code = "plan_not_approved"
            answer = messages.Refusal(party.name, messages.phase_of(request), code, CODES[code])
        elif isinstance(request, MaskedRequest):
            if (request.key.run, request.key.round) != (order.run, order.round):
                raise RecordError("a request of another round")
            if opened is not None and hashlib.sha256(order.plan).digest() != opened.terms.plan_digest:
                raise RecordError("another plan than the terms name")
            train = functools.partial(contribute, opened) if opened is not None else None
            answer = party.answer(request, train or _nothing, model_digest(order.plan, order.params))
        else:
            answer = party.answer(request)
        answers.append(messages.to_bytes(answer))
    return Masking(order.nonce, order.run, party.name, tuple(answers))


def _is_withdrawn(party: Party, request: Request, opened: Opened | None) -> bool:
    waits = opened is not None and not isinstance(request, UnmaskRequest)
    return waits and opened is not None and opened.terms.plan_digest not in party.policy.plans


def contributed(
    plan: Plan, order: QuantisedOrder | MaskingOrder, site: str, table: Table, device: str
) -> Contribution:
    """What the site adds to the sum.

    Raises:
        Unable: the table is too small, or the result is not finite.
    """
    asked = MetaGradientOrder(order.nonce, order.run, order.round, order.plan, order.params)
    reply = meta_gradients(plan, asked, {site: table}, device)[site]
    if isinstance(reply, Refusal):
        raise Unable(reply)
    return contribution(plan, reply.gradient, reply.weight, reply.metrics)


def with_noise(added: Contribution, noise: Noise | None, key: bytes) -> Contribution:
    """The same with this party's noise, drawn from a key that serves once."""
    if noise is None:
        return added
    return replace(added, noise=discrete_gaussian(key, noise.sigma, len(added.vector)))


def _nothing() -> Contribution:
    raise AssertionError("a round that is not open is refused before anything is computed")

"""Rounds in whole numbers: with the coordinator looking at each site's, or under secure aggregation.

Both are conversations without I/O, as in `flow`. The sum of whole numbers is exact, so both come to the
same mean to the last bit.
"""

import hashlib
import itertools
import math
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date

import numpy as np

from clinimeta.common.contributions import added_by_sites, combined, model_digest, noise_of, ring_of
from clinimeta.common.errors import AttemptError, GateError, QuorumError, RecordError
from clinimeta.common.params import norm
from clinimeta.common.plan import Plan
from clinimeta.common.privacy.discrete_gaussian import discrete_gaussian
from clinimeta.common.privacy.noise import noise_key
from clinimeta.common.records import (
    REFUSALS,
    Masking,
    MaskingOrder,
    MetaGradient,
    MetaGradientOrder,
    Quantised,
    QuantisedOrder,
    Reply,
)
from clinimeta.common.secagg import messages, protocol
from clinimeta.common.secagg.coordinator import Outcome
from clinimeta.common.secagg.identity import Roster
from clinimeta.common.secagg.messages import AdvertRequest, Answer, MaskedRequest, Refusal
from clinimeta.common.secagg.protocol import Replies as Answers
from clinimeta.common.secagg.protocol import Rounds, Trip
from clinimeta.common.secagg.refusal import CODES
from clinimeta.common.secagg.ring import Contribution, Ring
from clinimeta.common.secagg.terms import Terms
from clinimeta.common.typing import Params
from clinimeta.server.aggregation import Aggregate, Limits, check
from clinimeta.server.flow import NOT_AN_ANSWER, Failure, Flow, Nonce, Replies, Round, ask_until, why_not
from clinimeta.server.observing import QUIET, AttemptEnded, Observer, TripBegun, TripEnded

SUITE = 1
SPARSE_FROM, DEGREE = 257, 134
"""From how many sites on each shares masks with some only, and with how many (docs/threat-model.md)."""


def quantised_round(
    run: str,
    number: int,
    plan: Plan,
    params: Params,
    cohort: Sequence[str],
    *,
    quorum: int,
    attempts: int,
    limits: Limits,
    nonce: Nonce,
    noise_seed: bytes | None = None,
) -> Flow[Round]:
    """As `flow.meta_round`, for answers in whole numbers.

    `noise_seed` makes the coordinator's noise, where the plan promises any, repeat itself.
    None is compared with the others: a site's answer is bounded by the plan's `clip`.

    Raises:
        QuorumError: the quorum was not reached.
    """
    template = plan.subspace().at(params)
    ring = ring_of(plan, template, len(cohort))

    def order() -> QuantisedOrder:
        return QuantisedOrder(nonce(), run, number, plan.canonical(), len(cohort), params)

    def read(reply: Reply, order: QuantisedOrder, site: str) -> np.ndarray | str:
        if not isinstance(reply, Quantised):
            return NOT_AN_ANSWER
        words = read_words(reply, ring)
        if words is None:
            return "words of another number"
        return wrong(plan, reply, order, site, words, ring, template, limits) or words

    def combine(usable: Mapping[str, np.ndarray]) -> Aggregate:
        accepted = sorted(usable)
        words = sum_of_words([usable[site] for site in accepted])
        total = ring.dequantise(with_central_noise(words, plan, ring, noise_seed, run, number))
        return aggregate_of(plan, total, params, accepted, {})

    return ask_until(number, cohort, order, read, combine, quorum=quorum, attempts=attempts)


def read_words(reply: Quantised, ring: Ring) -> np.ndarray | None:
    """The words `[size]`, or None where they are too many or too few."""
    return np.frombuffer(reply.words, "<u4") if len(reply.words) == 4 * ring.size else None


def wrong(
    plan: Plan,
    reply: Quantised,
    order: QuantisedOrder,
    site: str,
    words: np.ndarray,
    ring: Ring,
    template: Params,
    limits: Limits,
) -> str | None:
    """Why an answer in whole numbers is unusable on its own, or None; by `aggregation.check`."""
    gradient, weight, measured = combined(plan, ring.dequantise(words), template)
    same = {name: tensor.to(template[name].dtype) for name, tensor in gradient.items()}
    # A site that clips as the plan says is within this; one that does not is seen, without masks.
    largest = plan.protection.clip + math.sqrt(ring.dim) / ring.scale(ring.bound)
    limits = replace(limits, max_norm=min(limits.max_norm, largest))
    as_floats = MetaGradient(reply.nonce, reply.run, reply.round, reply.site, weight, same, measured)
    asked = MetaGradientOrder(order.nonce, order.run, order.round, order.plan, template)
    return check(as_floats, site, asked, limits)


def sum_of_words(every: Sequence[np.ndarray]) -> np.ndarray:
    """The sum modulo 2^32, which the quantiser's scale keeps from wrapping."""
    total = np.zeros(len(every[0]), np.uint32)
    for words in every:
        total += words
    return total


def with_central_noise(
    words: np.ndarray, plan: Plan, ring: Ring, seed: bytes | None, run: str, number: int
) -> np.ndarray:
    """The sum with the noise that the plan promises, unless the sites have added it."""
    noise = noise_of(plan, ring)
    if noise is None or added_by_sites(plan):
        return words
    key = noise_key(seed, run, number)
    noisy = words.copy()
    noisy[: ring.dim] += discrete_gaussian(key, noise.sigma, ring.dim).astype(np.uint32)
    return noisy


def aggregate_of(
    plan: Plan,
    total: Contribution,
    params: Params,
    accepted: Sequence[str],
    refused: Mapping[str, str],
) -> Aggregate:
    """The weighted mean, in the dtypes of what learns of `params`."""
    template = plan.subspace().at(params)
    gradient, weight, measured = combined(plan, total, template)
    if not weight > 0:
        return Aggregate(None, 0.0, measured, tuple(accepted), refused)
    mean = {name: (g / weight).to(template[name].dtype) for name, g in gradient.items()}
    return Aggregate(mean, weight, measured, tuple(accepted), refused)


def require_honest_size(plan: Plan, total: Contribution, params: Params, sites: int) -> None:
    """All that can be checked of a sum whose parts nobody sees: that cut answers can add up to it.

    Each task is cut to `clip`, so a sum that stands for w tasks (or rows) is at most w clip long, rounding
    and six standard deviations of the sites' noise apart. A larger one is damage, nobody knows whose.

    Raises:
        GateError: it is larger.
    """
    template = plan.subspace().at(params)
    ring = ring_of(plan, template, sites)
    gradient, weight, _ = combined(plan, total, template)
    noise, size = noise_of(plan, ring), math.sqrt(ring.dim)
    noisy = 0.0 if noise is None else noise.sigma * math.sqrt(sites) * (size + 6) / ring.scale(ring.bound)
    largest = weight * plan.protection.clip + sites * size / ring.scale(ring.bound) + noisy
    if not norm(gradient) <= largest:
        raise GateError(
            f"the sum of the hospitals' masked answers has norm {norm(gradient):.3g}, and honest ones come "
            f"to {largest:.3g} at most: one of them sends damage. Nobody can see which"
        )


@dataclass(slots=True)
class MaskedRounds:
    """The rounds of one training under secure aggregation, three trips each once they are under way.

    Where cohorts are drawn, every round is a conversation of its own, of five trips: who will be
    in the next one is not known to those of this one.

    `last` is the last round of the training.
    """

    run: str
    plan: Plan
    roster: Roster
    today: Callable[[], date]
    last: int
    attempts: int
    nonce: Nonce
    drawn: bool = False
    observer: Observer = QUIET
    _params: Params = field(default_factory=dict)
    _talk: Generator[Trip, Answers, None] | None = None
    _trip: Trip = field(default_factory=dict)
    _done: dict[int, Outcome] = field(default_factory=dict)
    _begun: int = 0

    def round(self, number: int, params: Params, cohort: Sequence[str]) -> Flow[Round]:
        """One round; the next one's first messages may travel with its last.

        Raises:
            QuorumError: too few sites were left, as often as may be tried.
            GateError: the sum is larger than honest sites can make it.
        """
        self._params = params
        for left in range(self.attempts - 1, -1, -1):
            try:
                outcome = yield from self._round(number, cohort)
                break
            except AttemptError as error:
                self._talk = None
                self._begun += 1
                if error.may_retry or not left:
                    missing = {site: f"{phase}: {why}" for site, (phase, why) in error.dropped.items()}
                    raise QuorumError(number, error.present, error.needed, missing) from None
        require_honest_size(self.plan, outcome.total, params, len(cohort))
        gone = {s: (phase, why) for s, (phase, why) in outcome.dropped.items() if s not in outcome.survivors}
        refused = {site: f"{phase}: {why}" for site, (phase, why) in gone.items() if why != "silent"}
        silent = tuple(sorted(site for site, (_, why) in gone.items() if why == "silent"))
        return Round(aggregate_of(self.plan, outcome.total, params, outcome.survivors, refused), silent)

    def _round(self, number: int, cohort: Sequence[str]) -> Flow[Outcome]:
        alone = self.drawn or number > self.last  # a gate asks once more after the last round
        if self._talk is None or alone:
            numbers = [number] if alone else range(number, self.last + 1)
            terms = self._terms(self._params, cohort)
            rounds = Rounds(numbers, terms, self._digest, self._finished, self.attempts, self._failed)
            self._talk = protocol.many_rounds(rounds, self.roster, self.today, sorted(cohort))
            self._trip = next(self._talk)
        try:
            while number not in self._done:
                answers = yield from self._ask(number, self._trip)
                self._trip = self._talk.send(answers)
        except StopIteration:
            pass
        return self._done.pop(number)

    @property
    def _run(self) -> str:
        """Sites close a round of a run once they have unmasked; one that failed there begins another run."""
        return f"{self.run} again {self._begun}" if self._begun else self.run

    def _terms(self, params: Params, cohort: Sequence[str]) -> Callable[[int, int], Terms]:
        canonical = self.plan.canonical()
        ring = ring_of(self.plan, self.plan.subspace().at(params), len(cohort))

        def terms(number: int, attempt: int) -> Terms:
            return Terms(
                suite=SUITE,
                run=self._run,
                round=number,
                attempt=attempt,
                dim=ring.dim,
                bound=ring.bound,
                columns=ring.columns,
                n_max=ring.n_max,
                min_cohort=self.plan.protection.min_cohort,
                threshold="two_thirds",
                degree=DEGREE if len(cohort) >= SPARSE_FROM else 0,
                roster_digest=self.roster.digest,
                plan_digest=hashlib.sha256(canonical).digest(),
                public=(),
            )

        return terms

    def _digest(self, _number: int) -> bytes:
        return model_digest(self.plan.canonical(), self._params)

    def _finished(self, number: int, outcome: Outcome) -> None:
        self._done[number] = outcome
        self.observer.tell(AttemptEnded(number, outcome))

    def _failed(self, number: int, error: AttemptError) -> None:
        self.observer.tell(AttemptEnded(number, error))

    def _ask(self, number: int, trip: Trip) -> Flow[Answers]:
        orders = {}
        for site, requests in trip.items():
            trains = any(isinstance(request, MaskedRequest) for request in requests)
            begins = all(isinstance(request, AdvertRequest) for request in requests)
            orders[site] = MaskingOrder(
                self.nonce(),
                self._run,
                number,
                self.plan.canonical() if trains or begins else b"",
                tuple(messages.to_bytes(request) for request in requests),
                self._params if trains else {},
            )
        self.observer.tell(TripBegun(trip))
        replies: Replies = yield orders
        self.observer.tell(TripEnded(trip))
        return {site: read_answers(replies[site], orders[site], site) for site in orders if site in replies}


def read_answers(reply: Reply | Failure, order: MaskingOrder, site: str) -> tuple[Answer | Refusal, ...]:
    """What a site answered to a trip's requests; any other answer is a refusal of each of them."""
    requests = [messages.from_bytes(data) for data in order.requests]
    phases = [messages.phase_of(request) for request in requests if isinstance(request, messages.Request)]
    if not isinstance(reply, Masking):
        why = why_not(reply).removeprefix("refused: ")
        return tuple(Refusal(site, phase, why, why) for phase in phases)
    if (reply.nonce, reply.run, reply.site) != (order.nonce, order.run, site):
        return tuple(Refusal(site, phase, "other_order", "answers another order") for phase in phases)
    every = itertools.zip_longest(phases, reply.answers[: len(phases)], fillvalue=b"")
    return tuple(_read_answer(site, str(phase), bytes(data)) for phase, data in every)


def _read_answer(site: str, phase: str, data: bytes) -> Answer | Refusal:
    try:
        answer = messages.from_bytes(data)
    except RecordError:
        return Refusal(site, phase, "unreadable", "an answer that cannot be read")
    if isinstance(answer, messages.Request):
        return Refusal(site, phase, "unreadable", "a request in an answer's place")
    if isinstance(answer, Refusal) and answer.code not in CODES and answer.code not in REFUSALS:
        return Refusal(site, phase, "unknown", "a reason that this version does not know")  # words of its own
    return answer

"""The whole protocol, played from end to end: the executable specification.

`one_round` and `many_rounds` are conversations without I/O: they yield what to send and are sent what came
back, so a network, a simulation and a test drive the same ones. `run` and `run_pipelined` drive them among
sites in one process, some of which fall silent.

One round takes five trips. In a row of rounds it takes three: the next round's adverts travel with this
round's confirmations, and its shares with the unmasking. A site that missed those sits out one round: it
is asked for a fresh advert while the next round is under way.
"""

import functools
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Protocol, TypeAlias, TypeVar, runtime_checkable

from clinimeta.common.errors import AttemptError
from clinimeta.common.secagg import coordinator
from clinimeta.common.secagg.coordinator import Answers, Opened, Outcome, Shared
from clinimeta.common.secagg.identity import Roster
from clinimeta.common.secagg.messages import (
    PHASES,
    Answer,
    MaskedRequest,
    Refusal,
    Request,
    kind_of_answer,
    phase_of,
)
from clinimeta.common.secagg.ring import Contribution
from clinimeta.common.secagg.terms import Terms

R = TypeVar("R")
Sent = TypeVar("Sent")
Back = TypeVar("Back")
Requests: TypeAlias = Mapping[str, Request]
Trip: TypeAlias = Mapping[str, tuple[Request, ...]]
"""Site -> what one message carries to it: one request, or one of this round and one of the next."""

Replies: TypeAlias = Mapping[str, tuple[Answer | Refusal, ...]]
"""Site -> what came back; silent sites are missing."""


def one_round(
    terms: Terms, roster: Roster, today: date, sites: Sequence[str], model_digest: bytes
) -> Generator[Requests, Answers, Outcome]:
    """One attempt of one round, in five trips.

    Raises:
        AttemptError: too few sites are left.
    """
    answers = yield coordinator.advert_requests(terms, sites)
    opened = coordinator.collect_adverts(terms, roster, today, sites, answers)
    answers = yield coordinator.shares_requests(opened)
    shared = coordinator.collect_shares(opened, answers)
    answers = yield coordinator.masked_requests(shared)
    summed = coordinator.collect_masked(shared, model_digest, answers)
    answers = yield coordinator.confirm_requests(summed)
    confirmed = coordinator.collect_confirms(summed, roster, answers)
    answers = yield coordinator.unmask_requests(confirmed)
    return coordinator.unmask(confirmed, answers)


@dataclass(frozen=True, slots=True)
class Rounds:
    """A row of rounds: their numbers, and what each is about, as functions of the round.

    `terms(round, attempt)` must differ in nothing else between attempts. `model_digest(round)` is that of the
    model that went out with the round's masked requests; `finished` has been told of the round before by
    then. `attempts` is how often a round is tried in all. `failed(round, error)` hears of each attempt that
    was given up.
    """

    numbers: Sequence[int]
    terms: Callable[[int, int], Terms]
    model_digest: Callable[[int], bytes]
    finished: Callable[[int, Outcome], None]
    attempts: int = 3
    failed: Callable[[int, AttemptError], None] = lambda _round, _error: None


def many_rounds(
    rounds: Rounds, roster: Roster, today: Callable[[], date], sites: Sequence[str]
) -> Generator[Trip, Replies, None]:
    """Rounds one after the other, three trips each once they are under way.

    Where a round fails before it is opened, it is tried again with fresh adverts.

    Raises:
        AttemptError: a round failed as often as allowed, or in its last phase.
    """
    attempt = Counter[int]()
    shared: Shared | None = None
    for number, following in zip(rounds.numbers, [*rounds.numbers[1:], None], strict=True):
        for tried in range(1, rounds.attempts + 1):
            try:
                if shared is None:
                    shared = yield from _begin(rounds.terms(number, attempt[number]), roster, today(), sites)
                opened: Opened | None = None
                replies = yield _trip(coordinator.masked_requests(shared))
                digest = rounds.model_digest(number)
                summed = coordinator.collect_masked(shared, digest, _answers("masked", replies))
                coming = None if following is None else rounds.terms(following, attempt[following])
                adverts = coordinator.advert_requests(coming, sites) if coming else {}
                replies = yield _trip(coordinator.confirm_requests(summed), adverts)
                if coming:
                    opened = _collect_adverts(rounds, coming, roster, today(), sites, replies)
                confirmed = coordinator.collect_confirms(summed, roster, _answers("confirm", replies))
                shares = coordinator.shares_requests(opened) if opened else {}
                replies = yield _trip(coordinator.unmask_requests(confirmed), shares)
                rounds.finished(number, coordinator.unmask(confirmed, _answers("unmask", replies)))
                shared = _collect_shares(rounds, opened, replies) if opened else None
            except AttemptError as error:
                rounds.failed(number, error)
                shared = None
                attempt[number] += 1
                if not error.may_retry or tried == rounds.attempts:
                    raise
                if following is not None:
                    attempt[following] += 1  # its adverts may have been made
                continue
            if shared is None and following is not None:
                attempt[following] += 1
            break


def _begin(
    terms: Terms, roster: Roster, today: date, sites: Sequence[str]
) -> Generator[Trip, Replies, Shared]:
    replies = yield _trip(coordinator.advert_requests(terms, sites))
    opened = coordinator.collect_adverts(terms, roster, today, sites, _answers("advert", replies))
    replies = yield _trip(coordinator.shares_requests(opened))
    return coordinator.collect_shares(opened, _answers("shares", replies))


def _collect_adverts(
    rounds: Rounds, terms: Terms, roster: Roster, today: date, sites: Sequence[str], replies: Replies
) -> Opened | None:
    """The next round's circle; None where too few are there, and the round will begin afresh."""
    try:
        return coordinator.collect_adverts(terms, roster, today, sites, _answers("advert", replies))
    except AttemptError as error:
        rounds.failed(terms.round, error)
        return None


def _collect_shares(rounds: Rounds, opened: Opened, replies: Replies) -> Shared | None:
    try:
        return coordinator.collect_shares(opened, _answers("shares", replies))
    except AttemptError as error:
        rounds.failed(opened.circle.terms.round, error)
        return None


def _trip(*parts: Requests) -> Trip:
    sites = sorted({site for part in parts for site in part})
    return {site: tuple(part[site] for part in parts if site in part) for site in sites}


def _answers(phase: str, replies: Replies) -> Answers:
    """Of all that came back, what answers this phase."""
    kind = kind_of_answer(phase)
    found: dict[str, Answer | Refusal] = {}
    for site, answers in replies.items():
        for answer in answers:
            if isinstance(answer, kind) or (isinstance(answer, Refusal) and answer.phase == phase):
                found[site] = answer
    return found


@runtime_checkable
class Party(Protocol):
    """A site, as far as those who play the protocol need to know it: `Site`."""

    def answer(
        self, request: Request, train: Callable[[], Contribution] | None = None, model_digest: bytes = b""
    ) -> Answer | Refusal:
        """The answer to any request."""
        ...


def run(
    terms: Terms,
    roster: Roster,
    today: date,
    sites: Mapping[str, Party],
    contributions: Mapping[str, Contribution],
    model_digest: bytes,
    silent: Mapping[str, str] | None = None,
) -> Outcome:
    """Play one round among sites in this process; `silent` has who falls silent in which phase, for good.

    Raises:
        AttemptError: too few sites are left.
    """
    gone = silent or {}

    def is_there(site: str, request: Request) -> bool:
        return site not in gone or PHASES.index(phase_of(request)) < PHASES.index(gone[site])

    def ask(requests: Requests) -> Answers:
        return {
            site: sites[site].answer(
                request, functools.partial(contributions.__getitem__, site), model_digest
            )
            for site, request in requests.items()
            if is_there(site, request)
        }

    flow = one_round(terms, roster, today, sorted(sites), model_digest)
    return play(flow, ask)


def run_pipelined(
    rounds: Rounds,
    roster: Roster,
    today: Callable[[], date],
    sites: Mapping[str, Party],
    contribution: Callable[[int, str], Contribution],
    is_silent: Callable[[int, str, str], bool] = lambda *_: False,
) -> int:
    """Play rounds in a row; `is_silent(round, site, phase)` says whose answer to that phase is lost.

    A message is lost as a whole: a site that misses the confirmation of round r misses its advert for
    round r + 1, too. Returns the number of trips.

    Raises:
        AttemptError: a round failed as often as allowed, or in its last phase.
    """
    trips, number = 0, rounds.numbers[0]

    def ask(trip: Trip) -> Replies:
        nonlocal trips, number
        trips += 1
        replies: dict[str, tuple[Answer | Refusal, ...]] = {}
        for site, requests in trip.items():
            number = next((r.key.round for r in requests if isinstance(r, MaskedRequest)), number)
            if any(is_silent(number, site, phase_of(request)) for request in requests):
                continue
            train, digest = functools.partial(contribution, number, site), rounds.model_digest(number)
            replies[site] = tuple(sites[site].answer(request, train, digest) for request in requests)
        return replies

    play(many_rounds(rounds, roster, today, sorted(sites)), ask)
    return trips


def play(flow: Generator[Sent, Back, R], ask: Callable[[Sent], Back]) -> R:
    """Hold a conversation: ask what it yields, send it what came back, return its result."""
    try:
        sent = next(flow)
        while True:
            sent = flow.send(ask(sent))
    except StopIteration as finished:
        result: R = finished.value
        return result

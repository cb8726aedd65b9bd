"""What the requests of secure aggregation tell of it: phases, thresholds, and who was lost when."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from clinimeta.common.errors import AttemptError
from clinimeta.common.secagg.coordinator import Outcome
from clinimeta.common.secagg.messages import AdvertRequest, Request, SharesRequest, phase_of
from clinimeta.common.secagg.protocol import Trip
from clinimeta.common.secagg.terms import RoundKey, Terms
from clinimeta.server.reasons import reason

AGAIN = "the round before was begun anew"


@dataclass(slots=True)
class Attempt:
    """One attempt of one round: `number` counts a round's attempts from 1, whatever they are called."""

    key: RoundKey
    terms: Terms
    number: int
    begun: str
    asked: int
    ended: str | None = None
    threshold: int | None = None
    survivors: int | None = None
    aborted: str = ""
    lost: dict[str, dict[str, str]] = field(default_factory=dict)
    phases: dict[str, list[str | None]] = field(default_factory=dict)


@dataclass(slots=True)
class Attempts:
    """The attempts of the rounds that are not done yet."""

    _every: list[Attempt] = field(default_factory=list)
    _terms: dict[bytes, Terms] = field(default_factory=dict)

    def begin(self, trip: Trip, at: str) -> list[tuple[Attempt, str, list[str]]]:
        """A trip goes out: the attempts that it belongs to, which phase of each begins, and for whom."""
        found = []
        for (key, phase), asked in self._parts(trip).items():
            attempt = self._find(key)
            if attempt is None:
                terms = next(t for t in self._terms.values() if t.key == key)
                number = 1 + sum(other.key.round == key.round for other in self._every)
                attempt = Attempt(key, terms, number, at, len(asked))
                self._every.append(attempt)
            attempt.phases[phase] = [at, None]
            request = next(iter(asked.values()))
            if isinstance(request, SharesRequest):
                attempt.threshold = attempt.terms.needed(len(request.adverts))
            found.append((attempt, phase, sorted(asked)))
        return found

    def end(self, trip: Trip, at: str) -> list[Attempt]:
        """All answers to a trip are there: the attempts that it belongs to."""
        found = []
        for key, phase in self._parts(trip):
            if (attempt := self._find(key)) is not None:
                attempt.phases[phase][1] = at
                found.append(attempt)
        return found

    def close(self, number: int, outcome: Outcome | AttemptError, at: str) -> list[Attempt]:
        """The attempts that are over by an outcome of round `number`, that round's own first."""
        attempt = self.newest(number)
        if attempt is None:
            return []
        attempt.ended = at
        for site, (phase, why) in sorted(outcome.dropped.items()):
            attempt.lost.setdefault(phase, {})[site] = reason(why)[0]
        if isinstance(outcome, Outcome):
            attempt.survivors = len(outcome.survivors)
            return [attempt]
        attempt.aborted = f"{outcome.phase}: {outcome.present} hospitals left, {outcome.needed} needed"
        later = [a for a in self._every if a.key.round > number and a.ended is None]
        for other in later:
            other.ended, other.aborted = at, AGAIN
        return [attempt, *later]

    def newest(self, number: int) -> Attempt | None:
        """The last attempt of a round, so far."""
        return next((a for a in reversed(self._every) if a.key.round == number), None)

    def forget(self, number: int) -> None:
        """Round `number` is done."""
        self._every = [a for a in self._every if a.key.round > number]
        kept = {a.key for a in self._every}
        self._terms = {data: terms for data, terms in self._terms.items() if terms.key in kept}

    def _find(self, key: RoundKey) -> Attempt | None:
        return next((a for a in self._every if a.key == key), None)

    def _parts(self, trip: Trip) -> Mapping[tuple[RoundKey, str], dict[str, Request]]:
        """(attempt, phase) -> whom it asks what."""
        parts: dict[tuple[RoundKey, str], dict[str, Any]] = {}
        for site, requests in trip.items():
            for request in requests:
                if isinstance(request, AdvertRequest):
                    if request.terms not in self._terms:
                        self._terms[request.terms] = Terms.from_bytes(request.terms)
                    key = self._terms[request.terms].key
                else:
                    key = request.key
                parts.setdefault((key, phase_of(request)), {})[site] = request
        return parts

"""What a ledger's records come to: per study, per month, and what was refused."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from clinimeta.client.ledger import READS, SENT, Cost, Entry


@dataclass(frozen=True, slots=True)
class Line:
    """A row of a summary: `answers` were made from the table, `others` were not, `refused` were no answer.

    `cost` is what all plans in it cost a patient together; None where an answer was made without a promise.
    """

    name: str
    answers: int
    others: int
    refused: int
    bytes: int
    first: str
    last: str
    cost: Cost | None


def by_study(entries: Iterable[Entry]) -> tuple[Line, ...]:
    """A row a study, in order of first contact; messages that belong to none come under one name."""
    return _grouped(entries, lambda entry: entry.study or "(no study: greetings, phases without data)")


def by_month(entries: Iterable[Entry]) -> tuple[Line, ...]:
    """A row a month (UTC), as YYYY-MM."""
    return _grouped(entries, lambda entry: entry.at[:7])


def refusals(entries: Iterable[Entry]) -> dict[str, int]:
    """Code of a refusal -> how often; the most frequent first."""
    counts: dict[str, int] = {}
    for entry in entries:
        if entry.outcome != SENT:
            counts[entry.outcome] = counts.get(entry.outcome, 0) + 1
    return dict(sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])))


def _grouped(entries: Iterable[Entry], key: Callable[[Entry], str]) -> tuple[Line, ...]:
    groups: dict[str, list[Entry]] = {}
    for entry in entries:
        groups.setdefault(key(entry), []).append(entry)
    return tuple(_line(name, found) for name, found in groups.items())


def _line(name: str, entries: list[Entry]) -> Line:
    sent = [entry for entry in entries if entry.outcome == SENT]
    answers = [entry for entry in sent if entry.kind in READS]
    return Line(
        name=name,
        answers=len(answers),
        others=len(sent) - len(answers),
        refused=len(entries) - len(sent),
        bytes=sum(entry.bytes for entry in entries),
        first=entries[0].at,
        last=entries[-1].at,
        cost=_cost(answers),
    )


def _cost(answers: list[Entry]) -> Cost | None:
    """The last cost of each plan, added up: epsilons and deltas add, which bounds what they are together."""
    last: dict[str, Cost] = {}
    for entry in answers:
        if entry.cost is None:
            return None
        last[entry.plan] = entry.cost
    if not last:
        return None
    costs = list(last.values())
    return Cost(
        math.fsum(cost.epsilon for cost in costs),
        math.fsum(cost.delta for cost in costs),
        min(cost.noise_multiplier for cost in costs),
    )

"""What a ledger's records come to: per study, per month, and what was refused."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from clinimeta.client.ledger import Cost, Entry

SENT = "sent"
READS = ("MetaGradient", "Quantised", "Calibration", "masked")
"""Kinds of answers that are made from the table."""


@dataclass(frozen=True, slots=True)
class Line:
    """A row of a summary: `answers` were made from the table, `others` were not, `refused` were no answer."""

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
    answers = sum(entry.kind in READS for entry in sent)
    costs = [entry.cost for entry in entries if entry.cost is not None]
    return Line(
        name=name,
        answers=answers,
        others=len(sent) - answers,
        refused=len(entries) - len(sent),
        bytes=sum(entry.bytes for entry in entries),
        first=entries[0].at,
        last=entries[-1].at,
        cost=costs[-1] if costs else None,
    )

"""What the rounds of a run measured, as named series of numbers: what trackers of experiments are given."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from clinimeta.server.training import RoundSummary

_PLAIN = re.compile(r"[^\w.\- ]")


@dataclass(frozen=True, slots=True)
class Point:
    """A number: of which series, after which round, and how many seconds after the start."""

    series: str
    round: int
    value: float
    seconds: float


def points(rounds: Sequence[RoundSummary]) -> Iterator[Point]:
    """All numbers of a run, round by round; several trainings of one run each under their own name.

    Series are `round/...` (what a round was), `query/...` (means over hospitals after adaptation),
    `unseen/...` (hospitals that do not train) and `site/NAME/...` (each hospital's own, where it is known).
    """
    several = len({summary.training for summary in rounds}) > 1
    names = plain_names({site for summary in rounds for site in summary.by_site})
    elapsed: dict[str, float] = {}
    for summary in rounds:
        elapsed[summary.training] = elapsed.get(summary.training, 0.0) + summary.seconds
        before = f"{summary.training}/" if several else ""
        for series, value in _of(summary, names):
            yield Point(f"{before}{series}", summary.round, value, elapsed[summary.training])


def _of(summary: RoundSummary, names: Mapping[str, str]) -> Iterator[tuple[str, float]]:
    yield "round/hospitals_accepted", summary.accepted
    yield "round/hospitals_missing", summary.cohort - summary.accepted
    yield "round/gradient_norm", summary.gradient_norm
    yield "round/bytes_down", summary.bytes_down
    yield "round/bytes_up", summary.bytes_up
    yield "round/seconds", summary.seconds
    yield "round/rollbacks", summary.rollbacks
    for metric, value in summary.metrics.items():
        yield f"query/{metric}", value
    for metric, value in summary.curve.items():
        yield f"unseen/{metric}", value
    for site, measured in summary.by_site.items():
        for metric, value in measured.items():
            yield f"site/{names[site]}/{metric}", value


def plain_names(names: set[str]) -> dict[str, str]:
    """Each name without signs that trackers do not take, and different from all others.

    >>> plain_names({"Ulm/West", "Ulm?West", "Köln"})
    {'Köln': 'Köln', 'Ulm/West': 'Ulm_West', 'Ulm?West': 'Ulm_West 2'}
    """
    found: dict[str, str] = {}
    for name in sorted(names):
        plain = _PLAIN.sub("_", name)
        number, unlike = 1, plain
        while unlike in found.values():
            number += 1
            unlike = f"{plain} {number}"
        found[name] = unlike
    return found

"""Secure aggregation: each attempt's threshold and survivors, why one was given up, which phase lost whom."""

from dataclasses import dataclass

from clinimeta.common.web.roles import May, Who
from clinimeta.common.web.shell import Screen
from clinimeta.server import round_views, views
from clinimeta.server.console.base import Console

RUNS = 20
SHOWN = 200


@dataclass(frozen=True, slots=True)
class Masked:
    """A run with masks: how many attempts opened a sum, how many were given up, and whom phases lost."""

    run: str
    state: str
    opened: int
    aborted: int
    lost_by_phase: dict[str, int]
    lost_by_site: dict[str, int]
    attempts: tuple[round_views.AttemptLine, ...]


@dataclass(frozen=True, slots=True)
class SecureAggregation:
    """The last runs with masks."""

    runs: tuple[Masked, ...]


def secagg_screen(console: Console, _who: Who) -> SecureAggregation:
    """Attempts of the last runs; of long ones the last."""
    found = []
    with console.database.engine.connect() as connection:
        for line in views.runs(connection, limit=RUNS):
            after = (max(0, line.round - SHOWN // 2), 0)
            attempts = round_views.aggregation(connection, line.id, after=after, limit=SHOWN)
            if attempts:
                found.append(_masked(line, attempts))
    return SecureAggregation(tuple(found))


def _masked(line: views.RunLine, attempts: tuple[round_views.AttemptLine, ...]) -> Masked:
    phases: dict[str, int] = {}
    sites: dict[str, int] = {}
    for one in attempts:
        for phase, lost in one.lost.items():
            phases[phase] = phases.get(phase, 0) + len(lost)
            for site in lost:
                sites[site] = sites.get(site, 0) + 1
    return Masked(
        line.id,
        line.state,
        sum(one.survivors is not None for one in attempts),
        sum(bool(one.aborted) for one in attempts),
        phases,
        sites,
        tuple(reversed(attempts)),
    )


SCREENS = (
    Screen("/secure-aggregation", May.READ, "Secure aggregation", secagg_screen, "secagg.html", nav=True),
)

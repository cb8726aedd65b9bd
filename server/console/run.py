"""One run, live: its rounds, who did what in the last one, metrics over rounds and over hospitals."""

from dataclasses import dataclass, replace
from datetime import datetime

import sqlalchemy as sa

from clinimeta.common.web.drawing import Box, Plot, Segment, curves, spread, timeline
from clinimeta.common.web.roles import May, Who
from clinimeta.common.web.shell import Screen
from clinimeta.server import enrolment, experiments, round_views, views
from clinimeta.server.chronicle_tables import answers
from clinimeta.server.console.base import Console
from clinimeta.server.console.runs import all_rounds

BOXES, LISTED = 40, 20
"""So many rounds have a box, and a line; the last ones."""


@dataclass(frozen=True, slots=True)
class Run:
    """A run as it stands: its rounds, the last one in detail, and how metrics differ between hospitals.

    `own` has each hospital's own metrics in the last round that is done (`own_round`), where they are known.
    `missing` says of the last rounds who does not count, and why. `change` only grows.
    """

    line: views.RunLine
    rounds: tuple[round_views.RoundLine, ...]
    last: round_views.Timeline
    spreads: dict[str, tuple[round_views.Spread, ...]]
    own: dict[str, dict[str, float]]
    own_round: int
    missing: dict[int, dict[str, str]]
    change: int
    now: str


def run_screen(console: Console, _who: Who, run: str, round: int = 0) -> Run:  # noqa: A002 (the field's word)
    """A run; the round that is shown in detail is the last, or `round`."""
    with console.database.engine.connect() as connection:
        line = views.run(connection, run)
        rounds = all_rounds(connection, run)
        number = round or (rounds[-1].round if rounds else 0)
        last = round_views.timeline(connection, run, number)
        first = max(0, (rounds[-1].round if rounds else 0) - BOXES)
        metrics = sorted({name for one in rounds[-1:] for name in one.metrics} | set(line.metrics))
        missing = missing_of(connection, run, rounds[-1].round - LISTED if rounds else 0)
        spreads = {name: round_views.spread(connection, run, name, after=first) for name in metrics}
        done = max((one.round for one in rounds if one.seconds is not None), default=0)
        told = last if number == done else round_views.timeline(connection, run, done)
    own = {
        name: {one.site: value for one in told.answers if (value := one.metrics.get(name)) is not None}
        for name in metrics
    }
    shown = experiments.as_shown(console.home, experiments.find(console.database, run))
    line = replace(line, state=shown.state, detail=shown.detail)
    change = max((one.change for one in rounds), default=0)
    kept = {name: found for name, found in spreads.items() if found}
    return Run(line, tuple(rounds), last, kept, own, done, missing, change, enrolment.now().isoformat())


def missing_of(connection: sa.Connection, run: str, after: int) -> dict[int, dict[str, str]]:
    """Of each round after one: hospitals whose last answer does not count, and why; one query."""
    query = (
        sa.select(answers.c.round, answers.c.site, answers.c.phase, answers.c.sentence)
        .where(answers.c.experiment == run, answers.c.round > after)
        .order_by(answers.c.round, answers.c.attempt, answers.c.site)
    )
    found: dict[int, dict[str, str]] = {}
    for number, site, phase, sentence in connection.execute(query):
        of_round = found.setdefault(number, {})
        if phase in ("refused", "dropped", "silent"):
            of_round[site] = f"{phase}: {sentence}" if sentence and phase != "silent" else phase
        else:
            of_round.pop(site, None)
    return found


def _draw(view: Run) -> dict[str, Plot]:
    done = [one for one in view.rounds if one.seconds is not None]
    metrics = sorted({name for one in done for name in one.metrics})
    found = {
        "metrics": curves(
            "metrics",
            "Means over hospitals, after adaptation",
            {
                name.replace("_", " "): [(one.round, one.metrics.get(name)) for one in done]
                for name in metrics
            },
        ),
        "seconds": curves("seconds", "Seconds a round", {"seconds": [(o.round, o.seconds) for o in done]}),
        "bytes": curves(
            "bytes",
            "Payload a round (KiB)",
            {
                "to hospitals": [(one.round, one.bytes_down / 1024) for one in done],
                "from hospitals": [(one.round, one.bytes_up / 1024) for one in done],
            },
        ),
        "timeline": timeline("timeline", "Hospitals in this round", _segments(view)),
    }
    if any(one.epsilon is not None for one in done):
        spent = {"epsilon": [(one.round, one.epsilon) for one in done]}
        found["epsilon"] = curves("epsilon", "Privacy spent on each patient (epsilon)", spent)
    for number, (name, boxes) in enumerate(view.spreads.items()):
        title = f"{name.replace('_', ' ')} over hospitals"
        found[f"spread {name}"] = spread(f"spread{number}", title, [_box(view, name, box) for box in boxes])
    return found


def _box(view: Run, name: str, box: round_views.Spread) -> Box:
    dots = view.own.get(name, {}) if box.round == view.own_round else {}
    return Box(f"{box.round}", box.least, box.lower, box.median, box.upper, box.most, dots)


def _segments(view: Run) -> list[Segment]:
    if view.last.round is None:
        return []
    start = datetime.fromisoformat(view.last.round.started)
    now = datetime.fromisoformat(view.now)

    def seconds(text: str) -> float:
        return max(0.0, (datetime.fromisoformat(text) - start).total_seconds())

    return [
        Segment(
            one.site,
            seconds(one.asked),
            (now - start).total_seconds()
            if one.phase == "asked" and not view.last.round.ended
            else seconds(one.at),
            one.phase,
            one.sentence,
        )
        for one in view.last.answers
    ]


SCREENS = (Screen("/runs/{run}", May.READ, "Run", run_screen, "run.html", draw=_draw),)

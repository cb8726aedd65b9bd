"""Runs: list and filter them, lay two or more over each other, stop and resume."""

import tomllib
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Query

from clinimeta.common.errors import UserError
from clinimeta.common.web.drawing import Plot, curves
from clinimeta.common.web.roles import May, Who
from clinimeta.common.web.shell import Action, Change, Done, Screen
from clinimeta.server import experiments, round_views, views
from clinimeta.server.console.base import Console, by
from clinimeta.server.store import RunDir

SHOWN = 50
STATES = ("queued", "running", "waiting", "finished", "failed", "stopped")


@dataclass(frozen=True, slots=True)
class Runs:
    """Runs, the newest first, as far as the filter lets them; `older` begins the next page."""

    runs: tuple[views.RunLine, ...]
    state: str
    study: str
    older: str


@dataclass(frozen=True, slots=True)
class Difference:
    """A setting in which runs differ: its name, and its value in each."""

    setting: str
    values: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Compared:
    """Runs beside each other: the settings in which they differ, and each metric over rounds."""

    runs: tuple[views.RunLine, ...]
    differences: tuple[Difference, ...]
    metrics: dict[str, dict[str, list[tuple[int, float | None]]]]


def runs_screen(console: Console, _who: Who, state: str = "", study: str = "", before: str = "~") -> Runs:
    """A page of runs."""
    with console.database.engine.connect() as connection:
        found = views.runs(connection, state=state, study=study, before=before, limit=SHOWN + 1)
    older = found[SHOWN - 1].made_at if len(found) > SHOWN else ""
    return Runs(found[:SHOWN], state, study, older)


def compare_runs(console: Console, _who: Who, run: Annotated[list[str], Query(max_length=10)]) -> Compared:
    """Runs by their ids.

    Raises:
        UserError: fewer than two or more than ten are named, or one is unknown.
    """
    names = list(dict.fromkeys(run))
    if not 2 <= len(names) <= 10:
        raise UserError(
            "two to ten runs can be compared", found=str(len(names)), remedy="tick some in the list"
        )
    metrics: dict[str, dict[str, list[tuple[int, float | None]]]] = {}
    with console.database.engine.connect() as connection:
        lines = tuple(views.run(connection, name) for name in names)
        for name in names:
            for line in all_rounds(connection, name):
                for metric, value in line.metrics.items():
                    metrics.setdefault(metric, {}).setdefault(name, []).append((line.round, value))
    settings = [_settings(console, name) for name in names]
    keys = sorted({key for one in settings for key in one})
    differences = tuple(
        Difference(key, values)
        for key in keys
        if len(set(values := tuple(one.get(key, "-") for one in settings))) > 1
    )
    return Compared(lines, differences, metrics)


def all_rounds(connection: Any, name: str) -> list[round_views.RoundLine]:
    """Every round of a run."""
    found: list[round_views.RoundLine] = []
    while page := round_views.rounds_after(connection, name, found[-1].round if found else 0, limit=1000):
        found += page
    return found


def stop_run(console: Console, who: Who, body: Change, run: str) -> Done:
    """Stop a run after what it is doing now."""
    experiments.want(console.database, run, "stopped", by(who, body))
    return Done(f"{run} is to stop")


def resume_run(console: Console, who: Who, body: Change, run: str) -> Done:
    """Go on with a run from its checkpoint."""
    found = experiments.want(console.database, run, "running", by(who, body))
    return Done(f"{run} goes on from round {found.round}")


def _settings(console: Console, name: str) -> dict[str, str]:
    text = RunDir.open(console.home.experiments / name).study_toml()
    return dict(_flat(tomllib.loads(text), ""))


def _flat(value: Any, before: str) -> list[tuple[str, str]]:
    if isinstance(value, dict):
        return [pair for key, one in value.items() for pair in _flat(one, f"{before}.{key}".lstrip("."))]
    if isinstance(value, list) and any(isinstance(one, dict) for one in value):
        return [pair for number, one in enumerate(value) for pair in _flat(one, f"{before}[{number}]")]
    return [(before, str(value))]


def _draw(view: Compared) -> dict[str, Plot]:
    return {
        metric: curves(f"c{number}", metric.replace("_", " "), by_run)
        for number, (metric, by_run) in enumerate(view.metrics.items())
    }


SCREENS = (
    Screen("/runs", May.READ, "Runs", runs_screen, "runs.html", nav=True),
    Screen("/compare", May.READ, "Compare runs", compare_runs, "compare.html", draw=_draw),
)
ACTIONS = (
    Action("/runs/{run}/stop", May.STUDY, "Stop a run", Change, stop_run, "/runs/{run}"),
    Action("/runs/{run}/resume", May.STUDY, "Resume a run", Change, resume_run, "/runs/{run}"),
)

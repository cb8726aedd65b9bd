"""Privacy: what runs have spent on each patient, round by round, and when a promise is used up."""

from dataclasses import dataclass

from clinimeta.common.study import Study, read_study
from clinimeta.common.web.drawing import Bar, Plot, bars, curves
from clinimeta.common.web.roles import May, Who
from clinimeta.common.web.shell import Screen
from clinimeta.server import enrolment, views
from clinimeta.server.console.base import Console
from clinimeta.server.console.runs import all_rounds
from clinimeta.server.store import RunDir

RUNS = 50


@dataclass(frozen=True, slots=True)
class Promise:
    """What a run promises each patient, what it has spent, and after which round that is used up.

    `exhausted_at` goes on as the last rounds did; None where the run ends before.
    """

    run: str
    study: str
    state: str
    answers: str
    epsilon: float
    delta: float
    spent: float
    rounds_done: int
    rounds: int
    exhausted_at: int | None
    by_round: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class SiteBudget:
    """What a hospital says is left of its own lifetime budget; None where it does not say."""

    site: str
    budget_left: float | None
    policy: str | None


@dataclass(frozen=True, slots=True)
class Privacy:
    """Promises of the last runs, those without any, and hospitals' own budgets."""

    promises: tuple[Promise, ...]
    without: tuple[views.RunLine, ...]
    budgets: tuple[SiteBudget, ...]


def privacy_screen(console: Console, _who: Who) -> Privacy:
    """All of it, for the last runs."""
    promises, without = [], []
    with console.database.engine.connect() as connection:
        for line in views.runs(connection, limit=RUNS):
            study = _study(console, line.id)
            if study is None or not study.trained.promised.epsilon:
                without.append(line)
                continue
            spent = tuple(
                (one.round, one.epsilon) for one in all_rounds(connection, line.id) if one.epsilon is not None
            )
            promises.append(_promise(line, study, spent))
        sites = views.federation(connection, enrolment.now(), limit=1000).sites
    budgets = tuple(SiteBudget(one.name, one.budget_left, one.policy) for one in sites)
    return Privacy(tuple(promises), tuple(without), budgets)


def exhausted_at(spent: tuple[tuple[int, float], ...], limit: float, rounds: int) -> int | None:
    """The round after which `limit` is passed, if the last ten rounds' mean goes on; None: not by `rounds`.

    >>> exhausted_at(((1, 0.5), (2, 1.0), (3, 1.5)), limit=3.0, rounds=10)
    6
    >>> exhausted_at(((1, 0.1), (2, 0.2)), limit=8.0, rounds=10) is None
    True
    """
    passed = next((number for number, value in spent if value > limit), None)
    if passed is not None:
        return passed
    recent = spent[-10:]
    if len(recent) < 2:
        return None
    step = (recent[-1][1] - recent[0][1]) / (recent[-1][0] - recent[0][0])
    if step <= 0:
        return None
    at = recent[-1][0] + int((limit - recent[-1][1]) / step)
    return at if at < rounds else None


def _promise(line: views.RunLine, study: Study, spent: tuple[tuple[int, float], ...]) -> Promise:
    promised = study.trained.promised
    return Promise(
        line.id,
        line.study,
        line.state,
        promised.answers,
        promised.epsilon,
        promised.delta,
        spent[-1][1] if spent else 0.0,
        line.round,
        line.rounds,
        exhausted_at(spent, promised.epsilon, line.rounds),
        spent,
    )


def _study(console: Console, name: str) -> Study | None:
    path = console.home.experiments / name
    if not (path / "study.toml").exists():
        return None
    return read_study(RunDir.open(path).study_toml(), f"{name}/study.toml")


def _draw(view: Privacy) -> dict[str, Plot]:
    found = {
        "budgets": bars(
            "budgets",
            "Spent of what is promised",
            [Bar(p.run, p.spent, p.epsilon) for p in view.promises],
            "epsilon",
        )
    }
    for number, one in enumerate(view.promises):
        series = {"spent": [*one.by_round], "promised": [(1, one.epsilon), (one.rounds, one.epsilon)]}
        found[one.run] = curves(f"spent{number}", f"{one.run}: epsilon after each round", series)
    return found


SCREENS = (Screen("/privacy", May.READ, "Privacy", privacy_screen, "privacy.html", nav=True, draw=_draw),)

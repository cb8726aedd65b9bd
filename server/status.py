"""How the coordinator and its experiments stand, in words and as plain values (for the operator)."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from clinimeta.common.running import running
from clinimeta.server import enrolment, experiments
from clinimeta.server.config import Home
from clinimeta.server.database import Database
from clinimeta.server.telemetry import last_round


@dataclass(frozen=True, slots=True)
class Status:
    """The daemon's pid (None where it does not run), hospitals by state, experiments that are not over."""

    folder: str
    pid: int | None
    sites: dict[str, int]
    experiments: tuple[experiments.Experiment, ...]

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)

    def lines(self) -> list[str]:
        """For a terminal."""
        how = f"runs as process {self.pid}" if self.pid else "does not run: clinimeta coordinator up"
        counts = ", ".join(f"{n} {state}" for state, n in sorted(self.sites.items())) or "none yet"
        lines = [f"coordinator in {self.folder}: {how}", f"hospitals: {counts}"]
        lines += [f"{e.id}: {e.state}, round {e.round} of {e.rounds}. {e.detail}" for e in self.experiments]
        return lines


def status_of(home: Home) -> Status:
    """How a coordinator stands."""
    database = Database.open(home.database)
    states = [site.state for site in enrolment.known(database)]
    every = (experiments.as_shown(home, found) for found in experiments.every(database))
    going = [e for e in every if e.state not in experiments.OVER]
    counts = {state: states.count(state) for state in set(states)}
    return Status(str(home.path), running(home.lock), counts, tuple(going))


def experiment_values(home: Home, database: Database, name: str) -> dict[str, Any]:
    """All there is to say about an experiment.

    Raises:
        UserError: there is none of this name.
    """
    found = experiments.as_shown(home, experiments.find(database, name))
    folder = home.experiments / name
    return {**asdict(found), "folder": str(folder), "last_round": last_round(home, name)}


def experiment_lines(values: dict[str, Any]) -> list[str]:
    """The same for a terminal."""
    last = values["last_round"]
    lines = [
        f"{values['id']}: study {values['study']}, {values['state']}",
        f"round {values['round']} of {values['rounds']}",
        f"hospitals: {', '.join(values['participants'])}",
    ]
    if values["detail"]:
        lines.append(f"because: {values['detail']}")
    if last:
        lines += _round_lines(last)
    lines.append(
        f"started {values['made_at']}, submitted {values['submissions']} times, in {values['folder']}"
    )
    return lines


def _round_lines(last: Mapping[str, Any]) -> list[str]:
    """A line of `metrics.jsonl` (`training.RoundSummary`) for a terminal."""
    lines = [
        f"last round: {last['accepted']} of {last['cohort']} hospitals, {last['seconds']:.1f} s, "
        f"{last['bytes_down'] / 1024:.0f} KiB down, {last['bytes_up'] / 1024:.0f} KiB up"
    ]
    lines += [f"  {name.replace('_', ' ')}: {value:.4g}" for name, value in sorted(last["metrics"].items())]
    lines += [f"  {site} gave no answer: {why}" for site, why in sorted(last["refused"].items())]
    lines += [f"  {site} was silent" for site in last["silent"]]
    return lines

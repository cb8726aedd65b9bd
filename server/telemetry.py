"""The coordinator's state as Prometheus metrics, read from database and run directories when asked for."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from sqlalchemy.exc import SQLAlchemyError

from clinimeta.server import enrolment, experiments
from clinimeta.server.config import Home
from clinimeta.server.database import Database

LAST = {
    "accepted": "Hospitals whose answers were used in the last round",
    "cohort": "Hospitals that were asked in the last round",
    "seconds": "How long the last round took",
    "bytes_down": "Payload bytes to hospitals in the last round",
    "bytes_up": "Payload bytes from hospitals in the last round",
    "gradient_norm": "Length of the last round's meta-gradient",
    "rollbacks": "Outer steps that the last round's gate undid",
}
TAIL_BYTES = 1 << 20
"""Where the last line of a run's metrics is looked for."""


@dataclass(frozen=True, slots=True, eq=False)  # a registry keeps it by identity
class Telemetry(Collector):
    """Gauges of hospitals by state, experiments by state, and each experiment's progress and last round.

    `ends`: how often each of the daemon's processes has ended by itself.
    """

    home: Home
    database: Database
    ends: Mapping[str, int]

    def describe(self) -> Iterator[GaugeMetricFamily]:
        """Nothing is read before somebody asks."""
        yield from ()

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """As they are now; of hospitals and experiments nothing where the database cannot be read."""
        ends = GaugeMetricFamily(
            "clinimeta_process_restarts", "How often a process ended", labels=["process"]
        )
        for process, times in self.ends.items():
            ends.add_metric([process], times)
        yield ends
        try:
            sites = Counter(site.state for site in enrolment.known(self.database))
            every = experiments.every(self.database)
        except SQLAlchemyError:
            return
        hospitals = GaugeMetricFamily("clinimeta_hospitals", "Hospitals by state", labels=["state"])
        for state in ("waiting", "approved", "revoked"):
            hospitals.add_metric([state], sites[state])
        yield hospitals
        states = Counter(one.state for one in every)
        by_state = GaugeMetricFamily("clinimeta_experiments", "Experiments by state", labels=["state"])
        for state in ("queued", "running", "waiting", "finished", "failed", "stopped"):
            by_state.add_metric([state], states[state])
        yield by_state
        yield from self._going([one for one in every if one.state not in experiments.OVER])

    def _going(self, going: list[experiments.Experiment]) -> Iterator[GaugeMetricFamily]:
        labels = ["experiment", "study"]
        done = GaugeMetricFamily("clinimeta_experiment_round", "Rounds that are done", labels=labels)
        of = GaugeMetricFamily("clinimeta_experiment_rounds", "Rounds that are to be done", labels=labels)
        again = GaugeMetricFamily("clinimeta_experiment_submissions", "Runs begun for it", labels=labels)
        last = {
            name: GaugeMetricFamily(f"clinimeta_round_{name}", text, labels=labels)
            for name, text in LAST.items()
        }
        query = GaugeMetricFamily(
            "clinimeta_round_metric",
            "Means over hospitals after adaptation, in the last round",
            labels=[*labels, "metric"],
        )
        for one in going:
            who = [one.id, one.study]
            done.add_metric(who, one.round)
            of.add_metric(who, one.rounds)
            again.add_metric(who, one.submissions)
            found = last_round(self.home, one.id)
            for name, family in last.items():
                if name in found:
                    family.add_metric(who, float(found[name]))
            for metric, value in found.get("metrics", {}).items():
                query.add_metric([*who, metric], float(value))
        yield from (done, of, again, *last.values(), query)


def last_round(home: Home, experiment: str) -> dict[str, Any]:
    """The last whole line of an experiment's `metrics.jsonl`, or nothing."""
    try:
        with (home.experiments / experiment / "metrics.jsonl").open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - TAIL_BYTES))
            lines = file.read().split(b"\n")
    except OSError:
        return {}
    for line in reversed(lines[:-1]):  # what follows the last newline is being written
        try:
            found = json.loads(line)
        except ValueError:
            continue
        return found if isinstance(found, dict) else {}
    return {}

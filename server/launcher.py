"""Bring Flower's state in line with the database: nodes of approved hospitals, a run for each experiment."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import httpx
import structlog

from clinimeta.server import enrolment, experiments
from clinimeta.server.bundle import bundle
from clinimeta.server.control import Control
from clinimeta.server.database import Database

log = structlog.get_logger()

LONGEST_WAIT_S = 60.0
TOO_OFTEN = 50
"""Submissions without a single round in between, after which an experiment has failed."""


@dataclass(slots=True)
class Launcher:
    """Remembers when each experiment may be submitted again, and at which round it was last."""

    database: Database
    clock: Callable[[], float] = time.monotonic
    _not_before: dict[str, float] = field(default_factory=dict)
    _progress: dict[str, tuple[int, int]] = field(default_factory=dict)

    def reconcile(self, control: Control) -> None:
        """Once; call it every second or so. Raises httpx.HTTPError where the SuperLink does not answer."""
        self.nodes(control)
        for experiment in experiments.every(self.database):
            if experiment.state not in experiments.OVER:
                self.experiment(control, experiment)

    def hold(self, why: str) -> None:
        """Say of every experiment that it waits; nothing is submitted meanwhile, and no try counted."""
        for experiment in experiments.every(self.database):
            if experiment.state not in experiments.OVER and experiment.detail != why:
                experiments.update(self.database, experiment.id, state="waiting", detail=why)
        self._progress.clear()

    def nodes(self, control: Control) -> None:
        """Register approved hospitals, and refuse all other keys; one that fails stops no other."""
        approved = {site.keys.node: site for site in enrolment.known(self.database, "approved")}
        registered = {node.key: node for node in control.nodes()}
        for key, node in registered.items():
            if key not in approved:
                with _refusal_logged("a node could not be removed", node=node.node_id):
                    control.unregister(node.node_id)
                    log.info("a node is refused from now on", node=node.node_id)
        for key, site in approved.items():
            with _refusal_logged("a hospital could not be registered", site=site.name):
                node_id = registered[key].node_id if key in registered else control.register(key, site.name)
                if site.node_id != node_id:
                    enrolment.set_node(self.database, site.name, node_id)
                    log.info("a hospital may connect", site=site.name, node=node_id)

    def experiment(self, control: Control, experiment: experiments.Experiment) -> None:
        """Submit, submit again, or stop one."""
        name, run = experiment.id, experiment.flower_run
        if experiment.wanted == "stopped":
            if run is not None and (found := control.run(run)) is not None and found.state != "finished":
                control.stop(run)
            experiments.update(self.database, name, state="stopped", detail="", flower_run=None, worker="")
            return
        if run is not None:
            found = control.run(run)
            if found is not None and found.state != "finished":
                return
            log.warning(
                "a run ended early, and is followed by another",
                experiment=name,
                outcome=found.outcome if found else "unknown to the link",
            )
            experiments.update(self.database, name, flower_run=None, worker="")
        before, tries = self._progress.get(name, (-1, 0))
        tries = tries + 1 if before == experiment.round else 0
        if self.clock() < self._not_before.get(name, 0.0):
            return
        if tries > TOO_OFTEN:
            detail = "its runs end before they come to anything; see the log"
            experiments.update(self.database, name, state="failed", detail=detail)
            return
        self._progress[name] = (experiment.round, tries)
        self._not_before[name] = self.clock() + min(LONGEST_WAIT_S, 2.0**tries)
        content, digest = bundle()
        run = control.start(content, digest, {"experiment": name})
        experiments.update(self.database, name, flower_run=str(run), submissions=experiment.submissions + 1)
        log.info("an experiment was submitted", experiment=name, run=run, time=experiment.submissions + 1)


@contextmanager
def _refusal_logged(what: str, **about: object) -> Iterator[None]:
    """Let the SuperLink's no to one request be no reason to leave the others."""
    try:
        yield
    except httpx.HTTPStatusError as error:
        log.error(what, status=error.response.status_code, **about)

"""The coordinator's round loop: claims Flower's runs and conducts the experiment that each names.

Run as `python -m clinimeta.server.runner FOLDER WORKER`. A run of Flower's is a means: whatever ends it, the
next one for the same experiment goes on from the checkpoint, and repeats or skips no round.
"""

import secrets
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import structlog
import torch
from flwr.serverapp import Grid
from sqlalchemy.exc import SQLAlchemyError

from clinimeta.common.errors import ClinimetaError, QuorumError
from clinimeta.common.files import is_full
from clinimeta.common.flower_tasks import SERVER, Desk, stop_on_sigterm, taken, tasks
from clinimeta.common.logs import log_to_stderr, quiet_flower
from clinimeta.common.private_files import read_secret
from clinimeta.common.receipts import Checkpoint
from clinimeta.common.roster_file import SignedRoster
from clinimeta.common.secagg.identity import Identity, Roster
from clinimeta.common.study import Study, read_study
from clinimeta.common.supervision import die_with_parent
from clinimeta.common.trained_model import TrainedModel
from clinimeta.server import enrolment, experiments, failures
from clinimeta.server.app import Job, Outcome, OverTheGrid, conduct, fresh_nonce
from clinimeta.server.chronicle import Chronicle
from clinimeta.server.config import Home
from clinimeta.server.control import Control
from clinimeta.server.database import Database
from clinimeta.server.experiments import NO_ROOM
from clinimeta.server.grid import PatientGrid
from clinimeta.server.link import Enrolled, Link, WallClock
from clinimeta.server.sightings import Lookout, introduced
from clinimeta.server.store import RunDir
from clinimeta.server.training import RoundSummary
from clinimeta.server.witness import witness

log = structlog.get_logger()

POLL_S = 0.3
AGAIN_S = 5.0
"""How long to wait before hospitals are asked again where too few answered."""


class Unwanted(Exception):  # noqa: N818 (nothing is wrong)
    """The experiment is to stop."""


def work(home: Home, worker: str) -> None:
    """Conduct whatever is submitted, one experiment after the other, until SIGTERM."""
    torch.set_num_threads(1)
    database, settings = Database.open(home.database), home.settings()
    let_go(home, database, worker)
    desk = Desk(f"127.0.0.1:{settings.control.port}", read_secret(home.superexec_secret))
    stopping = threading.Event()
    stop_on_sigterm(stopping)
    for token in tasks(desk, SERVER, poll_s=POLL_S, stopping=stopping, beat=lambda _: None):
        if token is None:
            continue
        try:
            with taken(desk, token) as task:
                grid = PatientGrid(desk.address, token)
                grid.set_run(task.run)
                name = str(task.run.override_config.get("experiment", ""))
                experiments.update(database, name, worker=worker)
                conduct_experiment(home, database, name, grid, poll_s=settings.rounds.poll_s)
        except (KeyboardInterrupt, Unwanted):
            log.info("an experiment was stopped")
        except Exception as error:
            log.error("a run ended early", error=type(error).__name__, text=str(error))
            failures.told(database, f"round-loop-{worker}", error)


def let_go(home: Home, database: Database, worker: str) -> None:
    """Give up what this worker held before it was killed, so that it is submitted again at once."""
    for held in experiments.every(database):
        if held.worker == worker and held.flower_run is not None and held.state not in experiments.OVER:
            try:
                with Control.of(home) as control:
                    control.stop(held.flower_run)
            except Exception as error:
                log.info("an abandoned run could not be stopped", error=type(error).__name__)
            experiments.update(database, held.id, flower_run=None, worker="")


def conduct_experiment(home: Home, database: Database, name: str, grid: Grid, *, poll_s: float) -> None:
    """Do an experiment to its end, however long hospitals are away.

    Raises:
        Unwanted: it is to stop.
    """
    run_dir = RunDir.open(home.experiments / name)
    study = read_study(run_dir.study_toml(), str(run_dir.path / "study.toml"))
    found = experiments.find(database, name)
    keys = {site.name: site for site in enrolment.known(database, "approved") if site.node_id is not None}
    enrolled = {
        site: Enrolled(keys[site].node_id or 0, keys[site].keys.identity)
        for site in found.participants
        if site in keys
    }
    chronicle, lookout = Chronicle(database, name), Lookout(database)
    job = job_of(study, name, run_dir, len(enrolled), _on_round(database, name), roster_of(home))
    job = replace(job, observer=chronicle)
    own = Identity(home.settings().name, read_secret(home.identity_key))

    def hear(site: str, made: Checkpoint) -> None:
        witness(database, own, site, enrolled[site].key, made)

    link = Link(
        grid,
        WallClock(),
        deadline_s=job.training.deadline_s,
        poll_s=poll_s,
        enrolled=enrolled,
        witness=hear,
        observer=chronicle,
    )
    outcome = Outcome()
    while True:
        _require_wanted(database, name)
        try:
            experiments.update(database, name, state="running", detail="")
            outcome.introductions = link.introduce(fresh_nonce)
            introduced(lookout, outcome.introductions)
            attempt = replace(job, masked_as=f"{name} {secrets.token_hex(4)}")
            conduct(attempt, outcome, OverTheGrid(attempt, link, fresh_nonce))
            finish(study, run_dir, outcome)
            run_dir.write_manifest(manifest_of(home, found, job, outcome))
            experiments.update(database, name, state="finished", detail="", round=job.training.rounds)
            return
        except QuorumError as error:
            log.warning("waiting for hospitals", experiment=name, why=str(error))
            experiments.update(database, name, state="waiting", detail=str(error))
        except ClinimetaError as error:  # trying again would end the same
            experiments.update(database, name, state="failed", detail=str(error))
            failures.told(database, f"round-loop-{found.worker}", error, name)
            return
        except (OSError, SQLAlchemyError) as error:
            if not is_full(error):
                raise
            log.warning("waiting for room on the disk", experiment=name)
            with suppress(SQLAlchemyError):
                experiments.update(database, name, state="waiting", detail=NO_ROOM)
        link.wait(AGAIN_S)


def roster_of(home: Home) -> Roster | None:
    """The roster that the consortium has signed; hospitals check that, the coordinator only reads it."""
    if not home.roster.exists():
        return None
    return SignedRoster.from_bytes(home.roster.read_bytes()).unverified()


def job_of(
    study: Study,
    name: str,
    run_dir: RunDir,
    sites: int,
    notify: Callable[[RoundSummary], None],
    roster: Roster | None = None,
) -> Job:
    """The training that an experiment is."""
    plan = study.plan(study.trained, study.seeds[0])
    primary = study.plan(study.arm(study.primary), study.seeds[0])
    calibrate = primary if study.table.classes else None
    training = study.trained.training
    return Job(name, plan, training, run_dir, sites, calibrate, notify=notify, roster=roster)


def finish(study: Study, run_dir: RunDir, outcome: Outcome) -> None:
    """Write what came out."""
    assert outcome.state is not None
    plan = study.plan(study.arm(study.primary), study.seeds[0])
    model = TrainedModel(plan, outcome.state.params, outcome.temperatures)
    run_dir.write_bytes("model.safetensors", model.to_bytes())


def manifest_of(
    home: Home, experiment: experiments.Experiment, job: Job, outcome: Outcome
) -> dict[str, object]:
    """Where the model is from; hospitals' sizes as the ranges that they told."""
    return {
        "experiment": experiment.id,
        "coordinator": home.settings().name,
        "study": experiment.study,
        "plan": job.plan.digest,
        "software": f"clinimeta {version('clinimeta')}, flwr {version('flwr')}, torch {version('torch')}",
        "started": experiment.made_at,
        "finished": enrolment.now().isoformat(),
        "submissions": experiment.submissions,
        "sites": {
            site: {"rows_from": said.rows_from, "rows_to": said.rows_to, "software": said.software}
            for site, said in sorted(outcome.introductions.items())
        },
    }


def _on_round(database: Database, name: str) -> Callable[[RoundSummary], None]:
    def note(summary: RoundSummary) -> None:
        experiments.update(database, name, round=summary.round, state="running", detail="")
        _require_wanted(database, name)

    return note


def _require_wanted(database: Database, name: str) -> None:
    if experiments.find(database, name).wanted != "running":
        raise Unwanted


if __name__ == "__main__":
    die_with_parent()
    log_to_stderr()
    quiet_flower()
    work(Home(Path(sys.argv[1])), sys.argv[2])

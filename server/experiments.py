"""Experiments: a study that is to be done over the enrolled hospitals, under an id of its own.

What is wanted of it and how it stands is in the database; what came out is a run directory. Flower's runs
come and go under it: one that ends early is followed by another, which goes on from the checkpoint.
"""

import json
import secrets
import shutil
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from clinimeta.common.errors import UserError, nearest
from clinimeta.common.roster_file import SignedRoster
from clinimeta.server import enrolment
from clinimeta.server.audit import By
from clinimeta.server.config import Home
from clinimeta.server.database import Database, experiments

if TYPE_CHECKING:
    from clinimeta.common.study import Study

OVER = ("finished", "failed", "stopped")
NO_ROOM = "no room on the coordinator's disk; it goes on by itself when there is"

LITTLE_MIB = 8
"""With less room on the disk than this nothing is begun: half of a round would be lost."""


@dataclass(frozen=True, slots=True)
class Experiment:
    """An experiment. `state`: queued, running, waiting (`detail` says for whom), finished, failed or stopped.

    `flower_run` is the run that does it now, `worker` who drives it.
    """

    id: str
    study: str
    wanted: str
    state: str
    detail: str
    participants: tuple[str, ...]
    flower_run: int | None
    worker: str
    submissions: int
    round: int
    rounds: int
    made_at: str
    changed_at: str


def start(home: Home, database: Database, study: "Study", participants: list[str], who: By) -> Experiment:
    """A new experiment over these hospitals, queued.

    Raises:
        UserError: too few hospitals, or one that is not approved.
    """
    from clinimeta.server.store import RunDir  # brings torch

    approved = [site.name for site in enrolment.known(database, "approved")]
    for name in participants:
        if name not in approved:
            raise UserError(
                "this hospital cannot take part",
                found=repr(name),
                expected=nearest(name, approved) if approved else "none is approved yet",
                remedy="clinimeta coordinator list",
            )
    arm = study.trained
    needed = max(2, arm.training.aggregation.least_sites)
    if arm.protection.answers == "masked":
        needed = max(needed, arm.protection.min_cohort)
    if arm.protection.answers == "masked":
        _require_roster(home, participants)
    if len(participants) < needed:
        raise UserError(
            "too few hospitals are approved for this study",
            found=f"{len(participants)}",
            expected=f"{needed} or more",
            remedy="invite more: clinimeta coordinator invite NAME",
        )
    name = f"{study.name}-{secrets.token_hex(3)}"
    RunDir.create(home.experiments / name, study.to_toml())
    moment = enrolment.now().isoformat()
    with database.change() as connection:
        connection.execute(
            experiments.insert().values(
                id=name,
                study=study.name,
                wanted="running",
                state="queued",
                detail="",
                participants=json.dumps(sorted(participants)),
                flower_run=None,
                worker="",
                submissions=0,
                round=0,
                rounds=arm.training.rounds,
                made_at=moment,
                changed_at=moment,
            )
        )
        enrolment.record(connection, who, "started", name, study.name)
    return find(database, name)


def _require_roster(home: Home, participants: list[str]) -> None:
    """Secure aggregation needs a signed roster that knows all who take part."""
    if home.roster.exists():
        members = {
            member.site for member in SignedRoster.from_bytes(home.roster.read_bytes()).unverified().members
        }
        missing = sorted(set(participants) - members)
        if not missing:
            return
        found = f"a roster without {', '.join(missing)}"
    else:
        found = "no roster"
    raise UserError(
        "secure aggregation needs a roster, signed offline, of all hospitals that take part",
        where=str(home.roster),
        found=found,
        remedy="clinimeta consortium sign, then clinimeta coordinator roster FILE",
    )


def want(database: Database, experiment: str, wanted: str, who: By) -> Experiment:
    """Say that an experiment should run, or stop.

    Raises:
        UserError: no such experiment, or it is over.
    """
    found = find(database, experiment)
    if found.state in ("finished",) or (found.state == "failed" and wanted == "stopped"):
        raise UserError("this experiment is over", found=f"{experiment}: {found.state}")
    changes: dict[str, Any] = {"wanted": wanted}
    if wanted == "running" and found.state in OVER:
        changes |= {"state": "queued", "detail": "", "flower_run": None, "submissions": 0}
    with database.change() as connection:
        connection.execute(
            experiments.update()
            .where(experiments.c.id == experiment)
            .values(**changes, changed_at=enrolment.now().isoformat())
        )
        enrolment.record(connection, who, "stop" if wanted == "stopped" else "resume", experiment)
    return find(database, experiment)


def has_room(home: Home) -> bool:
    """Whether there is room on the coordinator's disk to go on."""
    return shutil.disk_usage(home.path).free >= LITTLE_MIB * 2**20


def as_shown(home: Home, found: Experiment) -> Experiment:
    """What to tell people: a disk without room has none for the news that it is full, either."""
    if found.state in OVER or has_room(home):
        return found
    return replace(found, state="waiting", detail=NO_ROOM)


def update(database: Database, experiment: str, **changes: Any) -> None:
    """Note how an experiment stands now."""
    with database.change() as connection:
        connection.execute(
            experiments.update()
            .where(experiments.c.id == experiment)
            .values(**changes, changed_at=enrolment.now().isoformat())
        )


def find(database: Database, experiment: str) -> Experiment:
    """The experiment of that id.

    Raises:
        UserError: there is none.
    """
    for found in every(database):
        if found.id == experiment:
            return found
    names = [found.id for found in every(database)]
    raise UserError(
        "there is no such experiment",
        found=repr(experiment),
        expected=nearest(experiment, names) if names else "none was started yet",
        remedy="clinimeta list",
    )


def every(database: Database) -> list[Experiment]:
    """All experiments, the newest first."""
    rows = database.rows(sa.select(experiments).order_by(experiments.c.made_at.desc()))
    return [_read(row) for row in rows]


def _read(row: dict[str, Any]) -> Experiment:
    run = row["flower_run"]
    return Experiment(
        **{
            **row,
            "participants": tuple(json.loads(row["participants"])),
            "flower_run": None if run is None else int(run),
        }
    )

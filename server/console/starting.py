"""New run: a study, the hospitals, privacy and secure aggregation; what stands in the way; start."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import MinLen
from pydantic import Field

from clinimeta.common.arm import Arm
from clinimeta.common.errors import UserError
from clinimeta.common.study import Study, read_study
from clinimeta.common.web.roles import May, Who
from clinimeta.common.web.shell import Action, Change, Done, Screen
from clinimeta.server import enrolment, experiments, proposals, views
from clinimeta.server.console.base import Console, by

UPLOADED = "(uploaded)"


@dataclass(frozen=True, slots=True)
class Offered:
    """A hospital that may take part: whether it is there, and how many rows it says it has."""

    site: str
    present: bool
    rows_from: int | None
    rows_to: int | None


@dataclass(frozen=True, slots=True)
class Planned:
    """A study as it would be run: what it trains, how answers come, what patients are promised, and its plan.

    Hospitals approve plans by `plan`; `objection` is what stands in the way of a start, if anything.
    """

    name: str
    title: str
    arm: str
    algorithm: str
    model: str
    rounds: int
    answers: str
    epsilon: float
    delta: float
    min_cohort: int
    plan: str
    columns: tuple[str, ...]
    objection: str


@dataclass(frozen=True, slots=True)
class Opinion:
    """What a hospital says of the plan; `state`: would answer, would refuse, or not heard."""

    site: str
    state: str
    reasons: tuple[str, ...]
    at: str


@dataclass(frozen=True, slots=True)
class NewRun:
    """What can be chosen, and the study that was; `asked`: hospitals are asked about its plan."""

    studies: tuple[str, ...]
    sites: tuple[Offered, ...]
    chosen: str
    text: str
    planned: Planned | None
    asked: bool
    opinions: tuple[Opinion, ...]
    error: str


class Asking(Change):
    """A study (its TOML) whose plan hospitals are asked about."""

    study: Annotated[str, MinLen(1), Field(max_length=1 << 18)]


class Starting(Change):
    """A study (its TOML), the hospitals, and changes to how it is protected."""

    study: Annotated[str, MinLen(1), Field(max_length=1 << 18)]
    sites: tuple[str, ...] = ()
    answers: Literal["as the study says", "plain", "quantised", "masked"] = "as the study says"


class Keeping(Change):
    """A study's TOML, to be kept among those that can be chosen."""

    study: Annotated[str, MinLen(1), Field(max_length=1 << 18)]


def new_run_screen(console: Console, _who: Who, study: str = "") -> NewRun:
    """The studies to choose from; with `study`, what that one would be."""
    known = studies_of(console)
    with console.database.engine.connect() as connection:
        lines = views.federation(connection, enrolment.now(), limit=1000).sites
    sites = tuple(
        Offered(one.name, one.present, one.rows_from, one.rows_to) for one in lines if one.state == "approved"
    )
    if not study:
        return NewRun(tuple(known), sites, "", "", None, False, (), "")
    if study not in known:
        raise UserError("there is no such study", found=repr(study), remedy="choose one of the list")
    text = known[study]
    try:
        planned, error = planned_as(read_study(text, study), [one.site for one in sites]), ""
    except UserError as found:
        error = f"{found.what} ({found.where})"
        return NewRun(tuple(known), sites, study, text, None, False, (), error)
    asked = planned.plan in proposals.open_proposals(console.database, enrolment.now())
    with console.database.engine.connect() as connection:
        said = proposals.verdicts_on(connection, planned.plan) if asked else {}
    opinions = tuple(_opinion(one.site, said.get(one.site)) for one in sites) if asked else ()
    return NewRun(tuple(known), sites, study, text, planned, asked, opinions, error)


def ask_hospitals(console: Console, who: Who, body: Asking) -> Done:
    """Ask all hospitals what their policies would say to a study; they hear of it within seconds."""
    study = read_study(body.study, "the study")
    proposals.propose(console.database, study.plan(study.trained, study.seeds[0]), by(who, body))
    return Done(f"the hospitals are asked about {study.name}")


def _opinion(site: str, said: proposals.Verdict | None) -> Opinion:
    if said is None:
        return Opinion(site, "not heard", (), "")
    return Opinion(site, "would refuse" if said.reasons else "would answer", said.reasons, said.at)


def keep_study(console: Console, who: Who, body: Keeping) -> Done:
    """Keep an uploaded study in the coordinator's folder."""
    found = read_study(body.study, "the uploaded study")
    folder = console.home.path / "studies"
    folder.mkdir(mode=0o700, exist_ok=True)
    (folder / f"{found.name}.toml").write_text(body.study, encoding="utf-8")
    with console.database.change() as connection:
        enrolment.record(connection, by(who, body), "kept a study", found.name)
    return Done(f"{found.name} can be chosen now")


def start_run(console: Console, who: Who, body: Starting) -> Done:
    """Start a run over the hospitals that were ticked (all approved ones where none was)."""
    study = protected_as(read_study(body.study, "the study"), body.answers)
    approved = [site.name for site in enrolment.known(console.database, "approved")]
    chosen = list(body.sites) or approved
    found = experiments.start(console.home, console.database, study, chosen, by(who, body))
    return Done(f"{found.id} is queued")


def studies_of(console: Console) -> dict[str, str]:
    """All studies that can be chosen: those kept in the coordinator's folder, and the built-in ones."""
    folder = console.home.path / "studies"
    kept = {path.stem: path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.toml"))}
    return {**kept, **{name: text for name, text in console.studies.items() if name not in kept}}


def protected_as(study: Study, answers: str) -> Study:
    """The study with its trained arm's answers in another form.

    Raises:
        UserError: a promise needs noise, which plain answers have not.
    """
    if answers == "as the study says":
        return study

    def changed(arm: Arm) -> Arm:
        if arm.name != study.trained.name:
            return arm
        protection = arm.protection.model_copy(update={"answers": answers})
        return arm.model_copy(update={"protection": type(protection).model_validate(protection.model_dump())})

    made = study.model_copy(update={"arms": tuple(changed(arm) for arm in study.arms)})
    return read_study(made.to_toml(), "the study")


def planned_as(study: Study, approved: Sequence[str]) -> Planned:
    """What a study would be."""
    arm = study.trained
    plan = study.plan(arm, study.seeds[0])
    protection = arm.promised
    needed = max(2, arm.training.aggregation.least_sites)
    if protection.answers == "masked":
        needed = max(needed, protection.min_cohort)
    short = f"it needs {needed} hospitals, and {len(approved)} are approved" if len(approved) < needed else ""
    return Planned(
        study.name,
        study.title,
        arm.name,
        arm.algorithm.name,
        arm.model.name,
        arm.training.rounds,
        protection.answers,
        protection.epsilon,
        protection.delta,
        protection.min_cohort,
        plan.digest,
        tuple(column.name for column in study.table.columns),
        short,
    )


SCREENS = (Screen("/new", May.STUDY, "New run", new_run_screen, "new_run.html", nav=True),)
ACTIONS = (
    Action("/new/start", May.STUDY, "Start a run", Starting, start_run, "/runs"),
    Action("/new/ask", May.STUDY, "Ask the hospitals", Asking, ask_hospitals, "/new"),
    Action("/new/study", May.STUDY, "Keep a study", Keeping, keep_study, "/new"),
)

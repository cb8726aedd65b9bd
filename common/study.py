"""A study: everything that a run depends on, in one TOML file, and the plan that a site gets of it.

A study has arms (ways to learn, compared on the same patients) and evaluations (where and with how
many labelled patients they are judged). Each arm inherits the study's `[model]`, `[episodes]`, `[training]`
and `[protection]` and overrides what it names.
"""

import json
import tomllib
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

import tomli_w
from annotated_types import Ge, Le, MinLen
from pydantic import model_validator

from clinimeta.common.arm import Arm as Arm
from clinimeta.common.arm import Training as Training
from clinimeta.common.errors import StudyError, nearest
from clinimeta.common.metrics import CLASS_SCORES, NUMBER_SCORES, SCORES
from clinimeta.common.params import shapes
from clinimeta.common.plan import Choice as Choice
from clinimeta.common.plan import Plan as Plan
from clinimeta.common.protection import Protection
from clinimeta.common.rng import generator
from clinimeta.common.settings import Settings, parse
from clinimeta.common.tasks.sampler import Episodes
from clinimeta.common.tasks.schema import Schema

Share = Annotated[float, Ge(0), Le(1)]
Names = Annotated[tuple[str, ...], MinLen(1)]


class Evaluation(Settings):
    """Where and how the arms are judged.

    `split`: `unseen_sites` holds the last `sites` hospitals out; `site_folds` each hospital once, in
    `folds`; `leave_one_site_out` one at a time; `own_test_rows` tests every hospital on the rows that
    the data set's own protocol keeps back. `shots` are support sizes (a class, or rows): a number, "half"
    (each half of the hospital's rows predicts the other) or "all" (all its training rows). `pooled`
    scores the rows of all hospitals together instead of the mean over hospitals. `references` are centrally
    trained models beside the arms. Every `curve_every` rounds the arms are scored with `curve_shots`.
    """

    name: str
    title: str = ""
    split: Literal["unseen_sites", "site_folds", "leave_one_site_out", "own_test_rows"] = "unseen_sites"
    sites: Annotated[int, Ge(0)] = 0
    folds: Annotated[int, Ge(2)] = 5
    shots: Annotated[tuple[Annotated[int, Ge(0)] | Literal["half", "all"], ...], MinLen(1)] = (1, 5, 10, 20)
    draw: Literal["per_class", "rows"] = "per_class"
    repeats: Annotated[int, Ge(1)] = 10
    scores: Names = ("auroc", "accuracy")
    pooled: bool = False
    references: tuple[str, ...] = ()
    curve_every: Annotated[int, Ge(0)] = 0
    curve_shots: Annotated[int, Ge(0)] = 5
    bootstrap: Annotated[int, Ge(100)] = 1000

    @model_validator(mode="after")
    def _known_scores(self) -> "Evaluation":
        for name in self.scores:
            if name not in SCORES:
                raise ValueError(f"'{name}' is no score; {nearest(name, SCORES)}")
        if len(set(self.shots)) < len(self.shots):
            raise ValueError("shots: a size occurs twice")
        return self


class Published(Settings):
    """A row that others published, printed beside ours and labelled as published."""

    evaluation: str
    method: str
    source: str
    values: Mapping[str, float]


class Question(Settings):
    """What a study asks: does one arm beat another at this many shots? Answered with an interval."""

    evaluation: str
    arm: str
    against: str
    shots: int | Literal["half", "all"]
    score: str = "auroc"


class Faults(Settings):
    """How often (0 to 1) a simulated site is silent, too slow, fails, or sends a corrupt answer."""

    silent: Share = 0.0
    slow: Share = 0.0
    error: Share = 0.0
    corrupt: Share = 0.0

    @model_validator(mode="after")
    def _shares_fit(self) -> "Faults":
        if self.silent + self.slow + self.error + self.corrupt > 1 + 1e-9:
            raise ValueError("the shares add up to more than 1")
        return self


class Study(Settings):
    """Everything that a run depends on; `primary` is the arm whose model a new hospital adapts."""

    name: str
    title: str = ""
    description: str = ""
    application: str = "diagnosis"
    seeds: Annotated[tuple[Annotated[int, Ge(0)], ...], MinLen(1)] = (0,)
    primary: str
    data: Choice
    table: Schema
    arms: Annotated[tuple[Arm, ...], MinLen(1)]
    evaluations: tuple[Evaluation, ...] = ()
    questions: tuple[Question, ...] = ()
    published: tuple[Published, ...] = ()
    faults: Faults = Faults()

    @model_validator(mode="after")
    def _names_resolve(self) -> "Study":
        arms = {arm.name: arm for arm in self.arms}
        if len(arms) < len(self.arms):
            raise ValueError("two arms have the same name")
        evaluations = [e.name for e in self.evaluations]
        if len(set(evaluations)) < len(evaluations):
            raise ValueError("two evaluations have the same name")
        wanted: list[tuple[str, str, Iterable[str]]] = [("primary", self.primary, arms)]
        wanted += [(f"trained_by of arm '{a.name}'", a.trained_by, arms) for a in self.arms if a.trained_by]
        for question in self.questions:
            wanted += [("arm of a question", question.arm, arms), ("against", question.against, arms)]
            wanted += [("evaluation of a question", question.evaluation, evaluations)]
        for where, name, known in wanted:
            if name not in known:
                raise ValueError(f"{where}: there is no '{name}'; {nearest(name, known)}")
        for arm in self.arms:
            teacher = arms[arm.trained_by] if arm.trained_by else arm
            if teacher.trained_by and teacher is not arm:
                raise ValueError(f"arm '{arm.name}': '{arm.trained_by}' is not trained itself")
            if teacher.model != arm.model:
                raise ValueError(f"arm '{arm.name}': '{arm.trained_by}' trains another model")
            if self.table.classes and arm.episodes.ways > len(self.table.classes):
                raise ValueError(
                    f"arm '{arm.name}': {arm.episodes.ways} ways, but {len(self.table.classes)} classes"
                )
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds: one occurs twice")
        measured = {e.name: e for e in self.evaluations}
        for question in self.questions:
            asked = measured[question.evaluation]
            if question.shots not in asked.shots:
                raise ValueError(f"a question asks for shots = {question.shots}, which is not measured")
            if question.score not in asked.scores:
                raise ValueError(f"a question asks for the score '{question.score}', which is not measured")
        for row in self.published:
            if row.evaluation not in measured:
                raise ValueError(
                    f"evaluation of a published row: there is no '{row.evaluation}'; "
                    + nearest(row.evaluation, measured)
                )
        return self

    def arm(self, name: str) -> Arm:
        """The arm of that name.

        Raises:
            StudyError: there is none.
        """
        for arm in self.arms:
            if arm.name == name:
                return arm
        names = [arm.name for arm in self.arms]
        raise StudyError(f"the study '{self.name}' has no arm '{name}'", expected=nearest(name, names))

    @property
    def trained(self) -> Arm:
        """The arm whose training gives the primary arm's model: itself, or the one that it is trained by."""
        primary = self.arm(self.primary)
        return self.arm(primary.trained_by) if primary.trained_by else primary

    def plan(self, arm: Arm, seed: int) -> Plan:
        """What the sites are told about one arm; one that adapts another's model is protected as that is."""
        teacher = self.arm(arm.trained_by) if arm.trained_by else arm
        return Plan(
            study=self.name,
            arm=arm.name,
            application=self.application,
            table=self.table,
            model=arm.model,
            algorithm=arm.algorithm,
            episodes=arm.episodes,
            local_meta_steps=arm.training.local_meta_steps,
            local_rate=arm.training.local_rate,
            proximal=arm.training.proximal,
            weighting=arm.training.weighting,
            protection=teacher.promised,
            seed=seed,
            trainable=arm.training.trainable,
            rank=arm.training.rank,
        )

    def to_toml(self) -> str:
        """The study as a file that `read_study` reads back to an equal study."""
        return tomli_w.dumps(self.model_dump(mode="json"))


_SHARED = ("model", "episodes", "training", "protection")


class _Shared(Settings):
    """The groups that every arm inherits, as far as they can be checked alone."""

    episodes: Episodes = Episodes()
    training: Training = Training()
    protection: Protection = Protection()


def read_study(text: str, where: str) -> Study:
    """Read a study file's text.

    Raises:
        StudyError: not TOML, an unknown or missing key, a value that does not fit; names the key.
    """
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise StudyError(
            "the study is not valid TOML", where=where, found=str(error), remedy="correct that line"
        ) from None
    shared = {key: values.pop(key) for key in _SHARED if key in values}
    for key, group in shared.items():
        if not isinstance(group, dict):
            raise StudyError(
                f"the key '{key}' has a value that does not fit",
                where=where,
                found=json.dumps(group, default=str),
                expected=f"a table: [{key}]",
                remedy="correct the value",
            )
    own = {key: shared[key] for key in _SHARED if key in shared and key != "model"}
    parse(_Shared, own, where)  # so that a wrong key is named where it stands, not in every arm
    arms = values.get("arms", [])
    for arm in arms if isinstance(arms, list) else []:
        if isinstance(arm, dict):
            for key, defaults in shared.items():
                arm[key] = _inherit(defaults, arm.get(key, {}))
            arm.setdefault("episodes", {})
            arm.setdefault("training", {})
    study = parse(Study, values, where)
    check(study, where)
    return study


def check(study: Study, where: str = "") -> None:
    """What no single key shows: whether the parts of a study work together.

    Raises:
        StudyError: a hyperparameter, the target and the application, or an arm and its teacher do not fit.
    """

    def require(fits: bool, what: str, expected: str) -> None:
        if not fits:
            raise StudyError(what, where=where, expected=expected, remedy="correct the study")

    numbers = not study.table.classes
    require(
        (study.application == "regression") == numbers,
        f"the application '{study.application}' does not fit the target",
        "classes for a diagnosis, none for a regression",
    )
    for arm in study.arms:
        plan = study.plan(arm, study.seeds[0])
        learner = plan.learner()
        plan.subspace()  # raises where `trainable` does not fit
        by_class = arm.episodes.draw == "per_class"
        require(
            not (numbers and by_class),
            f"arm '{arm.name}': a number cannot be drawn per class",
            'draw = "rows" in [episodes]',
        )
        require(
            not arm.training.proximal or arm.training.local_meta_steps > 1,
            f"arm '{arm.name}': `proximal` says nothing to a single local step",
            "`local_meta_steps` over 1 in [training], or no `proximal`",
        )
        require(
            not arm.episodes.tasks_a_patient or arm.training.local_meta_steps == 1,
            f"arm '{arm.name}': `tasks_a_patient` bounds the tasks of a single local step",
            "`local_meta_steps` = 1 for this arm, or no `tasks_a_patient`",
        )
        promised = arm.protection.epsilon > 0
        require(
            not arm.protection.noise_multiplier,
            f"arm '{arm.name}': `noise_multiplier` follows from epsilon, delta and rounds",
            "`epsilon` instead",
        )
        summed = arm.training.aggregation.rule == "mean"
        require(
            summed or not arm.protection.in_whole_numbers,
            f"arm '{arm.name}': '{arm.training.aggregation.rule}' looks at each hospital's answer, "
            "which whole numbers are there to add up",
            'rule = "mean" in [training.aggregation], or answers = "plain" in [protection]',
        )
        require(
            not (promised and arm.training.gate.on),
            f"arm '{arm.name}': the gate needs the query loss, which does not travel under a promise",
            "no gate, or no `epsilon`",
        )
        require(
            not promised or arm.training.weighting == "tasks",
            f"arm '{arm.name}': how many rows a hospital has is private under a promise",
            'weighting = "tasks" in [training]',
        )
        cohort, least = arm.training.cohort_size, arm.protection.min_cohort
        require(
            arm.protection.answers != "masked" or not 0 < cohort < least,
            f"arm '{arm.name}': a cohort of {cohort} is smaller than `min_cohort` allows",
            f"`cohort_size` of {least} or more, or 0 for all hospitals",
        )
        asked, needed = arm.training.cohort_size, arm.training.aggregation.least_sites
        require(
            not asked or asked >= needed,
            f"arm '{arm.name}': a cohort of {asked} is too small for '{arm.training.aggregation.rule}'",
            f"`cohort_size` of {needed} or more in [training], or 0",
        )
        judged = bool(study.evaluations) and not numbers
        require(
            not judged or learner.objective.classes == len(study.table.classes),
            f"arm '{arm.name}': episodes of {arm.episodes.ways} ways cannot be judged on all classes",
            f"ways = {len(study.table.classes)}",
        )
        if arm.trained_by:
            teacher = study.plan(study.arm(arm.trained_by), study.seeds[0]).learner()
            template = generator("template")
            require(
                shapes(learner.init(template)) == shapes(teacher.init(template)),
                f"arm '{arm.name}': the meta-parameters of '{arm.trained_by}' are not its own kind",
                "an algorithm with meta-parameters of the same names and shapes",
            )
    for evaluation in study.evaluations:
        fitting = NUMBER_SCORES if numbers else CLASS_SCORES
        for score in evaluation.scores:
            require(score in fitting, f"'{score}' does not score this target", f"one of {', '.join(fitting)}")
        require(
            not (numbers and evaluation.draw == "per_class"),
            f"evaluation '{evaluation.name}': a number cannot be drawn per class",
            'draw = "rows"',
        )


def _inherit(defaults: Any, overrides: Any) -> Any:
    """`overrides` over `defaults`, group by group; another `name` or `rule` takes none of the old options."""
    if not (isinstance(defaults, dict) and isinstance(overrides, dict)):
        return overrides
    if any(key in overrides and overrides[key] != defaults.get(key) for key in ("name", "rule")):
        return overrides
    return defaults | {key: _inherit(defaults.get(key), value) for key, value in overrides.items()}

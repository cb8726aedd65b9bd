"""The part of a study that a site acts on: what a hospital reads, and approves, and nothing else."""

import functools
import hashlib
import json
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt
from pydantic import BaseModel, ConfigDict

from clinimeta.common.algorithms import ALGORITHMS
from clinimeta.common.algorithms.base import MetaLearner
from clinimeta.common.applications import APPLICATIONS
from clinimeta.common.errors import StudyError
from clinimeta.common.models import MODELS
from clinimeta.common.protection import Protection
from clinimeta.common.rng import generator
from clinimeta.common.settings import Settings, parse
from clinimeta.common.subspace import Part, Subspace, subspace_of
from clinimeta.common.tasks.sampler import Episodes
from clinimeta.common.tasks.schema import Schema


class Choice(BaseModel):
    """A registered thing by name, with its hyperparameters beside it."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)

    name: str

    @property
    def options(self) -> dict[str, Any]:
        """The hyperparameters."""
        return dict(self.model_extra or {})


class Plan(Settings):
    """The part of a study that a site acts on; what a hospital approves is this and nothing else."""

    study: str
    arm: str
    application: str
    table: Schema
    model: Choice
    algorithm: Choice
    episodes: Episodes
    local_meta_steps: Annotated[int, Ge(1)]
    local_rate: Annotated[float, Gt(0)]
    proximal: Annotated[float, Ge(0)]
    weighting: Literal["tasks", "rows"]
    protection: Protection = Protection()
    seed: Annotated[int, Ge(0)]
    trainable: Part = "all"
    rank: Annotated[int, Ge(0)] = 0

    def canonical(self) -> bytes:
        """The one byte string of this plan (sorted keys, no spaces)."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":")).encode()

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical bytes, hexadecimal."""
        return hashlib.sha256(self.canonical()).hexdigest()

    @staticmethod
    def from_bytes(data: bytes) -> "Plan":
        """Read canonical bytes back.

        Raises:
            StudyError: not a plan of this version, or not in canonical form.
        """
        try:
            values = json.loads(data)
        except (ValueError, RecursionError):
            raise StudyError("the plan received is not JSON") from None
        plan = parse(Plan, values, "the plan received")
        if plan.canonical() != data:
            raise StudyError("the plan received is not in canonical form")
        return plan

    def learner(self) -> MetaLearner[Any]:
        """The learner that this plan describes.

        Raises:
            StudyError: an unknown algorithm, model or application, or a hyperparameter out of range.
        """
        return _learner_of(self.canonical())

    def subspace(self) -> Subspace:
        """The part of the meta-parameters that learns.

        Raises:
            StudyError: `trainable` does not fit the learner; or as `learner`.
        """
        return _subspace_of(self.canonical())

    def unpromised(self) -> tuple[str, ...]:
        """Why a promise to each patient (`privacy.promise`) would not hold here; empty where it does."""
        reasons = {
            "tasks_a_patient in [episodes] is 0: one patient can change every task": (
                self.episodes.tasks_a_patient == 0
            ),
            "local_meta_steps in [training] is over 1: only one step's tasks can be clipped one by one": (
                self.local_meta_steps > 1
            ),
            'weighting in [training] is "rows": it scales what was clipped': (self.weighting == "rows"),
            'normalise in [table] is "site": one patient moves the values of all the others': (
                self.table.normalise == "site"
            ),
        }
        return tuple(reason for reason, holds in reasons.items() if holds)


@functools.lru_cache(maxsize=64)
def _learner_of(canonical: bytes) -> MetaLearner[Any]:
    plan = Plan.from_bytes(canonical)
    where = f"arm '{plan.arm}'"
    per_class = plan.table.classes and plan.episodes.draw == "per_class"
    classes = plan.episodes.ways if per_class else len(plan.table.classes)
    objective = APPLICATIONS.build(plan.application, {}, where, classes=classes)
    model = MODELS.build(
        plan.model.name,
        plan.model.options,
        where,
        features=len(plan.table.features),
        outputs=objective.outputs,
    )
    return ALGORITHMS.build(
        plan.algorithm.name, plan.algorithm.options, where, model=model, objective=objective
    )


@functools.lru_cache(maxsize=64)
def _subspace_of(canonical: bytes) -> Subspace:
    plan, learner = Plan.from_bytes(canonical), _learner_of(canonical)
    template = learner.init(generator("template"))
    try:
        return subspace_of(plan.trainable, template, learner.model.head, plan.rank, plan.seed)
    except ValueError as error:
        raise StudyError(
            f"arm '{plan.arm}': trainable = \"{plan.trainable}\" does not fit",
            found=str(error),
            expected='"all", "head" where the learner has a last layer, or "low_rank" with a rank',
            remedy="correct `trainable` in [training]",
        ) from None

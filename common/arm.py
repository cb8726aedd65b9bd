"""One way to learn: an arm of a study, and how it is trained."""

from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le
from pydantic import model_validator

from clinimeta.common.optim import OuterSettings
from clinimeta.common.plan import Choice
from clinimeta.common.privacy.promise import Promise
from clinimeta.common.protection import Protection
from clinimeta.common.safeguards import AggregationSettings, GateSettings
from clinimeta.common.settings import Settings
from clinimeta.common.subspace import Part
from clinimeta.common.tasks.sampler import Episodes


class Training(Settings):
    """How one arm is trained: rounds, cohort, outer step, and what a usable answer is.

    A site takes `local_meta_steps` steps of size `local_rate` before it sends the difference; with one
    step it sends the plain meta-gradient. `proximal` is FedProx's mu (Li et al., MLSys 2020, eq. 2): each of
    the steps also descends proximal/2 |params - params received|^2. A round needs answers from `quorum` of
    its cohort within `deadline_s`, and asks the silent again up to `attempts` times. An answer whose norm (a
    task) is over `max_norm`, or over `max_norm_ratio` times the cohort's median, is refused. `aggregation`
    says how the rest become one, `gate` when a step that did harm is undone. `trainable` is what learns: all
    meta-parameters, the last layer only, or a change of rank `rank` of each weight.
    """

    rounds: Annotated[int, Ge(0)] = 50
    cohort_size: Annotated[int, Ge(0)] = 0
    outer: OuterSettings = OuterSettings()
    local_meta_steps: Annotated[int, Ge(1)] = 1
    local_rate: Annotated[float, Gt(0)] = 0.05
    proximal: Annotated[float, Ge(0)] = 0.0
    weighting: Literal["tasks", "rows"] = "tasks"
    quorum: Annotated[float, Gt(0), Le(1)] = 0.5
    deadline_s: Annotated[float, Gt(0)] = 120.0
    attempts: Annotated[int, Ge(1)] = 3
    max_norm: Annotated[float, Gt(0)] = 1e4
    max_norm_ratio: Annotated[float, Gt(1)] = 1000.0
    trainable: Part = "all"
    rank: Annotated[int, Ge(0)] = 0
    aggregation: AggregationSettings = AggregationSettings()
    gate: GateSettings = GateSettings()

    @model_validator(mode="after")
    def _rank_is_of_low_rank(self) -> "Training":
        if (self.trainable == "low_rank") != (self.rank > 0):
            raise ValueError('a rank over 0 for trainable = "low_rank", and for nothing else')
        return self


class Arm(Settings):
    """One way to learn. With `trained_by` it adapts another arm's meta-parameters instead of its own."""

    name: str
    label: str = ""
    algorithm: Choice
    model: Choice
    episodes: Episodes
    training: Training
    protection: Protection = Protection()
    trained_by: str = ""

    @property
    def promised(self) -> Protection:
        """The protection, with the noise that its promise takes over all rounds."""
        protection = self.protection
        if not (protection.epsilon and self.training.rounds):
            return protection
        promise = Promise(protection.epsilon, protection.delta)
        return protection.model_copy(
            update={"noise_multiplier": promise.noise_multiplier(self.training.rounds)}
        )

    @property
    def title(self) -> str:
        """What a table calls it."""
        return self.label or self.name

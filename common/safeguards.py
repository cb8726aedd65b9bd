"""What a study asks of the coordinator against damage: how answers become one, when a step is undone."""

import math
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt
from pydantic import Field, model_validator

from clinimeta.common.settings import Settings

Rule = Literal["mean", "norm_clipped_mean", "trimmed_mean", "median", "multi_krum"]


class AggregationSettings(Settings):
    """The rule that makes one meta-gradient of a cohort's answers, and the one number that the rule needs.

    `mean` weighs each site by its tasks or rows. Under every other rule each site counts once: a weight is
    the site's own claim, and who lies about a gradient may lie about a weight. All rules come after the
    checks of single answers (`max_norm`, `max_norm_ratio`); the robust ones also hold where an attacker
    stays within them. They need to see every answer, so they cannot be had together with secure aggregation.
    """

    rule: Rule = "mean"
    clip: Annotated[float, Ge(0)] = Field(
        default=0.0, description="of norm_clipped_mean: largest norm a task; 0: the cohort's median norm"
    )
    trim: Annotated[float, Ge(0), Lt(0.5)] = Field(
        default=0.0, description="of trimmed_mean: share of the sites cut off at each end"
    )
    bad_sites: Annotated[int, Ge(0)] = Field(
        default=0, description="of multi_krum: how many bad sites a round may hold"
    )

    @model_validator(mode="after")
    def _options_are_of_the_rule(self) -> "AggregationSettings":
        owners = {"clip": "norm_clipped_mean", "trim": "trimmed_mean", "bad_sites": "multi_krum"}
        for option, owner in owners.items():
            if getattr(self, option) and self.rule != owner:
                raise ValueError(f"no {option} for '{self.rule}': it is of {owner}")
        for option in ("trim", "bad_sites"):
            if self.rule == owners[option] and not getattr(self, option):
                raise ValueError(f"'{self.rule}' needs a {option} over 0")
        return self

    @property
    def least_sites(self) -> int:
        """How many usable answers the rule needs to mean anything.

        Of two nobody can say which is bad. Krum needs 2f + 2 < n (Blanchard et al., NeurIPS 2017, section 4):
        with no more than that a bad site need only be silent to stall the round, so ask some more.

        >>> AggregationSettings(rule="multi_krum", bad_sites=2).least_sites
        7
        """
        if self.rule == "mean":
            return 1
        return 2 * self.bad_sites + 3

    def cut(self, sites: int) -> int:
        """How many sites `trimmed_mean` cuts off at each end: rounded up, and at least one is left.

        >>> AggregationSettings(rule="trimmed_mean", trim=0.2).cut(20)
        4
        """
        return min(math.ceil(self.trim * sites - 1e-9), (sites - 1) // 2)


class GateSettings(Settings):
    """When the coordinator undoes an outer step, judged by the query loss that the next round's sites report.

    A step is undone if the mean query loss after it is not finite, or is over `factor` times the best of the
    last `window` accepted ones by more than `margin` (in units of the loss). After it the next step is
    `shrink` times as long; each accepted step takes one shortening back. More than `max_rollbacks` undone
    steps end the training with an error. The last step is judged by one more round, which teaches nothing.
    """

    on: bool = False
    factor: Annotated[float, Gt(1)] = 2.0
    margin: Annotated[float, Ge(0)] = 0.1
    window: Annotated[int, Ge(1)] = 10
    shrink: Annotated[float, Gt(0), Le(1)] = 0.5
    max_rollbacks: Annotated[int, Ge(0)] = 5

    def limit(self, losses: list[float]) -> float:
        """The largest mean query loss that is accepted after these; infinite where there are none yet.

        A loss may be below 0 (a log-likelihood): there `factor` widens by the size of the best.

        >>> GateSettings(factor=2.0, margin=0.1).limit([0.7, 0.5])
        1.1
        """
        if not losses:
            return math.inf
        best = min(losses[-self.window :])
        return best + (self.factor - 1) * abs(best) + self.margin

"""How a site's answers are protected: what is cut, rounded and masked before anything leaves."""

from typing import Annotated, Literal

from annotated_types import Ge, Gt, Lt
from pydantic import model_validator

from clinimeta.common.settings import Settings


class Protection(Settings):
    """Of the answers of one arm; a hospital approves it as a part of the plan.

    `answers = "plain"`: floats, which the coordinator sees. `"quantised"`: each task's meta-gradient is cut
    to the norm `clip` and a site's sum is rounded to whole numbers, which the coordinator sees. `"masked"`:
    the same whole numbers under secure aggregation: the coordinator learns the sum over at least `min_cohort`
    sites and nothing else. The last two give results that are equal to the bit.

    With `epsilon` over 0 the whole training is (epsilon, `delta`)-private for each patient: noise of
    `noise_multiplier` times what one patient can change (which the study works out of its rounds) is in every
    sum. Masked: each site adds its share, enough for the fewest survivors that may be, of whom
    `colluders` know their own; quantised: the coordinator adds it, and is trusted. `noise = "local"`: each
    site adds all of it, so that its own answer keeps the promise, whoever sees it. Weights and metrics
    then do not travel.

    Weights and metrics travel as further whole numbers. A site counts for at most `max_rows` rows where
    sites are weighted by rows.
    """

    answers: Literal["plain", "quantised", "masked"] = "plain"
    clip: Annotated[float, Gt(0)] = 10.0
    min_cohort: Annotated[int, Ge(1)] = 3
    max_rows: Annotated[int, Ge(1)] = 10_000
    epsilon: Annotated[float, Ge(0)] = 0.0
    delta: Annotated[float, Gt(0), Lt(1)] = 1e-6
    colluders: Annotated[int, Ge(0)] = 0
    noise: Literal["shared", "local"] = "shared"
    noise_multiplier: Annotated[float, Ge(0)] = 0.0

    @model_validator(mode="after")
    def _masks_hide_among_several(self) -> "Protection":
        if self.answers == "masked" and self.min_cohort < 2:
            raise ValueError("min_cohort: the sum over one site hides nothing")
        if self.epsilon and self.answers == "plain":
            raise ValueError('epsilon: noise needs answers in whole numbers, answers = "masked"')
        if self.colluders >= self.min_cohort:
            raise ValueError("colluders: somebody honest must be left in the smallest cohort")
        return self

    @property
    def in_whole_numbers(self) -> bool:
        """Whether answers are cut and rounded."""
        return self.answers != "plain"

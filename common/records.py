"""What travels between the coordinator and a site, as frozen values. There is nothing else.

Every order carries a fresh nonce that its answer repeats. What a site answers holds sums over its
tasks, weights and allow-listed aggregate metrics: never a row, a value or an identifier of a patient.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from clinimeta.common.metrics import Mean
from clinimeta.common.typing import Params

VERSION = 1
"""Of the records as a whole; a peer with another version is refused."""


@dataclass(frozen=True, slots=True)
class IntroductionOrder:
    """The coordinator asks: who are you?"""

    nonce: str


@dataclass(frozen=True, slots=True)
class Introduction:
    """The site's name, its software, and about how many rows it has (a range, never a count)."""

    nonce: str
    site: str
    software: str
    rows_from: int
    rows_to: int


@dataclass(frozen=True, slots=True)
class MetaGradientOrder:
    """Adapt `params` to your own tasks as `plan` says (canonical bytes), and send the meta-gradient."""

    nonce: str
    run: str
    round: int
    plan: bytes
    params: Params


@dataclass(frozen=True, slots=True)
class MetaGradient:
    """The sum of the site's meta-gradients over its tasks, and the weight that the sum stands for.

    After several local steps `gradient` is `weight * (params received - params reached) / local_rate`,
    which for one step is the plain sum.
    """

    nonce: str
    run: str
    round: int
    site: str
    weight: float
    gradient: Params
    metrics: Mapping[str, Mean]


@dataclass(frozen=True, slots=True)
class QuantisedOrder:
    """As `MetaGradientOrder`, to be answered in whole numbers; up to `sites` are asked."""

    nonce: str
    run: str
    round: int
    plan: bytes
    sites: int
    params: Params


@dataclass(frozen=True, slots=True)
class Quantised:
    """The site's meta-gradient, weight and metrics as 32-bit words (`contributions`, `secagg.ring`)."""

    nonce: str
    run: str
    round: int
    site: str
    words: bytes


@dataclass(frozen=True, slots=True)
class MaskingOrder:
    """One or two requests of secure aggregation (`secagg.messages`), as bytes.

    `plan` and `params` come with the request for the masked vector, and `plan` alone with the first request
    of a conversation, so that a hospital sees it before it agrees to anything; else they are empty.
    """

    nonce: str
    run: str
    round: int
    plan: bytes
    requests: tuple[bytes, ...]
    params: Params


@dataclass(frozen=True, slots=True)
class Masking:
    """The site's answers to the requests, in their order."""

    nonce: str
    run: str
    site: str
    answers: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class CalibrationOrder:
    """Measure the log loss of your adapted tasks at each temperature; nothing is learned."""

    nonce: str
    run: str
    plan: bytes
    params: Params
    temperatures: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Calibration:
    """For each size of support set the log loss summed over query rows, flattened: sizes x temperatures."""

    nonce: str
    run: str
    site: str
    shots: tuple[int, ...]
    losses: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Refusal:
    """A site says no: `code` is one of `REFUSALS`, `reason` a sentence without any patient's value."""

    nonce: str
    site: str
    code: str
    reason: str


REFUSALS = {
    "bad_order": "the order could not be read, or its parameters do not fit its plan",
    "bad_plan": "the plan names something that this site does not have",
    "table_mismatch": "the site's table does not have the plan's columns",
    "too_few_rows": "the site has too few rows for a single task, or for its own policy",
    "not_finite": "the site's own result was not finite",
    "not_protected": "the order asks for an answer with less protection than its plan promises",
    "budget_spent": "the answer would cost patients more privacy than they were promised",
    "no_identity": "the site has no key and roster, which secure aggregation needs",
    "internal": "the site failed; its own log says why",
    # by the site's own policy, before a record is looked at
    "too_large": "the order, its plan or its answer is larger than the site allows",
    "not_approved": "nobody at the site has approved this plan, or the approval was withdrawn or has ended",
    "too_many_rounds": "the site has given as many answers today as it allows",
    "algorithm_not_allowed": "the site does not allow the plan's algorithm",
    "model_not_allowed": "the site does not allow the plan's model",
    "column_not_allowed": "the plan reads a column that the site does not allow",
    "secure_aggregation_required": "the site gives no answer that the coordinator could read alone",
    "cohort_too_small": "the plan lets a sum over fewer hospitals be opened than the site allows",
    "too_few_tasks": "what the coordinator would see is a sum over fewer tasks than the site allows",
    "promise_required": "the site answers only with noise that hospitals add, for a promise to each patient",
    "promise_too_weak": "the plan promises patients less privacy than the site calls a promise",
    "no_budget": "the site has no privacy budget, which a promise to its patients needs",
    "metric_not_allowed": "a metric would leave that the site does not allow",
    "calibration_not_allowed": "the site does not measure temperatures",
}
"""Why a site says no: code -> what it means."""

Order: TypeAlias = IntroductionOrder | MetaGradientOrder | QuantisedOrder | MaskingOrder | CalibrationOrder
Reply: TypeAlias = Introduction | MetaGradient | Quantised | Masking | Calibration | Refusal


def count_range(count: int) -> tuple[int, int]:
    """The range that stands for an exact count outside the hospital.

    >>> count_range(3), count_range(37), count_range(740)
    ((0, 9), (20, 49), (500, 999))
    """
    bounds = [0, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000]
    for low, high in itertools.pairwise(bounds):
        if count < high:
            return low, high - 1
    return bounds[-1], 10**9

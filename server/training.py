"""The state of one training, the step that a round takes, and what is remembered of the round."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from clinimeta.common.algorithms.base import MetaLearner
from clinimeta.common.errors import NumericalError
from clinimeta.common.optim import OuterOptimizer
from clinimeta.common.params import is_finite
from clinimeta.common.rng import generator
from clinimeta.common.subspace import ALL, Subspace
from clinimeta.common.typing import Params


@dataclass(frozen=True, slots=True)
class TrainingState:
    """Everything that the next round depends on; randomness is a function of the round, so not here.

    `gate` is what the hold-out gate remembers (`gate.py`); empty where there is none.
    """

    round: int
    params: Params
    optimizer: Params
    gate: Params = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RoundSummary:
    """One round of one training, as `metrics.jsonl` holds it.

    `training` names seed, split and arm. `metrics` are means over the hospitals' query sets after
    adaptation. `curve` holds scores at unseen hospitals, never used to choose anything. `rollbacks`
    counts the steps that the hold-out gate undid in this round. `by_site` has each hospital's own metrics,
    where answers come in clear.
    """

    training: str
    arm: str
    round: int
    cohort: int
    accepted: int
    refused: Mapping[str, str]
    silent: tuple[str, ...]
    metrics: Mapping[str, float]
    gradient_norm: float
    bytes_down: int
    bytes_up: int
    seconds: float
    curve: Mapping[str, float]
    rollbacks: int = 0
    by_site: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


def begin(
    learner: MetaLearner[Any], optimizer: OuterOptimizer, seed: int, subspace: Subspace = ALL
) -> TrainingState:
    """The state before round 1: the same for every arm that shares learner and seed."""
    params = learner.init(generator("init", seed))
    return TrainingState(0, params, optimizer.init(subspace.at(params)))


def step(
    state: TrainingState, gradient: Params, optimizer: OuterOptimizer, subspace: Subspace = ALL
) -> TrainingState:
    """The outer step, in the numbers that learn; all others stay as they are, to the bit.

    Raises:
        NumericalError: it left the finite numbers.
    """
    values, optimizer_state = optimizer.update(gradient, state.optimizer, subspace.at(state.params))
    params = subspace.put(state.params, values)
    if not is_finite(params):
        raise NumericalError(
            f"round {state.round + 1}: the outer step left the finite numbers; a smaller outer rate may help"
        )
    return replace(state, round=state.round + 1, params=params, optimizer=optimizer_state)

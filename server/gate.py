"""The hold-out gate: an outer step that made the hospitals' query loss worse is undone.

The query loss that sites report in a round was measured, after adaptation, with the parameters that they were
sent, on patients that the adaptation did not see. So round r judges the step of round r - 1, from an
aggregate that the coordinator receives anyway (also under secure aggregation). If the step is undone, so is
the meta-gradient of round r, which was taken at bad parameters. All that the gate remembers lies in the
training's state, so that a resumed training decides as an uninterrupted one.

It bounds what a poisoned step can do; it does not find out who sent it. A site can also lie about its loss:
upwards to stall the training, which ends with an error, or downwards to hide a bad step, as far as its weight
in the mean goes. A step that does harm slowly, always within `factor`, passes.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from clinimeta.common.errors import GateError, NumericalError
from clinimeta.common.metrics import Mean
from clinimeta.common.optim import OuterOptimizer
from clinimeta.common.params import map_params, part, prefixed
from clinimeta.common.safeguards import GateSettings
from clinimeta.common.subspace import ALL, Subspace
from clinimeta.common.typing import Params
from clinimeta.server.training import TrainingState, step


@dataclass(frozen=True, slots=True)
class Gate:
    """Judges steps as `settings` say; all methods return a new state and leave the old one alone.

    The state's `gate` holds `losses` (of the last accepted rounds, newest last), `rollbacks` (steps undone so
    far), `setbacks` (how often the next step is shortened) and, while a step is not judged yet, what it
    would go back to: `before.params.*` and `before.optimizer.*`. With the gate off it is empty.
    """

    settings: GateSettings

    def pending(self, state: TrainingState) -> bool:
        """Whether the last step is still to be judged."""
        return bool(part(state.gate, "before"))

    def judge(self, state: TrainingState, metrics: Mapping[str, Mean]) -> tuple[TrainingState, str]:
        """The state with its last step accepted or undone by what sites measured; if undone, why.

        Raises:
            GateError: a step would be undone once more than allowed.
        """
        if not self.settings.on:
            return state, ""
        loss, losses = _query_loss(metrics), _losses(state)
        limit = self.settings.limit(losses)
        if self.pending(state) and not (math.isfinite(loss) and loss <= limit):
            return self._undo(state, f"the mean query loss {loss:.4g} is over the limit of {limit:.4g}")
        if math.isfinite(loss):
            losses = [*losses, loss][-self.settings.window :]
        setbacks = max(0, _count(state, "setbacks") - self.pending(state))
        return replace(state, gate=_memory(losses, _count(state, "rollbacks"), setbacks)), ""

    def step(
        self,
        state: TrainingState,
        gradient: Params,
        optimizer: OuterOptimizer,
        subspace: Subspace = ALL,
    ) -> tuple[TrainingState, str]:
        """The outer step, shortened after a rollback, to be judged next; if it was undone at once, why.

        Raises:
            NumericalError: with the gate off, it left the finite numbers.
            GateError: with the gate on, it did so once more than allowed.
        """
        if not self.settings.on:
            return step(state, gradient, optimizer, subspace), ""
        try:
            after = step(state, gradient, optimizer, subspace)
        except NumericalError as error:
            undone, why = self._undo(_with_before(state, state), str(error))
            return replace(undone, round=state.round + 1), why
        setbacks = _count(state, "setbacks")
        if setbacks:
            length = self.settings.shrink**setbacks
            shorter = map_params(lambda new, old: old + length * (new - old), after.params, state.params)
            after = replace(after, params=shorter)
        return _with_before(after, state), ""

    def _undo(self, state: TrainingState, why: str) -> tuple[TrainingState, str]:
        before, rollbacks = part(state.gate, "before"), _count(state, "rollbacks") + 1
        if rollbacks > self.settings.max_rollbacks:
            raise GateError(
                f"after round {state.round}: {why}; {rollbacks - 1} steps were undone before, all that "
                "`max_rollbacks` allows. Look for a site that sends damage, or make the outer rate smaller"
            )
        memory = _memory(_losses(state), rollbacks, _count(state, "setbacks") + 1)
        return replace(
            state, params=part(before, "params"), optimizer=part(before, "optimizer"), gate=memory
        ), why


def _query_loss(metrics: Mapping[str, Mean]) -> float:
    """Their mean; NaN where nobody reported it, which is no better than a loss that is not finite."""
    return metrics["query_loss"].value if "query_loss" in metrics else math.nan


def _losses(state: TrainingState) -> list[float]:
    return state.gate["losses"].tolist() if "losses" in state.gate else []


def _count(state: TrainingState, name: str) -> int:
    return int(state.gate[name]) if name in state.gate else 0


def _memory(losses: list[float], rollbacks: int, setbacks: int) -> Params:
    return {
        "losses": torch.tensor(losses, dtype=torch.float64),
        "rollbacks": torch.tensor(rollbacks),
        "setbacks": torch.tensor(setbacks),
    }


def _with_before(state: TrainingState, before: TrainingState) -> TrainingState:
    kept = {**prefixed(before.params, "params"), **prefixed(before.optimizer, "optimizer")}
    return replace(state, gate={**state.gate, **prefixed(kept, "before")})

"""Gradient inversion: query records out of a meta-gradient, in closed form or by optimisation.

A lower bound on what leaks: attackers with a learned prior of what records look like do better.
"""

import torch
from torch import Tensor
from torch.func import grad, vmap

from clinimeta.common.algorithms.maml import MAML
from clinimeta.common.rng import generator
from clinimeta.common.tasks.episode import Episode, Examples
from clinimeta.common.typing import Params


def closed_form(update: Params) -> Tensor:
    """A candidate record from every unit of the first layer: dL/dW row over dL/db, `[units, features]`.

    For one row x of a batch dL/dW_j = (dL/db_j) x (Phong et al., IEEE TIFS 2018; Geiping et al., NeurIPS
    2020, proposition 3.1), so a unit that only one query record switches on holds that record.
    """
    weights, biases = update["layer0.weight"], update["layer0.bias"]
    return torch.nan_to_num(weights.T / biases[:, None], posinf=0.0, neginf=0.0)


def correlations(left: Tensor, right: Tensor) -> Tensor:
    """Pearson's correlation of every row of `left` with every row of `right`."""

    def normed(x: Tensor) -> Tensor:
        x = (x - x.mean(dim=1, keepdim=True)).double()
        return x / x.norm(dim=1, keepdim=True).clamp(min=1e-300)

    return normed(left) @ normed(right).T


def found(query: Tensor, candidates: Tensor, over: float = 0.95) -> float:
    """The share of query records that some candidate shows: |correlation| over `over`."""
    return float((correlations(query, candidates).abs().max(dim=1).values > over).double().mean())


def optimise(
    learner: MAML, params: Params, updates: Params, tasks: Episode, *, steps: int, rate: float, seed: int
) -> Tensor:
    """Query records whose FOMAML meta-gradient points where the update does (Geiping et al., NeurIPS 2020).

    Args:
        learner: what the victim runs, known to the attacker (the coordinator wrote the plan).
        params: what the victim was sent.
        updates: what the victims sent, `[victims, ...]` on every tensor; each is attacked on its own.
        tasks: their tasks; the attacker reads the targets (labels known) and shapes only.
        steps: of Adam, on support and query records at once.
        rate: Adam's, falling to 0 along a cosine.
        seed: of the records it starts from.

    Returns: query records, `[victims, query, features]`.
    """
    rng = generator("optimise", seed)
    guess = {
        side: 0.5 * torch.randn(rows.inputs["table"].shape, generator=rng)
        for side, rows in (("support", tasks.support), ("query", tasks.query))
    }

    def mismatch(guess: dict[str, Tensor], update: Params, task: Episode) -> Tensor:
        support, query = (
            Examples({"table": guess[side]}, rows.targets, rows.weights)
            for side, rows in (("support", task.support), ("query", task.query))
        )

        def query_loss(weights: Params) -> Tensor:
            return learner.objective.loss(learner.model.apply(weights, query.inputs), query)

        ours = grad(query_loss)(learner.adapt(params, support))
        dot = sum((ours[n] * update[n]).sum() for n in ours)
        size = sum((ours[n] ** 2).sum() for n in ours) * sum((update[n] ** 2).sum() for n in ours)
        return 1 - dot / (size + 1e-20).sqrt()

    descend = vmap(grad(mismatch))
    first = {side: torch.zeros_like(x) for side, x in guess.items()}
    second = {side: torch.zeros_like(x) for side, x in guess.items()}
    for step in range(1, steps + 1):
        slope = descend(guess, updates, tasks)
        length = rate * 0.5 * (1 + float(torch.cos(torch.tensor(torch.pi * step / steps))))
        for side, g in slope.items():
            first[side] = 0.9 * first[side] + 0.1 * g
            second[side] = 0.999 * second[side] + 0.001 * g * g
            debiased = (second[side] / (1 - 0.999**step)).sqrt() + 1e-12
            guess[side] = guess[side] - length * first[side] / (1 - 0.9**step) / debiased
    return guess["query"].detach()

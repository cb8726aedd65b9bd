"""Judge an arm at hospitals: adapt on a support set, predict the hospital's other patients.

Every arm gets the same support and query rows: they are a function of the study's seed, the
evaluation, the hospital, the support size and the repetition.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from clinimeta.common.algorithms.engine import engine
from clinimeta.common.rng import generator
from clinimeta.common.study import Evaluation, Plan
from clinimeta.common.tasks.batch import stack
from clinimeta.common.tasks.episode import Episode
from clinimeta.common.tasks.sampler import split_rows
from clinimeta.common.tasks.table import Table
from clinimeta.common.typing import Params

CHUNK = 128
"""Tasks adapted in one call: large enough to be fast, small enough for memory."""


@dataclass(frozen=True, slots=True)
class Draw:
    """One adaptation to do: which rows support it and which are predicted.

    The two halves of a `half` draw have the same `repeat`: together they predict every row once.
    """

    site: str
    shots: str
    repeat: int
    support: Int[Tensor, " support"]
    query: Int[Tensor, " query"]


@dataclass(frozen=True, slots=True)
class Prediction:
    """What an arm said of a hospital's rows in one draw."""

    site: str
    shots: str
    repeat: int
    rows: Int[np.ndarray, " query"]
    targets: Shaped[np.ndarray, " query"]
    probabilities: Float[np.ndarray, "query classes"]


def draws(evaluation: Evaluation, site: str, table: Table, classes: int, seed: int) -> list[Draw]:
    """Every draw at one hospital; sizes that its rows cannot give are left out."""
    return [
        draw
        for shots in evaluation.shots
        for repeat in range(evaluation.repeats)
        if shots != "all" or repeat == 0
        for draw in _draw(evaluation, site, table, classes, seed, shots, repeat)
    ]


def _draw(
    evaluation: Evaluation, site: str, table: Table, classes: int, seed: int, shots: int | str, repeat: int
) -> list[Draw]:
    rng = generator("evaluation", seed, evaluation.name, site, str(shots), repeat)
    test = torch.nonzero(table.test).squeeze(-1)
    training = torch.nonzero(~table.test).squeeze(-1)
    if evaluation.split == "own_test_rows" and (shots == "half" or not len(test)):
        return []  # these hospitals trained: only rows that were kept back may be judged
    if shots == "all":
        return [Draw(site, "all", repeat, training, test)] if len(test) and len(training) else []
    if shots == "half":
        people = torch.unique(table.patients)
        first = people[torch.randperm(len(people), generator=rng)[: len(people) // 2]]
        inside = torch.isin(table.patients, first)
        halves = torch.nonzero(inside).squeeze(-1), torch.nonzero(~inside).squeeze(-1)
        if not all(len(half) for half in halves):
            return []
        return [Draw(site, "half", repeat, halves[i], halves[1 - i]) for i in (0, 1)]
    split = split_rows(table.training, int(shots), evaluation.draw, classes, rng)
    if split is None:
        return []
    support, rest = (training[rows] for rows in split)
    return [Draw(site, str(shots), repeat, support, test if len(test) else rest)]


def predict(
    plan: Plan,
    params: Params,
    tables: Mapping[str, Table],
    drawn: Sequence[Draw],
    device: str = "cpu",
) -> list[Prediction]:
    """Adapt and predict every draw, many at a time, on the device."""
    learner = plan.learner()
    predictions = []
    for batch in _chunks(drawn):
        episodes = [
            Episode(tables[d.site].rows.take(d.support), tables[d.site].rows.take(d.query)) for d in batch
        ]
        outputs = engine(learner, device).adapt_and_predict(params, stack(episodes))
        for draw, output in zip(batch, outputs, strict=True):
            probabilities = learner.objective.probabilities(output[: len(draw.query)]).double()
            predictions.append(_prediction(draw, tables[draw.site], probabilities.numpy()))
    return merge_halves(predictions)


def _prediction(draw: Draw, table: Table, probabilities: Float[np.ndarray, "query classes"]) -> Prediction:
    return Prediction(
        draw.site,
        draw.shots,
        draw.repeat,
        draw.query.numpy(),
        table.rows.targets[draw.query].numpy(),
        probabilities,
    )


def merge_halves(predictions: Iterable[Prediction]) -> list[Prediction]:
    """Put the two halves of a `half` draw together, in order of row."""
    merged: dict[tuple[str, str, int], Prediction] = {}
    for p in predictions:
        key = (p.site, p.shots, p.repeat)
        if key in merged:
            other = merged[key]
            rows = np.concatenate([other.rows, p.rows])
            order = np.argsort(rows)
            p = Prediction(
                *key,
                rows[order],
                np.concatenate([other.targets, p.targets])[order],
                np.concatenate([other.probabilities, p.probabilities])[order],
            )
        merged[key] = p
    return list(merged.values())


def _chunks(drawn: Sequence[Draw]) -> list[list[Draw]]:
    """Draws of like size together, so that little is padded."""
    ordered = sorted(drawn, key=lambda d: (len(d.support), len(d.query)))
    return [ordered[i : i + CHUNK] for i in range(0, len(ordered), CHUNK)]

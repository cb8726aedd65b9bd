"""Draw episodes from a hospital's table: support and query set, by person, never sharing one."""

from typing import Annotated, Literal

import torch
from annotated_types import Ge
from jaxtyping import Int
from pydantic import Field
from torch import Tensor

from clinimeta.common.settings import Settings
from clinimeta.common.tasks.episode import Episode, Examples
from clinimeta.common.tasks.table import Table


class Episodes(Settings):
    """How a study draws its tasks.

    `draw = "per_class"`: `shots` support rows and up to `query` query rows of each of `ways` classes.
    `draw = "rows"`: `shots` support rows and up to `query` query rows, whatever their class.
    Several `shots` are drawn from uniformly, so that a learner sees small and large support sets; where
    a hospital has too few rows it gives what it has, down to one row on each side.
    """

    ways: Annotated[int, Ge(2)] = 2
    shots: Annotated[tuple[Annotated[int, Ge(0)], ...], Field(min_length=1)] = (5,)
    query: Annotated[int, Ge(1)] = 15
    draw: Literal["per_class", "rows"] = "per_class"
    tasks: Annotated[int, Ge(1)] = 4


def draw_episode(table: Table, episodes: Episodes, shots: int, rng: torch.Generator) -> Episode | None:
    """One episode with `shots` support rows (a class), or None where the table is too small for any."""
    table, classes = _choose_ways(table, episodes, rng)
    split = split_rows(table, shots, episodes.draw, classes, rng, shrink=True)
    if split is None:
        return None
    support, rest = split
    if episodes.draw == "per_class":
        targets = table.rows.targets[rest]
        query = torch.cat([rest[targets == c][: episodes.query] for c in range(classes)])
    else:
        query = rest[: episodes.query]
    return Episode(table.rows.take(support), table.rows.take(query))


def draw_episodes(table: Table, episodes: Episodes, rng: torch.Generator) -> list[Episode]:
    """`episodes.tasks` episodes; fewer (or none) only where the table is too small for any."""
    drawn = []
    for _ in range(episodes.tasks):
        choice = int(torch.randint(len(episodes.shots), (), generator=rng))
        episode = draw_episode(table, episodes, episodes.shots[choice], rng)
        if episode is not None:
            drawn.append(episode)
    return drawn


def split_rows(
    table: Table, shots: int, draw: str, classes: int, rng: torch.Generator, *, shrink: bool = False
) -> tuple[Int[Tensor, " support"], Int[Tensor, " rest"]] | None:
    """Shuffled row indices: a support set of `shots` (a class), and every row of the other people.

    A table that cannot give that many and keep a person (of each class) for the rest gives None, or with
    `shrink` the largest support set that it can. None also where a class would be missing on either side.
    """
    order = _shuffled_by_patient(table, rng)
    targets = table.rows.targets[order]
    groups = [order[targets == c] for c in range(classes)] if draw == "per_class" else [order]
    taken = []
    for group in groups:
        most = _rows_before_the_last_person(table.patients[group])
        size = min(shots, most) if shrink else shots
        if size > most or (shots > 0 and size == 0):
            return None
        taken.append(group[:size])
    support = torch.cat(taken)
    rest = order[~torch.isin(table.patients[order], table.patients[support])]
    present = set(table.rows.targets[rest].tolist()) if draw == "per_class" else set()
    if len(rest) == 0 or (draw == "per_class" and len(present) < classes):
        return None
    return support, rest


def _rows_before_the_last_person(patients: Int[Tensor, " rows"]) -> int:
    """How many of these rows (each person's together) can be taken so that one person is left whole."""
    return int((patients != patients[-1]).sum()) if len(patients) else 0


def _shuffled_by_patient(table: Table, rng: torch.Generator) -> Int[Tensor, " rows"]:
    """Row indices with the people in random order and each person's rows together."""
    people, number = torch.unique(table.patients, return_inverse=True)
    rank = torch.randperm(len(people), generator=rng)
    return torch.argsort(rank[number], stable=True)


def _choose_ways(table: Table, episodes: Episodes, rng: torch.Generator) -> tuple[Table, int]:
    """Where the table has more classes than `ways`, keep that many at random, renumbered from 0."""
    if episodes.draw != "per_class" or table.rows.targets.is_floating_point():
        return table, episodes.ways
    present = torch.unique(table.rows.targets)
    as_they_are = torch.equal(present, torch.arange(episodes.ways))
    if len(present) < episodes.ways or as_they_are:
        return table, episodes.ways
    chosen = present[torch.randperm(len(present), generator=rng)[: episodes.ways]]
    kept = table.take(torch.nonzero(torch.isin(table.rows.targets, chosen)).squeeze(-1))
    renumbered = (kept.rows.targets[:, None] == chosen[None, :]).long().argmax(dim=1)
    rows = Examples(kept.rows.inputs, renumbered, kept.rows.weights)
    return Table(rows, kept.patients, kept.test), episodes.ways

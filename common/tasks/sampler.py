"""Draw episodes from a hospital's table: support and query set, by person, never sharing one."""

import hashlib
from typing import Annotated, Literal

import numpy as np
import torch
from annotated_types import Ge
from jaxtyping import Bool, Int, UInt64
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
    With `tasks_a_patient` over 0 at most so many of a step's tasks know of any one patient (`pools`); with 0
    the tasks are drawn independently, so that a patient may be in all of them.
    """

    ways: Annotated[int, Ge(2)] = 2
    shots: Annotated[tuple[Annotated[int, Ge(0)], ...], Field(min_length=1)] = (5,)
    query: Annotated[int, Ge(1)] = 15
    draw: Literal["per_class", "rows"] = "per_class"
    tasks: Annotated[int, Ge(1)] = 4
    tasks_a_patient: Annotated[int, Ge(0)] = 0


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
    if episodes.tasks_a_patient:
        drawn = draw_from_pools(table, episodes, rng)
    else:
        drawn = [_draw(table, episodes, rng) for _ in range(episodes.tasks)]
    return [episode for episode in drawn if episode is not None]


def draw_from_pools(table: Table, episodes: Episodes, rng: torch.Generator) -> list[Episode | None]:
    """One episode, or None, from each task's own pool of patients, with randomness of its own.

    With one patient more or less in the table, at most `tasks_a_patient` tasks change; the others stay the
    same to the bit. That is what a promise to each patient rests on (`privacy.promise`). It would not hold if
    a task took whom the tasks before it had left, nor if all tasks drew from one stream: there, one
    patient's absence shifts everything that follows.
    """
    seeds: list[int] = torch.randint(2**62, (episodes.tasks + 1,), generator=rng).tolist()
    member = pools(table, episodes.tasks, episodes.tasks_a_patient, seeds[0])
    drawn = []
    for task, seed in enumerate(seeds[1:]):
        pool = table.take(torch.nonzero(member[:, task]).squeeze(-1))
        drawn.append(_draw(pool, episodes, torch.Generator().manual_seed(seed)) if len(pool) else None)
    return drawn


def pools(table: Table, tasks: int, tasks_a_patient: int, seed: int) -> Bool[Tensor, "rows tasks"]:
    """Which rows each of a step's tasks may draw from: each patient is in `tasks_a_patient` pools at random.

    Which ones is a function of the seed and of the patient's own rows, nothing else: not of who else is
    there, and not of the patient's number in the table. Two patients with equal rows share their pools.
    """
    people, number = torch.unique(table.patients, return_inverse=True)
    each = torch.from_numpy(_row_digests(table.rows).astype(np.int64))
    person = torch.zeros(len(people), dtype=torch.int64).index_add_(0, number, each)  # wraps, as it should
    keys = person.numpy().astype(np.uint64)[:, None]
    steps = np.arange(1, tasks + 1, dtype=np.uint64)
    rank = (
        _mixed(_mixed(keys ^ _mixed(np.array([seed], dtype=np.uint64))) + steps * _GOLDEN)
        .argsort(axis=1)
        .argsort(axis=1)
    )
    return torch.from_numpy(rank < tasks_a_patient)[number]


def _draw(table: Table, episodes: Episodes, rng: torch.Generator) -> Episode | None:
    """One episode of a random one of the study's sizes."""
    choice = int(torch.randint(len(episodes.shots), (), generator=rng))
    return draw_episode(table, episodes, episodes.shots[choice], rng)


_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mixed(x: UInt64[np.ndarray, "..."]) -> UInt64[np.ndarray, "..."]:
    """A random-looking bijection of 64-bit numbers (SplitMix64's; Steele, Lea, Flood; OOPSLA 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: UInt64[np.ndarray, ...] = x ^ (x >> np.uint64(31))
    return mixed


def _row_digests(rows: Examples) -> UInt64[np.ndarray, " rows"]:
    """64 bits for what each row holds."""
    parts = [rows.inputs[name] for name in sorted(rows.inputs)] + [rows.targets]
    columns = [np.ascontiguousarray(part.numpy()).reshape(len(part), -1).view(np.uint8) for part in parts]
    digests = (hashlib.blake2b(row.tobytes(), digest_size=8).digest() for row in np.hstack(columns))
    return np.frombuffer(b"".join(digests), dtype="<u8").astype(np.uint64)


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

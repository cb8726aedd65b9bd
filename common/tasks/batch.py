"""Ragged episodes side by side: pad with rows of weight 0, stack, and let `vmap` do the rest."""

from collections.abc import Sequence

import torch
from torch import Tensor

from clinimeta.common.tasks.episode import Episode, Examples


def pad(rows: Examples, size: int) -> Examples:
    """The same rows followed by zeros of weight 0, `size` rows in all."""
    missing = size - rows.size
    if missing < 0:
        raise ValueError(f"cannot pad {rows.size} rows to {size}")
    if missing == 0:
        return rows

    def extend(x: Tensor) -> Tensor:
        return torch.cat([x, x.new_zeros((missing, *x.shape[1:]))])

    return Examples(
        {name: extend(x) for name, x in rows.inputs.items()}, extend(rows.targets), extend(rows.weights)
    )


def stack_examples(sets: Sequence[Examples]) -> Examples:
    """One leading axis of tasks over sets padded to the longest: every tensor `[tasks, rows, ...]`.

    The input `real` tells a model that looks at several rows together which of them are padding.
    """
    size = max(rows.size for rows in sets)
    padded = [pad(rows, size) for rows in sets]
    weights = torch.stack([p.weights for p in padded])
    inputs = {name: torch.stack([p.inputs[name] for p in padded]) for name in padded[0].inputs}
    return Examples(
        inputs | {"real": (weights > 0).to(weights.dtype)}, torch.stack([p.targets for p in padded]), weights
    )


def stack(episodes: Sequence[Episode]) -> Episode:
    """One leading axis of tasks over episodes, support and query padded each to its longest."""
    return Episode(stack_examples([e.support for e in episodes]), stack_examples([e.query for e in episodes]))


def pad_batch(batch: Episode, support: int, query: int) -> Episode:
    """A stacked batch with every task's support and query set padded to these many rows."""

    def longer(rows: Examples, size: int) -> Examples:
        missing = size - rows.targets.shape[1]
        if not missing:
            return rows

        def extend(x: Tensor) -> Tensor:
            return torch.cat([x, x.new_zeros((x.shape[0], missing, *x.shape[2:]))], dim=1)

        inputs = {name: extend(x) for name, x in rows.inputs.items()}
        return Examples(inputs, extend(rows.targets), extend(rows.weights))

    return Episode(longer(batch.support, support), longer(batch.query, query))


def without_marks(batch: Episode) -> Episode:
    """The batch without the input `real` where nothing is padded: models are faster without it."""
    if any((half.weights == 0).any() for half in batch):
        return batch

    def plain(rows: Examples) -> Examples:
        return rows._replace(inputs={name: x for name, x in rows.inputs.items() if name != "real"})

    return Episode(plain(batch.support), plain(batch.query))


def unstack(batch: Episode) -> list[Episode]:
    """The episodes of a batch one by one, padding kept."""

    def row(rows: Examples, i: int) -> Examples:
        return Examples({n: x[i] for n, x in rows.inputs.items()}, rows.targets[i], rows.weights[i])

    return [Episode(row(batch.support, i), row(batch.query, i)) for i in range(len(batch.support.targets))]

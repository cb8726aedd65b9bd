"""Adapt a trained model to a hospital's own patients, at the hospital, offline, in seconds."""

import time
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from clinimeta.common.algorithms.base import Uncertain
from clinimeta.common.calibration import shift_prevalence, temperature_for
from clinimeta.common.errors import DataError, NumericalError, UserError
from clinimeta.common.tasks.episode import examples
from clinimeta.common.tasks.schema import Schema
from clinimeta.common.tasks.table import (
    Records,
    Standard,
    absent_columns,
    model_inputs,
    read_targets,
    read_values,
)
from clinimeta.common.trained_model import TrainedModel

FAR = 6.0
"""A column whose typical value is this many scales from the study's center is worth a look at its unit."""


@dataclass(frozen=True, slots=True)
class Adapted:
    """Predictions for the new patients, in their order, and what a reader of them should know.

    `probabilities` has a column a class (or the predicted number where the study has no classes);
    `assumed` is the class mix that they assume. `spread` is the standard deviation of predicted numbers,
    where the learner knows it.
    """

    probabilities: Float[Tensor, "rows columns"]
    assumed: tuple[float, ...]
    support_rows: dict[str, int]
    temperature: float
    seconds: float
    warnings: tuple[str, ...]
    spread: Float[Tensor, " rows"] | None = None


def adapt(
    model: TrainedModel, support: Records, new: Records, *, prevalence: tuple[float, ...] | None = None
) -> Adapted:
    """Adapt on the labelled rows of `support`, predict every row of `new`.

    `prevalence` is the share of each class among the hospital's patients; without it the probabilities
    assume the mix that the study's episodes are drawn with (or the support's own, if they are not
    balanced).

    Raises:
        DataError: a table does not fit the study, or the support set lacks a class.
        UserError: the prevalence is no share for each class.
        NumericalError: the adapted model gives no finite numbers.
    """
    started = time.monotonic()
    schema, learner = model.plan.table, model.plan.learner()
    if schema.classes and learner.objective.classes < len(schema.classes):
        raise UserError(
            "this model tells fewer classes apart than the study has",
            found=f"{learner.objective.classes} at a time, of {len(schema.classes)}",
            remedy="train it with ways = the number of classes",
        )
    values, new_values = read_values(schema, support), read_values(schema, new)
    targets = torch.from_numpy(read_targets(schema, support))
    counts = {name: int((targets == i).sum()) for i, name in enumerate(schema.classes)}
    balanced = model.plan.episodes.draw == "per_class"
    missing = [name for name, count in counts.items() if count == 0]
    if missing and balanced:  # no episode of the training lacked a class
        raise _missing_class(model, support, counts)
    warnings = [f"the support set has no row of class {', '.join(map(repr, missing))}"] if missing else []
    warnings += _absent_columns(schema, support) + _absent_columns(schema, new)
    warnings += _far_columns(schema, values, support) + _far_columns(schema, new_values, new)
    standard = None
    if schema.normalise == "site":
        standard = Standard.of(np.concatenate([values, new_values]))
        warnings.append(
            f"the study standardises by a hospital's own rows: the {len(support) + len(new)} given served"
        )
    rows = examples(model_inputs(schema, values, standard), targets)
    query = model_inputs(schema, new_values, standard)
    with torch.no_grad():
        fitted = learner.adapt(model.params, rows)
        outputs = learner.predict(model.params, fitted, query).double()
        spread = None
        if isinstance(learner, Uncertain) and not schema.classes:
            spread = learner.spread(model.params, fitted, query).double()
    if not all(bool(torch.isfinite(x).all()) for x in (outputs, spread) if x is not None):
        if missing:  # the learner itself needs every class
            raise _missing_class(model, support, counts)
        raise NumericalError("the adapted model gives no finite numbers; are the tables' units the study's?")
    if not schema.classes:
        if prevalence is not None:
            raise UserError(
                "a number has no prevalence",
                where="--prevalence",
                found="a study whose target is a number",
                remedy="leave --prevalence out",
            )
        seconds = time.monotonic() - started
        return Adapted(outputs, (), {"rows": len(support)}, 1.0, seconds, tuple(warnings), spread)
    if not model.temperatures and model.plan.protection.in_whole_numbers:
        warnings.append(
            "the model was trained with protected answers, so without temperatures: it may be too sure"
        )
    temperature = temperature_for(model.temperatures, min(counts.values()) if balanced else len(support))
    probabilities = learner.objective.probabilities(outputs / temperature)
    share = torch.tensor([count / len(support) for count in counts.values()], dtype=torch.float64)
    assumed = torch.full_like(share, 1 / len(share)) if balanced else share
    if prevalence is not None:
        actual = _prevalence(prevalence, schema)
        if bool((assumed == 0).any()):
            raise UserError(
                "the prevalence cannot be used",
                where=support.where,
                found="a support set without one of the classes",
                remedy="add rows of every class, or leave --prevalence out",
            )
        probabilities, assumed = shift_prevalence(probabilities, assumed, actual), actual
    return Adapted(
        probabilities,
        tuple(assumed.tolist()),
        counts,
        temperature,
        time.monotonic() - started,
        tuple(warnings),
    )


def _missing_class(model: TrainedModel, support: Records, counts: dict[str, int]) -> DataError:
    present = ", ".join(f"{count} of class '{name}'" for name, count in counts.items() if count)
    absent = ", ".join(f"'{name}'" for name, count in counts.items() if not count)
    return DataError(
        "the support set does not have every class",
        where=f"{support.where}, column '{model.plan.table.target}'",
        found=f"{present}, none of {absent}",
        expected="at least one row of each class",
        remedy="add labelled patients of the missing class",
    )


def _absent_columns(schema: Schema, records: Records) -> list[str]:
    """What the table does without; a misspelt name would otherwise go unnoticed."""
    absent = absent_columns(schema, records)
    if not absent:
        return []
    s = "s" * (len(absent) > 1)
    return [f"{records.where} lacks the optional column{s} {', '.join(map(repr, absent))}"]


def _far_columns(schema: Schema, values: Float[np.ndarray, "rows values"], records: Records) -> list[str]:
    """Columns that look like another unit; never says which value."""
    if schema.normalise == "site":
        return []
    warnings, at = [], 0
    for column in schema.columns:
        if column.kind == "numeric":
            present = values[:, at][~np.isnan(values[:, at])]
            if len(present) and np.median(np.abs(present - column.center)) / column.scale > FAR:
                unit = f" (the study expects {column.unit})" if column.unit else ""
                warnings.append(
                    f"{records.where}: most values of '{column.name}' are far from the study's reference; "
                    f"check the unit{unit}"
                )
        at += len(column.features)
    return warnings


def _prevalence(prevalence: tuple[float, ...], schema: Schema) -> Float[Tensor, " classes"]:
    """One share a class; for two classes the share of the second is enough."""
    shares = prevalence
    if len(prevalence) == 1 and len(schema.classes) == 2:
        shares = (1 - prevalence[0], prevalence[0])
    are_shares = all(0 < share < 1 for share in shares) and abs(sum(shares) - 1) < 1e-6
    if len(shares) != len(schema.classes) or not are_shares:
        raise UserError(
            "the prevalence does not fit the study",
            where="--prevalence",
            found=", ".join(f"{p:g}" for p in prevalence),
            expected=f"the share of '{schema.classes[-1]}' between 0 and 1"
            if len(schema.classes) == 2
            else f"{len(schema.classes)} positive shares that add up to 1, in the order "
            + ", ".join(schema.classes),
            remedy="for example --prevalence 0.1" if len(schema.classes) == 2 else "correct the shares",
        )
    return torch.tensor(shares, dtype=torch.float64)

"""Centrally trained models to compare with: what could be had if records were pooled in one place."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from sklearn.linear_model import LogisticRegression

from clinimeta.common.errors import StudyError, nearest
from clinimeta.common.tasks.table import Table
from clinimeta.simulations.evaluation import Draw, Prediction, merge_halves

Reference = Callable[[Mapping[str, Table], Mapping[str, Table], Sequence[Draw]], list[Prediction]]
"""(tables that train, all tables, draws) -> predictions."""


def pooled_logistic_regression(
    training: Mapping[str, Table], tables: Mapping[str, Table], drawn: Sequence[Draw]
) -> list[Prediction]:
    """Logistic regression (L2, C = 1) on all training rows together; it ignores the support sets."""
    rows = [table.training.rows for table in training.values()]
    inputs = np.concatenate([r.inputs["table"].numpy() for r in rows])
    targets = np.concatenate([r.targets.numpy() for r in rows])
    if len(np.unique(targets)) < 2:
        raise StudyError(
            "a logistic regression needs rows of two classes or more",
            where=f"{len(training)} hospitals that train",
            found="rows of one class only",
            remedy="leave the reference out, or use more hospitals",
        )
    model = LogisticRegression(max_iter=2000).fit(inputs, targets)
    predictions = []
    for draw in drawn:
        query = tables[draw.site].rows.take(draw.query)
        probabilities = model.predict_proba(query.inputs["table"].numpy())
        predictions.append(
            Prediction(
                draw.site, draw.shots, draw.repeat, draw.query.numpy(), query.targets.numpy(), probabilities
            )
        )
    return merge_halves(predictions)


REFERENCES: Mapping[str, Reference] = {"pooled_logistic_regression": pooled_logistic_regression}
"""What an evaluation's `references` may name."""


def reference(name: str) -> Reference:
    """The reference of that name.

    Raises:
        StudyError: there is none.
    """
    if name not in REFERENCES:
        raise StudyError(f"there is no reference '{name}'", expected=nearest(name, REFERENCES))
    return REFERENCES[name]

"""A reference is what central training would give on the same rows, and says what it cannot do."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from clinimeta.common.errors import StudyError
from clinimeta.common.rng import generator
from clinimeta.common.tasks.episode import examples
from clinimeta.common.tasks.table import Table
from clinimeta.simulations.evaluation import Draw
from clinimeta.simulations.references import REFERENCES, pooled_logistic_regression, reference


def table_of(count: int, *key: str | int, test: list[bool] | None = None, classes: int = 2) -> Table:
    rng = generator("reference", *key)
    x = torch.randn(count, 2, generator=rng)
    y = (x[:, 0] + 0.7 * torch.randn(count, generator=rng) > 0).long()
    if classes == 3:
        y = y + (x[:, 1] > 0.5).long()
    kept_back = torch.tensor([False] * count if test is None else test)
    return Table(examples({"table": x}, y), torch.arange(count), kept_back)


def draw(query: list[int], *, repeat: int = 0, shots: str = "5", support: tuple[int, ...] = (0,)) -> Draw:
    return Draw("kiel", shots, repeat, torch.tensor(support), torch.tensor(query))


TRAINING = {"ulm": table_of(30, "ulm"), "bonn": table_of(20, "bonn")}
TABLES = {**TRAINING, "kiel": table_of(12, "kiel")}


def ridge_logistic_regression(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Minimise |w|^2 / 2 + sum of log losses (C = 1; the bias is free) from its definition."""

    def objective(w: np.ndarray) -> float:
        margin = np.where(y == 1, 1.0, -1.0) * (x @ w[:-1] + w[-1])
        return float(0.5 * w[:-1] @ w[:-1] + np.logaddexp(0, -margin).sum())

    return minimize(objective, np.zeros(x.shape[1] + 1), tol=1e-10).x


def test_pooled_logistic_regression_is_its_textbook_definition_on_all_training_rows() -> None:
    x, y = (
        np.concatenate([getter(t).numpy() for t in TRAINING.values()])
        for getter in (lambda t: t.rows.inputs["table"], lambda t: t.rows.targets)
    )
    w = ridge_logistic_regression(x.astype(np.float64), y)
    (made,) = pooled_logistic_regression(TRAINING, TABLES, [draw([3, 1, 7])])
    query = TABLES["kiel"].rows.inputs["table"][[3, 1, 7]].numpy().astype(np.float64)
    np.testing.assert_allclose(
        made.probabilities[:, 1], 1 / (1 + np.exp(-(query @ w[:-1] + w[-1]))), atol=2e-3
    )
    np.testing.assert_allclose(made.probabilities.sum(axis=1), 1)
    assert made.rows.tolist() == [3, 1, 7]
    assert made.targets.tolist() == TABLES["kiel"].rows.targets[[3, 1, 7]].tolist()
    assert (made.site, made.shots, made.repeat) == ("kiel", "5", 0)


def test_it_ignores_the_support_sets() -> None:
    one, other = (
        pooled_logistic_regression(TRAINING, TABLES, [draw([3, 1], support=support)])[0]
        for support in ((0, 2), (4, 5))
    )
    np.testing.assert_array_equal(one.probabilities, other.probabilities)


def test_it_never_sees_a_test_row_or_a_hospital_that_does_not_train() -> None:
    kept_back = [i % 3 == 0 for i in range(30)]
    training = {"ulm": table_of(30, "ulm", test=kept_back)}
    x = training["ulm"].rows.inputs["table"].clone()
    x[torch.tensor(kept_back)] = 1e3
    changed = Table(
        training["ulm"].rows._replace(inputs={"table": x}), torch.arange(30), torch.tensor(kept_back)
    )
    one, other = (
        pooled_logistic_regression(tables, {**TABLES, "bonn": table_of(20, "someone else")}, [draw([3, 1])])[
            0
        ]
        for tables in (training, {"ulm": changed})
    )
    np.testing.assert_array_equal(one.probabilities, other.probabilities)


def test_the_halves_of_a_draw_are_put_together() -> None:
    halves = [draw([1, 3, 5], shots="half"), draw([0, 2, 4], shots="half")]
    (made,) = pooled_logistic_regression(TRAINING, TABLES, halves)
    assert made.rows.tolist() == list(range(6))


def test_there_is_one_probability_a_class() -> None:
    tables = {"ulm": table_of(60, "ulm", classes=3), "kiel": table_of(12, "kiel", classes=3)}
    (made,) = pooled_logistic_regression({"ulm": tables["ulm"]}, tables, [draw([0, 1])])
    assert made.probabilities.shape == (2, 3)


def test_training_rows_of_one_class_alone_are_an_error_that_says_so() -> None:
    healthy = table_of(10, "ulm")
    healthy = Table(healthy.rows._replace(targets=torch.zeros(10).long()), healthy.patients, healthy.test)
    with pytest.raises(StudyError, match="class"):
        pooled_logistic_regression({"ulm": healthy}, {"ulm": healthy, **TABLES}, [draw([0])])


def test_a_reference_is_found_by_name() -> None:
    for name, kind in REFERENCES.items():
        assert reference(name) is kind


def test_an_unknown_reference_is_named_with_the_nearest() -> None:
    with pytest.raises(StudyError, match="no reference 'pooled_logistic'") as caught:
        reference("pooled_logistic")
    assert "did you mean 'pooled_logistic_regression'?" in caught.value.expected


def test_a_better_signal_gives_a_surer_reference() -> None:
    (made,) = pooled_logistic_regression(TRAINING, TABLES, [draw(list(range(12)))])
    x = TABLES["kiel"].rows.inputs["table"][:, 0].numpy()
    assert np.corrcoef(x, made.probabilities[:, 1])[0, 1] > math.sqrt(0.5)

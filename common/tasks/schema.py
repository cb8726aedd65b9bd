"""What a study's table looks like: its columns, its target, and how a cell becomes a number.

A column's `center` and `scale` are written in the study (a clinical reference value and its usual
spread), so that every hospital, also one with a single patient, encodes a value the same way and
nobody has to send its means. `normalise = "site"` uses the hospital's own rows instead.
"""

from typing import Annotated, Literal

from annotated_types import Gt
from pydantic import Field, model_validator

from clinimeta.common.settings import Settings


class Column(Settings):
    """One input column of the hospital's table; with `optional` a hospital may lack it altogether."""

    name: str
    kind: Literal["numeric", "binary", "categorical"] = "numeric"
    unit: str = ""
    center: float = 0.0
    scale: Annotated[float, Gt(0)] = 1.0
    levels: tuple[str, ...] = ()
    optional: bool = False

    @model_validator(mode="after")
    def _levels_fit_the_kind(self) -> "Column":
        if (self.kind == "categorical") != (len(self.levels) >= 2):
            raise ValueError(
                f"column '{self.name}': two or more levels for a categorical column, none for the others"
            )
        if len(set(self.levels)) < len(self.levels):
            raise ValueError(f"column '{self.name}': a level occurs twice")
        return self

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the numbers that the column becomes; a categorical one drops its first level.

        >>> Column(name="cp", kind="categorical", levels=("1", "2", "3")).features
        ('cp=2', 'cp=3')
        """
        if self.kind == "categorical":
            return tuple(f"{self.name}={level}" for level in self.levels[1:])
        return (self.name,)


class Schema(Settings):
    """The table that every site of a study has to offer.

    `classes` are the target's values in order (none: the target is a number). `missing` says what an
    empty cell means: an error, the column's center, the center and a 1 in an extra indicator feature, or
    ("mask") the center and a 0 in the model's second input `present`; optional columns need the last.
    `clip` cuts standardised values at so many scales from the center, so that one typing error does not
    outweigh a hospital. `patient` names a column whose equal values are one person (at one hospital, or with
    `patient_everywhere` at all of them); without it each row is one.
    """

    target: str
    classes: tuple[str, ...] = ()
    columns: Annotated[tuple[Column, ...], Field(min_length=1)]
    patient: str = ""
    patient_everywhere: bool = False
    normalise: Literal["study", "site"] = "study"
    missing: Literal["refuse", "center", "indicator", "mask"] = "refuse"
    clip: Annotated[float, Gt(0)] = 10.0

    @model_validator(mode="after")
    def _columns_fit_together(self) -> "Schema":
        names = [column.name for column in self.columns]
        if len({*names, self.target}) != len(names) + 1:
            raise ValueError("a column name occurs twice, or the target is also a column")
        if len(self.classes) == 1:
            raise ValueError("two or more classes, or none for a numeric target")
        if len(set(self.classes)) < len(self.classes):
            raise ValueError("a class occurs twice")
        optional = next((column.name for column in self.columns if column.optional), None)
        if optional is not None and self.missing != "mask":
            raise ValueError(f"column '{optional}' is optional, which needs missing = \"mask\"")
        return self

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the encoded numbers, in order; the indicators of missing cells come last."""
        values = tuple(feature for column in self.columns for feature in column.features)
        if self.missing == "indicator":
            return values + tuple(f"{column.name} missing" for column in self.columns)
        return values

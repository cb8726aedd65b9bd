"""What one Observation or Condition says about a column that asks for it; places are named, values never."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from annotated_types import MinLen
from pydantic import Field, model_validator

from clinimeta.client.sources.mapping import Factor
from clinimeta.client.sources.ndjson import Resource, items, part, text
from clinimeta.client.sources.timelines import Event, Moment, Window, moment_of, number_cell
from clinimeta.common.errors import DataError

_KNOWN = ("final", "amended", "corrected")
_DOUBTED = ("unconfirmed", "provisional", "differential", "refuted", "entered-in-error")

Codes = Annotated[tuple[Annotated[str, MinLen(1)], ...], MinLen(1)]
"""Codes of one system; one that ends in `*` stands for all that begin so."""


class Observed(Window):
    """An Observation, or a component of one, with one of these codes: its number, or the code of its answer.

    `units` says which units a number may have and what it is multiplied by in each. `compared` says what to
    do with a number that comes with a sign, as in "< 5". `answers` is the code system of coded answers;
    without it an answer must have one code only.
    """

    kind: Literal["observation"] = "observation"
    system: str
    codes: Codes
    value: Literal["quantity", "code"] = "quantity"
    units: dict[str, Factor] = Field(default_factory=dict)
    compared: Literal["refuse", "limit", "leave_out"] = "refuse"
    answers: str = ""

    @model_validator(mode="after")
    def _fits(self) -> "Observed":
        if (self.value == "quantity" and self.choose != "any") != bool(self.units):
            raise ValueError("'units' for a number, and for nothing else")
        if self.value == "code" and self.choose in ("mean", "min", "max"):
            raise ValueError("'choose' to be last, first or any, as a code is not a number")
        return self


class Diagnosed(Window):
    """1 if the patient has a Condition with one of these codes, else 0."""

    kind: Literal["condition"] = "condition"
    choose: Literal["any"] = "any"
    system: str
    codes: Codes


def observed(resource: Resource, how: Observed, name: str) -> Iterator[Event]:
    """The events that an Observation holds for a column: several where several of its components answer.

    Raises:
        DataError: it has no status, or a value or date that cannot be used.
    """
    content = resource.content
    answered = [c for c in (content, *items(content, "component")) if _has(part(c, "code"), how)]
    if not answered:
        return
    if not text(content, "status"):
        raise DataError("an Observation has no status", where=f"{resource.place}, status", expected="final")
    if content["status"] not in _KNOWN:
        return
    times = ("effectiveDateTime", "effectiveInstant", "effectivePeriod.end", "issued")
    for one in answered:
        cell = _answer(one, how, f"{resource.place} (for the column '{name}')")
        if cell is not None:
            yield Event(cell, moment_in(resource, times, name))


def _answer(one: dict[str, Any], how: Observed, where: str) -> str | None:
    """The cell, or None where there is no value, as in a panel or where the lab found none."""
    kinds = [key for key in one if key.startswith("value")]
    if not kinds or how.choose == "any":
        return "1" if kinds else None
    wanted = "valueQuantity" if how.value == "quantity" else "valueCodeableConcept"
    if wanted not in one:
        raise DataError(
            "an observation's value is of another kind",
            where=where,
            found="one of another kind than asked for",
            expected=wanted,
            remedy='set value = "quantity" or "code" for the column, or leave the resource out',
        )
    value = part(one, wanted)
    return _number(value, how, where) if how.value == "quantity" else _code(value, how, where)


def _number(quantity: dict[str, Any], how: Observed, where: str) -> str | None:
    number = quantity.get("value")
    if number is None:
        return None
    if quantity.get("comparator") and how.compared != "limit":
        if how.compared == "leave_out":
            return None
        raise DataError(
            "a number comes with a sign of comparison",
            where=f"{where}, valueQuantity.comparator",
            expected="a plain number",
            remedy='set compared = "limit" (take the number as it stands) or "leave_out" for the column',
        )
    names = [text(quantity, "code"), text(quantity, "unit")]
    unit = next((name for name in (names if any(names) else [""]) if name in how.units), None)
    if unit is None:
        raise DataError(
            "a number is in a unit that the mapping does not name",
            where=f"{where}, valueQuantity.unit",
            found="another unit (not shown)" if any(names) else "no unit",
            expected=f"one of {', '.join(repr(name) for name in how.units)}",
            remedy='add the unit and its factor to the column\'s units ("" stands for no unit)',
        )
    try:
        return number_cell(number, how.units[unit])
    except ValueError:
        raise DataError(
            "a quantity's value is not a number",
            where=f"{where}, valueQuantity.value",
            found="text, a truth value, a list, or a number beyond all measure",
            expected="a JSON number",
            remedy="correct it, or leave the resource out",
        ) from None


def _code(concept: dict[str, Any], how: Observed, where: str) -> str:
    codings = [c for c in items(concept, "coding") if not how.answers or text(c, "system") == how.answers]
    found = {code for coding in codings if (code := text(coding, "code"))}
    if len(found) != 1:
        raise DataError(
            "a coded answer does not have one code",
            where=f"{where}, valueCodeableConcept.coding",
            found=f"{len(found)} codes{' of that system' * bool(how.answers)}",
            expected="one",
            remedy="name the code system of the answers (answers), or leave the resource out",
        )
    return found.pop()


def is_diagnosis(resource: Resource, how: Diagnosed) -> bool:
    """Whether a Condition is one that the column asks for, and not in doubt."""
    doubts = items(part(resource.content, "verificationStatus"), "coding")
    doubted = any(text(coding, "code") in _DOUBTED for coding in doubts)
    return not doubted and _has(part(resource.content, "code"), how)


def _has(concept: dict[str, Any], how: Observed | Diagnosed) -> bool:
    found = [text(c, "code") for c in items(concept, "coding") if text(c, "system") == how.system]
    return any(
        code.startswith(wanted[:-1]) if wanted.endswith("*") else code == wanted
        for code in found
        for wanted in how.codes
    )


def moment_in(resource: Resource, keys: tuple[str, ...], name: str) -> Moment | None:
    """The time under the first of these keys that is there ("onsetPeriod.start").

    Raises:
        DataError: it is no time.
    """
    for key in keys:
        outer, _, inner = key.partition(".")
        value = part(resource.content, outer).get(inner) if inner else resource.content.get(outer)
        if value is not None:
            try:
                return moment_of(value)
            except ValueError:
                raise bad_date(resource, f"{key} (for the column '{name}')") from None
    return None


def bad_date(resource: Resource, key: str) -> DataError:
    """An error for a date that cannot be read."""
    return DataError(
        "a date cannot be read",
        where=f"{resource.place}, {key}",
        found="no date of FHIR's",
        expected="YYYY, YYYY-MM, YYYY-MM-DD, or a time such as 2024-05-31T08:30:00+02:00",
        remedy="correct it, or leave the resource out",
    )

"""Settings that people write: frozen, unknown keys refused, errors that name the nearest valid key."""

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from typing import Any, TypeVar, cast, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from clinimeta.common.errors import StudyError, nearest

STRICT = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Settings(BaseModel):
    """A group of settings: immutable, and strict about names and types."""

    model_config = STRICT


S = TypeVar("S", bound=BaseModel)


def parse(model: type[S], values: Any, where: str) -> S:
    """Validate plain values (as TOML or JSON gives them) into `model`.

    Raises:
        StudyError: a key is unknown, missing or of the wrong kind; names `where` and the key's path.
    """
    if not isinstance(values, Mapping):
        raise StudyError("the settings do not fit", where=where, found=_kind_of(values), expected="a table")
    try:
        # Strict validation takes JSON's lists for tuples, but not Python's; so go through JSON.
        return model.model_validate_json(json.dumps(dict(values), default=str))
    except ValidationError as error:
        raise explain(error, model, where) from None


def hyperparameters(kind: type) -> type[BaseModel]:
    """The settings of a registered dataclass: its fields that have a default.

    Fields without a default are parts that the program supplies (a model, an objective), not choices.
    """
    types = get_type_hints(kind, include_extras=True)
    fields: dict[str, Any] = {
        field.name: (types[field.name], field.default)
        for field in dataclasses.fields(kind)
        if field.default is not dataclasses.MISSING
    }
    return cast(type[BaseModel], create_model(kind.__name__, __config__=STRICT, **fields))


def explain(error: ValidationError, model: type[BaseModel], where: str) -> StudyError:
    """Turn pydantic's first complaint into one that a person can act on."""
    first = error.errors()[0]
    path = _dotted(first["loc"])
    found = _kind_of(first.get("input"))
    others = error.error_count() - 1
    more = f" (and {others} more)" if others else ""
    if first["type"] == "extra_forbidden":
        known = _keys_at(model, first["loc"][:-1])
        return StudyError(
            f"unknown key '{path}'{more}",
            where=where,
            expected=nearest(str(first["loc"][-1]), known) if known else "no such key here",
            remedy="rename or remove the key",
        )
    if first["type"] == "missing":
        return StudyError(
            f"the key '{path}' is missing{more}", where=where, remedy=f"add '{path}' to the file"
        )
    return StudyError(
        f"the key '{path}' has a value that does not fit{more}" if path else f"the settings do not fit{more}",
        where=where,
        found=found,
        expected=first["msg"].removeprefix("Value error, ").removeprefix("Input should be "),
        remedy="correct the value",
    )


_UNION_TAG = re.compile(r"(constrained-|function-|literal\[|tuple\[|nullable\[)|(int|float|str|bool|none)$")
"""What pydantic puts into a location for the member of a union that it tried; no key of ours looks so."""


def _dotted(location: tuple[int | str, ...]) -> str:
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        elif not _UNION_TAG.match(part):
            path += f".{part}" if path else part
    return path


def _kind_of(value: object) -> str:
    """What was found, short; a study's values are not patients' values, so they may be shown."""
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _keys_at(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """The keys that are valid where `location` leads, walking through lists and nested settings."""
    current: Any = model
    for part in location:
        if isinstance(part, int):
            continue
        if not (isinstance(current, type) and issubclass(current, BaseModel)):
            return []
        field = current.model_fields.get(part)
        if field is None:
            return []
        current = _inner_model(field.annotation)
    if isinstance(current, type) and issubclass(current, BaseModel):
        return list(current.model_fields)
    return []


def _inner_model(annotation: Any) -> Any:
    """The settings class inside `X`, `X | None`, `tuple[X, ...]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for inner in getattr(annotation, "__args__", ()):
        found = _inner_model(inner)
        if found is not None:
            return found
    return None


def is_number(value: object) -> bool:
    """Whether a plain value is a finite number (and not a boolean)."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)

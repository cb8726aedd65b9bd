"""Settings that people write: frozen, unknown keys refused, errors that name the nearest valid key."""

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from typing import Any, TypeVar, cast, get_args, get_origin, get_type_hints

import tomli_w
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
    path = _dotted(first["loc"], model)
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
    if first["type"].startswith("union_tag_"):  # the key that says which kind of table it is
        context = first["ctx"]
        key = f"{path}.{context['discriminator'].strip(chr(39))}".removeprefix(".")
        tags = context.get("expected_tags", "").replace("'", "").split(", ")
        return StudyError(
            f"there is no '{context['tag']}' for the key '{key}'{more}"
            if "tag" in context
            else f"the key '{key}' is missing{more}",
            where=where,
            expected=nearest(context["tag"], tags) if "tag" in context else "",
            remedy="correct the value" if "tag" in context else f"add '{key}' to the file",
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


def _dotted(location: tuple[int | str, ...], model: type[BaseModel]) -> str:
    path, current = "", model
    for part in location:
        inner, is_key = _inside(current, part)
        if isinstance(part, int):
            path += f"[{part}]"
        elif is_key and not _UNION_TAG.match(part) and part != "[key]":
            path += f".{part}" if path else part
        current = inner
    return path


def _kind_of(value: object) -> str:
    """What was found, short; a study's values are not patients' values, so they may be shown."""
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _keys_at(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """The keys that are valid where `location` leads, through lists, tables by name and nested settings."""
    current: Any = model
    for part in location:
        current, _ = _inside(current, part)
    settings = _models(current)
    return list(settings[0].model_fields) if settings else []


def _inside(annotation: Any, part: int | str) -> tuple[Any, bool]:
    """The type one step into a value, and whether the step is a key (else pydantic's tag for a union)."""
    if isinstance(part, int):
        return annotation, True
    models = _models(annotation)
    for model in models:
        if len(models) > 1 and any(part == field.default for field in model.model_fields.values()):
            return model, False
    for model in models:
        if part in model.model_fields:
            return model.model_fields[part].annotation, True
    return _by_name(annotation), True


def _models(annotation: Any) -> list[type[BaseModel]]:
    """The settings classes that a value may be: `X`, `X | None`, `Annotated[X | Y, ...]`, `tuple[X, ...]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [] if _is_by_name(annotation) else [m for a in get_args(annotation) for m in _models(a)]


def _by_name(annotation: Any) -> Any:
    """What stands in a table whose keys are free: `X` of `Mapping[str, X]`."""
    inner = get_args(annotation)
    if _is_by_name(annotation):
        return inner[1]
    return next((found for a in inner if (found := _by_name(a)) is not None), None)


def _is_by_name(annotation: Any) -> bool:
    origin = get_origin(annotation)
    return isinstance(origin, type) and issubclass(origin, Mapping)


def quoted(text: str) -> str:
    """The text as a TOML string, quotes included."""
    return tomli_w.dumps({"x": text}).removeprefix("x = ").rstrip("\n")


def is_number(value: object) -> bool:
    """Whether a plain value is a finite number (and not a boolean)."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)

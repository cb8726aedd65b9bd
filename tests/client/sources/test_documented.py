"""docs/sources.md is true: its examples can be read, and it explains every kind and every key."""

import re
import tomllib
from pathlib import Path
from typing import Any, cast, get_args

import pytest
from hospital_data import source
from pydantic import BaseModel

from clinimeta.client.settings_schema import schema
from clinimeta.client.sources import SOURCES, fhir, omop

TEXT = (Path(__file__).parents[3] / "docs" / "sources.md").read_text(encoding="utf-8")
EXAMPLES = [tomllib.loads(block)["data"] for block in re.findall(r"```toml\n(.*?)```", TEXT, flags=re.DOTALL)]


@pytest.mark.parametrize("section", EXAMPLES, ids=lambda section: section["kind"])
def test_each_example_is_a_valid_section(section: dict[str, Any]) -> None:
    found = source(section)
    assert cast(Any, found).kind == section["kind"]
    assert set(found.translation.values) == set(section.get("values", {}))


def test_each_kind_has_an_example() -> None:
    assert {section["kind"] for section in EXAMPLES} == set(SOURCES.names())


def test_each_key_is_explained() -> None:
    takes = [member for module in (fhir, omop) for member in get_args(get_args(module.Take)[0])]
    sources = [cast(type[BaseModel], SOURCES.get(name)) for name in SOURCES.names()]
    keys = {key for model in (*takes, *sources) for key in model.model_fields}
    assert keys >= {"descendants", "compared", "url_file", "index_at"}
    for key in keys:
        assert re.search(rf"\b{key}\b", TEXT), f"docs/sources.md does not explain '{key}'"


def test_the_schema_of_the_settings_holds_every_kind() -> None:
    kinds = {part["properties"]["kind"]["const"] for part in schema()["properties"]["data"]["oneOf"]}
    assert kinds == set(SOURCES.names())

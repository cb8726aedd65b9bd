"""The JSON schema of site.toml: the settings, every kind of data source, the policy."""

from typing import Any, cast

from pydantic import BaseModel

from clinimeta.client.config import SiteSettings
from clinimeta.client.policy import Policy
from clinimeta.client.sources import SOURCES


def schema() -> dict[str, Any]:
    """One schema; what the data section may hold depends on its kind."""
    whole = SiteSettings.model_json_schema()
    sources = [cast(type[BaseModel], SOURCES.get(name, "")).model_json_schema() for name in SOURCES.names()]
    policy = Policy.model_json_schema()
    whole["properties"]["data"] = {"oneOf": sources}
    whole["properties"]["policy"] = policy
    return whole

"""The interface of a source of rows; `configured` makes one from the data section of a site's settings."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

from pydantic import BaseModel

from clinimeta.client.sources.mapping import Translation, translate
from clinimeta.common.errors import StudyError, nearest
from clinimeta.common.settings import parse
from clinimeta.common.tasks.schema import Schema
from clinimeta.common.tasks.table import Records


@runtime_checkable
class Source(Protocol):
    """Settings (`common.settings.Settings`) of a place that rows come from, registered under their `kind`."""

    @property
    def translation(self) -> Translation:
        """How the source's columns become the study's."""
        ...

    def read(self, folder: Path) -> Records:
        """The rows as the source has them; relative paths start at `folder` (run by the site).

        Raises:
            UserError: nearly always a DataError; the source cannot be read, or not be understood. Names
                the place, never a value.
        """
        ...


def configured(section: Mapping[str, Any], where: str) -> Source:
    """The source that a data section describes; its `kind` says which keys there are.

    Raises:
        StudyError: no such kind, or a key that is unknown, missing or of the wrong kind; names the nearest.
    """
    from clinimeta.client.sources import SOURCES  # which the modules of the package fill

    kind = section.get("kind")
    if not isinstance(kind, str):
        raise StudyError(
            "the data section does not say what kind of source it describes",
            where=where,
            expected=nearest("", SOURCES.names()),
            remedy='add, for example, kind = "csv"',
        )
    settings = cast(type[BaseModel], SOURCES.get(kind, where))
    return cast(Source, parse(settings, section, where))


def records_for(source: Source, schema: Schema, folder: Path) -> Records:
    """The rows of a source as the study names them (run by the site).

    Raises:
        UserError: the source cannot be read, or its columns do not become the study's.
    """
    return translate(source.read(folder), source.translation, schema)

"""Lines of JSON as FHIR resources, one file after the other; no message holds anything of a line."""

import gzip
import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from clinimeta.common.errors import DataError

SUFFIXES = (".ndjson", ".ndjson.gz")


@dataclass(frozen=True, slots=True)
class Resource:
    """One resource: its `resourceType`, and where it stands."""

    kind: str
    content: dict[str, Any]
    place: str

    def __repr__(self) -> str:
        """Kind and place only."""
        return f"Resource({self.kind!r}, {self.place!r})"


def resources(path: Path) -> Iterator[Resource]:
    """All resources of a file, or of a folder's files in the order of their names; a Bundle is its entries.

    Raises:
        DataError: no such file, not packed as its name says, or a line that is no resource.
    """
    for file in _files(path):
        for number, content in _lines(file):
            place = f"{file}, line {number}"
            if content.get("resourceType") != "Bundle":
                yield _resource(content, place)
                continue
            for position, entry in enumerate(items(content, "entry"), start=1):
                if "resource" in entry:
                    yield _resource(part(entry, "resource"), f"{place}, entry {position}")


def part(value: dict[str, Any], key: str) -> dict[str, Any]:
    """The object under a key; an empty one if there is none."""
    found = value.get(key)
    return found if isinstance(found, dict) else {}


def items(value: dict[str, Any], key: str) -> list[dict[str, Any]]:
    """The objects of the list under a key."""
    found = value.get(key)
    return [item for item in found if isinstance(item, dict)] if isinstance(found, list) else []


def text(value: dict[str, Any], key: str) -> str:
    """The text under a key; empty if there is none."""
    found = value.get(key)
    return found if isinstance(found, str) else ""


def _resource(content: dict[str, Any], place: str) -> Resource:
    kind = text(content, "resourceType")
    if not kind:
        raise DataError(
            "a line is no FHIR resource",
            where=place,
            found="a JSON object without resourceType",
            expected='{"resourceType": "Patient", ...}',
            remedy="export FHIR resources as NDJSON (bulk data)",
        )
    return Resource(kind, content, place)


def _files(path: Path) -> Sequence[Path]:
    if not path.exists():
        raise DataError("there is no such file or folder", where=str(path), remedy="check the path")
    if not path.is_dir():
        return [path]
    files = sorted(
        file
        for file in path.iterdir()
        if file.name.lower().endswith(SUFFIXES) and not file.name.startswith(".")
    )
    if not files:
        raise DataError(
            "there is no NDJSON file in the folder",
            where=str(path),
            expected=f"files named *{' or *'.join(SUFFIXES)}",
        )
    return files


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    opener = gzip.open if path.name.lower().endswith(".gz") else open
    try:
        with opener(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, _object(line, f"{path}, line {number}")
    except (gzip.BadGzipFile, EOFError, zlib.error):
        raise DataError(
            "the file cannot be unpacked",
            where=str(path),
            found="not a gzip file, or one that was cut off",
            expected="a gzip file, as its name ends in '.gz'",
            remedy="copy it again, or rename it if it is not packed",
        ) from None
    except OSError as error:
        raise DataError(
            "the file cannot be read", where=str(path), found=error.strerror or "", remedy="check its rights"
        ) from None


def _object(line: bytes, place: str) -> dict[str, Any]:
    try:
        found = json.loads(line.decode("utf-8-sig"), parse_float=Decimal, parse_constant=_no_number)
    except (ValueError, RecursionError):  # its message would hold the line
        found = None
    if not isinstance(found, dict):
        raise DataError(
            "a line is not a JSON object",
            where=place,
            found="something else (one resource over several lines?)",
            expected="one resource a line, in UTF-8",
            remedy="export as NDJSON (one resource a line)",
        )
    return found


def _no_number(_name: str) -> float:
    raise ValueError("not JSON")

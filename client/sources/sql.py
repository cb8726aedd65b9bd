"""Read the answer of one query to a database as text cells; the query may only read."""

import re
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from clinimeta.client.sources import SOURCES
from clinimeta.client.sources.cells import text_cells
from clinimeta.client.sources.database import checked_names, reading
from clinimeta.client.sources.mapping import Columns, Scale, Translation, Values
from clinimeta.common.errors import DataError
from clinimeta.common.settings import Settings
from clinimeta.common.tasks.table import Records

_TOKEN = re.compile(
    r"""(?P<comment>--[^\n]*|/\*.*?\*/)
    |(?P<quoted>'(?:[^'\\]|'')*'|"(?:[^"]|"")*"|`[^`]*`|\[[^\]'"]*\]|(?P<tag>\$\w*\$).*?(?P=tag))
    |(?P<word>\w+)|(?P<end>;)|(?P<open>['"`\\]|/\*)|.""",
    flags=re.VERBOSE | re.DOTALL,
)
_WRITES = frozenset({"insert", "update", "delete", "merge", "into"})
"""What may stand inside a statement that begins with SELECT or WITH, and still writes or locks."""


@SOURCES.register("sql")
class SqlSource(Settings):
    """The answer of a query; the file `url_file` (mode 0600) holds the database's URL, for SQLAlchemy.

    The query stands in `query`, or in the file `query_file`.
    """

    kind: Literal["sql"] = "sql"
    url_file: str
    query: str = ""
    query_file: str = ""
    columns: Columns = Field(default_factory=dict)
    values: Values = Field(default_factory=dict)
    scale: Scale = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_query(self) -> "SqlSource":
        if bool(self.query) == bool(self.query_file):
            raise ValueError("either 'query' or 'query_file'")
        return self

    @property
    def translation(self) -> Translation:
        """The mapping as written."""
        return Translation(self.columns, self.values, self.scale)

    def read(self, folder: Path) -> Records:
        """All rows of the answer, counted from 1."""
        where = str(folder / self.query_file) if self.query_file else "[data], key 'query'"
        query = self.query or _read(folder / self.query_file)
        require_reading(query, where)
        with reading(folder, self.url_file, query) as connection:
            # Without parameters a driver leaves '%' alone; `text` would take ':name' for one.
            answer = connection.execution_options(no_parameters=True).exec_driver_sql(query)
            names = checked_names(list(answer.keys()), where)
            rows = [tuple(row) for row in answer]
        columns = list(zip(*rows, strict=True)) if rows else [()] * len(names)
        cells = {
            name: text_cells(column, lambda row, name=name: f"{where}, row {row + 1}, column '{name}'")  # type: ignore[misc]
            for name, column in zip(names, columns, strict=True)
        }
        return Records(f"the answer to {where}", cells, places=[f"row {row + 1}" for row in range(len(rows))])


def require_reading(query: str, where: str) -> None:
    """Do nothing, if a query is one statement, and one that only reads.

    This catches mistakes; what a function called by the query does is for the database to forbid.

    Raises:
        DataError: several statements, not SELECT or WITH, a word that writes, or a quote that is left open.
    """
    words, ended = [], False
    for token in _TOKEN.finditer(query):
        text = token.group()
        if token["open"] or text.startswith("/*!"):  # MySQL runs what stands in such a comment
            raise _refused(
                "it holds a quote that is not closed, a backslash, or a comment of that sort", where
            )
        if token["comment"] or text.isspace():
            continue
        if ended:
            raise _refused("it holds more than one statement", where)
        ended = bool(token["end"])
        if token["word"]:
            words.append(text.lower())
    if not words or words[0] not in ("select", "with"):
        raise _refused("it does not begin with SELECT or WITH", where)
    for word in words:
        if word in _WRITES:
            raise _refused(f"it holds the word {word.upper()}", where)


def _refused(found: str, where: str) -> DataError:
    return DataError(
        "the query is not one that only reads",
        where=where,
        found=found,
        expected="one SELECT (or WITH ... SELECT)",
        remedy='rewrite it; a column of such a name is written in double quotes ("update")',
    )


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            "the query cannot be read",
            where=str(path),
            found=(isinstance(error, OSError) and error.strerror) or "not UTF-8 text",
            remedy="check the path and the file's rights",
        ) from None

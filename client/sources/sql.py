"""Read the rows of a query from a SQL database, by SQLAlchemy: never to write, no password in settings."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import sqlalchemy as sa
from pydantic import Field

from clinimeta.client.sources import SOURCES
from clinimeta.client.sources.cells import text_cells
from clinimeta.client.sources.mapping import Columns, Scale, Translation, Values
from clinimeta.common.errors import DataError
from clinimeta.common.private_files import read_secret
from clinimeta.common.settings import Settings
from clinimeta.common.tasks.table import Records

_READS = re.compile(r"\s*(SELECT|WITH)\b", re.IGNORECASE)
BATCH = 10_000


@SOURCES.register("sql")
class SqlSource(Settings):
    """A query (SELECT or WITH) to a database that SQLAlchemy knows.

    `url` names the database, for example "sqlite:///cohort.sqlite" (relative to the hospital's folder) or
    "postgresql+psycopg://reader@db/warehouse". One with a password goes into a file that only the owner may
    read: `url_file`. `query` or `query_file` is one statement.
    """

    kind: Literal["sql"] = "sql"
    url: str = ""
    url_file: str = ""
    query: str = ""
    query_file: str = ""
    columns: Columns = Field(default_factory=dict)
    values: Values = Field(default_factory=dict)
    scale: Scale = Field(default_factory=dict)

    @property
    def translation(self) -> Translation:
        """The mapping as written."""
        return Translation(self.columns, self.values, self.scale)

    def read(self, folder: Path) -> Records:
        """All rows of the query, read-only.

        Raises:
            DataError: no such database, a statement that would write, or one that the database refuses.
            UserError: the file of the URL is open to others.
        """
        query = self._query(folder)
        place = f"the database's answer to {self.query_file or 'the query'}"
        names, rows = read_rows(self._url(folder), query, place)

        def cell_at(name: str) -> Callable[[int], str]:
            return lambda index: f"{place}, row {index + 1}, column '{name}'"

        cells = {name: text_cells([row[at] for row in rows], cell_at(name)) for at, name in enumerate(names)}
        return Records(place, cells, places=[f"row {number}" for number in range(1, len(rows) + 1)])

    def _query(self, folder: Path) -> str:
        if bool(self.query) == bool(self.query_file):
            raise _either("query", "query_file")
        if not self.query_file:
            return self.query
        try:
            return (folder / self.query_file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            raise DataError(
                "the query cannot be read", where=str(folder / self.query_file), remedy="check the path"
            ) from None

    def _url(self, folder: Path) -> sa.URL:
        if bool(self.url) == bool(self.url_file):
            raise _either("url", "url_file")
        text = self.url or read_secret(folder / self.url_file).decode(errors="replace").strip()
        try:
            url = sa.make_url(text)
        except sa.exc.ArgumentError:
            raise DataError(
                "this is no database's URL",
                where=f"[data], key '{'url' if self.url else 'url_file'}'",
                expected="for example sqlite:///cohort.sqlite or postgresql+psycopg://reader@db/warehouse",
            ) from None
        if self.url and url.password:
            raise DataError(
                "a password stands in the settings",
                where="[data], key 'url'",
                expected="a URL without one, or `url_file`: a file of mode 0600 that holds the URL",
                remedy="move the URL there, and change the password: settings are copied and shown",
            )
        if url.get_backend_name() == "sqlite" and url.database:
            return url.set(database=str(folder / url.database))
        return url


def _either(one: str, other: str) -> DataError:
    return DataError(f"either '{one}' or '{other}' is needed, and not both", where="[data]")


def read_rows(url: sa.URL, query: str, place: str) -> tuple[list[str], list[tuple[object, ...]]]:
    """Column names and rows of one reading statement.

    Raises:
        DataError: another statement, or the database refuses; shows neither password nor value.
    """
    text = query.strip().rstrip(";")
    if not _READS.match(text) or ";" in text:
        raise DataError(
            "the query is not one reading statement",
            where=place,
            expected="one SELECT, or WITH ... SELECT, without a semicolon in it",
            remedy="make a view of what is more",
        )
    with _connected(url) as connection, _told(url, place):
        found = connection.execute(sa.text(text.replace(":", r"\:")))
        names = [str(name).strip() for name in found.keys()]  # noqa: SIM118 (not a dict)
        rows = [tuple(row) for batch in found.partitions(BATCH) for row in batch]
    twice = sorted({name for name in names if not name or names.count(name) > 1})
    if twice:
        raise DataError(
            "two columns of the query have the same name, or one has none",
            where=place,
            found=", ".join(map(repr, twice)),
            remedy="name every column, each name once: SELECT a AS age, ...",
        )
    return names, rows


@contextmanager
def _connected(url: sa.URL) -> Iterator[sa.Connection]:
    sqlite = url.get_backend_name() == "sqlite"
    if sqlite and not Path(url.database or "").is_file():
        raise DataError("there is no such database", where=str(url.database), remedy="check the path")
    with _told(url, _shown(url)):
        if sqlite:
            engine = sa.create_engine(f"sqlite:///file:{url.database}?mode=ro&uri=true")
        else:
            engine = sa.create_engine(url)
        connection = engine.connect()
        if url.get_backend_name() in ("postgresql", "mysql", "mariadb"):
            connection.execute(sa.text("SET TRANSACTION READ ONLY"))
    try:
        yield connection
    finally:
        connection.rollback()
        connection.close()
        engine.dispose()


@contextmanager
def _told(url: sa.URL, place: str) -> Iterator[None]:
    """Errors of the database, without what they quote."""
    try:
        yield
    except (sa.exc.SQLAlchemyError, ImportError) as error:
        cause = getattr(error, "orig", None) or error
        missing = isinstance(error, sa.exc.NoSuchModuleError | ImportError)
        raise DataError(
            "the database cannot be read",
            where=f"{_shown(url)}, {place}" if _shown(url) not in place else place,
            found=f"an error of its driver, {type(cause).__name__}",
            expected="a database that answers, and a query of tables and columns that are there",
            remedy="install its driver (pip install)"
            if missing
            else "try the query in the database's own client",
        ) from None


def _shown(url: sa.URL) -> str:
    return url.set(username=None, password=None, query={}).render_as_string(hide_password=True)

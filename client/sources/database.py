"""A hospital's database, to be read only: the URL is a secret, and what a driver says is never repeated.

SQLite is opened read-only. PostgreSQL, MySQL, MariaDB and Oracle get a read-only transaction; other databases
have none, so the user in the URL should be one who may only read, which is the better protection anyway.
Nothing is ever committed.
"""

import re
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import sqlalchemy as sa
from sqlalchemy.exc import ArgumentError, NoSuchModuleError

from clinimeta.common.errors import DataError, UserError
from clinimeta.common.private_files import read_secret

EXAMPLE = "one line such as postgresql+psycopg://user:password@host/database or sqlite:////data/cohort.db"
_READ_ONLY = {
    "mysql": "SET SESSION TRANSACTION READ ONLY",
    "mariadb": "SET SESSION TRANSACTION READ ONLY",
    "oracle": "SET TRANSACTION READ ONLY",
}


@contextmanager
def reading(folder: Path, url_file: str, statement: str = "") -> Iterator[sa.Connection]:
    """A connection on which nothing can be written, as far as the database knows such a thing.

    Whatever goes wrong inside, apart from what is ours, becomes an error that shows nothing of the driver's
    message but what `statement`, written by people here, says too.

    Raises:
        UserError: the URL's file is not private, or holds no URL; the database cannot be opened or read.
    """
    place = folder / url_file
    engine, connected = _engine(_url(place), place, folder), False
    try:
        with engine.connect() as connection:
            connected = True
            if connection.dialect.name == "postgresql":
                connection = connection.execution_options(postgresql_readonly=True)
            elif connection.dialect.name in _READ_ONLY:
                connection.exec_driver_sql(_READ_ONLY[connection.dialect.name])
            yield connection
            connection.rollback()
    except UserError:
        raise
    except Exception as error:  # drivers raise what they like, and what they say may hold cells
        raise DataError(
            "the database did not answer as it should" if connected else "the database cannot be opened",
            where=f"the database of {place}",
            found=_reason(error, statement),
            remedy="try the same with the database's own client: its message may hold "
            + ("patients' values" if connected else "the password")
            + ", so it is not repeated here",
        ) from None
    finally:
        engine.dispose()


def checked_names(names: Sequence[str], where: str) -> list[str]:
    """The names of an answer's columns.

    Raises:
        DataError: one is empty, or there twice; names its number.
    """
    found = [name.strip() for name in names]
    for number, name in enumerate(found, start=1):
        if not name or found.index(name) + 1 < number:
            raise DataError(
                "two columns have the same name" if name else "a column has no name",
                where=f"{where}, column {number}",
                remedy="name every column, each name once (AS)",
            )
    return found


def _url(place: Path) -> sa.URL:
    try:
        return sa.make_url(read_secret(place).decode("utf-8").strip())
    except (ArgumentError, UnicodeDecodeError, ValueError):  # a wrong port is a ValueError that shows it
        raise DataError(
            "the file holds no database URL",
            where=str(place),
            found="something else (not shown: it may hold a password)",
            expected=EXAMPLE,
            remedy="write the URL; characters such as @ in a password are written as %40",
        ) from None


def _engine(url: sa.URL, place: Path, folder: Path) -> sa.Engine:
    if url.get_backend_name() == "sqlite":
        return _sqlite(url, place, folder)
    try:
        return sa.create_engine(url, poolclass=sa.NullPool, hide_parameters=True)
    except NoSuchModuleError:
        raise DataError(
            "the URL names a kind of database that is not known",
            where=str(place),
            expected=EXAMPLE,
            remedy="correct the part before '://', or install the package that knows it",
        ) from None
    except ImportError as error:
        raise DataError(
            "the driver for this database is not installed",
            where=str(place),
            found=f"no package '{error.name}'" if error.name else "",
            remedy="install it beside clinimeta (psycopg for PostgreSQL, oracledb, pyodbc, pymysql ...)",
        ) from None
    except Exception as error:  # a driver that does not like the URL may well repeat it
        raise DataError(
            "the URL cannot be used", where=str(place), found=type(error).__name__, expected=EXAMPLE
        ) from None


def _sqlite(url: sa.URL, place: Path, folder: Path) -> sa.Engine:
    if url.drivername not in ("sqlite", "sqlite+pysqlite") or not url.database or url.query:
        raise DataError(
            "this SQLite URL cannot be opened for reading only",
            where=str(place),
            expected="sqlite:///PATH and nothing more",
            remedy="name the file only",
        )
    path = folder / url.database
    if not path.is_file():
        raise DataError(
            "there is no such database file", where=str(place), remedy="check the path in the URL"
        )

    def connect() -> sqlite3.Connection:
        opened = sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True)
        opened.text_factory = _text
        return opened

    return sa.create_engine("sqlite://", creator=connect, poolclass=sa.NullPool, hide_parameters=True)


def _text(raw: bytes) -> str | bytes:
    """Text, or the bytes as they are, so that the cell can be named later."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw


def _reason(error: Exception, statement: str) -> str:
    origin = getattr(error, "orig", None) or error
    state = getattr(origin, "sqlstate", None) or getattr(origin, "pgcode", None)
    if isinstance(state, str) and re.fullmatch(r"[0-9A-Z]{5}", state):
        return f"SQLSTATE {state}, {type(origin).__name__}"
    known = re.fullmatch(r"no such (table|column|function): ([\w.]+)", str(origin))
    if known and re.search(rf"(?<![\w.]){re.escape(known[2])}(?![\w.])", statement):
        return f"no such {known[1]}: {known[2]}"
    return f"an error of the driver's, {type(origin).__name__}"

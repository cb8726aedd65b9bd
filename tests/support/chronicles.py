"""A chronicle of a small training, and what stands in it, for tests of what the console will show."""

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from small_federation import NAME, job

from clinimeta.server.app import Job
from clinimeta.server.chronicle import Chronicle
from clinimeta.server.database import Database
from clinimeta.server.observing import News

START = datetime(2026, 11, 23, tzinfo=UTC)


@dataclass(slots=True)
class Ticking:
    """A clock that goes on by a second each time that somebody looks."""

    now: datetime = START

    def __call__(self) -> datetime:
        self.now += timedelta(seconds=1)
        return self.now


@dataclass(slots=True)
class Store:
    """A database and the chronicle of one experiment in it."""

    database: Database
    experiment: str = NAME

    def observed(self, path: Path, **training: Any) -> Job:
        return replace(job(path, **training), observer=self.chronicle())

    def chronicle(self) -> Chronicle:
        return Chronicle(self.database, self.experiment, Ticking())

    def tell(self, *news: News) -> Chronicle:
        chronicle = self.chronicle()
        for one in news:
            chronicle.tell(one)
        return chronicle

    def rows(self, table: sa.Table, **where: Any) -> list[dict[str, Any]]:
        query = sa.select(table).order_by(*table.primary_key)
        for name, value in where.items():
            query = query.where(table.c[name] == value)
        return self.database.rows(query)

    def text(self) -> str:
        """All that is in it."""
        found = []
        with self.database.engine.connect() as connection:
            tables = connection.exec_driver_sql("SELECT name FROM sqlite_master WHERE type = 'table'").all()
            for (name,) in tables:
                found += connection.execute(sa.select(sa.text("*")).select_from(sa.table(name))).all()
        return repr(found)

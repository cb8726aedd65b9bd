"""SQLite through SQLAlchemy: transactions that nobody else writes beside."""

from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa


@contextmanager
def transaction(engine: sa.Engine) -> Iterator[sa.Connection]:
    """A transaction that nobody else writes beside; undone where it raises.

    The engine's connections must leave the beginning of transactions to us (`isolation_level = None`).
    """
    with engine.connect() as connection:
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        try:
            yield connection
        except BaseException:
            connection.rollback()
            raise
        connection.commit()

"""The tables of a console's accounts; secrets are there as hashes only."""

from typing import Any

import sqlalchemy as sa

metadata = sa.MetaData()
accounts = sa.Table(
    "accounts",
    metadata,
    sa.Column("name", sa.String(100), primary_key=True),
    sa.Column("role", sa.String(20), nullable=False),
    sa.Column("site", sa.String(200), nullable=False),
    sa.Column("password", sa.String(200), nullable=False),
    sa.Column("active", sa.Boolean, nullable=False),
    sa.Column("made_at", sa.String(40), nullable=False),
)
links = sa.Table(
    "links",
    metadata,
    sa.Column("link", sa.LargeBinary, primary_key=True),
    sa.Column("role", sa.String(20), nullable=False),
    sa.Column("site", sa.String(200), nullable=False),
    sa.Column("name", sa.String(100), nullable=False),  # of an account whose password is to be set anew
    sa.Column("expires_at", sa.String(40), nullable=False),
)
sessions = sa.Table(
    "sessions",
    metadata,
    sa.Column("session", sa.LargeBinary, primary_key=True),
    sa.Column("name", sa.String(100), nullable=False, index=True),
    sa.Column("csrf", sa.String(64), nullable=False),
    sa.Column("made_at", sa.String(40), nullable=False),
    sa.Column("seen_at", sa.String(40), nullable=False),
)
tokens = sa.Table(
    "tokens",
    metadata,
    sa.Column("token", sa.LargeBinary, primary_key=True),
    sa.Column("name", sa.String(100), nullable=False, index=True),
    sa.Column("label", sa.String(100), nullable=False),
    sa.Column("expires_at", sa.String(40), nullable=False),
)
tries = sa.Table(
    "tries",
    metadata,
    sa.Column("about", sa.String(300), primary_key=True),
    sa.Column("failures", sa.Integer, nullable=False),
    sa.Column("not_before", sa.String(40), nullable=False),
)


def prepare(connection: Any, _record: Any) -> None:
    """How each connection is used."""
    connection.isolation_level = None  # transactions are begun by us, not by the driver
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL"):
        connection.execute(f"PRAGMA {pragma}")

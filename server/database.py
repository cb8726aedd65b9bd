"""The coordinator's database: hospitals, invitations, experiments, and who did what."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import event

from clinimeta.common.errors import UserError

MIGRATIONS = Path(__file__).parent / "migrations"

metadata = sa.MetaData()

sites = sa.Table(
    "sites",
    metadata,
    sa.Column("name", sa.String(200), primary_key=True),
    sa.Column("state", sa.String(20), nullable=False),  # waiting, approved, revoked
    sa.Column("node_key", sa.LargeBinary, nullable=False, unique=True),  # SEC1 point, P-384
    sa.Column("identity_key", sa.LargeBinary, nullable=False, unique=True),  # Ed25519
    sa.Column("node_id", sa.String(20)),  # Flower's, once the key is registered
    sa.Column("software", sa.String(200), nullable=False, default=""),
    sa.Column("enrolled_at", sa.String(40), nullable=False),
    sa.Column("decided_at", sa.String(40)),
    sa.Index("sites_by_state", "state"),
)
"""One row a hospital. A revoked one stays, so that its keys cannot come back under another name."""

invitations = sa.Table(
    "invitations",
    metadata,
    sa.Column("token", sa.LargeBinary, primary_key=True),  # SHA-256: the token itself is not kept
    sa.Column("site", sa.String(200), nullable=False),
    sa.Column("purpose", sa.String(20), nullable=False),  # enrol, rotate
    sa.Column("automatic", sa.Boolean, nullable=False),
    sa.Column("made_at", sa.String(40), nullable=False),
    sa.Column("expires_at", sa.String(40), nullable=False),
    sa.Column("used_at", sa.String(40)),
)
"""One row a token; used once, and not after it has expired."""

experiments = sa.Table(
    "experiments",
    metadata,
    sa.Column("id", sa.String(40), primary_key=True),
    sa.Column("study", sa.String(200), nullable=False),
    sa.Column("wanted", sa.String(20), nullable=False),  # running, stopped
    sa.Column("state", sa.String(20), nullable=False),  # queued, running, waiting, finished, failed, stopped
    sa.Column("detail", sa.Text, nullable=False, default=""),
    sa.Column("participants", sa.Text, nullable=False),  # JSON list of names
    sa.Column("flower_run", sa.String(20)),
    sa.Column("worker", sa.String(20), nullable=False),
    sa.Column("submissions", sa.Integer, nullable=False, default=0),
    sa.Column("round", sa.Integer, nullable=False, default=0),
    sa.Column("rounds", sa.Integer, nullable=False, default=0),
    sa.Column("made_at", sa.String(40), nullable=False),
    sa.Column("changed_at", sa.String(40), nullable=False),
    sa.Index("experiments_by_time", "made_at"),
    sa.Index("experiments_by_state", "state", "made_at"),
    sa.Index("experiments_by_study", "study", "made_at"),
)
"""One row an experiment: what is wanted of it, and how it is."""

checkpoints = sa.Table(
    "checkpoints",
    metadata,
    sa.Column("site", sa.String(200), primary_key=True),
    sa.Column("key", sa.LargeBinary, primary_key=True),  # Ed25519: its own ledger for each key
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("checkpoint", sa.LargeBinary, nullable=False),
    sa.Column("receipt", sa.LargeBinary, nullable=False),
    sa.Column("at", sa.String(40), nullable=False),
)
"""Checkpoints of hospitals' ledgers that came with their answers, and the coordinator's receipts for them."""

events = sa.Table(
    "events",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("at", sa.String(40), nullable=False),
    sa.Column("who", sa.String(200), nullable=False),
    sa.Column("what", sa.String(40), nullable=False),
    sa.Column("about", sa.String(200), nullable=False),
    sa.Column("detail", sa.Text, nullable=False, default=""),
    sa.Column("role", sa.String(20), nullable=False, server_default=""),
    sa.Column("reason", sa.Text, nullable=False, server_default=""),
    sa.Column("hash", sa.LargeBinary, nullable=False, server_default=sa.text("x''")),  # SHA-256, in a chain
)
"""Who did what to which hospital or experiment, and when (UTC); `enrolment.record` alone writes it."""


@dataclass(frozen=True, slots=True)
class Database:
    """An open database; any number of processes may use it at once."""

    engine: sa.Engine

    @staticmethod
    def open(path: Path) -> "Database":
        """The database at `path`, made where it is missing, with the newest tables.

        Raises:
            UserError: the file is no database, or was made by a newer version.
        """
        engine = sa.create_engine(f"sqlite:///{path}", connect_args={"timeout": 30})
        event.listen(engine, "connect", _prepare)
        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS))
        try:
            with engine.connect() as connection:
                config.attributes["connection"] = connection
                if _version(connection) != ScriptDirectory.from_config(config).get_current_head():
                    connection.exec_driver_sql("BEGIN IMMEDIATE")  # one process upgrades, others wait for it
                    command.upgrade(config, "head")
                    connection.commit()
        except Exception as error:
            raise UserError(
                "the coordinator's database cannot be used",
                where=str(path),
                found=type(error).__name__,
                expected="a database of this or an earlier version",
                remedy="restore it from a backup, or install the version that wrote it",
            ) from None
        return Database(engine)

    @contextmanager
    def change(self) -> Iterator[sa.Connection]:
        """A transaction that nobody else writes beside; undone where it raises."""
        with self.engine.connect() as connection:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            try:
                yield connection
            except BaseException:
                connection.rollback()
                raise
            connection.commit()

    def rows(self, query: sa.Select[Any]) -> list[dict[str, Any]]:
        """What a query finds."""
        with self.engine.connect() as connection:
            return [dict(row) for row in connection.execute(query).mappings()]


def _version(connection: sa.Connection) -> str | None:
    found: str | None = MigrationContext.configure(connection).get_current_revision()
    return found


def _prepare(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # transactions are begun by us, not by the driver
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")

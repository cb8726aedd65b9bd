"""Events in a chain, and the chronicle: rounds, answers, attempts, sightings, failures."""

import sqlalchemy as sa
from alembic import op

from clinimeta.server.audit import START, chained

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Chain the events that are there, and make the chronicle's tables."""
    _chain()
    _rounds()
    _others()


def downgrade() -> None:
    """Not offered: what was written down would be forgotten."""
    raise NotImplementedError


def _chain() -> None:
    connection = op.get_bind()
    text = sa.Column("role", sa.String(20), nullable=False, server_default="")
    op.add_column("events", text)
    op.add_column("events", sa.Column("reason", sa.Text, nullable=False, server_default=""))
    op.add_column("events", sa.Column("hash", sa.LargeBinary, nullable=False, server_default=sa.text("x''")))
    before = START
    for row in connection.execute(sa.text("SELECT * FROM events ORDER BY number")).mappings().all():
        before = chained(before, dict(row))
        connection.execute(
            sa.text("UPDATE events SET hash = :hash WHERE number = :number"),
            {"hash": before, "number": row["number"]},
        )
    columns = "who, role, what, about, detail, reason"
    op.execute(
        f"CREATE VIRTUAL TABLE events_words USING fts5({columns}, content=events, content_rowid=number)"
    )
    op.execute("INSERT INTO events_words (events_words) VALUES ('rebuild')")
    values = ", ".join(f"new.{name}" for name in columns.split(", "))
    op.execute(
        "CREATE TRIGGER events_are_found AFTER INSERT ON events BEGIN "  # noqa: S608 (names of ours)
        f"INSERT INTO events_words (rowid, {columns}) VALUES (new.number, {values}); END"
    )
    op.create_index("sites_by_state", "sites", ["state"])
    op.create_index("experiments_by_time", "experiments", ["made_at"])
    op.create_index("experiments_by_state", "experiments", ["state", "made_at"])
    op.create_index("experiments_by_study", "experiments", ["study", "made_at"])


def _rounds() -> None:
    op.create_table(
        "changes",
        sa.Column("one", sa.Integer, primary_key=True),
        sa.Column("number", sa.Integer, nullable=False),
    )
    op.execute("INSERT INTO changes (one, number) VALUES (1, 0)")
    op.create_table(
        "rounds",
        sa.Column("experiment", sa.String(40), primary_key=True),
        sa.Column("round", sa.Integer, primary_key=True),
        sa.Column("training", sa.String(200), nullable=False),
        sa.Column("started", sa.String(40), nullable=False),
        sa.Column("ended", sa.String(40)),
        sa.Column("cohort", sa.Integer, nullable=False),
        sa.Column("accepted", sa.Integer, nullable=False),
        sa.Column("metrics", sa.Text, nullable=False),
        sa.Column("spread", sa.Text, nullable=False),
        sa.Column("gradient_norm", sa.Float),
        sa.Column("bytes_down", sa.Integer, nullable=False),
        sa.Column("bytes_up", sa.Integer, nullable=False),
        sa.Column("seconds", sa.Float),
        sa.Column("rollbacks", sa.Integer, nullable=False),
        sa.Column("epsilon", sa.Float),
        sa.Column("why", sa.Text, nullable=False),
        sa.Column("change", sa.Integer, nullable=False),
    )
    op.create_index("rounds_by_change", "rounds", ["experiment", "change"])
    op.create_table(
        "answers",
        sa.Column("experiment", sa.String(40), primary_key=True),
        sa.Column("round", sa.Integer, primary_key=True),
        sa.Column("attempt", sa.Integer, primary_key=True),
        sa.Column("site", sa.String(200), primary_key=True),
        sa.Column("phase", sa.String(20), nullable=False),
        sa.Column("asked", sa.String(40), nullable=False),
        sa.Column("at", sa.String(40), nullable=False),
        sa.Column("seconds", sa.Float),
        sa.Column("bytes_down", sa.Integer, nullable=False),
        sa.Column("bytes_up", sa.Integer, nullable=False),
        sa.Column("code", sa.String(60), nullable=False),
        sa.Column("sentence", sa.String(300), nullable=False),
        sa.Column("metrics", sa.Text, nullable=False),
        sa.Column("change", sa.Integer, nullable=False),
    )
    op.create_index("answers_by_site", "answers", ["site", "asked"])
    op.create_table(
        "attempts",
        sa.Column("experiment", sa.String(40), primary_key=True),
        sa.Column("round", sa.Integer, primary_key=True),
        sa.Column("attempt", sa.Integer, primary_key=True),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("begun", sa.String(40), nullable=False),
        sa.Column("ended", sa.String(40)),
        sa.Column("asked", sa.Integer, nullable=False),
        sa.Column("threshold", sa.Integer),
        sa.Column("survivors", sa.Integer),
        sa.Column("aborted", sa.Text, nullable=False),
        sa.Column("lost", sa.Text, nullable=False),
        sa.Column("phases", sa.Text, nullable=False),
        sa.Column("change", sa.Integer, nullable=False),
    )
    op.create_table(
        "openings",
        sa.Column("experiment", sa.String(40), primary_key=True),
        sa.Column("round", sa.Integer, primary_key=True),
        sa.Column("name", sa.String(200), primary_key=True),
        sa.Column("at", sa.String(40), nullable=False),
    )


def _others() -> None:
    op.create_table(
        "sightings",
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("site", sa.String(200), nullable=False),
        sa.Column("since", sa.String(40), nullable=False),
        sa.Column("until", sa.String(40), nullable=False),
        sa.Column("standing", sa.String(20), nullable=False),
        sa.Column("software", sa.String(200)),
        sa.Column("rows_from", sa.Integer),
        sa.Column("rows_to", sa.Integer),
        sa.Column("policy", sa.String(64)),
        sa.Column("budget_left", sa.Float),
    )
    op.create_index("sightings_by_site", "sightings", ["site", "until"])
    op.create_table(
        "failures",
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("at", sa.String(40), nullable=False),
        sa.Column("process", sa.String(60), nullable=False),
        sa.Column("what", sa.Text, nullable=False),
        sa.Column("where", sa.Text, nullable=False),
        sa.Column("remedy", sa.Text, nullable=False),
    )
    op.create_index("failures_by_process", "failures", ["process", "number"])

"""Hospitals, invitations, experiments, events."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make the first tables."""
    op.create_table(
        "sites",
        sa.Column("name", sa.String(200), primary_key=True),
        sa.Column("state", sa.String(20), nullable=False),
        sa.Column("node_key", sa.LargeBinary, nullable=False, unique=True),
        sa.Column("identity_key", sa.LargeBinary, nullable=False, unique=True),
        sa.Column("node_id", sa.String(20)),
        sa.Column("software", sa.String(200), nullable=False),
        sa.Column("enrolled_at", sa.String(40), nullable=False),
        sa.Column("decided_at", sa.String(40)),
    )
    op.create_table(
        "invitations",
        sa.Column("token", sa.LargeBinary, primary_key=True),
        sa.Column("site", sa.String(200), nullable=False),
        sa.Column("purpose", sa.String(20), nullable=False),
        sa.Column("automatic", sa.Boolean, nullable=False),
        sa.Column("made_at", sa.String(40), nullable=False),
        sa.Column("expires_at", sa.String(40), nullable=False),
        sa.Column("used_at", sa.String(40)),
    )
    op.create_table(
        "experiments",
        sa.Column("id", sa.String(40), primary_key=True),
        sa.Column("study", sa.String(200), nullable=False),
        sa.Column("wanted", sa.String(20), nullable=False),
        sa.Column("state", sa.String(20), nullable=False),
        sa.Column("detail", sa.Text, nullable=False),
        sa.Column("participants", sa.Text, nullable=False),
        sa.Column("flower_run", sa.String(20)),
        sa.Column("worker", sa.String(20), nullable=False),
        sa.Column("submissions", sa.Integer, nullable=False),
        sa.Column("round", sa.Integer, nullable=False),
        sa.Column("rounds", sa.Integer, nullable=False),
        sa.Column("made_at", sa.String(40), nullable=False),
        sa.Column("changed_at", sa.String(40), nullable=False),
    )
    op.create_table(
        "checkpoints",
        sa.Column("site", sa.String(200), primary_key=True),
        sa.Column("key", sa.LargeBinary, primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("checkpoint", sa.LargeBinary, nullable=False),
        sa.Column("receipt", sa.LargeBinary, nullable=False),
        sa.Column("at", sa.String(40), nullable=False),
    )
    op.create_table(
        "events",
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("at", sa.String(40), nullable=False),
        sa.Column("who", sa.String(200), nullable=False),
        sa.Column("what", sa.String(40), nullable=False),
        sa.Column("about", sa.String(200), nullable=False),
        sa.Column("detail", sa.Text, nullable=False),
    )


def downgrade() -> None:
    """Not offered: what was enrolled would be forgotten."""
    raise NotImplementedError

"""Plans that hospitals are asked about, and their verdicts."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Two tables."""
    op.create_table(
        "proposals",
        sa.Column("plan", sa.String(64), primary_key=True),
        sa.Column("study", sa.String(200), nullable=False),
        sa.Column("content", sa.LargeBinary, nullable=False),
        sa.Column("made_at", sa.String(40), nullable=False),
    )
    op.create_index("proposals_by_time", "proposals", ["made_at"])
    op.create_table(
        "verdicts",
        sa.Column("plan", sa.String(64), primary_key=True),
        sa.Column("site", sa.String(200), primary_key=True),
        sa.Column("at", sa.String(40), nullable=False),
        sa.Column("codes", sa.Text, nullable=False),
    )


def downgrade() -> None:
    """Not offered: what was written down would be forgotten."""
    raise NotImplementedError

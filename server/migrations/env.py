"""Alembic's entry: the connection is handed in by `database.Database.open`."""

from alembic import context

from clinimeta.server.database import metadata

context.configure(
    connection=context.config.attributes["connection"], target_metadata=metadata, render_as_batch=True
)
with context.begin_transaction():
    context.run_migrations()

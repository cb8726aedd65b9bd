"""How the coordinator's database came to have its tables (alembic)."""

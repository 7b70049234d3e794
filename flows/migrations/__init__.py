"""The registry's schema, as Alembic migrations in plain SQL."""

"""The registry's schema, as Alembic migrations in plain SQL.

Belongs here: one file a change, never edited once it has landed. May not: be imported by anything but the
registry. The way in is `Registry.migrate`.
"""

"""Forward-only migrations: one plain SQL file each, run by Alembic in order of `revision`."""

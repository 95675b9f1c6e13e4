"""Refuses TRUNCATE of what is in the audit log."""

from isochrone.adapters.postgres.migrations.sql import run_beside

revision = "0023"
down_revision = "0022"


def upgrade() -> None:
    run_beside(__file__)

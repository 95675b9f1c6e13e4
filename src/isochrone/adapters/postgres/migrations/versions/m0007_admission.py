"""Keeps how classes share the slots of a deployment."""

from isochrone.adapters.postgres.migrations.sql import run_beside

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    run_beside(__file__)

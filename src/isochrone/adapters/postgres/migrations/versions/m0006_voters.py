"""Lets voters be changed: who voted before, the epoch, and when that was."""

from isochrone.adapters.postgres.migrations.sql import run_beside

revision = "0006"
down_revision = "0004"


def upgrade() -> None:
    run_beside(__file__)

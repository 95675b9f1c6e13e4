"""Gives keys scopes and an end, members a kind and rotation, and personal fields one table."""

from isochrone.adapters.postgres.migrations.sql import run_beside

revision = "0010"
down_revision = "0007"


def upgrade() -> None:
    run_beside(__file__)

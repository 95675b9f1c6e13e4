"""Adds the runs of experiments that operators have control play."""

from isochrone.adapters.postgres.migrations.sql import run_beside

revision = "0019"
down_revision = "0018"


def upgrade() -> None:
    run_beside(__file__)

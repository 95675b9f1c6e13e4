"""Lets projects and organisations be closed, and evidence leave the book with its day."""

from isochrone.adapters.postgres.migrations.sql import run_beside

revision = "0017"
down_revision = "0016"


def upgrade() -> None:
    run_beside(__file__)

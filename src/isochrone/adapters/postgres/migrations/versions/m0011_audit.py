"""Writes every change of the book's own records into a log that is only ever added to."""

from isochrone.adapters.postgres.migrations.sql import run_beside

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    run_beside(__file__)

"""Remembers which keys of sites are refused at NATS, and until when they were issued."""

from isochrone.adapters.postgres.migrations.sql import run_beside

revision = "0022"
down_revision = "0021"


def upgrade() -> None:
    run_beside(__file__)

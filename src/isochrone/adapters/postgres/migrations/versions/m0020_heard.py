"""Adds to engines' readings since when they were heard, so that gaps between them are known."""

from isochrone.adapters.postgres.migrations.sql import run_beside

revision = "0020"
down_revision = "0019"


def upgrade() -> None:
    run_beside(__file__)

"""Lets policies bound caches and logs, and links state the countries that they pass."""

from isochrone.adapters.postgres.migrations.sql import run_beside

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    run_beside(__file__)

"""Adds to deployments which replicas were asked to restart, and what runs again after a stop."""

from isochrone.adapters.postgres.migrations.sql import run_beside

revision = "0018"
down_revision = "0017"


def upgrade() -> None:
    run_beside(__file__)

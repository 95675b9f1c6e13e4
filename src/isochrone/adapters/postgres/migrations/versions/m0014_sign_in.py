"""Gives members a local account to sign in with, its sessions, and counts of failed tries."""

from isochrone.adapters.postgres.migrations.sql import run_beside

revision = "0014"
down_revision = "0013"


def upgrade() -> None:
    run_beside(__file__)

"""Finds the policy of some axes by a digest of them, since long ones fit into no index."""

from isochrone.adapters.postgres.migrations.sql import run_beside

revision = "0021"
down_revision = "0020"


def upgrade() -> None:
    run_beside(__file__)

"""Makes the tables of entitlements and of the voters that look after their slices."""

from isochrone.adapters.postgres.migrations.sql import run_beside

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    run_beside(__file__)

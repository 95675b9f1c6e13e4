"""Makes the first tables: tenants, registry, book of usage and evidence."""

from isochrone.adapters.postgres.migrations.sql import run_beside

revision = "0001"
down_revision = None


def upgrade() -> None:
    run_beside(__file__)

"""Makes limits over sites, and what budgets had spent by which hour."""

from isochrone.adapters.postgres.migrations.sql import run_beside

revision = "0015"
down_revision = "0014"


def upgrade() -> None:
    run_beside(__file__)

"""Parts usage by the days of its request ids, and makes what stays of days that were detached."""

from isochrone.adapters.postgres.migrations.sql import run_beside

revision = "0016"
down_revision = "0015"


def upgrade() -> None:
    run_beside(__file__)

"""Makes the roll-ups of usage, price sheets, the ledger, and what engines counted."""

from isochrone.adapters.postgres.migrations.sql import run_beside

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    run_beside(__file__)

"""Lets every transaction see the rows of its own tenant only, whatever its statements ask for."""

from isochrone.adapters.postgres.migrations.sql import run_beside

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    run_beside(__file__)

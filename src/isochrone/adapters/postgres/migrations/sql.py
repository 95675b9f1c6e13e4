"""Runs the SQL file that lies beside a revision, in the migration's transaction."""

from pathlib import Path

import psycopg
from alembic import op


def run_beside(revision_file: str) -> None:
    """Run the statements of `revision_file` with the suffix .sql.

    They go to psycopg as they are, without parameters, so `:` and `%` have no meaning.
    """
    text = Path(revision_file).with_suffix(".sql").read_text(encoding="utf-8")
    driver = op.get_bind().connection.driver_connection
    assert isinstance(driver, psycopg.Connection)
    driver.execute(text.encode())

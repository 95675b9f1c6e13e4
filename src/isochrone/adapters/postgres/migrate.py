"""Brings a database to this release's schema; safe to call at every start, and concurrently."""

from pathlib import Path

import psycopg
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from psycopg.conninfo import make_conninfo
from sqlalchemy import create_engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from isochrone.core.errors import InvalidInput, StoreUnavailable

MIGRATIONS = Path(__file__).with_name("migrations")


def migrate(conninfo: str, *, revision: str = "head") -> None:
    """Run every pending migration up to `revision` in one transaction, as the user of `conninfo`.

    That user must own the database (or be allowed to create tables in it). Raises StoreUnavailable
    when the server is away, InvalidInput when the database belongs to a newer release.
    """
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    engine = create_engine(
        "postgresql+psycopg://",
        creator=lambda: psycopg.connect(make_conninfo(conninfo, connect_timeout=5)),
        poolclass=NullPool,
    )
    try:
        with engine.connect() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, revision)
    except CommandError as error:
        head = ScriptDirectory.from_config(config).get_current_head()
        raise InvalidInput(
            [f"the database was migrated by a newer release; this one knows up to {head}: {error}"]
        ) from error
    except (DBAPIError, psycopg.OperationalError) as error:
        if isinstance(error, DBAPIError) and not isinstance(error.orig, psycopg.OperationalError):
            raise
        raise StoreUnavailable(f"cannot migrate, PostgreSQL does not answer: {error}") from error
    finally:
        engine.dispose()

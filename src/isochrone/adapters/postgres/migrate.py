"""Brings a database to this release's schema; safe to call at every start, and concurrently."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from psycopg.conninfo import make_conninfo
from sqlalchemy import Connection, create_engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from isochrone.core.errors import InvalidInput, StoreUnavailable

MIGRATIONS = Path(__file__).with_name("migrations")


def migrate(conninfo: str, *, revision: str = "head") -> None:
    """Run every pending migration up to `revision` in one transaction, as the user of `conninfo`.

    That user must own the database (or be allowed to create tables in it). Raises StoreUnavailable
    when the server is away, InvalidInput when the database belongs to a newer release.
    """
    with owner_connection(conninfo) as connection:
        migrate_within(connection, revision=revision)


def migrate_within(connection: Connection, *, revision: str = "head") -> None:
    """The same on a connection; in its transaction, if it is in one."""
    config = _config()
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, revision)
    except CommandError as error:
        raise InvalidInput(
            [f"the database was migrated by a newer release; this one knows up to {newest()}: "
             f"{error}"]
        ) from error


@contextmanager
def owner_connection(conninfo: str) -> Iterator[Connection]:
    """A connection for migrations. Raises StoreUnavailable when the server is away."""
    engine = create_engine(
        "postgresql+psycopg://",
        creator=lambda: psycopg.connect(make_conninfo(conninfo, connect_timeout=5)),
        poolclass=NullPool,
    )
    try:
        with engine.connect() as connection:
            yield connection
    except (DBAPIError, psycopg.OperationalError) as error:
        if isinstance(error, DBAPIError) and not isinstance(error.orig, psycopg.OperationalError):
            raise
        raise StoreUnavailable(f"PostgreSQL does not answer: {error}") from error
    finally:
        engine.dispose()


def newest() -> str | None:
    """The revision that this release migrates to."""
    return ScriptDirectory.from_config(_config()).get_current_head()


def knows(revision: str) -> bool:
    """True where this release can migrate to `revision` and from there on."""
    scripts = ScriptDirectory.from_config(_config()).walk_revisions()
    return any(each.revision == revision for each in scripts)


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    return config

"""Where a backup goes and what belongs to it: databases that sort otherwise, the archive."""

import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from isochrone.adapters.postgres.book import PostgresBook
from isochrone.adapters.postgres.pool import Pool
from isochrone.adapters.postgres.server import OWNER, prepare
from isochrone.adapters.postgres.usage_days import PostgresUsageDays
from isochrone.control.settings import ControlSettings
from isochrone.core.errors import InvalidInput
from isochrone.core.world.tenant import EVERY_TENANT
from isochrone.wiring.backup import Place, backup, place_of, restore
from isochrone.wiring.control import read_files
from tests.contract.test_backup import full, place, tables, tell  # noqa: F401 - fixtures
from tests.contract.test_ledger import DAY, START, a_report
from tests.contract.test_row_security import registry  # noqa: F401 - a fixture
from tests.fixtures.postgres import spawn, stop

LOCALE = "en_US.UTF-8"  # in which a hyphen counts for little, and capitals stand beside the others


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Place]:
    """An empty database in that locale, on a server of its own."""
    locales = tmp_path / "locales"
    locales.mkdir()
    tool = shutil.which("localedef")
    if tool is None or subprocess.run(
        [tool, "-i", "en_US", "-f", "UTF-8", str(locales / LOCALE)], capture_output=True
    ).returncode:
        pytest.skip("this machine makes no locales")
    plan = prepare(tmp_path / "state", tmp_path / "run")
    plan = replace(plan, env={**plan.env, "LOCPATH": str(locales)})
    process = spawn(plan, tmp_path / "log", "-c", "fsync=off")
    try:
        with psycopg.connect(plan.superuser_conninfo, autocommit=True) as admin:
            admin.execute(
                f"CREATE DATABASE other OWNER {OWNER} TEMPLATE template0"
                f" LOCALE_PROVIDER libc LOCALE '{LOCALE}'"
            )
        yield Place(database=make_conninfo(plan.conninfo, dbname="other"), keys={})
    finally:
        stop(plan, process)


def test_a_backup_moves_between_databases_that_sort_otherwise(
    full: Pool, place: Place, elsewhere: Place, tmp_path: Path  # noqa: F811
) -> None:
    with full.transaction(EVERY_TENANT) as connection:
        for name in ("Qwen-2", "llama", "qwen", "Qwen_1", "qwen-2"):
            connection.execute(
                "INSERT INTO models (name, kind, context_tokens, created_at)"
                " VALUES (%s, 'chat', 9, 1)", (name,),
            )
    full.close()
    backup(place, tmp_path / "out", now=1, tell=tell)
    restore(elsewhere, tmp_path / "out", replacing=False, tell=tell)
    assert tables(elsewhere.database) == tables(place.database)
    backup(elsewhere, tmp_path / "back", now=1, tell=tell)
    restore(place, tmp_path / "back", replacing=True, tell=tell)
    assert tables(elsewhere.database) == tables(place.database)


def test_all_files_of_the_archive_that_belong_to_a_backup_are_listed(
    full: Pool, place: Place, tmp_path: Path  # noqa: F811
) -> None:
    book, days = PostgresBook(full), PostgresUsageDays(full, tmp_path / "archive")
    book.book_usage([a_report(1)], now=1)
    book.note_evidence([replace(a_report(2), reporter="evidence")], now=1)
    book.book_overdue_evidence(9, now=9)
    days.detach(EVERY_TENANT, START, now=START + 90 * DAY)
    made = backup(place, tmp_path / "out", now=START + 90 * DAY, tell=tell)
    assert {each.name for each in made.archive} == {
        path.name for path in (tmp_path / "archive").iterdir()
    }
    assert len(made.archive) == 2


def test_a_place_without_a_name_is_refused(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:
    """It is a new folder that is made; `.` in an empty one was a bug's traceback."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidInput, match="name a folder that does not"):
        backup(place, Path("."), now=1, tell=tell)


@pytest.mark.parametrize("database", ["nonsense", "postgresql://%zz@host/book"])
def test_what_is_no_connection_string_is_said_to_be_none(database: str, tmp_path: Path) -> None:
    settings = ControlSettings(
        port=1, database=database, nats_urls=(), public_url="http://c",
        nats_credentials=tmp_path / "login", nats_secrets=tmp_path / "nats",
        signing_key=tmp_path / "signing", admin_key=tmp_path / "admin",
    )
    with pytest.raises(InvalidInput, match="no connection string"):
        place_of(settings)
    with pytest.raises(InvalidInput, match="no connection string"):
        read_files(settings)

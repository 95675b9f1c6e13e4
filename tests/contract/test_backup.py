"""Backup and restore on a real PostgreSQL: all of a book or nothing, and the totals agree."""

import gzip
import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from isochrone.adapters.postgres.book import PostgresBook
from isochrone.adapters.postgres.book_copy import CopiedBook, _tables, _write, copy_in
from isochrone.adapters.postgres.consistency import totals_of_book
from isochrone.adapters.postgres.ledger import PostgresLedger
from isochrone.adapters.postgres.meters import PostgresMeters
from isochrone.adapters.postgres.migrate import migrate
from isochrone.adapters.postgres.pool import APPLICATION_ROLE, Pool, check_role, open_pool
from isochrone.adapters.postgres.prices import PostgresPrices
from isochrone.adapters.postgres.registry import open_registry
from isochrone.adapters.postgres.server import OWNER, PostgresPlan
from isochrone.adapters.postgres.usage_days import PostgresUsageDays
from isochrone.core.billing.hold import Hold
from isochrone.core.errors import InvalidInput, StoreUnavailable
from isochrone.core.ids import KeyId, OrgId
from isochrone.core.world.tenant import EVERY_TENANT, Scope
from isochrone.ports.book import UsageFilter
from isochrone.ports.registry import Registry
from isochrone.wiring.backup import MANIFEST, Place, backup, read_backup, restore
from tests.contract.test_ledger import (
    DAY,
    ORG,
    PROJECT,
    START,
    a_report,
    a_sheet,
    sell_at,
    zero_sum,
)
from tests.contract.test_meters import an_event, gpus
from tests.contract.test_migrations import BOOKED
from tests.contract.test_row_security import registry  # noqa: F401 - a fixture
from tests.contract.test_settling import charged
from tests.fixtures.settling_worker import charge_all, reports, settle

_numbers = count()


def tell(what: str, rows: int) -> None:
    assert rows >= 0, what


@pytest.fixture
def place(database: str, tmp_path: Path) -> Place:
    keys = {name: tmp_path / name for name in ("signing_key", "admin_key", "nats_secrets")}
    for name, path in keys.items():
        path.write_text(f"{name} of the first cloud\n")
    return Place(database=database, keys=keys)


@pytest.fixture
def fresh(postgres: PostgresPlan, tmp_path: Path) -> Iterator[Place]:
    """An empty database without tables, and no keys."""
    name = f"fresh_{next(_numbers)}"
    folder = tmp_path / "fresh"
    folder.mkdir()
    with psycopg.connect(postgres.superuser_conninfo, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name} OWNER {OWNER}")
        yield Place(
            database=make_conninfo(postgres.conninfo, dbname=name),
            keys={each: folder / each for each in ("signing_key", "admin_key", "nats_secrets")},
        )
        admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def full(registry: Registry, pool: Pool) -> Pool:  # noqa: F811
    """A book with something in every part: tenants, usage, charges, credits, holds, meters."""
    sell_at(PostgresPrices(pool), a_sheet())
    settle(pool, reports(400, Random(4)))
    charge_all(PostgresLedger(pool))
    meters = PostgresMeters(pool)
    told = [an_event("b1"), gpus("g1", 3, 100, 9000), an_event("odd", "phone_minutes")]
    meters.add_events(Scope(org_id=ORG), told, now=1)
    meters.add_events(
        Scope(org_id=ORG), [an_event("b2", replaces="b1", amount=4, subject="\ttab\\")], now=2
    )
    hold = Hold(
        org_id=ORG, id="h1", project_id=PROJECT, currency="EUR", amount_pico=7, opened_at=START,
        expires_at=START + 10**15,
    )
    PostgresLedger(pool).open_hold(hold, now=3)
    return pool


def tables(conninfo: str) -> dict[str, list[Any]]:
    """All rows of all tables, as the owner of the database reads them; without what a restoration
    numbers anew: serials, and the epoch of the voters with its begin."""
    with psycopg.connect(conninfo) as connection:
        connection.execute("SELECT set_config('isochrone.tenant', '*', true)")
        names = connection.execute(
            "SELECT relname::text FROM pg_class WHERE relnamespace = 'public'::regnamespace"
            " AND relkind IN ('r', 'p') AND relname <> 'view_serial'"
        ).fetchall()
        rows = {
            name: sorted(map(str, connection.execute(f'SELECT * FROM "{name}"').fetchall()))
            for (name,) in names
        }
        if rows.get("voters"):
            voters = connection.execute("SELECT sites, former FROM voters").fetchall()
            rows["voters"] = list(map(str, voters))
        return rows


def test_a_restored_book_holds_what_was_there_and_goes_on(
    full: Pool, place: Place, fresh: Place, tmp_path: Path
) -> None:
    made = backup(place, tmp_path / "copy", now=5, tell=tell)
    assert int(made.totals.requests) > 200
    assert {each.account for each in made.totals.ledger} >= {"owed", "revenue", "held", "credit"}
    before = tables(place.database)
    assert len([name for name, rows in before.items() if rows]) > 20
    assert restore(fresh, tmp_path / "copy", replacing=False, tell=tell) == made
    assert tables(fresh.database) == before
    for name, path in fresh.keys.items():
        assert path.read_bytes() == place.keys[name].read_bytes()
        assert path.stat().st_mode & 0o077 == 0
    pool = open_pool(make_conninfo(fresh.database, user=APPLICATION_ROLE))
    check_role(pool)
    live = open_registry(pool).tenants.live_key("one".ljust(64, "0"), now=START)
    assert live is not None
    assert live.key.id == KeyId("k-one")
    again = PostgresBook(pool)
    assert again.book_usage(reports(400, Random(4)), now=9) == 0, "each request once, still"
    assert PostgresMeters(pool).add_events(Scope(org_id=ORG), [gpus("g1", 3, 100, 9000)], now=1)[
        0
    ].verdict == "duplicate"
    assert charged(pool) == charged(full), "and nothing is charged twice"
    assert zero_sum(pool)
    # What numbers rows goes on after them, and the guards stand.
    hold = Hold(
        org_id=ORG, id="h2", project_id=PROJECT, currency="EUR", amount_pico=7, opened_at=START,
        expires_at=START + 10**15,
    )
    assert PostgresLedger(pool).open_hold(hold, now=3) == "recorded"
    with pool.transaction(Scope(org_id=OrgId("one"))) as connection:
        row = connection.execute("SELECT count(*) FROM projects").fetchone()
        assert row == (1,)
    with (
        psycopg.connect(fresh.database) as owner,
        pytest.raises(psycopg.errors.InsufficientPrivilege),
    ):
        owner.execute("DELETE FROM postings")
    with pool.transaction() as connection:
        row = connection.execute("SELECT serial FROM view_serial").fetchone()
    assert row is not None
    assert row[0] >= 10**9, "gateways take what is signed from now on"
    pool.close()


def test_days_that_left_the_book_come_along_as_what_stands_for_them(
    full: Pool, place: Place, fresh: Place, tmp_path: Path
) -> None:
    archive = tmp_path / "archive"
    days = PostgresUsageDays(full, archive)
    days.keep(since=START, until=START + DAY)
    told = [a_report(number) for number in range(90)]
    PostgresBook(full).book_usage(told, now=1)
    file = days.detach(EVERY_TENANT, START, now=START + 90 * DAY)
    assert file is not None
    PostgresBook(full).book_usage([a_report(500)], now=1)
    made = backup(place, tmp_path / "copy", now=5, tell=tell)
    assert [(each.name, each.sha256) for each in made.archive] == [(file.file, file.sha256)]
    before = tables(place.database)
    restore(fresh, tmp_path / "copy", replacing=False, tell=tell)
    assert tables(fresh.database) == before
    pool = open_pool(make_conninfo(fresh.database, user=APPLICATION_ROLE))
    book = PostgresBook(pool)
    assert book.book_usage([*told, a_report(500)], now=9) == 0, "each request once, still"
    (day,) = (each for each in PostgresUsageDays(pool, archive).days() if each.files)
    assert (day.day_at, day.rows) == (START, 1)
    assert PostgresUsageDays(pool, archive).attach(
        EVERY_TENANT, START, now=START, keep_until=START
    ) == file.rows
    assert book.wrong_hours(since=0, until=2**62) == 0
    pool.close()


def test_a_backup_is_of_one_instant_while_others_book_and_charge(
    full: Pool, place: Place, fresh: Place, tmp_path: Path
) -> None:
    stop = threading.Event()

    def work() -> None:
        book, ledger = PostgresBook(full), PostgresLedger(full)
        for number in range(1000):
            if stop.is_set():
                return
            book.book_usage(reports(60, Random(1000 + number)), now=7)
            charge_all(ledger)

    worker = threading.Thread(target=work)
    worker.start()
    try:
        for number in range(3):  # each is checked: a torn one would be refused
            made = backup(place, tmp_path / f"copy{number}", now=number, tell=tell)
    finally:
        stop.set()
        worker.join()
    restore(fresh, tmp_path / "copy2", replacing=False, tell=tell)
    rows = {each.name: each.rows for each in made.tables}
    assert len(tables(fresh.database)["usage"]) == rows["usage"]


def test_a_backup_of_an_earlier_release_is_brought_forward(
    fresh: Place, postgres: PostgresPlan, tmp_path: Path
) -> None:
    with psycopg.connect(postgres.superuser_conninfo, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE earlier OWNER {OWNER}")
        old = make_conninfo(postgres.conninfo, dbname="earlier")
        migrate(old, revision="0012")
        with psycopg.connect(old) as owner:
            owner.execute("SELECT set_config('isochrone.tenant', '*', true)")
            owner.execute(BOOKED)
        migrate(old, revision="0013")
        with pytest.raises(InvalidInput, match="has schema 0013 and this release works with"):
            backup(replace(fresh, database=old), tmp_path / "copy", now=5, tell=tell)
        with psycopg.connect(old) as owner:  # as that release copied it
            owner.execute("SELECT set_config('isochrone.tenant', '*', true)")
            copies = [
                _write(owner, tmp_path, name, columns, key, tell)
                for name, columns, key in _tables(owner) if name != "alembic_version"
            ]
            totals = totals_of_book(owner)
        admin.execute("DROP DATABASE earlier WITH (FORCE)")
    book = CopiedBook(schema="0013", tables=tuple(copies), archive=(), totals=totals)
    copy_in(fresh.database, tmp_path, book, replacing=False, tell=tell)
    assert len(tables(fresh.database)["usage"]) == 6
    with psycopg.connect(fresh.database) as owner:
        owner.execute("SELECT set_config('isochrone.tenant', '*', true)")
        row = owner.execute("SELECT count(*) FROM usage_days.day_2026_11_21").fetchone()
    assert row == (3,)


def damage_byte(folder: Path) -> None:
    path = folder / "tables" / "usage.copy.gz"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def shorten(folder: Path) -> None:
    path = folder / "tables" / "entries.copy.gz"
    path.write_bytes(path.read_bytes()[:-20])


def lose_key(folder: Path) -> None:
    (folder / "keys" / "signing_key").unlink()


def lose_manifest(folder: Path) -> None:
    (folder / MANIFEST).unlink()


def change_manifest(**changes: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        content = json.loads((folder / MANIFEST).read_text())
        (folder / MANIFEST).write_text(json.dumps({**content, **changes}))

    return change


def change_rows(table: str, old: bytes, new: bytes) -> Callable[[Path], None]:
    """Somebody who can make digests right, but not the book."""

    def change(folder: Path) -> None:
        path = folder / "tables" / f"{table}.copy.gz"
        text = gzip.decompress(path.read_bytes())
        assert old in text
        path.write_bytes(gzip.compress(text.replace(old, new, 1)))
        content = json.loads((folder / MANIFEST).read_text())
        (listed,) = (each for each in content["tables"] if each["name"] == table)
        listed["content_sha256"] = hashlib.sha256(text.replace(old, new, 1)).hexdigest()
        listed["file"]["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
        listed["file"]["size_bytes"] = path.stat().st_size
        (folder / MANIFEST).write_text(json.dumps(content))

    return change


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (damage_byte, "usage.copy.gz is damaged"), (shorten, "entries.copy.gz is damaged"),
        (lose_key, "signing_key: No such file"), (lose_manifest, "is no backup"),
        (change_manifest(schema="9999"), "of a newer release"),
        (change_manifest(version=2), "is of version 2"),
        (change_manifest(tables="?"), "is damaged, or of a newer release"),
        (change_rows("request_hours", b"tiny", b"tinz"), "are not those of the requests"),
        (change_rows("holds", b"\t7\t", b"\t8\t"), "open holds are not what is held"),
        (change_rows("usage", b"tiny", b"ti\\0"), "cannot be restored"),
    ],
)
def test_a_backup_that_is_not_right_is_refused_and_nothing_is_restored(
    full: Pool, place: Place, fresh: Place, tmp_path: Path, damage: Callable[[Path], None],
    said: str,
) -> None:
    backup(place, tmp_path / "copy", now=5, tell=tell)
    damage(tmp_path / "copy")
    with pytest.raises(InvalidInput, match=said):
        restore(fresh, tmp_path / "copy", replacing=False, tell=tell)
    assert tables(fresh.database) == {}
    assert not any(path.exists() for path in fresh.keys.values())


def test_a_place_with_a_book_or_other_keys_is_refused_unless_told(
    full: Pool, place: Place, fresh: Place, database: str, tmp_path: Path
) -> None:
    backup(place, tmp_path / "copy", now=5, tell=tell)
    before = tables(place.database)
    with pytest.raises(InvalidInput, match="sessions are connected"):
        restore(place, tmp_path / "copy", replacing=True, tell=tell)
    full.close()
    with pytest.raises(InvalidInput, match="holds a book already"):
        restore(place, tmp_path / "copy", replacing=False, tell=tell)
    fresh.keys["admin_key"].write_text("another\n")
    with pytest.raises(InvalidInput, match="admin_key holds another key"):
        restore(fresh, tmp_path / "copy", replacing=False, tell=tell)
    assert tables(fresh.database) == {}
    pool = open_pool(make_conninfo(place.database, user=APPLICATION_ROLE))
    PostgresBook(pool).book_usage(reports(90, Random(77)), now=9)
    pool.close()
    place.keys["admin_key"].write_text("another\n")
    assert tables(place.database) != before
    restore(place, tmp_path / "copy", replacing=True, tell=tell)
    assert tables(place.database) == before
    assert place.keys["admin_key"].read_text() == "admin_key of the first cloud\n"


def test_keys_that_cannot_be_written_leave_the_book_as_it_was(
    full: Pool, place: Place, fresh: Place, tmp_path: Path
) -> None:
    backup(place, tmp_path / "copy", now=5, tell=tell)
    lost = replace(fresh, keys={**fresh.keys, "nats_secrets": tmp_path / "gone" / "nats.json"})
    with pytest.raises(InvalidInput, match=r"nats\.json: "):
        restore(lost, tmp_path / "copy", replacing=False, tell=tell)
    assert tables(fresh.database) == {}
    assert list((tmp_path / "fresh").iterdir()) == []
    restore(fresh, tmp_path / "copy", replacing=False, tell=tell)
    assert sorted(path.name for path in (tmp_path / "fresh").iterdir()) == sorted(fresh.keys)


def test_other_peoples_tables_are_never_touched(
    full: Pool, place: Place, fresh: Place, tmp_path: Path
) -> None:
    backup(place, tmp_path / "copy", now=5, tell=tell)
    with psycopg.connect(fresh.database) as connection:
        connection.execute("CREATE TABLE recipes (name text)")
    with pytest.raises(InvalidInput, match="holds other tables \\(recipes\\)"):
        restore(fresh, tmp_path / "copy", replacing=True, tell=tell)
    assert list(tables(fresh.database)) == ["recipes"]


@pytest.mark.parametrize("replacing", [False, True])
def test_tables_of_others_who_have_migrations_too_are_never_touched(
    full: Pool, place: Place, fresh: Place, tmp_path: Path, replacing: bool
) -> None:
    backup(place, tmp_path / "copy", now=5, tell=tell)
    with psycopg.connect(fresh.database) as connection:
        connection.execute("CREATE TABLE alembic_version (version_num text)")
        connection.execute("INSERT INTO alembic_version VALUES ('1975ea83b712')")
        connection.execute("CREATE TABLE recipes AS SELECT 'bread' AS name")
    with pytest.raises(InvalidInput, match="holds other tables \\(alembic_version, recipes\\)"):
        restore(fresh, tmp_path / "copy", replacing=replacing, tell=tell)
    assert tables(fresh.database)["recipes"] == ["('bread',)"]


def test_a_table_of_others_beside_a_book_is_lost_only_when_told(
    full: Pool, place: Place, fresh: Place, tmp_path: Path
) -> None:
    backup(place, tmp_path / "copy", now=5, tell=tell)
    migrate(fresh.database)
    with psycopg.connect(fresh.database) as connection:
        connection.execute("CREATE TABLE recipes AS SELECT 'bread' AS name")
    with pytest.raises(InvalidInput, match="holds a book already \\(recipes has rows\\)"):
        restore(fresh, tmp_path / "copy", replacing=False, tell=tell)
    with psycopg.connect(fresh.database) as connection:
        connection.execute("DROP TABLE recipes")
    restore(fresh, tmp_path / "copy", replacing=False, tell=tell)
    assert tables(fresh.database) == tables(place.database)


def test_what_is_inconsistent_is_not_backed_up(
    full: Pool, place: Place, fresh: Place, tmp_path: Path
) -> None:
    with psycopg.connect(place.database) as owner:
        owner.execute("SELECT set_config('isochrone.tenant', '*', true)")
        owner.execute("UPDATE meter_hours SET amount = amount + 1 WHERE meter = 'gpu_seconds'")
    with pytest.raises(InvalidInput, match="3 sums by hour that are not those of the events"):
        backup(place, tmp_path / "copy", now=5, tell=tell)
    assert not list(tmp_path.glob("copy*"))
    with pytest.raises(InvalidInput, match="holds no book"):
        backup(fresh, tmp_path / "copy", now=5, tell=tell)
    away = replace(place, database="host=/nowhere port=1 dbname=x")
    with pytest.raises(StoreUnavailable):
        backup(away, tmp_path / "copy", now=5, tell=tell)


def test_a_folder_with_something_in_it_is_left_alone(
    full: Pool, place: Place, tmp_path: Path
) -> None:
    folder = tmp_path / "copy"
    (tmp_path / "copy.part").mkdir()  # of one that was interrupted
    backup(place, folder, now=5, tell=tell)
    with pytest.raises(InvalidInput, match="exists already"):
        backup(place, folder, now=6, tell=tell)
    assert read_backup(folder, tell=tell).made_at == 5
    assert folder.stat().st_mode & 0o077 == 0
    assert PostgresBook(full).requests(EVERY_TENANT, UsageFilter(), most=1)

"""A backup that is restored a second time: gateways have seen more than it knows of."""

from contextlib import closing
from pathlib import Path

import psycopg

from isochrone.adapters.clock import SystemClock
from isochrone.adapters.postgres.audit import PostgresAudit
from isochrone.adapters.postgres.entitlements import PostgresEntitlements
from isochrone.adapters.postgres.ledger import PostgresLedger
from isochrone.adapters.postgres.pool import Pool, open_pool
from isochrone.adapters.postgres.tenants import PostgresTenants
from isochrone.core.admission.commitments import Commitments
from isochrone.core.admission.entitlement import changed_voters
from isochrone.core.admission.stewards import TERM_NS, Stand
from isochrone.core.billing.hold import Hold
from isochrone.core.ids import OrgId, SiteName
from isochrone.core.world.entitlement import Voters
from isochrone.core.world.tenant import EVERY_TENANT
from isochrone.ports.audit import AuditFilter
from isochrone.wiring.backup import Place, backup, restore
from tests.contract.test_backup import fresh, full, place, tell  # noqa: F401 - fixtures
from tests.contract.test_ledger import ORG, PROJECT, START
from tests.contract.test_row_security import registry  # noqa: F401 - a fixture

SIGNED_SINCE = 5_000
VOTER, OSLO, ROME = SiteName("a"), SiteName("oslo"), SiteName("rome")


def number(conninfo: str, query: str) -> int:
    with psycopg.connect(conninfo) as connection:
        row = connection.execute(query.encode()).fetchone()
    assert row is not None
    return int(row[0])


def test_gateways_take_what_is_signed_after_a_second_restoration(
    full: Pool, place: Place, fresh: Place, tmp_path: Path  # noqa: F811
) -> None:
    """NATS was lost each time, so nobody tells the new control which serials were there."""
    backup(place, tmp_path / "copy", now=5, tell=tell)
    restore(fresh, tmp_path / "copy", replacing=False, tell=tell)
    serial = "SELECT serial FROM view_serial"
    seen = number(
        fresh.database,
        f"UPDATE view_serial SET serial = serial + {SIGNED_SINCE} RETURNING serial",
    )
    restore(fresh, tmp_path / "copy", replacing=True, tell=tell)
    assert number(fresh.database, serial) > seen


def followed(pool: Pool, numbers: tuple[int, int]) -> tuple[list[int], list[int]]:
    """The numbers of postings and of entries of the audit log behind the last that were heard."""
    postings = PostgresLedger(pool).postings(
        EVERY_TENANT, org_id=None, project_id=None, most=10_000, after=numbers[0]
    )
    entries = PostgresAudit(pool).entries(
        EVERY_TENANT, AuditFilter(), most=10_000, after=numbers[1]
    )
    return [each.number for each in postings], [each.serial for each in entries]


def add_to_logs(pool: Pool, name: str) -> None:
    """A posting and an entry of the audit log."""
    hold = Hold(
        org_id=ORG, id=name, project_id=PROJECT, currency="EUR", amount_pico=7, opened_at=START,
        expires_at=START + 10**15,
    )
    PostgresLedger(pool).open_hold(hold, now=3)
    PostgresTenants(pool).change_organisation(
        EVERY_TENANT, OrgId("one"), name=name, retain_days=None
    )


def test_who_follows_a_log_hears_of_what_comes_after_each_restoration(
    full: Pool, place: Place, fresh: Place, tmp_path: Path  # noqa: F811
) -> None:
    """What came after the backup is lost, and who follows the logs has heard of it."""
    backup(place, tmp_path / "copy", now=5, tell=tell)
    for name in ("lost 1", "lost 2", "lost 3"):
        add_to_logs(full, name)
    postings, entries = followed(full, (0, 0))
    for replacing in (False, True):
        restore(fresh, tmp_path / "copy", replacing=replacing, tell=tell)
        with closing(open_pool(fresh.database)) as pool:
            for name in ("new 1", "new 2"):
                add_to_logs(pool, name)
            postings, entries = followed(pool, (postings[-1], entries[-1]))
        assert len(postings) == len(entries) == 2


def test_running_gateways_vote_by_the_voters_of_a_restored_book(
    full: Pool, place: Place, fresh: Place, tmp_path: Path  # noqa: F811
) -> None:
    """Voters were changed after the backup, and the gateways that run know it: none would vote for
    one that has started since and knows of the restored book alone."""
    backup(place, tmp_path / "copy", now=5, tell=tell)
    restore(fresh, tmp_path / "copy", replacing=False, tell=tell)
    pool = open_pool(fresh.database)
    restored = PostgresEntitlements(pool).voters()
    pool.close()
    assert restored is not None
    assert restored.voters.sites == (VOTER,)
    now = SystemClock().wall_ns()
    assert isinstance(
        changed_voters(restored.voters, (OSLO,), changed_at=restored.changed_at, now=now), int
    ), "not changed again before all have heard of it"
    running = Commitments(VOTER, 1, 0)
    running.set_voters(Voters(sites=(VOTER, OSLO, ROME), former=(VOTER,), epoch=1))
    running.set_voters(restored.voters)
    asked = Stand(home=OSLO, site=OSLO, life=2, number=1, epoch=restored.voters.epoch)
    (letter,) = running.hear(OSLO, asked, TERM_NS + 1, 1)
    assert letter.to == OSLO

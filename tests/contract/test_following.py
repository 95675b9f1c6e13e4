"""Who follows what only grows, by the number of the last row that was told, misses none.

On a real PostgreSQL, with transactions that end in another order than they drew their numbers.
"""

from isochrone.adapters.postgres.ledger import PostgresLedger, _record
from isochrone.adapters.postgres.pool import Pool
from isochrone.adapters.postgres.registry import open_registry
from isochrone.adapters.postgres.settled import UNDER_WAY
from isochrone.control.world import seed_of
from isochrone.core.ids import OrgId, ProjectId
from isochrone.core.world.tenant import EVERY_TENANT, Project
from isochrone.ports.audit import AuditFilter
from tests.contract.test_audit import ANNA, NOW
from tests.contract.test_ledger import MINE, a_credit


def test_who_follows_the_ledger_misses_no_posting_that_was_under_way(pool: Pool) -> None:
    ledger = PostgresLedger(pool)
    ledger.record(MINE, a_credit("first"), now=1)

    def keys(after: int) -> list[str]:
        rows = ledger.postings(MINE, org_id=None, project_id=None, most=9, after=after)
        return [row.posting.key for row in rows]

    with pool.transaction(MINE) as slow:
        assert _record(slow, a_credit("slow"), 2) == "recorded"
        ledger.record(MINE, a_credit("quick"), now=3)
        assert keys(0) == ["first"], "else one that goes on behind it never sees the slow one"
        newest = ledger.postings(MINE, org_id=None, project_id=None, most=9, newest=True)
        assert [row.posting.key for row in newest] == ["quick", "first"]
    assert keys(0) == ["first", "slow", "quick"]


def test_a_posting_is_under_way_before_it_draws_its_number(pool: Pool) -> None:
    """Else one that drew a smaller number might look as if it had not begun."""
    with pool.transaction(MINE) as connection:
        plan = connection.execute(
            "EXPLAIN (VERBOSE, COSTS OFF) INSERT INTO postings (org_id, key, kind, at, currency,"
            f" about, recorded_at) SELECT 'o', 'k', 'credit', 1, 'EUR', '', 1 WHERE {UNDER_WAY}"
        ).fetchall()
    lines = [str(line).strip() for (line,) in plan]
    assert any(line.startswith("One-Time Filter: (pg_current_xact_id()") for line in lines), lines


def test_who_follows_the_audit_log_misses_no_change_that_was_under_way(pool: Pool) -> None:
    registry = open_registry(pool)
    registry.tenants.seed(seed_of("0" * 64, now=NOW), now=NOW)
    last = registry.audit.entries(EVERY_TENANT, AuditFilter(), most=1_000)[-1].serial

    def projects() -> list[str]:
        rows = registry.audit.entries(
            EVERY_TENANT, AuditFilter(kind="project"), most=99, after=last
        )
        return [each.subject for each in rows]

    def add(name: str) -> None:
        project = Project(
            id=ProjectId(name), org_id=OrgId("default"), name=name, created_at=NOW
        )
        registry.tenants.add_project(ANNA, project, once=None)

    with pool.transaction(ANNA) as slow:
        slow.execute("UPDATE projects SET name = 'slow' WHERE id = 'default'")
        add("quick")
        assert projects() == []
    assert projects() == ["default", "quick"]

"""The registry on PostgreSQL: its parts over one pool."""

from pathlib import Path

from isochrone.adapters.postgres.accounts import PostgresAccounts
from isochrone.adapters.postgres.audit import PostgresAudit
from isochrone.adapters.postgres.entitlements import PostgresEntitlements
from isochrone.adapters.postgres.estate import PostgresEstate
from isochrone.adapters.postgres.experiments import PostgresExperiments
from isochrone.adapters.postgres.leases import PostgresLeases
from isochrone.adapters.postgres.ledger import PostgresLedger
from isochrone.adapters.postgres.limits import PostgresLimits
from isochrone.adapters.postgres.members import PostgresMembers
from isochrone.adapters.postgres.meters import PostgresMeters
from isochrone.adapters.postgres.once import PostgresWrites
from isochrone.adapters.postgres.pool import Pool
from isochrone.adapters.postgres.prices import PostgresPrices
from isochrone.adapters.postgres.reconciling import PostgresReconciling
from isochrone.adapters.postgres.tenants import PostgresTenants
from isochrone.adapters.postgres.traffic import PostgresTraffic
from isochrone.adapters.postgres.usage_days import PostgresUsageDays
from isochrone.ports.registry import Registry


def open_registry(pool: Pool, archive: Path | None = None) -> Registry:
    """The parts of the registry on `pool`, which stays the caller's to close. `archive` is the
    folder that days of usage are detached to; without one they stay in the book."""
    return Registry(
        writes=PostgresWrites(pool), tenants=PostgresTenants(pool), members=PostgresMembers(pool),
        accounts=PostgresAccounts(pool), audit=PostgresAudit(pool),
        estate=PostgresEstate(pool), leases=PostgresLeases(pool),
        entitlements=PostgresEntitlements(pool), prices=PostgresPrices(pool),
        ledger=PostgresLedger(pool), reconciling=PostgresReconciling(pool),
        meters=PostgresMeters(pool), traffic=PostgresTraffic(pool), limits=PostgresLimits(pool),
        usage_days=PostgresUsageDays(pool, archive), experiments=PostgresExperiments(pool),
    )

"""Registry: the book of record as control sees it, without usage (which is `ports/book.py`)."""

from dataclasses import dataclass

from isochrone.ports.accounts import Accounts
from isochrone.ports.audit import Audit
from isochrone.ports.entitlements import Entitlements
from isochrone.ports.estate import Estate
from isochrone.ports.experiments import Experiments
from isochrone.ports.leases import Leases
from isochrone.ports.ledger import Ledger
from isochrone.ports.limits import Limits
from isochrone.ports.members import Members
from isochrone.ports.meters import Meters
from isochrone.ports.prices import Prices
from isochrone.ports.reconciling import Reconciling
from isochrone.ports.tenants import Tenants
from isochrone.ports.traffic import Traffic
from isochrone.ports.usage_days import UsageDays
from isochrone.ports.writes import Writes


@dataclass(frozen=True, slots=True, kw_only=True)
class Registry:
    """The parts of the registry over one database."""

    writes: Writes
    tenants: Tenants
    members: Members
    accounts: Accounts
    audit: Audit
    estate: Estate
    leases: Leases
    entitlements: Entitlements
    prices: Prices
    ledger: Ledger
    reconciling: Reconciling
    meters: Meters
    traffic: Traffic
    limits: Limits
    usage_days: UsageDays
    experiments: Experiments

"""Audit: who changed what in the book of record, in the order in which it happened.

Only read here: entries are written by the database itself, in the transaction of each change.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from isochrone.core.world.tenant import Scope

Change = Literal["made", "changed", "removed"]
# What entries can be of.
KINDS = (
    "account", "attached_day", "deployment", "detached_day", "detached_evidence", "entitlement",
    "experiment", "key", "limit", "meter_event", "model", "organisation", "person", "policy",
    "posting", "price_sheet", "principal", "project", "revoked_login", "session", "site",
    "site_token", "voters", "world",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEntry:
    """One change of one record. `org_id` is None for the cloud's own records. `before` and `after`
    are its fields, secrets and personal ones as '(hidden)'; None before it was made, and after it
    was removed."""

    serial: int
    at: int
    org_id: str | None
    actor: str
    kind: str
    subject: str
    change: Change
    before: Mapping[str, object] | None
    after: Mapping[str, object] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditFilter:
    """Entries that are wanted; None is no condition. Instants are wall ns UTC, `until` excluded."""

    actor: str | None = None
    kind: str | None = None
    subject: str | None = None
    org_id: str | None = None
    since: int | None = None
    until: int | None = None


class Audit(Protocol):
    def entries(
        self, scope: Scope, chosen: AuditFilter, *, most: int, after: int | None = None,
        newest: bool = False,
    ) -> Sequence[AuditEntry]:
        """Entries with a serial above `after`, oldest first; with `newest` those below it, newest
        first."""
        ...

"""Estate: sites, links, models, deployments and how sites join, in the book of record.

Synchronous on purpose: one call is one transaction, instants and hashes of secrets are arguments.
The estate belongs to the operator of the cloud; only keys, policies and entitlements in the
`Snapshot` carry tenants. All calls raise StoreUnavailable when the book is away.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from isochrone.core.ids import ModelName, SiteName
from isochrone.core.world.entitlement import Entitlement, Voters
from isochrone.core.world.limit import OrgLimits
from isochrone.core.world.model import Deployment, Model
from isochrone.core.world.site import Link, Site, SiteLinks
from isochrone.core.world.tenant import ApiKey, Policy, Scope
from isochrone.ports.logins import RevokedLogin
from isochrone.ports.tenants import Once, Page


@dataclass(frozen=True, slots=True, kw_only=True)
class Intent:
    """What the operator's world file asks for; `fingerprint` tells whether it changed."""

    fingerprint: str
    sites: tuple[Site, ...]
    models: tuple[Model, ...]
    deployments: tuple[Deployment, ...]
    links: tuple[SiteLinks, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Everything that gateways and agents are told, as one transaction saw it.

    `removed_sites` are told to run nothing. `keys` holds live keys only, `entitlements` what is
    not revoked; `voters` is None before the first of them.
    """

    sites: tuple[Site, ...]
    removed_sites: tuple[SiteName, ...]
    links: tuple[SiteLinks, ...]
    models: tuple[Model, ...]
    deployments: tuple[Deployment, ...]
    policies: tuple[Policy, ...]
    keys: tuple[ApiKey, ...]
    entitlements: tuple[Entitlement, ...] = ()
    voters: Voters | None = None
    limits: tuple[OrgLimits, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteToken:
    """A one-time token with which `site` may join until `expires_at`."""

    secret_sha256: str
    site: SiteName
    created_at: int
    expires_at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Joining:
    """What a joining site states about itself."""

    token_sha256: str
    peer_key: str
    nats_key: str
    host: str
    port: int
    public_url: str


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinedSite:
    """A site, and when what it logs in with was issued: after all of the same key that was revoked.
    """

    site: Site
    joined_at: int


class Estate(Protocol):
    def reconcile(self, intent: Intent, *, now: int) -> bool:
        """Make the book match; False when this fingerprint was the last one reconciled.

        Sites that remain keep their identity (keys, host, port), and stay drained. What the
        intent does not name is removed, with the keys and open tokens of sites, whose logins are
        refused a minute later; usage that names it stays.
        """
        ...

    def snapshot(self, *, now: int) -> Snapshot:
        """What holds at `now`: keys whose end is past are not in it."""
        ...

    def sites(self, page: Page) -> Sequence[Site]: ...

    def site(self, name: SiteName) -> Site:
        """Raises NotFound."""
        ...

    def set_draining(self, scope: Scope, name: SiteName, draining: bool) -> Site:
        """Empty a site, or let it take requests again. Raises NotFound."""
        ...

    def links(self, name: SiteName) -> Sequence[Link]: ...

    def set_links(self, links: Sequence[SiteLinks]) -> None:
        """Set measured round trips; emulated links stay as they are, unknown sites are skipped."""
        ...

    def add_token(self, scope: Scope, token: SiteToken, *, once: Once | None) -> SiteToken:
        """Raises NotFound for an unknown site."""
        ...

    def join(self, joining: Joining, *, now: int) -> JoinedSite:
        """Spend the token and take over the site's keys and address. The login of a key that it had
        before is revoked.

        The same token with the same keys and address again, before it expires, changes nothing and
        returns the same. Raises Untrusted when the token is unknown, expired or spent with others,
        and when another site has the NATS key.
        """
        ...

    def revoke_login(self, scope: Scope, name: SiteName, *, now: int) -> Site:
        """Revoke the site's login and forget its keys and open tokens: it has not joined any more.
        Nothing changes for one that has not. Raises NotFound."""
        ...

    def revoked_logins(self, *, now: int) -> Sequence[RevokedLogin]:
        """Every login that is to be refused at `now`, of all that were taken back."""
        ...

    def models_with_sites(self, page: Page) -> Sequence[tuple[Model, tuple[SiteName, ...]]]:
        """Models and the sites where at least one replica of each is wanted."""
        ...

    def deployments(self, page: Page, *, site: SiteName | None = None) -> Sequence[Deployment]:
        """Ordered by site, then model; the page's `after` is `SITE/MODEL`."""
        ...

    def set_replicas(
        self, scope: Scope, site: SiteName, model: ModelName, replicas: int
    ) -> Deployment:
        """Raises NotFound for a deployment that does not exist. One that was stopped is not any
        more."""
        ...

    def restart(
        self, scope: Scope, site: SiteName, model: ModelName, index: int, *, up_to: int
    ) -> Deployment:
        """Replica `index` is to be replaced if its generation is `up_to` or below. The same again,
        or a lower one, changes nothing. Raises NotFound for a deployment or replica that is not
        wanted."""
        ...

    def set_running(
        self, scope: Scope, site: SiteName, running: bool, *, at_once: bool
    ) -> Sequence[Deployment]:
        """Stop all replicas of a site, at once or after their work, and remember how many there
        were; or run as many again. Raises NotFound."""
        ...

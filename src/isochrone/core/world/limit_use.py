"""What gateways say to control of limits that they decide about, so that people see it."""

from dataclasses import dataclass

from isochrone.core.ids import LimitId, SiteName


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteUse:
    """What a gateway said last: what it may use (`granted`), of which it has `used` so much and
    holds so much for what runs."""

    site: SiteName
    granted: int
    used: int
    held: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitUse:
    """Of a budget, `used` counts requests that came from `mark` on (wall ns). `left`: what nobody
    was granted."""

    limit: LimitId
    mark: int
    left: int
    sites: tuple[SiteUse, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitReport:
    """What the gateway of `site` decides about."""

    site: SiteName
    limits: tuple[LimitUse, ...]

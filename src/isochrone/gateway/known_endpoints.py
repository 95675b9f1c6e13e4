"""Which APIs the engines of each site have, as their digests say."""

from isochrone.core.ids import ModelName, SiteName
from isochrone.core.metering.event import Endpoint
from isochrone.core.routing.choice import Refused
from isochrone.core.world.digest import SiteDigest
from isochrone.core.world.model import COMMON_ENDPOINTS
from isochrone.gateway.surface import PATHS


class KnownEndpoints:
    """The last word of every site. Owned by one event loop."""

    def __init__(self) -> None:
        self._by_site: dict[SiteName, dict[ModelName, tuple[Endpoint, ...]]] = {}

    def heard(self, digest: SiteDigest) -> None:
        """Take a site's digest in."""
        self._by_site[digest.site] = {
            load.model: load.endpoints for load in digest.loads if load.ready
        }

    def of(self, model: ModelName) -> list[tuple[Endpoint, ...]]:
        """What each site with a ready replica of the model has."""
        return [models[model] for models in self._by_site.values() if model in models]

    def lacking(self, endpoint: Endpoint, model: ModelName) -> tuple[Refused, ...]:
        """Sites whose engines of the model are known not to have the endpoint."""
        if endpoint in COMMON_ENDPOINTS:
            return ()
        detail = f"no engine there has {PATHS[endpoint]}"
        return tuple([
            Refused(site=site, rule="no_ready_replica", detail=detail)
            for site, models in self._by_site.items()
            if model in models and endpoint not in models[model]
        ])

"""View: everything that a gateway knows about the cloud when it decides, as one frozen value."""

from collections.abc import Mapping
from dataclasses import dataclass

from isochrone.core.ids import ModelName, PolicyId, SiteName
from isochrone.core.world.model import Model
from isochrone.core.world.site import Link, Site
from isochrone.core.world.tenant import Policy


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """The last good view of one gateway. `links` lead from `own_site` to its peers.

    `deployments`: model -> sites that have a deployment of it. `sites` may lack `own_site` for a
    moment at start: then nothing that depends on the own site's attributes is allowed.
    """

    own_site: SiteName
    sites: Mapping[SiteName, Site]
    links: Mapping[SiteName, Link]
    models: Mapping[ModelName, Model]
    deployments: Mapping[ModelName, frozenset[SiteName]]
    policies: Mapping[PolicyId, Policy]

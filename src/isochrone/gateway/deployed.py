"""What a gateway reads of the view's entry of a deployment."""

import msgspec

from isochrone.core.world.site_policy import SitePolicy


class Deployed(msgspec.Struct, frozen=True):
    """The part of a deployment that matters here: that `site` serves `model`, with no `replicas`
    where an operator stopped it, and how classes share its slots there."""

    site: str
    model: str
    replicas: int = 1
    admission: SitePolicy | None = None

"""What a gateway reads of the view's entry of a deployment."""

import msgspec

from isochrone.core.world.site_policy import SitePolicy


class Deployed(msgspec.Struct, frozen=True):
    """The part of a deployment that matters here: that `site` serves `model`, and how classes share
    its slots there."""

    site: str
    model: str
    admission: SitePolicy | None = None

"""What a gateway reads of the view's entry of a deployment."""

import msgspec


class Deployed(msgspec.Struct, frozen=True):
    """The part of a deployment that matters here: that `site` serves `model`."""

    site: str
    model: str
